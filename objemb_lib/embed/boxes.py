"""Boxes: where the objects of an image are, or might be, whoever says so.

Whatever follows cannot tell the truth from a detector's guess, or from boxes thrown at random.
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
from torchvision.ops import nms

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset


@dataclass(frozen=True, eq=False)
class Boxes:
    """At least one box for every image of a data set.

    Args:
        boxes: ``N`` arrays ``(K_i, 4)``, x0, y0, x1, y1 in pixels of the image.
        scores: ``N`` arrays ``(K_i,)``, how sure the source is; default 1.
        masks: ``N`` lists of ``K_i`` COCO run-length encodings, or None.
        fell_back: ``(N,)`` booleans: where the source found nothing, and the whole image stands in.
        source: who said it, for tables.
    Raises:
        DataError: an image without a box, lengths that do not agree, or what is no box.
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
            if not len(many):
                remedy = "Let the whole image stand in: or_whole."
                raise DataError(f"{self.name}: image {i} has no box", remedy)
            if not np.isfinite(many).all() or (many[:, 2:] < many[:, :2]).any():
                remedy = "Boxes are x0, y0, x1, y1 in pixels, x0 <= x1, y0 <= y1."
                raise DataError(f"{self.name}: image {i}: not a box, {many.tolist()}", remedy)
            if {len(many)} != {len(part[i]) for part in (self.scores, self.masks) if part}:
                raise DataError(f"{self.name}: image {i}: boxes, scores, masks of other numbers")

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        text = f"Boxes({self.name}: {self.counts.sum()} boxes in {len(self)} images"
        if self.fell_back.any():
            text += f", {self.fell_back.sum()} of them whole because nothing was found"
        return text + (", with masks)" if self.masks is not None else ")")

    def mask(self, i: int, k: int) -> np.ndarray:
        """``(H, W)`` boolean mask of object ``k`` in image ``i``."""
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

    def top(self, k: int, name: str = "") -> Boxes:
        """The ``k`` boxes of the highest scores of each image, best first."""
        order = [np.argsort(-s, kind="stable")[:k] for s in self.scores]
        pick = lambda many: tuple(x[o] for x, o in zip(many, order))  # noqa: E731
        masks = self.masks and tuple([m[j] for j in o] for m, o in zip(self.masks, order))
        return replace(self, name=name or f"{self.name}, top {k}", boxes=pick(self.boxes),
                       scores=pick(self.scores), masks=masks)  # fmt: skip


def or_whole(
    name: str,
    dataset: ImageDataset,
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] = (),
    masks: Sequence[Sequence[dict]] | None = None,
    source: str = "",
) -> Boxes:
    """:class:`Boxes` in which the whole image (and mask) stands in where there is no box.

    ``fell_back`` says where. Boxes are clipped to the image; those wholly outside count as none.
    """
    scores = scores if len(scores) else [np.ones(len(b)) for b in boxes]
    found, sure, shapes, back = [], [], [], []
    for i, size in enumerate(dataset.sizes()):
        many = np.asarray(boxes[i], np.float32).reshape(-1, 4)
        outside = (many[:, :2] >= size).any(axis=1) | (many[:, 2:] <= 0).any(axis=1)
        there = np.flatnonzero(~outside)
        back.append(not len(there))
        found.append(np.clip(many[there], 0, np.tile(size, 2)) if len(there) else [[0, 0, *size]])
        sure.append(np.asarray(scores[i], np.float32)[there] if len(there) else np.zeros(1))
        if masks is not None:
            full = coco_mask.encode(np.ones(size[::-1], np.uint8, order="F"))
            shapes.append([masks[i][k] for k in there] or [full])
    return Boxes(name, found, sure, None if masks is None else shapes, np.array(back), source)


def with_whole(boxes: Boxes, dataset: ImageDataset, overlap: float = 1.0) -> Boxes:
    """The whole image as a further object, the least sure: of a picture of one thing it is the
    best box. Masks are dropped.

    Args:
        overlap: (IoU) boxes that overlap by more are one: the surest stays, and the whole image
            before all.
    """
    found, sure = [], []
    for many, scores, (whole,) in zip(boxes.boxes, boxes.scores, whole_image(dataset).boxes):
        every = np.concatenate([many, whole[None]])
        order = torch.from_numpy(np.append(scores, np.inf).astype(np.float32))
        kept = np.sort(nms(torch.from_numpy(every), order, overlap).numpy())
        found.append(every[kept])
        sure.append(np.append(scores, 0)[kept])
    return replace(boxes, name=f"{boxes.name} and whole image", boxes=found, scores=sure,
                   masks=None)  # fmt: skip


def whole_image(dataset: ImageDataset) -> Boxes:
    """The image as its only object."""
    return Boxes("whole image", [[[0, 0, *size]] for size in dataset.sizes()], source="none")


def true_boxes(dataset: ImageDataset, main_only: bool = False) -> Boxes:
    """The boxes (and masks) that the data set states, or only each image's main object."""
    most, name = (1, "true main box") if main_only else (None, "true boxes")
    masks = dataset.masks and [m[:most] for m in dataset.masks]
    return or_whole(name, dataset, [b[:most] for b in dataset.boxes], (), masks, "ground truth")


def widen(boxes: np.ndarray, context: float, size: np.ndarray) -> np.ndarray:
    """Boxes with context on all sides, inside the image, at least a pixel wide and high.

    >>> widen(np.array([[10, 10, 30, 20], [5, 5, 5, 5]]), 0.25, np.array([32, 32])).tolist()
    [[5.0, 7.5, 32.0, 22.5], [5.0, 5.0, 6.0, 6.0]]
    """
    low, high = np.asarray(boxes, np.float64)[:, :2], np.asarray(boxes, np.float64)[:, 2:]
    more = context * (high - low)
    low, high = low - more, high + more
    low = low.clip(0, np.maximum(np.asarray(size) - 1, 0))
    return np.concatenate([low, np.minimum(np.maximum(high, low + 1), size)], axis=1)
