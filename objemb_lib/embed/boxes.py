"""Boxes: where the objects of an image are, or might be, whoever says so.

Every source of boxes gives the same :class:`ObjectBoxes`, so that whatever follows cannot tell the
truth from a detector's guess, or from boxes thrown at random. The sources here need no network;
those that do (detectors, proposals) are in :mod:`attention`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed import pooling
from objemb_lib.embed.regions import CELLS, TRUTH, WHOLE, Region, cut, roi_align
from objemb_lib.embed.trunks import Trunk

EMPTY = np.zeros((0, 4), np.float32)


@dataclass(frozen=True, eq=False)
class ObjectBoxes:
    """At least one box for every image of a data set.

    Args:
        name: for tables.
        boxes: ``N`` arrays ``(K_i, 4)``, x0, y0, x1, y1 in pixels of the image.
        scores: ``N`` arrays ``(K_i,)``, how sure the source is; default 1.
        masks: ``N`` lists of ``K_i`` COCO run-length encodings, or None.
        fell_back: ``(N,)`` booleans: where the source found nothing, and the whole image stands in.
        source: who said it, for tables.
    Raises:
        DataError: an image without a box, lengths that do not agree, or a box that is none (a NaN,
            a right side left of the left one).
    """

    name: str
    boxes: Sequence[np.ndarray]
    scores: Sequence[np.ndarray] = ()
    masks: Sequence[Sequence[dict]] | None = None
    fell_back: np.ndarray | None = None
    source: str = ""

    def __post_init__(self) -> None:
        fill, n = object.__setattr__, len(self.boxes)
        boxes = tuple(np.asarray(b, np.float32).reshape(-1, 4) for b in self.boxes)
        scores = self.scores if len(self.scores) else [np.ones(len(b)) for b in boxes]
        fill(self, "boxes", boxes)
        fill(self, "scores", tuple(np.asarray(s, np.float32) for s in scores))
        back = np.zeros(n, bool) if self.fell_back is None else np.asarray(self.fell_back, bool)
        fill(self, "fell_back", back)
        for part in ("scores", "masks", "fell_back"):
            if getattr(self, part) is not None and len(getattr(self, part)) != n:
                raise DataError(f"{self.name}: boxes of {n} images, {part} of another number")
        for i, many in enumerate(boxes):
            self._check(i, many)

    def _check(self, i: int, boxes: np.ndarray) -> None:
        if not len(boxes):
            remedy = "Let the whole image stand in: or_whole."
            raise DataError(f"{self.name}: image {i} has no box", remedy)
        _refuse_none(self.name, i, boxes)
        for part in ("scores", "masks"):
            values = getattr(self, part)
            if values is not None and len(values[i]) != len(boxes):
                raise DataError(f"{self.name}: image {i} has {len(boxes)} boxes, other {part}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        text = f"ObjectBoxes({self.name}: {self.counts.sum()} boxes in {len(self)} images"
        if self.fell_back.any():
            text += f", {self.fell_back.sum()} of them whole because nothing was found"
        return text + (", with masks)" if self.masks is not None else ")")

    def mask(self, i: int, k: int) -> np.ndarray:
        """``(H, W)`` boolean mask of object ``k`` in image ``i``."""
        if self.masks is None:
            raise DataError(f"{self.name} has no masks", "Use its boxes, or a source with masks.")
        return coco_mask.decode([self.masks[i][k]])[..., 0].astype(bool)

    @cached_property
    def counts(self) -> np.ndarray:
        """``(N,)``: the number of boxes of each image."""
        return np.array([len(b) for b in self.boxes])

    @property
    def owners(self) -> np.ndarray:
        """``(M,)``: the image of each box, in order."""
        return np.repeat(np.arange(len(self)), self.counts)

    @cached_property
    def digest(self) -> str:
        """Hash of boxes and masks: their part of a cache key."""
        found = hashlib.sha256(self.counts.tobytes() + np.concatenate(self.boxes).tobytes())
        # pycocotools gives counts as bytes, files hold them as text.
        found.update(json.dumps(self.masks, sort_keys=True, default=bytes.decode).encode())
        return found.hexdigest()

    def top(self, k: int, threshold: float = -np.inf, name: str = "") -> ObjectBoxes:
        """The ``k`` boxes of the highest scores of each image, best first.

        Args:
            threshold: boxes of a lower score are left out, but the best one stays.
        """
        order = [np.argsort(-s, kind="stable")[:k] for s in self.scores]
        order = [o[: max(1, int((s[o] >= threshold).sum()))] for o, s in zip(order, self.scores)]
        pick = lambda many: tuple(x[o] for x, o in zip(many, order))  # noqa: E731
        masks = self.masks and tuple([m[j] for j in o] for m, o in zip(self.masks, order))
        return replace(self, name=name or f"{self.name}, top {k}", boxes=pick(self.boxes),
                       scores=pick(self.scores), masks=masks)  # fmt: skip


def _refuse_none(name: str, i: int, boxes: np.ndarray) -> None:
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise DataError(
            f"{name}: image {i} has a box that is none, {boxes.tolist()}",
            "Boxes are x0, y0, x1, y1 in pixels, x0 <= x1, y0 <= y1.",
        )


def image_sizes(dataset: ImageDataset) -> np.ndarray:
    """``(N, 2)``: width and height of each image, as ``dataset.image`` gives it.

    Raises:
        ImageError: naming the first file that cannot be used.
    """
    return dataset.sizes()


def or_whole(
    name: str,
    dataset: ImageDataset,
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] = (),
    masks: Sequence[Sequence[dict]] | None = None,
    source: str = "",
) -> ObjectBoxes:
    """:class:`ObjectBoxes` in which the whole image stands in where there is no box.

    ``fell_back`` says where; with masks, the whole image is also the mask. Boxes are clipped to
    the image; those wholly outside count as none.
    """
    sizes = image_sizes(dataset)
    if len(boxes) != len(dataset):
        raise DataError(f"{name}: boxes of {len(boxes)} images for {dataset}", "One array each.")
    scores = scores if len(scores) else [np.ones(len(b)) for b in boxes]
    found, sure, shapes, back = [], [], [], []
    for i, size in enumerate(sizes):
        many = np.asarray(boxes[i], np.float32).reshape(-1, 4)
        _refuse_none(name, i, many)
        there = np.flatnonzero(_inside(many, size))
        back.append(not len(there))
        found.append(np.clip(many[there], 0, np.tile(size, 2)) if len(there) else _all_of(size))
        sure.append(np.asarray(scores[i], np.float32)[there] if len(there) else np.zeros(1))
        if masks is not None:
            shapes.append([masks[i][k] for k in there] or [_full_mask(size)])
    return ObjectBoxes(name, found, sure, None if masks is None else shapes, np.array(back), source)


def _inside(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Which boxes meet the image at all."""
    outside = (boxes[:, :2] >= size).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    return ~outside


