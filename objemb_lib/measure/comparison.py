"""Comparison of networks: which vectors stand against each other, chosen on train objects only.

A network offers *sources* of vectors: the stages of its body, and in a detector also the levels
of its pyramid, its RoI features and the vector of its box head. Each source speaks with its best
stage and pooling, found on training objects, so that no network loses by a poor choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from objemb_lib.data.catalogue import Splits
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.extract import Vectors
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.trunks import Trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.analysis import backgrounds
from objemb_lib.measure.metrics import evaluate

BODY = ("stage4", "stage5", "head")  # earlier ones know textures, not objects (notebook 01)
SOURCES = ("body", "FPN", "RoI features", "box head")

Pair = tuple[str, str]


def source(stage: str) -> str:
    """Which source a stage belongs to.

    >>> source("head"), source("fpn4"), source("roi"), source("box_head")
    ('body', 'FPN', 'RoI features', 'box head')
    """
    if stage.startswith("fpn"):
        return "FPN"
    return {"roi": "RoI features", "box_head": "box head"}.get(stage, "body")


def candidates(
    trunk: Trunk, body: Sequence[str] = BODY, poolings: Sequence[str] = tuple(POOLINGS)
) -> list[Pair]:
    """Every (stage, pooling) that a network offers; of its body, only the stages in ``body``."""
    stages = [s for s in trunk.stages if s in body or source(s) != "body"]
    return [(stage, pooling) for stage in stages for pooling in poolings]


def best_of(vectors: Vectors, dataset: ImageDataset, metric: str = "mAP") -> Pair:
    """The best (stage, pooling) of all. Arguments as for :func:`choose`."""
    values = {
        p: evaluate(l2(x), dataset, metrics=[metric]).mean(metric) for p, x in vectors.items()
    }
    return max(values, key=values.get)


def choose(vectors: Vectors, dataset: ImageDataset, metric: str = "mAP") -> dict[str, Pair]:
    """The best (stage, pooling) of each source.

    Args:
        vectors: of ``dataset``, which must be training images: nothing is chosen on a test.
    Returns:
        ``{source: (stage, pooling)}``; of equals, the first.
    """
    groups: dict[str, Vectors] = {}
    for pair, x in vectors.items():
        groups.setdefault(source(pair[0]), {})[pair] = x
    return {name: best_of(some, dataset, metric) for name, some in groups.items()}


def few_scenes(dataset: ImageDataset, scenes: int) -> ImageDataset:
    """The first ``scenes`` images of each label: every object, in less time."""
    return part_of(dataset, first_of_each(dataset.labels, scenes))


def part_of(dataset: ImageDataset, images: np.ndarray) -> ImageDataset:
    """Only ``images``, indices or an ``(N,)`` boolean; who asks and who is searched stays."""
    chosen = np.arange(len(dataset))[images]
    asks, searched = (np.isin(chosen, part) for part in (dataset.queries, dataset.gallery))
    return replace(
        dataset.subset(chosen), queries=np.flatnonzero(asks), gallery=np.flatnonzero(searched)
    )


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Where each label stands for the first ``count`` times, in order.

    >>> first_of_each([3, 1, 3, 3, 1], 2).tolist()
    [0, 1, 2, 4]
    """
    seen: Counter[int] = Counter()
    keep = []
    for i, label in enumerate(np.asarray(labels).tolist()):
        seen[label] += 1
        keep += [i] if seen[label] <= count else []
    return np.array(keep, np.int64)


EACH = 4  # images a label that a limit keeps, where there are so many


def few(roles: Splits, scenes: Mapping[str, int] | None = None, limit: int = 0) -> Splits:
    """The same data set with fewer images, to keep a notebook short.

    Args:
        scenes: split ("train" or the name of a test) -> images a label; of others all.
        limit: images a split at most, see :func:`limited`; 0 for no limit.
    """
    all_splits = {"train": roles.train} | roles.tests
    splits = {split: limited(data, limit) for split, data in all_splits.items()}
    for split, each in (scenes or {}).items():
        if split in splits:
            splits[split] = few_scenes(splits[split], each)
    return Splits(splits.pop("train"), splits)


def limited(dataset: ImageDataset, images: int) -> ImageDataset:
    """At most ``images`` images: whole labels left out, evenly, until at least four of each fit.

    Only labels of two images or more are kept (the others could not be found again), two labels
    at least. Data with images of unknown label, which only distract, stay whole. 0: no limit.
    """
    if not images or len(dataset) <= images or (dataset.labels < 0).any():
        return dataset
    labels, counts = np.unique(dataset.labels, return_counts=True)
    labels = labels[counts > 1]
    kept = min(max(2, images // EACH), len(labels))
    chosen = labels[np.linspace(0, len(labels) - 1, kept).astype(int)]
    there = np.flatnonzero(np.isin(dataset.labels, chosen))
    first = first_of_each(dataset.labels[there], max(2, images // max(kept, 1)))
    return part_of(dataset, there[first])


def subsample_labels(dataset: ImageDataset) -> ImageDataset:
    """Only the labels of even number; all where that leaves fewer than two, or some are unknown."""
    even = dataset.labels % 2 == 0
    scarce = len(np.unique(dataset.labels[even])) < 2 or (dataset.labels < 0).any()
    return dataset if scarce else part_of(dataset, even)


def fit_val_split(train: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """Training images to fit something on, and others to judge it by: ``(F,)`` and ``(J,)``.

    Every other object fits, the others judge. Where backgrounds are known, every other
    background too: were they shared, what is fitted would know those of its judges. Where too
    few images would be left to judge, backgrounds are not split; and if objects neither, because
    labels are unknown, all images do both.
    """
    some = np.isin(train.labels, np.unique(train.labels)[::2])
    ways, grounds = [(some, ~some)], backgrounds(train)
    if grounds is not None:
        there = np.isin(grounds, np.unique(grounds)[::2])
        ways.insert(0, (some & there, ~some & ~there))
    for fit, judge in ways:
        if fit.sum() > 1 and judge.any() and answerable(part_of(train, judge)):
            return np.flatnonzero(fit), np.flatnonzero(judge)
    return np.arange(len(train)), np.arange(len(train))


def answerable(dataset: ImageDataset) -> bool:
    """Whether some query has a relevant image."""
    return any(dataset.relevant(query).any() for query in dataset.queries)
