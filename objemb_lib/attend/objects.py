"""Objects: images as sets of object vectors, searched by one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, whole_image
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.intervals import Evaluation
from objemb_lib.measure.metrics import as_floats, evaluate_scores


def image_scores(queries: np.ndarray, vectors: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Scores of images for queries: the similarity of the object of each that fits best.

    Args:
        queries: ``(Q, D)``, one object each. vectors: ``(M, D)`` of the objects of ``N`` images.
        image: ``(M,)`` the image of each object, in order: 0 .. N - 1, each at least once.
    Returns:
        ``(Q, N)``.
    Raises:
        DataError: images out of order, or without objects.

    >>> objects = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> image_scores(np.array([[1.0, 0.0]]), objects, np.array([0, 0, 1])).tolist()
    [[1.0, 0.0]]
    """
    image = np.asarray(image)
    starts = np.flatnonzero(np.diff(image, prepend=-1))
    if len(image) != len(vectors) or not np.array_equal(image[starts], np.arange(len(starts))):
        problem = f"{len(vectors)} objects of images {image[:5].tolist()} ..."
        raise DataError(problem, "Pass the objects image by image, at least one of each.")
    every = as_floats(queries) @ as_floats(vectors).T
    return np.maximum.reduceat(every, starts, axis=1)


def listed_scores(
    scores: np.ndarray, ids: np.ndarray, image: np.ndarray, dataset: ImageDataset
) -> np.ndarray:
    """Scores of images from an index's short lists, for :func:`evaluate.evaluate_scores`.

    An image counts by its best object in the list. Images that are not in it come right after it.

    Args:
        scores, ids: ``(Q, R)`` as of :meth:`index.Index.search`, a line for each query of
            ``dataset``. Ids below ``M`` are its objects; others are distractors, each an image of
            its own; -1 is nothing.
        image: ``(M,)`` image of each object.
    Returns:
        ``(Q, G + R)``: the gallery, then the distractors of each list.

    >>> from pathlib import Path
    >>> from objemb_lib.data.dataset import ImageDataset
    >>> three = ImageDataset("toy", "test", Path(), list("abc"), np.arange(3), content="x")
    >>> scores = np.array([[0.9, 0.8, 0.7]] * 3)
    >>> found = listed_scores(scores, np.array([[7, 1, 0]] * 3), np.array([0, 0, 1, 2]), three)
    >>> found[0].round(1).tolist()
    [0.8, -0.3, -0.3, 0.9, -1.3, -1.3]
    """
    n, last = len(dataset), float(scores[ids >= 0].min(initial=np.inf))
    found = np.full((len(ids), n + ids.shape[1]), last - 1)
    inside = (ids >= 0) & (ids < len(image))
    query, place = np.nonzero(inside)
    np.maximum.at(found, (query, image[ids[inside]]), scores[query, place])
    found[:, n:] = np.where(ids >= len(image), scores, last - 2)
    return found[:, [*dataset.gallery, *range(n, found.shape[1])]]


def oracle_query(objects: Objects, dataset: ImageDataset) -> np.ndarray:
    """``(N,)``: of each image the row of the object that a click on its main object would choose.

    The box that meets the true main box best (IoU), whatever source it is from; without a true
    box, the one of the highest score.
    """
    where, rows = objects.where, []
    for many, fit, true in zip(where.boxes, where.scores, dataset.boxes):
        if len(true):
            main = torch.from_numpy(np.asarray(true[:1], np.float32))
            fit = box_iou(torch.from_numpy(many), main)[:, 0].numpy()
        rows.append(np.argmax(fit))
    return np.cumsum(where.counts) - where.counts + rows


def retrieval_scores(
    vectors: np.ndarray, objects: Objects, asking: np.ndarray, dataset: ImageDataset
) -> np.ndarray:
    """``(Q, G)`` for :func:`evaluate.evaluate_scores`: one object of each query asks.

    Args:
        vectors: ``(M, D)``, L2-normalised, of ``objects``. asking: ``(N,)``, of each image the
            row that asks, see :func:`oracle_query`.
    """
    asked = vectors[np.asarray(asking)[dataset.queries]]
    return image_scores(asked, vectors, objects.image)[:, dataset.gallery]


def evaluate_objects(
    objects: Objects,
    dataset: ImageDataset,
    pair: tuple[str, str] = ("head", "spoc"),
    metrics: Sequence[str] = ("mAP", "R@1"),
) -> Evaluation:
    """Retrieval by a click on each query's main object: images count by their best object.

    Args:
        objects: of ``dataset``. pair: stage and pooling, of those in ``objects.vectors``.
    """
    vectors = l2(objects.vectors[pair])
    scores = retrieval_scores(vectors, objects, oracle_query(objects, dataset), dataset)
    return evaluate_scores(scores, dataset, metrics)