def _all_of(size: np.ndarray) -> np.ndarray:
    return np.array([[0, 0, *size]], np.float32)


def _full_mask(size: np.ndarray) -> dict:
    runs = coco_mask.encode(np.ones((size[1], size[0]), np.uint8, order="F"))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


# --- sources that need no network ---------------------------------------------------------


def whole(dataset: ImageDataset) -> ObjectBoxes:
    """The image as its only object."""
    return ObjectBoxes("whole image", [_all_of(s) for s in image_sizes(dataset)], source="none")


def true_boxes(dataset: ImageDataset, main_only: bool = False) -> ObjectBoxes:
    """The boxes (and masks, where there are any) that the data set states.

    Args:
        main_only: only each image's main object: what a query is about.
    """
    most = 1 if main_only else None
    name = "true main box" if main_only else "true boxes"
    masks = dataset.masks and [m[:most] for m in dataset.masks]
    return or_whole(name, dataset, [b[:most] for b in dataset.boxes], (), masks, TRUTH)


def centre(dataset: ImageDataset, part: float = 0.5) -> ObjectBoxes:
    """A box in the middle, ``part`` of the image's sides: photographers put things there."""
    edge = (1 - part) / 2
    ends = np.array([edge, edge, 1 - edge, 1 - edge])
    return _fractions("centre box", dataset, ends[None])


def grid(dataset: ImageDataset, levels: int = 3) -> ObjectBoxes:
    """R-MAC's squares as boxes: where to look, for somebody who knows nothing of objects.

    On the square that a trunk sees, so that every image has the same ones.

    Source: Tolias et al., Particular Object Retrieval with Integral Max-Pooling of CNN
    Activations, 2016, "R-MAC".
    """
    fine = 60  # cells a side: the squares of the first three levels meet whole cells
    found = [
        (x / fine, y / fine, (x + side) / fine, (y + side) / fine)
        for side, tops, lefts in pooling._rmac_grid(fine, fine, levels)
        for y in tops
        for x in lefts
    ]
    return _fractions("R-MAC grid", dataset, np.array(found))


def _fractions(name: str, dataset: ImageDataset, ends: np.ndarray) -> ObjectBoxes:
    """The same boxes for every image, given as parts of its sides."""
    return ObjectBoxes(name, [ends * np.tile(s, 2) for s in image_sizes(dataset)], source="fixed")


