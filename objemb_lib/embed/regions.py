"""Regions: where in an image a vector comes from.

The whole image; or boxes, any number an image, cut out of its *pixels* (crop and embed: a forward
pass for each box) or of the feature *map* of the whole image (RoIAlign: one pass serves them all).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, true_boxes, widen
from objemb_lib.embed.trunks import Trunk, per_image

CELLS = 7  # side of what RoIAlign cuts out, as in Fast R-CNN


@dataclass(frozen=True, eq=False)
class Region:
    """One way of looking at the images of a data set: what becomes a vector.

    Args:
        boxes: None is the whole image.
        on: where boxes are cut out, of the feature ``map`` or of the ``pixels``.
        context: around each box, as a part of its sides; a negative one shrinks it.
        masked: cells of the map count by how much of them a box's mask covers, wholly without one.
        weights: ``(N, h, w)`` of the cells of the whole map (soft attention), instead of cutting
            boxes out; ``weights.key`` says what decides them, for the cache.
        called: name for tables, if not the usual.
    Raises:
        DataError: ``masked`` without boxes, or on pixels.
    """

    boxes: Boxes | None = None
    on: Literal["map", "pixels"] = "map"
    context: float = 0.0
    masked: bool = False
    weights: Callable[[dict[str, Tensor]], Tensor] | None = None
    called: str = ""

    def __post_init__(self) -> None:
        if self.masked and self.boxes is None:
            raise DataError("the whole image has no masks", "Use boxes, with masks.")
        if self.on == "pixels" and (self.masked or self.weights or self.boxes is None):
            raise DataError(f"{self.name} cannot be cropped", "Crop boxes, without masks.")

    @property
    def name(self) -> str:
        """For tables."""
        if self.called or self.boxes is None:
            return self.called or "whole image"
        context = f", context {self.context:g}" if self.context else ""
        return self.boxes.name + context + (", masked" if self.masked else "")

    @property
    def source(self) -> str:
        """Who said where to look, for tables."""
        return self.boxes.source if self.boxes else "none"

    @property
    def key(self) -> str:
        """All that decides what is pooled, without the names: its part of a cache key."""
        if self.weights:
            return f"whole map, weights {self.weights.key}"
        if self.boxes is None:
            return "whole image"
        masked = ", masked" if self.masked else ""
        return f"boxes {self.boxes.digest} on {self.on}, context {self.context:g}{masked}"

    def views(self, dataset: ImageDataset) -> list[tuple[int, np.ndarray | None]]:
        """What the trunk sees: images, or a part of one for each box on pixels."""
        if self.on == "map":
            return [(i, None) for i in range(len(dataset))]
        return [(i, box) for i, many in enumerate(self.boxes.boxes) for box in many]

    def rows(self, views: range) -> int:
        """The number of vectors of some views."""
        if self.on == "pixels" or self.boxes is None or self.weights:
            return len(views)
        return int(self.boxes.counts[views.start : views.stop].sum())

    def input_boxes(self, i: int, image: tuple[int, int], size: int) -> np.ndarray:
        """``(K_i, 4)`` float32: what to cut out of the map of image ``i``, in input pixels.

        Args:
            image: its width and height. size: side of what the trunk sees.
        """
        if self.on == "pixels" or self.boxes is None:
            return np.array([[0, 0, size, size]], np.float32)
        boxes = widen(self.boxes.boxes[i], self.context, np.array(image))
        return (boxes * (size / np.tile(image, 2))).astype(np.float32)

    def cells(
        self, trunk: Trunk, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]
    ) -> Tensor:
        """``(M, C, h, w)``: what to pool of a stage's maps, as :func:`cut`; boxes of
        :meth:`input_boxes`."""
        if self.weights:
            heat = self.weights(maps)[:, None]
            heat = F.interpolate(heat, maps[stage].shape[-2:], mode="bilinear")
            return maps[stage].float() * heat
        if (self.on == "pixels" or self.boxes is None) and not trunk.stages[stage].per_box:
            return maps[stage]
        return cut(trunk, maps, stage, boxes)

    def mask_shares(self, i: int, image: tuple[int, int]) -> Tensor | None:
        """``(K_i, 7, 7)``: the share of each cell that the mask covers; None if not ``masked``."""
        if not self.masked:
            return None
        if self.boxes.masks is None:
            return torch.ones(len(self.boxes.boxes[i]), CELLS, CELLS)
        found = []
        for k, box in enumerate(widen(self.boxes.boxes[i], self.context, np.array(image))):
            mask = torch.from_numpy(self.boxes.mask(i, k)).float()[None, None]  # one at a time
            box = torch.from_numpy(box[None]).float()
            found.append(roi_align(mask, [box], CELLS, 1.0, samples=8)[0, 0])
        return torch.stack(found)


WHOLE = Region()


def crop(dataset: ImageDataset) -> Region:
    """Each image's main object, cut out of its pixels by the true box.

    Warns of images without a box: they are taken whole.
    """
    boxes = true_boxes(dataset, main_only=True)
    if whole := int(boxes.fell_back.sum()):
        said = f"{dataset.name}: no box is known in {whole} of {len(boxes)} images: they stay whole"
        warnings.warn(said, stacklevel=2)
    return Region(boxes, "pixels", called="crop")


def roi(dataset: ImageDataset) -> Region:
    """Each image's main object, cut out of the map by the true box."""
    return Region(true_boxes(dataset, main_only=True), called="RoI")


