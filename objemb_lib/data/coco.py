"""COCO 2017 (Lin et al. 2014) and Open Images: data sets made for detection, as photographs with
their boxes and as objects to retrieve.

Of Open Images a subset: images of forty classes of its validation and test parts, a hundred
objects a class at most, since the whole is half a terabyte. Its boxes are those of version 4
(Kuznetsova et al. 2020), checked against their published digests; of the images only the servers
know the digests, and what arrives must decode.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import (
    SPLITS,
    annotated,
    encode_masks,
    note_part,
    open_copy,
    read_coco,
    read_table,
)
from objemb_lib.data.images import image_size, load_image

CONTEXT = 0.5  # of the object's width and height, on each side of it
MIN_AREA = 32**2  # pixels: what COCO calls small can hardly be told by eye
PER_CATEGORY = 100  # or persons would be a third of all queries
VISIBLE = 0.5  # part of another object's box that must lie in the window to count as shown

YEARS = {"train": "train2017", "test": "val2017"}  # the images of test2017 have no public boxes
TOTAL = {"train2017": 118_287, "val2017": 5_000}

OPEN_IMAGES = "open-images"
PARTS = {"train": "validation", "test": "test"}  # the training images have two million boxes more
with Path(__file__).with_name("open_images_classes.csv").open(encoding="utf-8") as _listed:
    CLASSES = dict(csv.reader(_listed))  # in the order of their names: every other one trains
MIN_SHARE = 0.02  # of the image that an object covers at least: pixels are not known before
PER_SECOND = 20  # requests: a store that is made for many
IMAGES = "https://open-images-dataset.s3.amazonaws.com"
FIELDS = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf", "IsDepiction")


def coco(split: str, root: Path | None = None) -> ImageDataset:
    """Objects of COCO, to be found by their category: see :func:`objects`.

    ``train`` are objects of 40 categories in train2017, ``test`` of the other 40 in val2017.
    ``root`` is a folder with ``annotations/``, ``train2017/`` and ``val2017/``. Raises DataError:
    no such split, or the folder is not COCO's.
    """
    return objects(*_photographs(split, root))


def coco_photographs(split: str, root: Path | None = None, masks: bool = True) -> ImageDataset:
    """The photographs of train2017 ("train") or val2017 ("test") with every box and (if asked for)
    mask, crowds left out, the largest first: to train detectors on. Else as :func:`coco`."""
    data, annotations = _photographs(split, root)
    if not masks:
        return data
    return replace(data, masks=encode_masks(annotations, data.sizes().tolist()))


def _photographs(split: str, root: Path | None) -> tuple[ImageDataset, list[list[dict]]]:
    """Photographs that are there with their boxes, and the annotations of these."""
    place, year = open_copy("coco", split, root, ["annotations"], ["coco"]), YEARS[split]
    images, names = read_coco(place / "annotations" / f"instances_{year}.json")
    files = [file for file in images if (place / year / file).is_file()]
    if not files:
        problem = f"{place / year}: none of its {len(images):,} photographs are there"
        raise DataError(problem, f"Unpack {year}.zip into {place}.")
    entries = [images[file] for file in files]
    for entry in entries:
        entry["objects"] = [one for one in entry["objects"] if not one.get("iscrowd")]
    sizes = [(entry["width"], entry["height"]) for entry in entries]
    parts, annotations = annotated(entries, sizes, names)
    data = ImageDataset("coco", split, place / year, files, **parts)
    return replace(data, name=note_part(data, len(files), TOTAL[year])), annotations


# --- photographs -> objects ---------------------------------------------------------------


def objects(
    data: ImageDataset, annotations: Sequence[Sequence[dict]] = (), per_category: int = PER_CATEGORY
) -> ImageDataset:
    """Windows around the objects of photographs, to be found again by their category.

    A window is the object's box with :data:`CONTEXT` on each side, inside the photograph. Of a
    category's objects in one photograph the largest is taken; of all of them ``per_category``,
    chosen by the hash of their annotation's id. ``train`` has every other category, beginning
    with the first, ``test`` the rest: no category is in both.

    Junk: windows that show the query's category only beside their own object.

    Args:
        data: photographs with their boxes, the largest first, and the annotations' ids.
        annotations: what COCO says of the boxes, for their masks.
    Raises:
        DataError: no object large enough in these photographs.
    """
    chosen = _choose(data, per_category)
    if not chosen:
        raise DataError(f"{data.root}: no object of {MIN_AREA} pixels or more", "Add photographs.")
    photos = data.subset([i for i, _ in chosen])  # one a window
    sizes = photos.sizes().tolist()
    windows = (_window(b, k, size) for b, (_, k), size in zip(photos.boxes, chosen, sizes))
    places, shown, boxes = zip(*windows)
    masks = None
    if annotations:
        seen = [[annotations[i][k] for k in which] for (i, _), which in zip(chosen, shown)]
        masks = encode_masks(seen, sizes)
        masks = masks and [[_cut(one, at) for one in many] for many, at in zip(masks, places)]
    categories = [photos.box_categories[n][which] for n, which in enumerate(shown)]
    labels = np.array([many[0] for many in categories])
    return replace(
        photos, labels=labels, categories=labels, boxes=boxes, box_labels=categories,
        box_categories=categories, masks=masks, crops=places, protocol="categories",
        extra=[{"annotation_id": data.extra[i]["annotation_ids"][k]} for i, k in chosen],
    )  # fmt: skip


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _choose(data: ImageDataset, per_category: int) -> list[tuple[int, int]]:
    """``(photograph, object)`` pairs, category by category."""
    parity = SPLITS.index(data.split)
    candidates = {category: {} for category in range(parity, len(data.category_names), 2)}
    for i, (boxes, categories) in enumerate(zip(data.boxes, data.box_categories)):
        areas = _areas(boxes)
        for category, k in zip(*np.unique(categories, return_index=True)):  # the first: the largest
            if areas[k] >= MIN_AREA and category in candidates:
                candidates[category][_hash(data.extra[i]["annotation_ids"][k])] = i, int(k)
    return [many[key] for many in candidates.values() for key in sorted(many)[:per_category]]


def _hash(name: int | str) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def _window(boxes: np.ndarray, k: int, size: Sequence[int]) -> tuple[tuple, np.ndarray, np.ndarray]:
    """A part of a photograph: its place in it, the objects it shows, the main one first, and their
    boxes."""
    x0, y0, x1, y1 = map(float, boxes[k])
    dx, dy = CONTEXT * (x1 - x0), CONTEXT * (y1 - y0)
    place = (max(0, floor(x0 - dx)), max(0, floor(y0 - dy)),
             min(size[0], ceil(x1 + dx)), min(size[1], ceil(y1 + dy)))  # fmt: skip
    low, high = np.array(place[:2] * 2), np.array(place[2:] * 2)
    seen = boxes.clip(low, high)
    visible = _areas(seen) / np.maximum(_areas(boxes), 1e-9) >= VISIBLE
    visible[k] = False
    which = np.concatenate([[k], np.flatnonzero(visible)])
    return place, which, (seen[which] - low).astype(np.float32)


def _cut(mask: dict, place: tuple[int, int, int, int]) -> dict:
    x0, y0, x1, y1 = place
    return coco_mask.encode(np.asfortranarray(coco_mask.decode(mask)[y0:y1, x0:x1]))


# --- Open Images --------------------------------------------------------------------------


def open_images(split: str, root: Path | None = None) -> ImageDataset:
    """Objects of Open Images, to be found by their class: see :func:`objects`.

    ``train`` are objects of 20 classes in validation images, ``test`` of the other 20 in test
    images. ``root`` has ``validation-annotations-bbox.csv`` and ``validation/``, and the same of
    ``test``. Raises DataError: no such split, no boxes, or no image is there.
    """
    lists = [f"{part}-annotations-bbox.csv" for part in PARTS.values()]
    place = open_copy(OPEN_IMAGES, split, root, lists)
    number, files, sizes, entries = list(CLASSES).index, [], [], []
    boxes = read_boxes(place / lists[SPLITS.index(split)])
    for image, rows in boxes.groupby("ImageID", sort=False):
        if not (place / (file := f"{PARTS[split]}/{image}.jpg")).is_file():
            continue
        files.append(file)
        sizes.append(image_size(place / file)[0])
        ends = rows[["XMin", "YMin", "XMax", "YMax"]].to_numpy() * np.tile(sizes[-1], 2)
        ends[:, 2:] -= ends[:, :2]
        objects_ = zip(ends, map(number, rows.LabelName), rows.id)
        entries.append({"objects": [{"bbox": b, "number": n, "id": i} for b, n, i in objects_]})
    if not files:
        raise DataError(f"{place}: no image of the {len(CLASSES)} classes", "Build it.")
    parts, _ = annotated(entries, sizes, list(CLASSES.values()))
    return objects(ImageDataset(OPEN_IMAGES, split, place, files, **parts))


def read_boxes(file: Path) -> pd.DataFrame:
    """The boxes of our classes that show one real object, each with an ``id``. Raises DataError."""
    ends = dict.fromkeys(("XMin", "XMax", "YMin", "YMax"), float)
    rows = read_table(file, usecols=FIELDS, dtype={"ImageID": str, **ends})
    rows = rows[rows.LabelName.isin(CLASSES)]
    rows = rows.assign(id=rows.ImageID + " " + rows.groupby("ImageID").cumcount().astype(str))
    return rows[(rows.IsGroupOf == 0) & (rows.IsDepiction == 0)]


def choose(rows: pd.DataFrame, split: str) -> list[str]:
    """Images of a hundred objects a class, large enough, by the hash of their ids."""
    large = rows[(rows.XMax - rows.XMin) * (rows.YMax - rows.YMin) >= MIN_SHARE]
    chosen: set[str] = set()
    for name in list(CLASSES)[SPLITS.index(split) :: 2]:
        ids = sorted(large.id[large.LabelName == name], key=_hash)
        images = dict.fromkeys(one.partition(" ")[0] for one in ids)
        chosen.update(list(images)[:PER_CATEGORY])
    return sorted(chosen)


def build(root: Path | None = None, retry_dead: bool = False, **places: object) -> Path:
    """Fetch the boxes, then the images of the forty classes; goes on where it was stopped.

    Args and Raises as :func:`objemb_lib.data.ps_battles.build`.
    """
    from objemb_lib.data import fetch  # here: it loads what downloads

    folder, wanted = Path(root or config.data_root()) / OPEN_IMAGES, []
    remotes = {remote.file: remote for remote in fetch.registry(OPEN_IMAGES)}
    for split, part in PARTS.items():
        listed = remotes[f"{part}-annotations-bbox.csv"]
        boxes = fetch.fetch(listed, folder, read_boxes, **places)
        files = [f"{part}/{image}.jpg" for image in choose(read_boxes(boxes), split)]
        wanted += [fetch.Remote(file, f"{IMAGES}/{file}") for file in files]
    return fetch.download_urls(folder, wanted, retry_dead, PER_SECOND, load_image)