def object_label(dataset: ImageDataset, i: int, box: np.ndarray) -> int:
    """The label of the true box that a box meets by an IoU of at least 0.5, else -1."""
    if not len(dataset.boxes[i]):
        return -1
    boxes = torch.from_numpy(np.asarray(dataset.boxes[i], np.float32))
    meets = box_iou(torch.as_tensor(np.asarray(box, np.float32))[None], boxes)[0]
    return int(dataset.box_labels[i][int(meets.argmax())]) if meets.max() >= 0.5 else -1


def object_truth(
    dataset: ImageDataset, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Label and category of each of some objects, both ``(M,)``; -1 where nobody knows.

    Args:
        image: ``(M,)``. boxes: ``(M, 4)``.
    """
    labels = np.array([object_label(dataset, i, b) for i, b in zip(image.tolist(), boxes)], int)
    known = dict(zip(dataset.labels.tolist(), dataset.categories.tolist()))
    return labels, np.array([known.get(label, -1) for label in labels.tolist()], int)


def first_right(vectors: np.ndarray, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``(M,)``: 1 where an object's nearest one in another image is the same, 0 where not.

    -1 where nobody knows: its own label is -1, or no other image shows it.

    Args:
        vectors: ``(M, D)``, L2-normalised. image, labels: ``(M,)``.
    """
    found, vectors = np.full(len(labels), -1), as_floats(vectors)
    for start in range(0, len(labels), 1024):
        some = slice(start, start + 1024)
        elsewhere = image[some, None] != image
        scores = np.where(elsewhere, vectors[some] @ vectors.T, -np.inf)
        same = labels[some, None] == labels
        knows = (labels[some] >= 0) & (same & elsewhere).any(axis=1)
        found[some] = np.where(knows, labels[scores.argmax(axis=1)] == labels[some], -1)
    return found


def meets_main(dataset: ImageDataset, where: Boxes) -> np.ndarray:
    """``(N,)`` boolean: whether one of the boxes lies on the main object (IoU 0.5)."""
    labels = [[object_label(dataset, i, box) for box in many] for i, many in enumerate(where.boxes)]
    return np.array([own in some for own, some in zip(dataset.labels.tolist(), labels)])


def choices(
    dataset: ImageDataset,
    trunk: Trunk,
    region: Region,
    pairs: Sequence[tuple[str, str]],
    contexts: Sequence[float],
    options: ExtractOptions | None = None,
) -> dict[tuple[tuple[str, str], float], float]:
    """mAP of :func:`evaluate_objects` by pair of stage and pooling, and by context of the boxes.

    Args:
        dataset: training images, since the best is chosen. region: boxes of them, on the map.
    """
    regions = {str(c): replace(region, context=c) for c in contexts}
    found = extract_objects(dataset, trunk, pairs, regions, options)
    return {
        (pair, c): evaluate_objects(found[str(c)], dataset, pair, ["mAP"]).mean("mAP")
        for pair in pairs
        for c in contexts
    }


def looked_at(dataset: ImageDataset, regions: Mapping[str, Region]) -> pd.DataFrame:
    """A line a source of boxes: how many an image; the share of main objects that one of them meets
    (nan where true boxes are not known); images in which none was found and the whole stands in.
    """
    found, known = {}, all(len(boxes) for boxes in dataset.boxes)
    for name, region in regions.items():
        boxes = region.boxes or whole_image(dataset)
        met = meets_main(dataset, boxes).mean() if known else np.nan
        found[name] = (boxes.counts.mean(), met, int(boxes.fell_back.sum()))
    columns = ["boxes an image", "main objects met", "nothing found"]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns).round(2)


def query_strata(dataset: ImageDataset, where: Boxes) -> dict[str, np.ndarray]:
    """Kinds of query that may be hard, each ``(Q,)`` boolean; none where true boxes are unknown.

    Found is a main object that one of the boxes meets, see :func:`meets_main`.
    """
    queries = dataset.queries.tolist()
    if not all(len(dataset.boxes[i]) for i in queries):
        return {}
    found = meets_main(dataset, where)[queries]
    kinds = {"found": found, "missed": ~found}
    if all("layers" in extra for extra in dataset.extra) and len(dataset.extra):
        visible = np.array([dataset.extra[i]["layers"][0]["visible"] for i in queries])
        kinds |= {"wholly visible": visible > 0.98, "partly covered": visible < 0.9}
    main = np.stack([dataset.boxes[i][0] for i in queries])
    side = np.sqrt(np.prod(main[:, 2:] - main[:, :2], axis=1))
    third = np.digitize(side, np.quantile(side, [1 / 3, 2 / 3]), right=True)
    kinds |= {name: third == k for k, name in enumerate(("small", "middle", "large"))}
    return {name: which for name, which in kinds.items() if which.any()}
