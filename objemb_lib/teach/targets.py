"""A data set as training targets: boxes, categories and masks, with augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import Target
from objemb_lib.detect.metrics import crowds
from objemb_lib.teach.training import share

GRANULARITIES = ("one", "category", "object")
MIN_SIDE = 4  # pixels: smaller boxes, and what augmentation leaves of others, are no targets


def relabel(dataset: ImageDataset, labels: str) -> ImageDataset:
    """The data set with boxes called by something finer or coarser than their category.

    Args:
        labels: ``one`` (every box is an "object"), ``category`` (nothing changes), or
            ``object`` (every object is a class of its own).
    """
    if labels == "category":
        return dataset
    if labels == "one":
        names, boxes = ("object",), [np.minimum(c, 0) for c in dataset.box_categories]
    else:
        there = np.unique(np.concatenate(dataset.box_labels))
        there = there[there >= 0]  # a data set's names may hold objects of other splits, too
        names = tuple(dataset.label_names[k] for k in there)
        boxes = [np.where(b >= 0, np.searchsorted(there, b), -1) for b in dataset.box_labels]
    return replace(dataset, box_categories=boxes, category_names=names)


def in_categories(dataset: ImageDataset, names: Sequence[str]) -> ImageDataset:
    """The data set with its boxes' categories numbered as a detector does, by their names.

    Boxes of other categories become unknown.
    """
    if tuple(dataset.category_names) == tuple(names):
        return dataset
    known = {name: number for number, name in enumerate(names)}
    number = np.array([known.get(name, -1) for name in dataset.category_names] + [-1])
    boxes = [number[np.asarray(c, np.int64)] for c in dataset.box_categories]
    main = number[dataset.categories]
    return replace(dataset, categories=main, box_categories=boxes, category_names=tuple(names))


def _keep(dataset: ImageDataset, i: int) -> np.ndarray:
    """Indices of the boxes of an image that can be learned from."""
    boxes = dataset.boxes[i]
    large = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    return np.flatnonzero(large & (dataset.box_categories[i] >= 0) & ~crowds(dataset, i))


def example(dataset: ImageDataset, i: int, masks: bool = False) -> tuple[Tensor, Target]:
    """Image ``i`` with its targets, as tv_tensors that torchvision's transforms know.

    Returns:
        ``(3, H, W)`` uint8, and ``boxes`` ``(K, 4)`` inside the image, ``labels`` ``(K,)``
        (categories from 1), ``objects`` ``(K,)`` (-1: unknown), with ``masks`` also ``(K, H, W)``.
    """
    image, keep = dataset.image(i), _keep(dataset, i)
    size, told = image.size[::-1], (dataset.boxes, dataset.box_categories, dataset.box_labels)
    boxes, kinds, objects = (torch.from_numpy(values[i][keep]) for values in told)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=size),
        "labels": kinds.long() + 1,
        "objects": objects.long(),
    }
    if masks:
        found = [dataset.mask(i, int(k)) for k in keep]
        stack = np.stack(found) if found else np.zeros((0, *size), bool)
        target["masks"] = tv_tensors.Mask(torch.from_numpy(stack.astype(np.uint8)))
    pixels = tv_tensors.Image(pil_to_tensor(image))
    return v2.Compose([v2.ClampBoundingBoxes(), _sanitised()])(pixels, target)


def _sanitised() -> v2.Transform:
    """Drops boxes under :data:`MIN_SIDE` pixels, and what is said of them."""
    said = lambda given: (given[1]["labels"], given[1]["objects"])  # noqa: E731
    return v2.SanitizeBoundingBoxes(min_size=MIN_SIDE, labels_getter=said)


def draw_batches(
    dataset: ImageDataset, count: int, augment: v2.Transform, masks: bool = False
) -> Callable[[torch.Generator], tuple[list[Tensor], list[Target]]]:
    """What draws ``count`` images and their targets, augmented: this process's share of them.

    Only from images with a box that can be learned from (DataError: there are none). The generator
    decides which; augmentation goes by torch's own.
    """
    images = [i for i in range(len(dataset)) if len(_keep(dataset, i))]
    if not images:
        problem = f"{dataset.name}/{dataset.split}: no image has a box with a category"
        raise DataError(problem, "Give annotations (COCO format), or train on another data set.")

    def draw(generator: torch.Generator) -> tuple[list[Tensor], list[Target]]:
        chosen = torch.randint(len(images), (count,), generator=generator).tolist()
        pairs = [augment(*example(dataset, images[k], masks)) for k in share(chosen)]
        plain = [{k: v.as_subclass(Tensor) for k, v in target.items()} for _, target in pairs]
        return [image.as_subclass(Tensor) for image, _ in pairs], plain

    return draw


def augmentation(size: int, keep_shape: bool = False) -> v2.Transform:
    """Mirror, zoom in or out, colours, then ``size`` pixels: what makes few photographs many.

    Boxes that a zoom leaves under :data:`MIN_SIDE` pixels are dropped.

    Args:
        keep_shape: never stretch; what a photograph does not fill is grey. Source: the "standard
            scale jittering" of Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation
            Method for Instance Segmentation, 2021.
    """
    square, grey = (size, size), {tv_tensors.Image: 127, "others": 0}  # one number: masks, too
    resized = v2.Resize(square, antialias=True)
    zoomed_in = v2.RandomResizedCrop(square, scale=(0.4, 1.0), antialias=True)
    zoomed_out = v2.Compose([v2.RandomZoomOut(grey, side_range=(1.0, 1.6), p=1.0), resized])
    stretched = v2.RandomChoice([zoomed_in, zoomed_out, resized], p=[0.5, 0.2, 0.3])
    scaled = v2.ScaleJitter(square, scale_range=(0.8, 1.25), antialias=True)
    jittered = v2.Compose([scaled, v2.RandomCrop(square, pad_if_needed=True, fill=grey)])
    sized, single = jittered if keep_shape else stretched, v2.ToDtype(torch.float32, scale=True)
    coloured = v2.RandomPhotometricDistort(p=0.5)
    return v2.Compose([v2.RandomHorizontalFlip(), coloured, sized, _sanitised(), single])
