"""A data set as training targets: boxes, categories and masks, with augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import Target
from objemb_lib.detect.metrics import crowds
from objemb_lib.teach import distributed

GRANULARITIES = ("one", "category", "object")
MIN_SIDE = 4  # pixels: smaller boxes, and what augmentation leaves of others, are no targets


def usable(dataset: ImageDataset) -> list[int]:
    """Images with at least one box of a known category and at least 4 pixels a side.

    Raises:
        DataError: there is none.
    """
    found = [i for i in range(len(dataset)) if len(_keep(dataset, i))]
    if not found:
        raise DataError(
            f"{dataset.name}/{dataset.split}: no image has a box with a category",
            "Give annotations (COCO format), or train on another data set.",
        )
    return found


def relabel(dataset: ImageDataset, labels: str) -> ImageDataset:
    """The data set with boxes called by something finer or coarser than their category.

    Args:
        labels: ``one`` (every box is an "object"), ``category`` (nothing changes), or
            ``object`` (every object is a class of its own).
    Raises:
        DataError: none of these.
    """
    if labels == "category":
        return dataset
    if labels == "one":
        boxes = tuple(np.where(np.asarray(c) >= 0, 0, -1) for c in dataset.box_categories)
        return replace(dataset, box_categories=boxes, category_names=("object",))
    if labels == "object":
        there = np.unique(np.concatenate([np.asarray(b) for b in dataset.box_labels]))
        there = there[there >= 0]  # a data set's names may hold objects of other splits, too
        boxes = tuple(
            np.where(np.asarray(b) >= 0, np.searchsorted(there, b), -1) for b in dataset.box_labels
        )
        names = tuple(dataset.label_names[k] for k in there)
        return replace(dataset, box_categories=boxes, category_names=names)
    raise DataError(f"no labels called {labels!r}", f"Use one of {', '.join(GRANULARITIES)}.")


def in_categories(dataset: ImageDataset, names: Sequence[str]) -> ImageDataset:
    """The data set with its boxes' categories numbered as a detector does, by their names.

    Boxes of other categories become unknown.

    Raises:
        DataError: none of the categories is among ``names``.
    """
    names = tuple(names)
    if tuple(dataset.category_names) == names:
        return dataset
    known = {name: number for number, name in enumerate(names)}
    number = np.array([known.get(name, -1) for name in dataset.category_names] + [-1])
    if (number < 0).all():
        raise DataError(
            f"{dataset.name}/{dataset.split} has no category that the detector knows",
            "Use a detector that was trained on such objects, or leave the detection losses out.",
        )
    boxes = tuple(number[np.asarray(c, np.int64)] for c in dataset.box_categories)
    main = number[dataset.categories]
    return replace(dataset, categories=main, box_categories=boxes, category_names=names)


def _keep(dataset: ImageDataset, i: int) -> np.ndarray:
    """Indices of the boxes of an image that can be learned from."""
    boxes = np.asarray(dataset.boxes[i])
    large = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    known = np.asarray(dataset.box_categories[i]) >= 0
    return np.flatnonzero(large & known & ~crowds(dataset, i))


def example(dataset: ImageDataset, i: int, masks: bool = False) -> tuple[Tensor, Target]:
    """Image ``i`` with its targets, as tv_tensors that torchvision's transforms know.

    Boxes are clipped to the image; those without area or category are left out.

    Returns:
        ``(3, H, W)`` uint8, and ``boxes`` ``(K, 4)``, ``labels`` ``(K,)`` from 1, with ``masks``
        also ``(K, H, W)`` uint8.
    """
    image = dataset.image(i)
    size = image.size[::-1]
    keep = _keep(dataset, i)
    boxes = torch.from_numpy(np.asarray(dataset.boxes[i], np.float32)[keep])
    labels = torch.from_numpy(np.asarray(dataset.box_categories[i])[keep].astype(np.int64) + 1)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": labels,
    }
    if masks:
        found = [dataset.mask(i, int(k)) for k in keep]
        stack = np.stack(found) if found else np.zeros((0, *size), bool)
        target["masks"] = tv_tensors.Mask(torch.from_numpy(stack.astype(np.uint8)))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    clip = v2.Compose([v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=MIN_SIDE)])
    return clip(tv_tensors.Image(pixels), target)


def drawn(
    dataset: ImageDataset,
    images: list[int],
    count: int,
    generator: torch.Generator,
    augment: v2.Transform,
    masks: bool = False,
) -> tuple[list[Tensor], list[Target]]:
    """A batch of ``count`` images and their targets, augmented: this process's share of it.

    Args:
        images: that may be drawn. generator: decides which; augmentation goes by torch's own.
    """
    chosen = torch.randint(len(images), (count,), generator=generator).tolist()
    pairs = [augment(*example(dataset, images[k], masks)) for k in distributed.share(chosen)]
    plain = [{k: v.as_subclass(Tensor) for k, v in target.items()} for _, target in pairs]
    return [image.as_subclass(Tensor) for image, _ in pairs], plain


def augmentation(size: int, keep_shape: bool = False) -> v2.Transform:
    """Mirror, zoom in or out, colours, then ``size`` pixels: what makes few photographs many.

    Boxes that a zoom leaves under :data:`MIN_SIDE` pixels are dropped.

    Args:
        keep_shape: never stretch; what a photograph does not fill is grey. Source: the "standard
            scale jittering" of Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation
            Method for Instance Segmentation, 2021.
    """
    square, grey = (size, size), {tv_tensors.Image: 127, "others": 0}  # one number: masks, too
    stretched = v2.RandomChoice(
        [
            v2.RandomResizedCrop(square, scale=(0.4, 1.0), antialias=True),
            v2.Compose([v2.RandomZoomOut(grey, side_range=(1.0, 1.6), p=1.0),
                        v2.Resize(square, antialias=True)]),
            v2.Resize(square, antialias=True),
        ],
        p=[0.5, 0.2, 0.3],
    )  # fmt: skip
    jittered = v2.Compose(
        [
            v2.ScaleJitter(square, scale_range=(0.8, 1.25), antialias=True),
            v2.RandomCrop(square, pad_if_needed=True, fill=grey),
        ]
    )
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomPhotometricDistort(p=0.5),
            jittered if keep_shape else stretched,
            v2.SanitizeBoundingBoxes(min_size=MIN_SIDE),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
