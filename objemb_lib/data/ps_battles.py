"""PS-Battles (Heller, Rossetto and Schuldt 2018): photoshops ask for the original they came from.

The data set is two lists of addresses at which Reddit's users put their pictures, with the hash of
each. Many are gone: what is left differs from year to year, so say with every number how many
images it was measured on.
"""

from __future__ import annotations

import csv
import hashlib
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import SPLITS, check_split, folder_with

NAME = "ps-battles"
LISTS = ("originals.tsv", "photoshops.tsv")
COLUMNS = {"id", "url", "end", "hash", "filesize"}


def ps_battles(split: str, root: Path | None = None) -> ImageDataset:
    """Photoshops query, originals are the gallery; labels are originals.

    The data set has no split of its own. Ours goes by the hash of an original's id, so that it
    does not depend on which links are dead: half of the originals, with all that was made from
    them, are "train", the others "test". Photoshops whose original is gone are left out.

    Args:
        split: "train" or "test".
        root: folder with both lists, ``originals/`` and ``photoshops/``.
    Raises:
        DataError: no such split, no lists, or no pair of images.
    """
    check_split(NAME, split)
    place = folder_with(Path(root or config.data_root() / NAME), LISTS, ["PS-Battles"])
    originals, photoshops = (read_list(place / one) for one in LISTS)
    files, label_of = [], {}
    for row in originals:
        (file,) = _places(row)
        if _in_split(row["id"], split) and (place / file).is_file():
            label_of[row["id"]] = len(files)
            files.append(file)
    gallery, labels = np.arange(len(files)), list(range(len(files)))
    for row in photoshops:
        there = [file for file in _places(row) if (place / file).is_file()]
        if row["original"] in label_of and there:
            files.append(there[0])
            labels.append(label_of[row["original"]])
    if len(files) == len(gallery):
        raise DataError(f"{place}: no photoshop with its original in {split}", "Build it again.")
    return ImageDataset(
        NAME, split, place, tuple(files), np.array(labels), tuple(label_of),
        queries=np.arange(len(gallery), len(files)), gallery=gallery,
        protocol="photoshop to original",
    )  # fmt: skip


def _in_split(original: str, split: str) -> bool:
    return hashlib.sha256(original.encode()).digest()[0] % 2 == SPLITS.index(split)


def _places(row: dict) -> tuple[str, ...]:
    """Where an image lies; of photoshops the two official download scripts make two places."""
    file = f"{row['id']}.{row['end']}"
    if "original" not in row:
        return (f"originals/{file}",)
    return f"photoshops/{row['original']}/{file}", f"photoshops/{file}"


def read_list(file: Path, photoshops: bool | None = None) -> list[dict[str, str]]:
    """The rows of ``originals.tsv`` or ``photoshops.tsv``.

    Args:
        photoshops: which of them it must be; default by its name.

    Raises:
        DataError: not such a list, or a row whose names or hash cannot be.
    """
    if photoshops is None:
        photoshops = file.name == LISTS[1]
    needed = COLUMNS | ({"original"} if photoshops else set())
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error})", "Get it again.") from error
    if not rows or not needed <= set(rows[0]):
        raise DataError(f"{file}: has no columns {', '.join(sorted(needed))}", "Get it again.")
    for n, row in enumerate(rows, 2):
        name = f"{row['id']}.{row['end']}{row.get('original', '')}"
        plain = name == PurePosixPath(name).name and "\\" not in name
        if not plain or len(row["hash"] or "") != 64 or not (row["filesize"] or "").isdecimal():
            raise DataError(f"{file}, line {n}: not a row of PS-Battles", "Get it again.")
    return rows


def build(
    root: Path | None = None,
    source: Path | None = None,
    mirror: str | None = None,
    retry_dead: bool = False,
    progress: bool = True,
) -> Path:
    """Fetch the lists, then all images that are still at their addresses, into the data set.

    Killed or run again, it goes on where it stopped; ``links.json`` says which links are dead.

    Args:
        root: folder of data sets. source, mirror: where the two lists may lie already.
        retry_dead: ask links again that were dead in an earlier run.
    Raises:
        DownloadError: no list, no server answers, or the disk is full.
    """
    from objemb_lib.data import fetch, links  # here: they load what downloads

    folder = Path(root or config.data_root()) / NAME
    folder.mkdir(parents=True, exist_ok=True)
    wanted = []
    for remote in fetch.registry(NAME):
        check = partial(read_list, photoshops=remote.file == LISTS[1])
        for row in read_list(fetch.fetch(remote, folder, source, mirror, progress, check)):
            dest = folder / _places(row)[0]
            wanted.append(links.Wanted(row["url"], dest, row["hash"], int(row["filesize"])))
    return links.download_urls(folder, wanted, retry_dead, progress=progress)
