"""Objects: images as sets of object vectors, searched by one object.

An image has as many vectors as a source of boxes found objects in it. A query is one object; an
image's score says how well the query meets the best of its objects, or all of them together. The
answer names the images, and in each the box that was meant.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from objemb_lib.embed.boxes import ObjectBoxes
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.config import DataError
from objemb_lib.measure.metrics import evaluate_scores
from objemb_lib.embed.extract import Objects
from objemb_lib.search.index import Index
from objemb_lib.embed.whitening import l2

HOW = ("best", "sum")
SAME = 1e-5  # how far two tables of one photograph's vectors may round


def image_scores(
    queries: np.ndarray, vectors: np.ndarray, image: np.ndarray, how: str = "best"
) -> np.ndarray:
    """Scores of images for queries, from those of their objects.

    Args:
        queries: ``(Q, D)``, one object each. vectors: ``(M, D)`` of the objects of ``N`` images.
        image: ``(M,)`` the image of each object, in order: 0 .. N - 1, each at least once.
        how: ``best``: the similarity of the object that fits best; ``sum``: of all objects
            together, which favours images with many.
    Returns:
        ``(Q, N)``.
    Raises:
        DataError: unknown ``how``; images out of order, or without objects.

    >>> objects = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> image_scores(np.array([[1.0, 0.0]]), objects, np.array([0, 0, 1])).tolist()
    [[1.0, 0.0]]
    >>> image_scores(np.array([[1.0, 0.0]]), objects, np.array([0, 0, 1]), "sum").tolist()
    [[1.6, 0.0]]
    """
    image = np.asarray(image)
    starts = np.flatnonzero(np.diff(image, prepend=-1))
    if len(image) != len(vectors) or not np.array_equal(image[starts], np.arange(len(starts))):
        raise DataError(
            f"{len(vectors)} objects of images {image[:5].tolist()} ...",
            "Pass the objects image by image, at least one of each.",
        )
    if how not in HOW:
        raise DataError(f"no way to score called {how!r}", f"Use one of {', '.join(HOW)}.")
    every = np.asarray(queries) @ np.asarray(vectors).T
    return (np.maximum if how == "best" else np.add).reduceat(every, starts, axis=1)


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

    >>> from objemb_lib.data.dataset import ImageDataset
    >>> three = ImageDataset("toy", "test", Path(), list("abc"), np.arange(3), fingerprint="x")
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


def surest(objects: Objects) -> np.ndarray:
    """``(N,)``: of each image the row of the object of the highest score, the first of equals.

    Of a detector's boxes that is what it is surest of: the query where nobody points at one.
    """
    return _best_rows(objects, objects.scores)


def clicked(objects: Objects, dataset: ImageDataset) -> np.ndarray:
    """``(N,)``: of each image the row of the object that a click on its main object would choose.

    The box that meets the true main box best (IoU), whatever source it is from; without a true
    box, the one of the highest score.
    """
    fit = objects.scores.astype(np.float64)
    for i, boxes in enumerate(dataset.boxes):
        if len(boxes):
            mine = np.flatnonzero(objects.image == i)
            main = torch.from_numpy(np.asarray(boxes[:1], np.float32))
            fit[mine] = box_iou(torch.from_numpy(objects.boxes[mine]), main)[:, 0].numpy()
    return _best_rows(objects, fit)


def _best_rows(objects: Objects, value: np.ndarray) -> np.ndarray:
    starts = np.flatnonzero(np.diff(objects.image, prepend=-1))
    ends = np.append(starts[1:], len(objects))
    return np.array([a + int(np.argmax(value[a:b])) for a, b in zip(starts, ends)])


def retrieval_scores(
    vectors: np.ndarray, objects: Objects, asking: np.ndarray, dataset: ImageDataset, how: str
) -> np.ndarray:
    """``(Q, G)`` for :func:`evaluate.evaluate_scores`: one object of each query asks.

    Args:
        vectors: ``(M, D)``, L2-normalised, of ``objects``. asking: ``(N,)``, of each image the
            row that asks, see :func:`clicked` and :func:`surest`. how: as :func:`image_scores`.
    """
    asked = vectors[np.asarray(asking)[dataset.queries]]
    return image_scores(asked, vectors, objects.image, how)[:, dataset.gallery]


def fuse(of_objects: np.ndarray, of_images: np.ndarray, weight: float) -> np.ndarray:
    """Late fusion: ``(1 - weight)`` of the objects' score plus ``weight`` of the whole image's."""
    return (1 - weight) * of_objects + weight * of_images


def choose_weight(
    of_objects: np.ndarray,
    of_images: np.ndarray,
    dataset: ImageDataset,
    weights: Sequence[float] = tuple(np.linspace(0, 1, 11).round(1)),
    metric: str = "mAP",
) -> float:
    """The best weight of :func:`fuse`; of equals the smallest.

    Args:
        of_objects, of_images: ``(Q, G)`` scores on ``dataset``, which must be training images.
    """

    def value(weight: float) -> float:
        fused = fuse(of_objects, of_images, weight)
        return evaluate_scores(fused, dataset, [metric]).mean(metric)

    return float(max(weights, key=value))


def object_label(dataset: ImageDataset, i: int, box: np.ndarray, overlap: float = 0.5) -> int:
    """The label of the true box that a box meets (IoU) by ``overlap`` at least, else -1."""
    if not len(dataset.boxes[i]):
        return -1
    boxes = torch.from_numpy(np.asarray(dataset.boxes[i], np.float32))
    meets = box_iou(torch.as_tensor(np.asarray(box, np.float32))[None], boxes)[0]
    return int(dataset.box_labels[i][int(meets.argmax())]) if meets.max() >= overlap else -1


def object_truth(
    dataset: ImageDataset, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Label and category of each of some objects, both ``(M,)``; -1 where nobody knows.

    Args:
        image: ``(M,)``. boxes: ``(M, 4)``; see :func:`object_label`.
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
    found = np.full(len(labels), -1)
    for start in range(0, len(labels), 1024):
        some = slice(start, start + 1024)
        elsewhere = image[some, None] != image
        scores = np.where(elsewhere, vectors[some] @ vectors.T, -np.inf)
        same = labels[some, None] == labels
        knows = (labels[some] >= 0) & (same & elsewhere).any(axis=1)
        found[some] = np.where(knows, labels[scores.argmax(axis=1)] == labels[some], -1)
    return found


def meets_main(dataset: ImageDataset, where: ObjectBoxes) -> np.ndarray:
    """``(N,)`` boolean: whether one of the boxes lies on the main object (IoU 0.5)."""
    labels = [[object_label(dataset, i, box) for box in many] for i, many in enumerate(where.boxes)]
    return np.array([own in some for own, some in zip(dataset.labels.tolist(), labels)])


def suspects(dataset: ImageDataset, found: np.ndarray) -> dict[str, np.ndarray]:
    """Kinds of query that may be hard, each ``(Q,)`` boolean; none where true boxes are unknown.

    Args:
        found: ``(N,)`` whether the main object was found, see :func:`meets_main`.
    """
    queries = dataset.queries.tolist()
    if not all(len(dataset.boxes[i]) for i in queries):
        return {}
    found = found[queries]
    kinds = {"found": found, "missed": ~found}
    if all("layers" in extra for extra in dataset.extra) and len(dataset.extra):
        visible = np.array([dataset.extra[i]["layers"][0]["visible"] for i in queries])
        kinds |= {"wholly visible": visible > 0.98, "partly covered": visible < 0.9}
    main = np.stack([dataset.boxes[i][0] for i in queries])
    side = np.sqrt(np.prod(main[:, 2:] - main[:, :2], axis=1))
    third = np.digitize(side, np.quantile(side, [1 / 3, 2 / 3]), right=True)
    kinds |= {name: third == k for k, name in enumerate(("small", "middle", "large"))}
    return {name: which for name, which in kinds.items() if which.any()}


# --- an index of objects ------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """An image that was found: its number in the index and its file, score, and the box meant."""

    image: int
    file: str
    score: float
    box: tuple[float, ...]


class ObjectIndex:
    """An :class:`index.Index` of objects that knows their images and boxes, and answers by image.

    Args:
        dim: of the vectors. meta: strings to keep, see :func:`index.made_by`.
        factory: the family of the index, see :mod:`index`; all but "Flat", "SQ8" and graphs want
            ``index.train(l2(vectors))`` first.
    """

    def __init__(
        self, dim: int, meta: Mapping[str, str] | None = None, factory: str = "Flat"
    ) -> None:
        self.index = Index(dim, meta=meta, factory=factory)
        self.files: list[str] = []  # "" where an image was removed
        self.image = np.zeros(0, np.int64)  # (M,) of every object that ever was
        self.boxes = np.zeros((0, 4), np.float32)  # (M, 4)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        images = sum(map(bool, self.files))
        return f"ObjectIndex({len(self)} objects of {images} images)"

    @property
    def n_bytes(self) -> int:
        """What vectors (or codes), ids and boxes take."""
        return self.index.n_bytes + self.boxes.nbytes

    @property
    def vectors(self) -> np.ndarray:
        """``(M, D)``, L2-normalised, as the index keeps them. Raises DataError once some left."""
        return self.index.vectors(np.arange(len(self.image)))

    def add(self, objects: Objects, pair: tuple[str, str], files: Sequence[str]) -> None:
        """Add the objects of further images; vectors are L2-normalised.

        Args:
            files: one an image, in their order.
        Raises:
            DataError: a file that is there already; else as :meth:`index.Index.add`. Then nothing
                is added.
        """
        files = list(files)
        if len(files) != len(objects.where) or len(set(files)) != len(files) or "" in files:
            raise DataError(
                f"{len(files)} files for {len(objects.where)} images", "Name each image once."
            )
        if again := set(files) & set(self.files):
            raise DataError(
                f"{sorted(again)[0]} is in the index already", "Add an image once only."
            )
        ids = len(self.image) + np.arange(len(objects))
        self.index.add(l2(objects.vectors[pair]), ids)
        self.image = np.concatenate([self.image, objects.image + len(self.files)])
        self.boxes = np.concatenate([self.boxes, objects.boxes])
        self.files += files

    def remove(self, files: Collection[str]) -> None:
        """Take images out, with all of their objects; the others keep their numbers.

        Raises:
            DataError: a file that is not there. Then nothing is removed.
        """
        if absent := set(files) - set(self.files) | set(files) & {""}:
            raise DataError(f"{min(absent)!r} is not in the index", "Name files it holds.")
        gone = [n for n, file in enumerate(self.files) if file in set(files)]
        self.index.remove(np.flatnonzero(np.isin(self.image, gone)))
        for n in gone:
            self.files[n] = ""

    def of_image(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``(K, 4)`` and L2-normalised vectors ``(K, D)`` of an image's objects."""
        mine = np.flatnonzero(self.image == image)
        return self.boxes[mine], self.index.vectors(mine)

    def search(self, vector: np.ndarray, k: int, without: Collection[str] = ()) -> list[Match]:
        """The ``k`` images with the object most like a ``(D,)`` vector, best first.

        Each image counts once, by its best object; so does a photograph that is there twice
        under two names (the same box with the same vector, or with the same code).

        Args:
            without: files that are not to be found, such as the query's own.
        """
        asked, found = l2(np.asarray(vector)[None]), []
        for wanted in _doubling(4 * (k + len(without)), len(self)):
            scores, rows = self.index.search(asked, wanted)
            there = rows[0] >= 0
            found = self._grouped(scores[0, there], rows[0, there], without)
            if len(found) >= k or not there.all():
                break
        return found[:k]

    def _grouped(
        self, scores: np.ndarray, rows: np.ndarray, without: Collection[str]
    ) -> list[Match]:
        best: dict[int, int] = {}
        copies: set[int] = set()
        score_of = dict(zip(rows.tolist(), scores.tolist()))
        for row in rows.tolist():
            image = int(self.image[row])
            if image in best or image in copies or self.files[image] in without:
                continue
            alike = [
                other
                for other in best.values()
                if abs(score_of[other] - score_of[row]) < SAME
                and np.array_equal(self.boxes[other], self.boxes[row])
            ]
            if alike and _any_equal(self.index.vectors(np.array([row, *alike]))):
                copies.add(image)
                continue
            best[image] = row
        return [
            Match(image, self.files[image], score_of[row], tuple(self.boxes[row].tolist()))
            for image, row in best.items()
        ]

    def save(self, path: str | Path) -> None:
        """Write one file, atomically; see :meth:`index.Index.save`."""
        objects = {
            "files": self.files,
            "image": self.image.tolist(),
            "boxes": self.boxes.tolist(),
        }
        kept = self.index.meta
        try:
            self.index.meta = {**kept, "objects": json.dumps(objects)}
            self.index.save(path)
        finally:
            self.index.meta = kept

    @classmethod
    def load(
        cls, path: str | Path, meta: Mapping[str, str] | None = None, mmap: bool = False
    ) -> ObjectIndex:
        """Read what ``save`` wrote; arguments as for :meth:`index.Index.load`.

        Raises:
            DataError: absent, damaged, of another model, or no index of objects.
        """
        index = Index.load(path, meta=meta, mmap=mmap)
        try:
            objects = json.loads(index.meta.pop("objects"))
            found = cls(index.dim, index.meta)
            found.index, found.files = index, objects["files"]
            found.image = np.array(objects["image"], np.int64)
            found.boxes = np.array(objects["boxes"], np.float32).reshape(-1, 4)
            if not len(found.image) == len(found.boxes) >= len(index):
                raise ValueError(f"{len(index)} vectors, {len(found.boxes)} boxes")
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path} is no index of objects ({error})", "Build it again."
            ) from error
        return found


