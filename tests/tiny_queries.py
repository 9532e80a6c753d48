"""Data sets that are only their truth: labels, who asks, what is searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.whitening import l2


def dataset(labels, beside=None, **parts) -> ImageDataset:
    """A data set without files; ``beside[i]`` are labels shown in the background of image i."""
    shown = [np.array([lab, *(beside or {}).get(i, [])]) for i, lab in enumerate(labels)]
    boxes = [np.ones((len(labs), 4), np.float32) for labs in shown]
    files = [f"{i}.jpg" for i in range(len(labels))]
    return ImageDataset("toy", "test", Path("."), files, np.array(labels), boxes=boxes,
                        box_labels=shown, content="f", **parts)  # fmt: skip


def random_case(seed: int, n: int = 40) -> tuple[np.ndarray, ImageDataset]:
    """Vectors that loosely follow their labels, with junk, some queries and most of a gallery."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 8, n)
    beside = {int(i): [int(rng.integers(0, 8))] for i in rng.choice(n, n // 4, replace=False)}
    parts = {"queries": rng.permutation(n)[:25], "gallery": rng.permutation(n)[:34]}
    data = dataset(labels, beside, categories=np.where(labels < 0, -1, labels // 3), **parts)
    vectors = rng.standard_normal((9, 6))[labels] + rng.standard_normal((n, 6))
    # float64: in float32 the sum's order decides which of two nearly equal scores comes first.
    return l2(vectors).astype(np.float64), data
