"""Data sets made for detection, as photographs with their boxes and as objects to retrieve."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import encode_mask

CONTEXT = 0.5  # of the object's width and height, on each side of it
MIN_AREA = 32**2  # pixels: what COCO calls small can hardly be told by eye
PER_CATEGORY = 100  # or persons would be a third of all queries
VISIBLE = 0.5  # part of another object's box that must lie in the window to count as shown


@dataclass(frozen=True)
class Photo:
    """A photograph with ``K`` annotated objects, crowds left out.

    Args:
        file: path below the data set's folder.
        size: (width, height) in pixels, as it is loaded.
        boxes: ``(K, 4)`` ``x0, y0, x1, y1``. categories: ``(K,)`` indices.
        ids: ``K`` numbers or names of the annotations, unique in the data set.
        segmentations: ``K`` COCO segmentations, or empty.
    """

    file: str
    size: tuple[int, int]
    boxes: np.ndarray
    categories: np.ndarray
    ids: Sequence[int | str]
    segmentations: Sequence[list | dict] = ()


def photographs(
    name: str,
    split: str,
    root: Path,
    photos: Sequence[Photo],
    category_names: Sequence[str],
    with_masks: bool = True,
) -> ImageDataset:
    """Whole photographs with every box (and mask), the largest first: to train detectors on."""
    order = [np.argsort(-_areas(p.boxes), kind="stable") for p in photos]
    categories = [p.categories[o] for p, o in zip(photos, order)]
    main = np.array([c[0] if len(c) else -1 for c in categories])
    masks = None
    if with_masks and any(p.segmentations for p in photos):
        masks = [[_mask(p, k) for k in o] for p, o in zip(photos, order)]
    return ImageDataset(
        name, split, root, tuple(p.file for p in photos), main, tuple(category_names), main,
        tuple(category_names), tuple(p.boxes[o] for p, o in zip(photos, order)), categories,
        categories, masks,
    )  # fmt: skip


def objects(
    name: str,
    split: str,
    root: Path,
    photos: Sequence[Photo],
    category_names: Sequence[str],
    per_category: int = PER_CATEGORY,
) -> ImageDataset:
    """Windows around annotated objects, to be found again by their category.

    A window is the object's box with :data:`CONTEXT` on each side, inside the photograph. Of a
    category's objects in one photograph the largest is taken; of all of them ``per_category``,
    chosen by the hash of their annotation's id. ``train`` has every other category, beginning
    with the first, ``test`` the rest: no category is in both.

    Junk: windows that show the query's category only beside their own object.

    Raises:
        DataError: no such split, or no object large enough in these photographs.
    """
    if split not in ("train", "test"):
        raise DataError(f"{name} has no split {split!r}", "Use train or test.")
    parity = ("train", "test").index(split)
    chosen = _choose(photos, range(parity, len(category_names), 2), per_category)
    if not chosen:
        raise DataError(f"{root}: no object of {MIN_AREA} pixels or more", "Add photographs.")
    seen = [_window(photos[i], k) for i, k in chosen]
    labels = np.array([photos[i].categories[k] for i, k in chosen])
    shown = [photos[i].categories[one.objects] for (i, _), one in zip(chosen, seen)]
    masks = None
    if any(p.segmentations for p in photos):
        masks = [
            [_cut(_mask(photos[i], k), one.place) for k in one.objects]
            for (i, _), one in zip(chosen, seen)
        ]
    names = tuple(category_names)
    return ImageDataset(
        name, split, root, tuple(photos[i].file for i, _ in chosen), labels, names, labels, names,
        tuple(one.boxes for one in seen), shown, shown, masks,
        crops=tuple(one.place for one in seen), protocol="categories",
        extra=tuple({"annotation_id": photos[i].ids[k]} for i, k in chosen),
    )  # fmt: skip


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _choose(
    photos: Sequence[Photo], categories: Iterable[int], per_category: int
) -> list[tuple[int, int]]:
    """``(photograph, object)`` pairs, category by category."""
    candidates: dict[int, list[tuple[str, int, int]]] = {c: [] for c in categories}
    for i, photo in enumerate(photos):
        areas = _areas(photo.boxes)
        taken = set()
        for k in np.argsort(-areas, kind="stable"):
            category = int(photo.categories[k])
            if areas[k] >= MIN_AREA and category in candidates and category not in taken:
                taken.add(category)
                key = hashlib.sha256(str(photo.ids[k]).encode()).hexdigest()
                candidates[category].append((key, i, int(k)))
    return [(i, k) for many in candidates.values() for _, i, k in sorted(many)[:per_category]]


@dataclass(frozen=True)
class _Window:
    """A part of a photograph: its place in it, and the objects it shows, the main one first."""

    place: tuple[int, int, int, int]
    objects: np.ndarray
    boxes: np.ndarray


def _window(photo: Photo, k: int) -> _Window:
    x0, y0, x1, y1 = map(float, photo.boxes[k])
    dx, dy = CONTEXT * (x1 - x0), CONTEXT * (y1 - y0)
    place = (max(0, floor(x0 - dx)), max(0, floor(y0 - dy)),
             min(photo.size[0], ceil(x1 + dx)), min(photo.size[1], ceil(y1 + dy)))  # fmt: skip
    low, high = np.array(place[:2] * 2), np.array(place[2:] * 2)
    boxes = photo.boxes.clip(low, high)
    visible = _areas(boxes) / np.maximum(_areas(photo.boxes), 1e-9) >= VISIBLE
    visible[k] = False
    which = np.concatenate([[k], np.flatnonzero(visible)])
    return _Window(place, which, (boxes[which] - low).astype(np.float32))


def _mask(photo: Photo, k: int) -> dict:
    return encode_mask(photo.segmentations[k], photo.boxes[k], photo.size)


def _cut(mask: dict, place: tuple[int, int, int, int]) -> dict:
    x0, y0, x1, y1 = place
    return coco_mask.encode(np.asfortranarray(coco_mask.decode(mask)[y0:y1, x0:x1]))