def _any_equal(vectors: np.ndarray) -> bool:
    """Whether the first vector is any of the others, to rounding."""
    return bool(np.isclose(vectors[1:], vectors[0], atol=SAME).all(axis=1).any())


def _doubling(first: int, most: int) -> list[int]:
    """Numbers to ask for, until there is nothing more.

    >>> _doubling(4, 20)
    [4, 8, 16, 20]
    """
    found = [min(first, most)]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


# --- choose a box, search for that object -------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What was asked, and found.

    Args:
        dataset: holds the query. query: image index in it. boxes: ``(K, 4)`` of it.
        chosen: which box was asked for. matches: best first.
    """

    dataset: ImageDataset
    query: int
    boxes: np.ndarray
    chosen: int
    matches: list[Match]

    @property
    def label(self) -> int:
        """Label of the object that was chosen; -1 where nobody knows."""
        return object_label(self.dataset, self.query, self.boxes[self.chosen])


def search_object(
    dataset: ImageDataset,
    query: int,
    objects: Objects,
    pair: tuple[str, str],
    chosen: int,
    index: ObjectIndex,
    k: int = 8,
) -> Answer:
    """Choose a box of an image, search for that object: what a click in a picture does.

    Args:
        dataset: holds the query; its own file is not found. objects: of ``dataset``.
        chosen: number of the box in the image.
    Raises:
        DataError: no such image or box.
    """
    mine = np.flatnonzero(objects.image == query)
    if not 0 <= chosen < len(mine):
        raise DataError(
            f"image {query} has {len(mine)} boxes, none of number {chosen}",
            f"Choose 0 to {len(mine) - 1}." if len(mine) else f"Use {dataset}'s own objects.",
        )
    vector = objects.vectors[pair][mine[chosen]]
    matches = index.search(vector, k, without={dataset.names[query]})
    return Answer(dataset, query, objects.boxes[mine], chosen, matches)


def photograph(path: str | Path) -> ImageDataset:
    """One file as a data set, so that it can ask as any other image does."""
    path = Path(path).resolve()
    return ImageDataset("photograph", "query", path.parent, [path.name], np.array([-1]))
