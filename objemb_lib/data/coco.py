"""COCO 2017 (Lin et al. 2014) in its official layout, or a part of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data import detection
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.detection import Photo
from objemb_lib.data.folder import clip_boxes
from objemb_lib.data.listing import folder_with, note_part

YEARS = {"train": "train2017", "test": "val2017"}  # the images of test2017 have no public boxes
TOTAL = {"train2017": 118_287, "val2017": 5_000}


def coco(split: str, root: Path | None = None) -> ImageDataset:
    """Objects of COCO, to be found by their category: see :func:`detection.objects`.

    ``train`` are objects of 40 categories in train2017, ``test`` of the other 40 in val2017.

    Args:
        split: "train" or "test".
        root: folder with ``annotations/``, ``train2017/`` and ``val2017/``.
    Raises:
        DataError: no such split, or the folder is not COCO's.
    """
    return _load(split, root, detection.objects)


def coco_photographs(split: str, root: Path | None = None, with_masks: bool = True) -> ImageDataset:
    """The photographs of train2017 ("train") or val2017 ("test") with every box.

    Args:
        split, root: as for :func:`coco`.
        with_masks: also every mask: slow for the whole of train2017.
    Raises:
        DataError: as :func:`coco`.
    """
    return _load(split, root, partial(detection.photographs, with_masks=with_masks))


def _load(split: str, root: Path | None, make) -> ImageDataset:
    if split not in YEARS:
        raise DataError(f"coco has no split {split!r}", f"Use {' or '.join(YEARS)}.")
    root = Path(root or config.data_root() / "coco")
    place = folder_with(root, ["annotations"], ["coco"])
    year = YEARS[split]
    photos, names = read_instances(place, year)
    name = note_part("coco", place, len(photos), TOTAL[year])
    return make(name, split, place, photos, names)


def read_instances(root: Path, year: str) -> tuple[list[Photo], list[str]]:
    """The photographs of ``year`` that are there, and the names of the 80 categories.

    Raises:
        DataError: the annotations are absent or damaged, or no photograph is there.
    """
    file = root / "annotations" / f"instances_{year}.json"
    try:
        content = json.loads(file.read_bytes())
        categories = sorted(content["categories"], key=lambda one: one["id"])
        number = {one["id"]: i for i, one in enumerate(categories)}
        of_image: dict[int, list[dict]] = {one["id"]: [] for one in content["images"]}
        for one in content["annotations"]:
            if not one["iscrowd"]:
                of_image[one["image_id"]].append(one)
        here = {path.name for path in (root / year).iterdir()} if (root / year).is_dir() else set()
        photos = [
            _photo(year, image, of_image[image["id"]], number)
            for image in content["images"]
            if image["file_name"] in here
        ]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})", "Check the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not COCO annotations ({error!r})", "Unpack it again.") from error
    if not photos:
        raise DataError(f"{root / year}: none of its {len(of_image):,} photographs are there",
                        f"Unpack {year}.zip into {root}.")  # fmt: skip
    return photos, [one["name"] for one in categories]


def _photo(year: str, image: dict, notes: list[dict], number: dict[int, int]) -> Photo:
    size = image["width"], image["height"]
    boxes, kept = clip_boxes([one["bbox"] for one in notes], size)
    notes = [one for one, keep in zip(notes, kept) if keep]
    return Photo(
        f"{year}/{image['file_name']}",
        size,
        boxes[kept],
        np.array([number[one["category_id"]] for one in notes], np.int64),
        [one["id"] for one in notes],
        [one["segmentation"] for one in notes],
    )
