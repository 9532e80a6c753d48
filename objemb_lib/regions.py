"""Regions: where in an image to look.

A region says what becomes a vector. ``WHOLE`` takes the image as it is. ``CROP`` cuts the main
object out with its true box and sends only that through the trunk, one forward pass per object.
``ROI`` sends the whole image through and cuts the box out of the feature map (RoIAlign), so that
one forward pass serves every box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import roi_align

from objemb_lib.datasets.base import ImageDataset
from objemb_lib.errors import DataError
from objemb_lib.trunks import Trunk

TRUTH = "ground truth"
CELLS = 7  # side of what RoIAlign cuts out, as in Fast R-CNN


@dataclass(frozen=True)
class Region:
    """One way of looking.

    Args:
        name: for tables.
        boxes: box source, for tables: ``none`` (the whole image) or ``ground truth``.
        margin: context around the box, as a part of its sides.
        on: where the box is cut out, of the ``pixels`` or of the feature ``map``.
    """

    name: str
    boxes: str = "none"
    margin: float = 0.0
    on: Literal["pixels", "map"] = "pixels"

    @property
    def seen(self) -> Region:
        """The region whose pixels the trunk sees: this one, or the whole image."""
        return WHOLE if self.on == "map" else self

    def pixels(self, dataset: ImageDataset, i: int, size: int) -> np.ndarray:
        """``(size, size, 3)`` uint8: what the trunk sees of image ``i``, see :func:`view`."""
        return view([self], dataset, i, size)[0]

    def box(
        self, dataset: ImageDataset, i: int, image: tuple[int, int], size: int
    ) -> tuple[float, ...]:
        """The box to pool, in pixels of what the trunk sees; all of it for boxes on pixels.

        Args:
            image: width and height of image ``i`` itself.
        """
        if self.on == "pixels" or self.boxes != TRUTH:
            return 0.0, 0.0, float(size), float(size)
        x0, y0, x1, y1 = map(float, _main_box(dataset, i))
        dx, dy = self.margin * (x1 - x0), self.margin * (y1 - y0)
        ends = zip((x0 - dx, y0 - dy, x1 + dx, y1 + dy), (*image, *image))
        return tuple(min(max(end / side * size, 0.0), float(size)) for end, side in ends)

    def features(self, trunk: Trunk, maps: dict[str, Tensor], stage: str, boxes: Tensor) -> Tensor:
        """The part of a stage's maps to pool.

        Args:
            maps: of ``N`` images, as the trunk gives them. boxes: ``(N, 4)``, see :meth:`view`.
        Returns:
            ``(N, C, h, w)``; h = w = 7 for a box on the map.
        Source: He et al., Mask R-CNN, 2017, section 3 (RoIAlign).
        """
        if trunk.stages[stage].per_box:
            return trunk.box_features(maps, stage, boxes)
        if self.on == "pixels":
            return maps[stage]
        scale = 1 / trunk.stages[stage].stride
        each = list(boxes.to(maps[stage].device, torch.float32)[:, None])
        return roi_align(maps[stage].float(), each, CELLS, scale, sampling_ratio=2, aligned=True)


WHOLE = Region("whole image")
CROP = Region("crop", TRUTH)
ROI = Region("RoI", TRUTH, on="map")


def view(
    regions: Sequence[Region], dataset: ImageDataset, i: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the trunk sees of image ``i``, and each region's box on it.

    The aspect ratio is not kept: the whole content is squeezed into the square, as the paper's
    networks see it.

    Args:
        regions: with the same pixels (:attr:`Region.seen`).
    Returns:
        ``(size, size, 3)`` uint8, and ``(R, 4)`` float32 in its pixels.
    Raises:
        ImageError: naming the file, if it cannot be read. DataError: no box to look at.
    """
    seen, image = regions[0].seen, dataset.image(i)
    boxes = [region.box(dataset, i, image.size, size) for region in regions]
    if seen.boxes == TRUTH:
        # Cut first: resize(box=...) would mix in what lies just outside the box.
        image = image.crop(_widen(_main_box(dataset, i), seen.margin, image.size))
    if image.size != (size, size):
        image = image.resize((size, size), Image.BICUBIC, reducing_gap=2.0)
    return np.asarray(image), np.array(boxes, np.float32)


def _main_box(dataset: ImageDataset, i: int) -> np.ndarray:
    if not len(dataset.boxes[i]):
        raise DataError(f"{dataset.files[i]} has no box", "Use the whole image (WHOLE).")
    return np.asarray(dataset.boxes[i][0])


def _widen(box: np.ndarray, margin: float, size: tuple[int, int]) -> tuple[int, ...]:
    """A box with context on all sides, in whole pixels inside the image, at least one wide."""
    x0, y0, x1, y1 = map(float, box)
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    left, top = max(0, min(floor(x0 - dx), size[0] - 1)), max(0, min(floor(y0 - dy), size[1] - 1))
    right, bottom = max(ceil(x1 + dx), left + 1), max(ceil(y1 + dy), top + 1)
    return left, top, min(size[0], right), min(size[1], bottom)
