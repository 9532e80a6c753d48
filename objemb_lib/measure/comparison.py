"""Comparison of networks: which vectors stand against each other, chosen on train objects only.

A network offers *sources* of vectors: the stages of its body, and in a detector also the levels
of its pyramid, its RoI features and the vector of its box head. Each source speaks with its best
stage and pooling, found on training objects, so that no network loses by a poor choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.extract import Vectors
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.trunks import Trunk
from objemb_lib.embed.whitening import l2
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
