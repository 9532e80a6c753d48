"""PS-Battles (Heller, Rossetto and Schuldt 2018): photoshops ask for the original they came from.

The data set is two lists of addresses at which Reddit's users put their pictures, with the hash of
each. Many are gone: what is left differs from year to year, so say with every number how many
images it was measured on.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import SPLITS, open_copy, read_table

NAME = "ps-battles"
LISTS = ("originals.tsv", "photoshops.tsv")
PATTERNS = {  # what a row must say, for names that lead nowhere else
    "id": r"[\w-]+", "end": r"\w+", "hash": "[0-9a-f]{64}", "filesize": r"\d+", "url": ".+",
    "original": r"[\w-]+",  # of photoshops
}  # fmt: skip


def ps_battles(split: str, root: Path | None = None) -> ImageDataset:
    """Photoshops query, originals are the gallery; labels are originals.

    The data set has no split of its own. Ours goes by the hash of an original's id, so that it
    does not depend on which links are dead: half of the originals, with all that was made from
    them, are "train", the others "test". Photoshops whose original is gone are left out.

    ``root`` has both lists, ``originals/`` and ``photoshops/``. Raises DataError: no such split,
    no lists, or no pair of images.
    """
    place = open_copy(NAME, split, root, LISTS, ["PS-Battles"])
    originals, photoshops = (read_list(place / one) for one in LISTS)
    files, label_of = [], {}
    for row in originals.itertuples():
        (file,) = _places(row)
        if _in_split(row.id, split) and (place / file).is_file():
            label_of[row.id] = len(files)
            files.append(file)
    gallery, labels = np.arange(len(files)), list(range(len(files)))
    for row in photoshops[photoshops.original.isin(list(label_of))].itertuples():
        for file in [file for file in _places(row) if (place / file).is_file()][:1]:
            files.append(file)
            labels.append(label_of[row.original])
    if len(files) == len(gallery):
        raise DataError(f"{place}: no photoshop with its original in {split}", "Build it again.")
    return ImageDataset(
        NAME, split, place, tuple(files), np.array(labels), tuple(label_of),
        queries=np.arange(len(gallery), len(files)), gallery=gallery,
        protocol="photoshop to original",
    )  # fmt: skip


def _in_split(original: str, split: str) -> bool:
    return hashlib.sha256(original.encode()).digest()[0] % 2 == SPLITS.index(split)


def _places(row) -> tuple[str, ...]:
    """Where an image lies; of photoshops the two official download scripts make two places."""
    if not hasattr(row, "original"):
        return (f"originals/{row.id}.{row.end}",)
    return f"photoshops/{row.original}/{row.id}.{row.end}", f"photoshops/{row.id}.{row.end}"


def read_list(file: Path) -> pd.DataFrame:
    """The rows of ``originals.tsv`` or ``photoshops.tsv``.

    Raises DataError: not such a list, or a row whose names or hash cannot be.
    """
    rows = read_table(file, sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False)
    needed = {k: v for k, v in PATTERNS.items() if k != "original" or k in rows}
    if not len(rows) or not needed.keys() <= set(rows):
        raise DataError(f"{file}: has no columns {', '.join(sorted(needed))}", "Get it again.")
    for column, pattern in needed.items():
        if not (right := rows[column].str.fullmatch(pattern)).all():
            problem = f"{file}, line {2 + right.argmin()}: {column} is not one of PS-Battles"
            raise DataError(problem, "Get it again.")
    return rows


def build(root: Path | None = None, retry_dead: bool = False, **places: object) -> Path:
    """Fetch the lists, then all images that are still at their addresses, into the data set.

    Killed or run again, it goes on where it stopped; ``links.json`` says which links are dead.

    Args:
        root: folder of data sets.
        retry_dead: ask links again that were dead in an earlier run.
        places: ``source`` and ``mirror`` of the lists, as of :func:`fetch.fetch`.
    Raises:
        DownloadError: no list, no server answers, or the disk is full.
    """
    from objemb_lib.data import fetch  # here: it loads what downloads

    folder, wanted = Path(root or config.data_root()) / NAME, []
    for remote in fetch.registry(NAME):
        listed = fetch.fetch(remote, folder, read_list, **places)
        wanted += [fetch.Remote(_places(row)[0], row.url, row.hash, int(row.filesize))
                   for row in read_list(listed).itertuples()]  # fmt: skip
    return fetch.download_urls(folder, wanted, retry_dead)
