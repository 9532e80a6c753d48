"""Regions: where in an image to look.

A region says which pixels become a vector. ``WHOLE`` takes the image as it is; ``CROP`` cuts
the main object out with its true box and sends only that through the trunk, one forward pass
per object. Regions on the feature map (hard attention) join them later.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from PIL import Image

from objemb_lib.datasets.base import ImageDataset
from objemb_lib.errors import DataError

TRUTH = "ground truth"


@dataclass(frozen=True)
class Region:
    """One way of looking.

    Args:
        name: for tables.
        boxes: box source, for tables: ``none`` (the whole image) or ``ground truth``.
        margin: context around the box, as a part of its sides.
    """

    name: str
    boxes: str = "none"
    margin: float = 0.0

    def pixels(self, dataset: ImageDataset, i: int, size: int) -> np.ndarray:
        """``(size, size, 3)`` uint8: what the trunk sees of image ``i``.

        The aspect ratio is not kept: the whole content is squeezed into the square, as the
        paper's networks see it. Raises ImageError, naming the file, if it cannot be read.
        """
        image = dataset.image(i)
        if self.boxes == TRUTH:
            if not len(dataset.boxes[i]):
                raise DataError(
                    f"{dataset.files[i]} has no box to crop", "Use the whole image (WHOLE)."
                )
            # Cut first: resize(box=...) would mix in what lies just outside the box.
            image = image.crop(_widen(dataset.boxes[i][0], self.margin, image.size))
        if image.size != (size, size):
            image = image.resize((size, size), Image.BICUBIC, reducing_gap=2.0)
        return np.asarray(image)


WHOLE = Region("whole image")
CROP = Region("crop", TRUTH)


def _widen(box: np.ndarray, margin: float, size: tuple[int, int]) -> tuple[int, ...]:
    """A box with context on all sides, in whole pixels inside the image, at least one wide."""
    x0, y0, x1, y1 = map(float, box)
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    left, top = max(0, min(floor(x0 - dx), size[0] - 1)), max(0, min(floor(y0 - dy), size[1] - 1))
    right, bottom = max(ceil(x1 + dx), left + 1), max(ceil(y1 + dy), top + 1)
    return left, top, min(size[0], right), min(size[1], bottom)
