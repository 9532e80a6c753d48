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
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.trunks import Trunk, per_image

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

    def rows(self, images: range) -> int:
        """The number of vectors of some images: one each."""
        return len(images)

    def look(self, dataset: ImageDataset, i: int, image: tuple[int, int], size: int) -> np.ndarray:
        """``(1, 4)``: :meth:`box`, as a region of many boxes gives its own."""
        return np.array([self.box(dataset, i, image, size)], np.float32)

    def features(
        self, trunk: Trunk, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]
    ) -> Tensor:
        """The part of a stage's maps to pool.

        Args:
            maps: of ``N`` images, as the trunk gives them. boxes: ``N`` times ``(1, 4)``.
        Returns:
            ``(N, C, h, w)``; h = w = 7 for a box on the map.
        """
        if self.on == "pixels" and not trunk.stages[stage].per_box:
            return maps[stage]
        return cut(trunk, maps, stage, boxes)

    def weights(self, dataset: ImageDataset, i: int) -> None:
        """No cell counts less than another."""
        return None


class Looked(Protocol):
    """What extraction asks of a region, whether it has one box an image or many."""

    name: str
    seen: Region

    def rows(self, images: range) -> int: ...
    def look(
        self, dataset: ImageDataset, i: int, image: tuple[int, int], size: int
    ) -> np.ndarray: ...
    def features(
        self, trunk: Trunk, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]
    ) -> Tensor: ...
    def weights(self, dataset: ImageDataset, i: int) -> Tensor | None: ...


WHOLE = Region("whole image")
CROP = Region("crop", TRUTH)
ROI = Region("RoI", TRUTH, on="map")


def usable(regions: Sequence[Region], *datasets: ImageDataset) -> list[Region]:
    """The regions that can be looked at in every image: true boxes only where all have one."""
    boxed = all(len(boxes) for dataset in datasets for boxes in dataset.boxes)
    return [region for region in regions if boxed or region.boxes != TRUTH]


def cut(
    trunk: Trunk, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor], cells: int = CELLS
) -> Tensor:
    """Boxes cut out of a stage's maps: what is left to pool for each.

    Args:
        maps: of ``N`` images, as the trunk gives them. boxes: ``N`` times ``(K_i, 4)``, in input
            pixels. cells: sides of what is cut out; a stage per box has sides of its own.
    Returns:
        ``(K_1 + ... + K_N, C, h, w)`` float32, the boxes of the first image first.
    """
    if trunk.stages[stage].per_box:
        return trunk.box_features(maps, stage, boxes)
    each = per_image(boxes, maps[stage].device)
    return roi_align(maps[stage], each, cells, 1 / trunk.stages[stage].stride)


def roi_align(
    maps: Tensor, boxes: Sequence[Tensor], cells: int, scale: float, samples: int = 2
) -> Tensor:
    """RoIAlign as two matrix products, several times as fast on a CPU as torchvision's loop.

    Each of ``cells x cells`` bins is the mean of ``samples x samples`` points, each interpolated
    between four cells of the map. All of that is linear in the map, and rows know nothing of
    columns: ``out = R f C^T`` with ``R`` what a bin takes of each row, ``C`` of each column.
    The numbers are those of ``torchvision.ops.roi_align(..., aligned=True)``.

    Args:
        maps: ``(N, C, H, W)``. boxes: ``N`` times ``(K_i, 4)`` in input pixels.
        scale: cells of the map an input pixel.
    Returns:
        ``(K_1 + ... + K_N, C, cells, cells)`` float32.
    Source: He et al., Mask R-CNN, 2017, section 3.
    """
    n, channels, height, width = maps.shape
    last = maps.float().permute(0, 2, 3, 1).contiguous()  # no copy where channels come last
    found = [last.new_zeros(0, cells, cells, channels)]
    for features, some in zip(last, boxes):
        x0, y0, x1, y1 = (some * scale - 0.5).unbind(1)
        rows = _shares(y0, y1, cells, samples, height)
        columns = _shares(x0, x1, cells, samples, width)
        lines = rows.flatten(0, 1) @ features.flatten(1)  # (K cells, W C)
        found.append(columns[:, None] @ lines.reshape(len(some), cells, width, channels))
    return torch.cat(found).permute(0, 3, 1, 2)


def _shares(low: Tensor, high: Tensor, cells: int, samples: int, length: int) -> Tensor:
    """``(K, cells, length)``: what each bin from ``low`` to ``high`` takes of each line."""
    points = (torch.arange(cells * samples, device=low.device) + 0.5) / (cells * samples)
    at = low[:, None] + (high - low)[:, None] * points
    there = (at >= -1) & (at <= length)
    lines = torch.arange(length, device=low.device)
    shares = (1 - (at.clamp(0, length - 1)[..., None] - lines).abs()).clamp(min=0)
    return (shares * there[..., None]).reshape(len(low), cells, samples, length).mean(2)


def view(
    regions: Sequence[Looked], dataset: ImageDataset, i: int, size: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """What the trunk sees of image ``i``, and each region's boxes on it.

    The aspect ratio is not kept: the whole content is squeezed into the square, as the paper's
    networks see it.

    Args:
        regions: with the same pixels (:attr:`Region.seen`).
    Returns:
        ``(size, size, 3)`` uint8, and for each region ``(K, 4)`` float32 in its pixels.
    Raises:
        ImageError: naming the file, if it cannot be read. DataError: no box to look at.
    """
    seen, image = regions[0].seen, dataset.image(i)
    boxes = [region.look(dataset, i, image.size, size) for region in regions]
    if seen.boxes == TRUTH:
        # Cut first: resize(box=...) would mix in what lies just outside the box.
        image = image.crop(_widen(_main_box(dataset, i), seen.margin, image.size))
    if image.size != (size, size):
        image = image.resize((size, size), Image.BICUBIC, reducing_gap=2.0)
    return np.asarray(image), boxes


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
