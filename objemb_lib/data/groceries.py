"""Groceries (Klasson, Zhang and Kjellström 2019): photographs from shops ask for the iconic
picture of their product. Lies at https://github.com/marcusklasson/GroceryStoreDataset.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.listing import SPLITS, folder_with


def groceries(split: str, root: Path | None = None) -> ImageDataset:
    """Photographs query, iconic pictures are the gallery. Every other product is "train".

    Args:
        split: "train" or "test"; ours, since the data set's own has the same products in both.
        root: a copy of the repository.
    Raises:
        DataError: no such split, no copy, or no photograph in it.
    """
    if split not in SPLITS:
        raise DataError(f"groceries has no split {split!r}", f"Use {' or '.join(SPLITS)}.")
    if root is None:
        raise DataError("groceries is not built here", "Name a copy: groceries:PATH.")
    place = folder_with(Path(root), ["classes.csv"], ["dataset"])
    with (place / "classes.csv").open(newline="", encoding="utf-8") as opened:
        classes = list(csv.reader(opened))[1:]
    names = [row[0] for row in classes]
    coarse = dict(zip(names, (row[2] for row in classes)))
    coarse_names = sorted(set(coarse.values()))
    ours = range(SPLITS.index(split), len(names), 2)
    files = [classes[i][4].strip().lstrip("/") for i in ours]
    labels = list(ours)
    for line in _photographs(place):
        file, label = line[0].strip(), int(line[1])
        if label in ours and (place / file).is_file():
            files.append(file)
            labels.append(label)
    if len(files) == len(ours):
        raise DataError(f"{place}: none of the photographs in its lists is there", "Add them.")
    return ImageDataset(
        "groceries", split, place, tuple(files), np.array(labels), tuple(names),
        np.array([coarse_names.index(coarse[names[label]]) for label in labels]),
        tuple(coarse_names), queries=np.arange(len(ours), len(files)),
        gallery=np.arange(len(ours)), protocol="iconic",
    )  # fmt: skip


def _photographs(place: Path) -> list[list[str]]:
    """``file, class, coarse class`` of all photographs in the official lists that are there."""
    lists = [place / f"{name}.txt" for name in ("train", "val", "test")]
    return [line.split(",") for one in lists if one.exists()
            for line in one.read_text().splitlines() if line.strip()]  # fmt: skip
