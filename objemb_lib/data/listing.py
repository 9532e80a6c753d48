"""A benchmark's own lists -> its splits, from the images that a copy really holds.

A copy may be a part of the benchmark, and its images may already be cut to their objects: what
differs from the official data is said in a warning and in the data set's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.images import fit_within, image_size

SPLITS = ("train", "test")
SLACK = 2.0  # pixels that an annotated box may reach beyond its image


@dataclass(frozen=True)
class Listing:
    """What a benchmark says of its ``N`` images, whether they are there or not.

    Args:
        name: the data set.
        files: ``N`` paths, relative to the folder of the copy.
        labels: ``(N,)`` class of each image; ``label_names`` its name.
        test: ``(N,)`` boolean: images of the test split.
        boxes: ``(N, 4)`` ``x0, y0, x1, y1`` in pixels of the stored image, or None.
        categories: ``(N,)`` coarse category, or None; ``category_names`` its name.
        protocol: how the benchmark is scored, see :data:`objemb_lib.measure.metrics.PROTOCOLS`.
        total: images of the whole benchmark, where ``files`` are fewer.
    """

    name: str
    files: Sequence[str]
    labels: np.ndarray
    label_names: Sequence[str]
    test: np.ndarray
    boxes: np.ndarray | None = None
    categories: np.ndarray | None = None
    category_names: Sequence[str] = ()
    protocol: str = "metric learning"
    total: int = 0


def folder_with(root: Path, names: Sequence[str], inside: Sequence[str] = ()) -> Path:
    """``root``, or its sub-folder among ``inside``, that holds one of the files ``names``.

    Raises:
        DataError: none does, naming what was looked for.
    """
    for place in (root, *(root / one for one in inside)):
        if any((place / name).exists() for name in names):
            return place
    raise DataError(
        f"{root}: {' or '.join(names)} is not there",
        "Name the folder that the official archive unpacks to, or build the data set with "
        "data/download.py.",
    )


def load_split(listing: Listing, root: Path, split: str) -> ImageDataset:
    """The images of one split that lie in ``root``, all querying and all searched.

    Where a copy has images of only one official split, its classes are halved in their order:
    the first half trains. The data set is then called "(part)", as any incomplete one.

    Raises:
        DataError: no such split, or no image of it is there.
    """
    if split not in SPLITS:
        raise DataError(f"{listing.name} has no split {split!r}", f"Use {' or '.join(SPLITS)}.")
    here = np.array([(root / file).is_file() for file in listing.files])
    if not here.any():
        raise DataError(
            f"{root}: none of the {len(here):,} images of {listing.name} are there "
            f"(the first would be {listing.files[0]})",
            "Put the images beside the annotations, as the official archive has them.",
        )
    test, said = listing.test, []
    if not (here & test).any() or not (here & ~test).any():
        known = np.unique(listing.labels[here])
        test = np.isin(listing.labels, known[len(known) // 2 :])
        said.append("of one official split only: its classes are halved, the first half trains")
    chosen = np.flatnonzero(here & (test if split == "test" else ~test))
    if not len(chosen):
        raise DataError(f"{root}: its images show one class only", "Two classes are needed.")
    boxes, unfit = _boxes(listing, root, chosen)
    if unfit:
        said.append(f"{unfit} of {len(chosen)} boxes lie outside their image, which is then taken "
                    "as cut to its object")  # fmt: skip
    return ImageDataset(
        name=note_part(listing.name, root, here.sum(), listing.total or len(here), said),
        split=split,
        root=root,
        files=tuple(listing.files[i] for i in chosen),
        labels=listing.labels[chosen],
        label_names=tuple(listing.label_names),
        categories=None if listing.categories is None else listing.categories[chosen],
        category_names=tuple(listing.category_names),
        boxes=boxes,
        protocol=listing.protocol,
    )


def note_part(name: str, root: Path, found: int, total: int, more: Sequence[str] = ()) -> str:
    """The name of a data set of which ``found`` of ``total`` images are there, and a warning."""
    if found < total or more:
        note = f"{root}: {found:,} of the {total:,} images of {name} are here"
        warnings.warn("; ".join([note, *more]), stacklevel=5)
    return f"{name} (part)" if found < total else name


def _boxes(listing: Listing, root: Path, chosen: np.ndarray) -> tuple[tuple, int]:
    """Each image's box as ``(1, 4)`` pixels of the loaded image, and how many did not fit."""
    if listing.boxes is None:
        return (), 0
    found, unfit = [], 0
    for i in chosen:
        size, upright = image_size(root / listing.files[i])
        box = clip_to(listing.boxes[i], size) if upright else None
        unfit += box is None
        if box is None:  # another version of the image: all of it is the object
            box = np.array([0, 0, *size])
        scale = np.divide(fit_within(size), size)  # very large images are reduced when loaded
        found.append((box * np.tile(scale, 2)).astype(np.float32)[None])
    return tuple(found), unfit


def clip_to(box: np.ndarray, size: tuple[int, int], slack: float = SLACK) -> np.ndarray | None:
    """A box inside an image of ``size``; None if it reaches outside by more than ``slack``.

    >>> clip_to([3, 4, 11, 8], (10, 10)).tolist(), clip_to([3, 4, 19, 8], (10, 10))
    ([3.0, 4.0, 10.0, 8.0], None)
    """
    box, edge = np.asarray(box, np.float64), np.array([*size, *size])
    if (box > edge + slack).any() or (box < -slack).any():
        return None
    box = box.clip(0, edge)
    return box if (box[2:] > box[:2]).all() else None
