"""Open Images: objects of forty classes, from the boxes of its validation and test images.

A subset: the images of these classes only, a hundred objects a class at most, since the whole is
half a terabyte. Boxes are those of version 4 (Kuznetsova et al. 2020), checked against their
published digests; of the images only the servers know the digests, and what arrives must decode.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data import detection
from objemb_lib.data.archives import Archive, fetch_links, obtain
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.detection import Photo
from objemb_lib.data.harvest import Wanted
from objemb_lib.data.images import fit_within, image_size, load_image
from objemb_lib.data.listing import SPLITS, folder_with

NAME = "open-images"
PARTS = {"train": "validation", "test": "test"}  # the training images have two million boxes more
CLASSES = {  # in the order of their names: every other one is trained on
    "/m/0mkg": "Accordion", "/m/0cmf2": "Airplane", "/m/01940j": "Backpack", "/m/018j2": "Banjo",
    "/m/0199g": "Bicycle", "/m/01bjv": "Bus", "/m/0dv5r": "Camera", "/m/0d5gx": "Castle",
    "/m/01yrx": "Cat", "/m/01x3z": "Clock", "/m/02p5f1q": "Coffee cup", "/m/02crq1": "Couch",
    "/m/0bt9lr": "Dog", "/m/02hj4": "Dolphin", "/m/026t6": "Drum", "/m/09ddx": "Duck",
    "/m/0bwd_0j": "Elephant", "/m/03120": "Flag", "/m/0306r": "Fox", "/m/09ld4": "Frog",
    "/m/03bk1": "Giraffe", "/m/03fwl": "Goat", "/m/0342h": "Guitar", "/m/03k3r": "Horse",
    "/m/01c648": "Laptop", "/m/04h7h": "Lighthouse", "/m/096mb": "Lion", "/m/04m9y": "Lizard",
    "/m/050k8": "Mobile phone", "/m/04_sv": "Motorcycle", "/m/052sf": "Mushroom", "/m/09d5_": "Owl",
    "/m/05z6w": "Penguin", "/m/05r5c": "Piano", "/m/06m11": "Rose", "/m/078jl": "Snake",
    "/m/0ftb8": "Sunflower", "/m/011k07": "Tortoise", "/m/07jdr": "Train", "/m/07y_7": "Violin",
}  # fmt: skip
MIN_SHARE = 0.02  # of the image that an object covers at least: pixels are not known before
PER_CLASS = 100
PER_SECOND = 20  # requests: a store that is made for many
IMAGES = "https://open-images-dataset.s3.amazonaws.com"
LISTS = "https://storage.googleapis.com/openimages/2018_04"
BOXES = {
    "train": Archive(
        "validation-annotations-bbox.csv",
        (f"{LISTS}/validation/validation-annotations-bbox.csv",),
        "aebdfc1dbae39dc1f25d2079720f95c5963eeaf9ff23fe638522f09aeb306ee7",
        17_074_036,
    ),
    "test": Archive(
        "test-annotations-bbox.csv",
        (f"{LISTS}/test/test-annotations-bbox.csv",),
        "7cd2d47f158b6e752c972a20186f33a2d467c371e326d39e210e2ee89d978d2b",
        52_174_204,
    ),
}
FIELDS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf", "IsDepiction")


def open_images(split: str, root: Path | None = None) -> ImageDataset:
    """Objects of Open Images, to be found by their class: see :func:`detection.objects`.

    ``train`` are objects of 20 classes in validation images, ``test`` of the other 20 in test
    images.

    Args:
        split: "train" or "test".
        root: folder with ``validation-annotations-bbox.csv`` and ``validation/``, and the same
            of ``test``.
    Raises:
        DataError: no such split, no boxes, or no image is there.
    """
    if split not in SPLITS:
        raise DataError(f"{NAME} has no split {split!r}", f"Use {' or '.join(SPLITS)}.")
    root = Path(root or config.data_root() / NAME)
    place = folder_with(root, [BOXES[split].file])
    photos, part = [], PARTS[split]
    for image, rows in _by_image(read_boxes(place / BOXES[split].file)).items():
        file = f"{part}/{image}.jpg"
        if (place / file).is_file():
            photos.append(_photo(file, image_size(place / file)[0], rows))
    if not photos:
        raise DataError(f"{place / part}: no image of the {len(CLASSES)} classes", "Build it.")
    return detection.objects(NAME, split, place, photos, list(CLASSES.values()), PER_CLASS)


def _photo(file: str, stored: tuple[int, int], rows: list[dict]) -> Photo:
    size = fit_within(stored)
    share = np.array([[float(row[f]) for f in ("XMin", "YMin", "XMax", "YMax")] for row in rows])
    order = list(CLASSES)
    return Photo(file, size, share.clip(0, 1) * np.tile(size, 2),
                 np.array([order.index(row["LabelName"]) for row in rows]),
                 [row["id"] for row in rows])  # fmt: skip


def read_boxes(file: Path) -> list[dict[str, str]]:
    """The boxes of our classes that show one real object, each with an ``id``.

    Raises:
        DataError: not a list of boxes.
    """
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = csv.DictReader(opened)
            if not set(FIELDS) <= set(rows.fieldnames or ()):
                raise DataError(f"{file}: not a list of boxes", "Get it again.")
            chosen = [{f: row[f] for f in FIELDS} for row in rows if row["LabelName"] in CLASSES]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error})", "Get it again.") from error
    numbers: Counter[str] = Counter()
    for row in chosen:
        row["id"] = f"{row['ImageID']} {numbers[row['ImageID']]}"
        numbers[row["ImageID"]] += 1
    return [row for row in chosen if row["IsGroupOf"] == row["IsDepiction"] == "0"]


def _by_image(rows: Iterable[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["ImageID"], []).append(row)
    return found


def choose(rows: list[dict], split: str, per_class: int = PER_CLASS) -> set[str]:
    """Images of ``per_class`` objects a class, large enough, by the hash of their ids."""
    chosen: set[str] = set()
    for name in list(CLASSES)[SPLITS.index(split) :: 2]:
        large = [
            row for row in rows if row["LabelName"] == name
            and (float(row["XMax"]) - float(row["XMin"]))
            * (float(row["YMax"]) - float(row["YMin"])) >= MIN_SHARE
        ]  # fmt: skip
        images = dict.fromkeys(
            row["ImageID"]
            for row in sorted(large, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
        )
        chosen.update(list(images)[:per_class])
    return chosen


def build(
    root: Path | None = None,
    source: Path | None = None,
    mirror: str | None = None,
    retry_dead: bool = False,
    progress: bool = True,
) -> Path:
    """Fetch the boxes, then the images of the forty classes; goes on where it was stopped.

    Args and Raises as :func:`objemb_lib.data.ps_battles.build`.
    """
    folder = Path(root or config.data_root()) / NAME
    folder.mkdir(parents=True, exist_ok=True)
    wanted = []
    for split, part in PARTS.items():
        boxes = obtain(BOXES[split], folder, source, mirror, progress)
        wanted += [
            Wanted(f"{IMAGES}/{part}/{image}.jpg", folder / part / f"{image}.jpg", check=load_image)
            for image in sorted(choose(read_boxes(boxes), split))
        ]
    return fetch_links(folder, wanted, retry_dead, PER_SECOND, progress)
