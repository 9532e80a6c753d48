"""Comparison of networks: which vectors stand against each other, chosen on train objects only.

A network offers *sources* of vectors: the stages of its body, and in a detector also the levels
of its pyramid, its RoI features and the vector of its box head. Each source speaks with its best
stage and pooling, found on training objects, so that no network loses by a poor choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from objemb_lib.datasets.base import ImageDataset
from objemb_lib.detectors.build import Detector
from objemb_lib.errors import DataError
from objemb_lib.evaluate import evaluate
from objemb_lib.extract import Vectors
from objemb_lib.pooling import POOLINGS
from objemb_lib.postprocess import l2
from objemb_lib.trunks import Trunk

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


def check_same_trunk(trunk: str, detectors: Mapping[str, Detector]) -> None:
    """Raise DataError unless every detector stands on the trunk that it is compared with."""
    for name, detector in detectors.items():
        if detector.trunk.name != trunk:
            raise DataError(
                f"{name} was trained on {detector.trunk.name}, not on {trunk}",
                f"Set TRUNK to {detector.trunk.name!r}: only then do only the weights differ.",
            )


def few_scenes(dataset: ImageDataset, scenes: int) -> ImageDataset:
    """The first ``scenes`` images of each label: every object, in less time."""
    seen: dict[int, int] = {}
    keep = []
    for i, label in enumerate(dataset.labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= scenes:
            keep.append(i)
    return dataset.subset(keep)