def every_image_has_a_box(*datasets: ImageDataset) -> bool:
    """Whether true boxes are a place to look at, in all of some data sets."""
    return all(len(boxes) for dataset in datasets for boxes in dataset.boxes)


def model_input(
    image: Image.Image, size: int, box: np.ndarray | None = None, context: float = 0.0
) -> np.ndarray:
    """``(size, size, 3)`` uint8: what a trunk sees of an image, or of a box in it.

    The whole content is squeezed into the square, as the paper's networks see it.
    """
    if box is not None:  # cut first: resize(box=...) would mix in what lies just outside the box
        x0, y0, x1, y1 = widen(np.asarray(box)[None], context, np.array(image.size))[0]
        image = image.crop((floor(x0), floor(y0), ceil(x1), ceil(y1)))
    if image.size != (size, size):
        image = image.resize((size, size), Image.BICUBIC, reducing_gap=2.0)
    return np.asarray(image)


def cut(trunk: Trunk, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]) -> Tensor:
    """``(K_1 + ... + K_N, C, h, w)`` float32: boxes cut out of a stage's maps.

    Args:
        maps: of ``N`` images, as the trunk gives them.
        boxes: ``N`` times ``(K_i, 4)``, in input pixels.
    """
    if trunk.stages[stage].per_box:
        return trunk.box_features(maps, stage, boxes)
    each = per_image(boxes, maps[stage].device)
    return roi_align(maps[stage], each, CELLS, 1 / trunk.stages[stage].stride)


def roi_align(
    maps: Tensor, boxes: Sequence[Tensor], cells: int, scale: float, samples: int = 2
) -> Tensor:
    """RoIAlign as two matrix products, several times as fast on a CPU as torchvision's loop.

    Each of ``cells x cells`` bins is the mean of ``samples x samples`` points, each interpolated
    between four cells of the map. That is linear in the map, and rows know nothing of columns:
    ``out = R f C^T`` with ``R`` what a bin takes of each row, ``C`` of each column. The numbers are
    those of ``torchvision.ops.roi_align(..., aligned=True)``.

    Args:
        maps: ``(N, C, H, W)``. boxes: ``N`` times ``(K_i, 4)`` in input pixels.
        scale: cells of the map an input pixel.
    Returns:
        ``(K_1 + ... + K_N, C, cells, cells)`` float32.
    Source: He et al., Mask R-CNN, 2017, section 3.
    """
    _, channels, height, width = maps.shape
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
