"""The user's own photographs as training images and a test."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder

ANNOTATIONS = "annotations.json"
LABELS = 4  # two to choose by, two to measure on
ARRANGE = (
    f"Give each object, model or species a sub-folder with two photographs at least, {LABELS} "
    f"sub-folders at least; or put a COCO file {ANNOTATIONS} into the folder, whose categories "
    "say what the photographs show."
)


def folder_roles(
    path: str | Path, annotations: Path | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """A folder's training and test images: the first half of its labels, and the second.

    As CUB-200-2011 and Cars-196 are halved for retrieval: by class, in the order of the names.

    Args:
        path: the folder. annotations: COCO file of its boxes; default ``annotations.json`` in it,
            if there. With boxes, photographs without one are left out, with a warning.
    Raises:
        DataError: no path, or fewer than four labels of two photographs; says how to arrange them.
    """
    if not str(path):
        raise DataError("folder: no folder is named", "Say which: folder:PATH.")
    path = Path(path).expanduser()
    beside = path / ANNOTATIONS
    annotations = annotations or (beside if beside.is_file() else None)
    data = folder(path, annotations)
    if annotations:
        boxed = np.array([len(boxes) > 0 for boxes in data.boxes])
        if not boxed.all():
            note = f"{path}: {(~boxed).sum()} of {len(data)} photographs have no box: left out"
            warnings.warn(note, stacklevel=2)
            data = data.subset(boxed)
    labels, counts = np.unique(data.labels[data.labels >= 0], return_counts=True)
    labels = labels[counts > 1]
    if len(labels) < LABELS:
        raise DataError(f"{path}: {len(labels)} labels of two photographs or more", ARRANGE)
    known, train = data.labels >= 0, data.labels < labels[len(labels) // 2]
    halves = {"train": known & train, "test": known & ~train}
    return tuple(replace(data.subset(part), split=split) for split, part in halves.items())