def random_like(boxes: ObjectBoxes, dataset: ImageDataset, seed: int = 0) -> ObjectBoxes:
    """As many boxes of the same sizes, each at a random place: the control that must lose.

    It tells what *where* is worth from what it is worth to look at less.
    """
    rng, moved = np.random.default_rng(seed), []
    for many, size in zip(boxes.boxes, image_sizes(dataset)):
        sides = np.minimum(many[:, 2:] - many[:, :2], size)
        corner = rng.uniform(size=sides.shape) * (size - sides)
        moved.append(np.concatenate([corner, corner + sides], axis=1))
    return ObjectBoxes("random boxes", moved, boxes.scores, source=f"random, sizes of {boxes.name}")


# --- how a trunk looks at them ------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class ObjectRegion:
    """A source of boxes as :mod:`extract` looks at it: on the map, any number an image.

    What :class:`regions.Region` is to one box.

    Args:
        boxes: where. margin: context around each box, as a part of its sides.
        masked: what lies outside the mask counts as 0. called: name for tables, if not the usual.
    Raises:
        DataError: ``masked`` without masks.
    """

    boxes: ObjectBoxes
    margin: float = 0.0
    masked: bool = False
    called: str = ""

    def __post_init__(self) -> None:
        if self.masked and self.boxes.masks is None:
            raise DataError(
                f"{self.boxes.name} has no masks", "Use its boxes, or a source with masks."
            )

    def __repr__(self) -> str:  # part of the cache's key: what decides the numbers, no names
        return f"ObjectRegion({self.boxes.digest}, margin={self.margin}, masked={self.masked})"

    @property
    def name(self) -> str:
        """For tables."""
        if self.called:
            return self.called
        context = f", context {self.margin:g}" if self.margin else ""
        return self.boxes.name + context + (", masked" if self.masked else "")

    @property
    def seen(self) -> Region:
        """The trunk sees the whole image."""
        return WHOLE

    def rows(self, images: range) -> int:
        """The number of vectors of some images."""
        return int(self.boxes.counts[images.start : images.stop].sum())

    def look(self, dataset: ImageDataset, i: int, image: tuple[int, int], size: int) -> np.ndarray:
        """``(K_i, 4)`` boxes of image ``i`` in pixels of what the trunk sees, with context."""
        boxes = widen(self.boxes.boxes[i], self.margin, np.array(image))
        return (boxes * (size / np.tile(image, 2))).astype(np.float32)

    def features(
        self, trunk: Trunk, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]
    ) -> Tensor:
        """``(K_1 + ... , C, 7, 7)`` of the boxes that :meth:`look` gave, see :func:`cut`."""
        return cut(trunk, maps, stage, boxes)

    def weights(self, dataset: ImageDataset, i: int) -> Tensor | None:
        """``(K_i, 7, 7)``: the share of each cell that the mask covers; None without masks."""
        if not self.masked:
            return None
        boxes = widen(self.boxes.boxes[i], self.margin, image_sizes(dataset)[i])
        found = []
        for k, box in enumerate(torch.from_numpy(boxes)):  # one at a time: masks are large
            mask = torch.from_numpy(self.boxes.mask(i, k)).float()[None, None]
            found.append(roi_align(mask, [box[None].float()], CELLS, 1.0, samples=8)[0, 0])
        return torch.stack(found)


def inside(
    dataset: ImageDataset, i: int, boxes: ObjectBoxes, margin: float = 0.0, masked: bool = False
) -> np.ndarray:
    """``(H, W)`` in 0..1: 1 where image ``i`` lies in one of its boxes (and in its mask)."""
    width, height = image_sizes(dataset)[i]
    seen = np.zeros((height, width), bool)
    for k, (x0, y0, x1, y1) in enumerate(widen(boxes.boxes[i], margin, image_sizes(dataset)[i])):
        here = np.zeros_like(seen)
        here[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        seen |= here & boxes.mask(i, k) if masked else here
    return seen.astype(np.float32)


def widen(boxes: np.ndarray, margin: float, size: np.ndarray) -> np.ndarray:
    """Boxes with context on all sides, inside the image, at least a pixel wide and high.

    >>> widen(np.array([[10, 10, 30, 20], [5, 5, 5, 5]]), 0.25, np.array([32, 32])).tolist()
    [[5.0, 7.5, 32.0, 22.5], [5.0, 5.0, 6.0, 6.0]]
    """
    low, high = np.asarray(boxes, np.float64)[:, :2], np.asarray(boxes, np.float64)[:, 2:]
    more = margin * (high - low)
    low, high = low - more, high + more
    low = low.clip(0, np.maximum(np.asarray(size) - 1, 0))
    return np.concatenate([low, np.minimum(np.maximum(high, low + 1), size)], axis=1)
