"""Regions: where in an image to look.

A region says what becomes a vector. ``WHOLE`` takes the image as it is. ``CROP`` cuts the main
object out with its true box and sends only that through the trunk, one forward pass per object.
``ROI`` sends the whole image through and cuts the box out of the feature map (RoIAlign), so that
one forward pass serves every box.
"""

from __future__ import annotations

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

    def view(self, dataset: ImageDataset, i: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """What the trunk sees of image ``i``, and the box on it that will be pooled.

        The aspect ratio is not kept: the whole content is squeezed into the square, as the
        paper's networks see it.

        Returns:
            ``(size, size, 3)`` uint8, and ``(4,)`` float32 in its pixels.
        Raises:
            ImageError: naming the file, if it cannot be read. DataError: no box to look at.
        """
        image, box = dataset.image(i), np.array([0, 0, size, size], np.float32)
        if self.boxes == TRUTH and self.on == "pixels":
            # Cut first: resize(box=...) would mix in what lies just outside the box.
            image = image.crop(_widen(_main_box(dataset, i), self.margin, image.size))
        elif self.boxes == TRUTH:
            box = self._on_map(_main_box(dataset, i), image.size, size)
        if image.size != (size, size):
            image = image.resize((size, size), Image.BICUBIC, reducing_gap=2.0)
        return np.asarray(image), box

    def pixels(self, dataset: ImageDataset, i: int, size: int) -> np.ndarray:
        """Only the pixels of :meth:`view`."""
        return self.view(dataset, i, size)[0]

    def _on_map(self, box: np.ndarray, image: tuple[int, int], size: int) -> np.ndarray:
        x0, y0, x1, y1 = box.astype(np.float32)
        dx, dy = self.margin * (x1 - x0), self.margin * (y1 - y0)
        width, height = image
        wide = np.array([x0 - dx, y0 - dy, x1 + dx, y1 + dy]) / [width, height, width, height]
        return np.clip(wide * size, 0, size).astype(np.float32)

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
