"""Objects with given vectors, for tests of what holds and searches them."""

from __future__ import annotations

import numpy as np

from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import Objects

PAIR = ("head", "spoc")


def made(vectors: list[list], boxes: list[list] | None = None, scores=()) -> Objects:
    """Objects with the given vectors, a list for each image; boxes lie beside each other."""
    where = Boxes(
        "made", boxes or [[[9 * k, 0, 9 * k + 5, 5] for k in range(len(v))] for v in vectors],
        scores,
    )  # fmt: skip
    flat = np.array([v for many in vectors for v in many], np.float32)
    return Objects({PAIR: flat}, where)
