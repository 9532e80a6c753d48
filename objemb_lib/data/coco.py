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
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import (
    SPLITS,
    check_split,
    clip_boxes,
    encode_mask,
    folder_with,
    note_part,
    read_coco,
)
from objemb_lib.data.images import fit_within, image_size, load_image

CONTEXT = 0.5  # of the object's width and height, on each side of it
MIN_AREA = 32**2  # pixels: what COCO calls small can hardly be told by eye
PER_CATEGORY = 100  # or persons would be a third of all queries
VISIBLE = 0.5  # part of another object's box that must lie in the window to count as shown

YEARS = {"train": "train2017", "test": "val2017"}  # the images of test2017 have no public boxes
TOTAL = {"train2017": 118_287, "val2017": 5_000}

OPEN_IMAGES = "open-images"
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
PER_SECOND = 20  # requests: a store that is made for many
IMAGES = "https://open-images-dataset.s3.amazonaws.com"
LISTS = "https://storage.googleapis.com/openimages/2018_04"
BOXES = {  # part -> sha256 and bytes of its list of boxes
    "validation": (
        "aebdfc1dbae39dc1f25d2079720f95c5963eeaf9ff23fe638522f09aeb306ee7", 17_074_036),
    "test": ("7cd2d47f158b6e752c972a20186f33a2d467c371e326d39e210e2ee89d978d2b", 52_174_204),
}  # fmt: skip
FIELDS = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf", "IsDepiction")


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

    def mask(self, k: int) -> dict:
        """Run lengths of object ``k``; its box where it has no outline."""
        return encode_mask(self.segmentations[k], self.boxes[k], self.size)


def coco(split: str, root: Path | None = None) -> ImageDataset:
    """Objects of COCO, to be found by their category: see :func:`objects`.

    ``train`` are objects of 40 categories in train2017, ``test`` of the other 40 in val2017.

    Args:
        split: "train" or "test".
        root: folder with ``annotations/``, ``train2017/`` and ``val2017/``.
    Raises:
        DataError: no such split, or the folder is not COCO's.
    """
    return _load(split, root, objects)


def coco_photographs(split: str, root: Path | None = None, with_masks: bool = True) -> ImageDataset:
    """The photographs of train2017 ("train") or val2017 ("test") with every box.

    Args:
        split, root: as for :func:`coco`.
        with_masks: also every mask: slow for the whole of train2017.
    Raises:
        DataError: as :func:`coco`.
    """
    return _load(split, root, partial(photographs, with_masks=with_masks))


def _load(split: str, root: Path | None, make: Callable[..., ImageDataset]) -> ImageDataset:
    check_split("coco", split)
    place = folder_with(Path(root or config.data_root() / "coco"), ["annotations"], ["coco"])
    photos, names = read_instances(place, YEARS[split])
    name = note_part("coco", place, len(photos), TOTAL[YEARS[split]])
    return make(name, split, place, photos, names)


def read_instances(root: Path, year: str) -> tuple[list[Photo], list[str]]:
    """The photographs of ``year`` that are there, and the names of the 80 categories.

    Raises:
        DataError: the annotations are absent or damaged, or no photograph is there.
    """
    file = root / "annotations" / f"instances_{year}.json"
    said = read_coco(file)
    here = {path.name for path in (root / year).iterdir()} if (root / year).is_dir() else set()
    try:
        photos = [
            _photo(f"{year}/{name}", image, [o for o in said.objects[name] if not o["iscrowd"]])
            for name, image in said.images.items()
            if name in here
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not COCO annotations ({error!r})", "Unpack it again.") from error
    if not photos:
        raise DataError(f"{root / year}: none of its {len(said.images):,} photographs are there",
                        f"Unpack {year}.zip into {root}.")  # fmt: skip
    return photos, said.names


def _photo(file: str, image: dict, notes: list[dict]) -> Photo:
    size = image["width"], image["height"]
    boxes, kept = clip_boxes([one["bbox"] for one in notes], size)
    notes = [one for one, keep in zip(notes, kept) if keep]
    return Photo(file, size, boxes[kept], np.array([one["number"] for one in notes], np.int64),
                 [one["id"] for one in notes], [one["segmentation"] for one in notes])  # fmt: skip


# --- photographs -> data sets -------------------------------------------------------------


def photographs(
    name: str, split: str, root: Path, photos: Sequence[Photo], names: Sequence[str],
    with_masks: bool = True,
) -> ImageDataset:  # fmt: skip
    """Whole photographs with every box (and mask), the largest first: to train detectors on.

    ``names`` are those of the categories.
    """
    order = [np.argsort(-_areas(p.boxes), kind="stable") for p in photos]
    categories = [p.categories[o] for p, o in zip(photos, order)]
    main = np.array([c[0] if len(c) else -1 for c in categories])
    masks = None
    if with_masks and any(p.segmentations for p in photos):
        masks = [[p.mask(k) for k in o] for p, o in zip(photos, order)]
    return ImageDataset(
        name, split, root, tuple(p.file for p in photos), main, tuple(names), main, tuple(names),
        tuple(p.boxes[o] for p, o in zip(photos, order)), categories, categories, masks,
    )  # fmt: skip


def objects(
    name: str, split: str, root: Path, photos: Sequence[Photo], names: Sequence[str],
    per_category: int = PER_CATEGORY,
) -> ImageDataset:  # fmt: skip
    """Windows around annotated objects, to be found again by their category.

    A window is the object's box with :data:`CONTEXT` on each side, inside the photograph. Of a
    category's objects in one photograph the largest is taken; of all of them ``per_category``,
    chosen by the hash of their annotation's id. ``train`` has every other category, beginning
    with the first, ``test`` the rest: no category is in both.

    Junk: windows that show the query's category only beside their own object.

    Raises:
        DataError: no such split, or no object large enough in these photographs.
    """
    check_split(name, split)
    chosen = _choose(photos, range(SPLITS.index(split), len(names), 2), per_category)
    if not chosen:
        raise DataError(f"{root}: no object of {MIN_AREA} pixels or more", "Add photographs.")
    crops, shown, boxes = zip(*(_window(photo, k) for photo, k in chosen))
    labels = np.array([photo.categories[k] for photo, k in chosen])
    categories = [photo.categories[which] for (photo, _), which in zip(chosen, shown)]
    masks = None
    if any(p.segmentations for p in photos):
        masks = [
            [_cut(photo.mask(k), place) for k in which]
            for (photo, _), which, place in zip(chosen, shown, crops)
        ]
    return ImageDataset(
        name, split, root, tuple(photo.file for photo, _ in chosen), labels, tuple(names), labels,
        tuple(names), boxes, categories, categories, masks, crops=crops, protocol="categories",
        extra=tuple({"annotation_id": photo.ids[k]} for photo, k in chosen),
    )  # fmt: skip


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _choose(
    photos: Sequence[Photo], categories: Iterable[int], per_category: int
) -> list[tuple[Photo, int]]:
    """Photographs, each with one of its objects, category by category."""
    candidates: dict[int, dict[str, tuple[Photo, int]]] = {c: {} for c in categories}
    for photo in photos:
        areas = _areas(photo.boxes)
        largest: dict[int, int] = {}
        for k in np.argsort(-areas, kind="stable"):
            if areas[k] >= MIN_AREA:
                largest.setdefault(int(photo.categories[k]), int(k))
        for category in largest.keys() & candidates.keys():
            k = largest[category]
            candidates[category][_hash(photo.ids[k])] = photo, k
    return [many[key] for many in candidates.values() for key in sorted(many)[:per_category]]


def _hash(name: int | str) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def _window(photo: Photo, k: int) -> tuple[tuple[int, int, int, int], np.ndarray, np.ndarray]:
    """A part of a photograph: its place in it, the objects it shows, the main one first, and their
    boxes."""
    x0, y0, x1, y1 = map(float, photo.boxes[k])
    dx, dy = CONTEXT * (x1 - x0), CONTEXT * (y1 - y0)
    place = (max(0, floor(x0 - dx)), max(0, floor(y0 - dy)),
             min(photo.size[0], ceil(x1 + dx)), min(photo.size[1], ceil(y1 + dy)))  # fmt: skip
    low, high = np.array(place[:2] * 2), np.array(place[2:] * 2)
    boxes = photo.boxes.clip(low, high)
    visible = _areas(boxes) / np.maximum(_areas(photo.boxes), 1e-9) >= VISIBLE
    visible[k] = False
    which = np.concatenate([[k], np.flatnonzero(visible)])
    return place, which, (boxes[which] - low).astype(np.float32)


def _cut(mask: dict, place: tuple[int, int, int, int]) -> dict:
    x0, y0, x1, y1 = place
    return coco_mask.encode(np.asfortranarray(coco_mask.decode(mask)[y0:y1, x0:x1]))


# --- Open Images --------------------------------------------------------------------------


def open_images(split: str, root: Path | None = None) -> ImageDataset:
    """Objects of Open Images, to be found by their class: see :func:`objects`.

    ``train`` are objects of 20 classes in validation images, ``test`` of the other 20 in test
    images.

    Args:
        split: "train" or "test".
        root: folder with ``validation-annotations-bbox.csv`` and ``validation/``, and the same
            of ``test``.
    Raises:
        DataError: no such split, no boxes, or no image is there.
    """
    check_split(OPEN_IMAGES, split)
    part, of_image = PARTS[split], {}
    listed = f"{part}-annotations-bbox.csv"
    place = folder_with(Path(root or config.data_root() / OPEN_IMAGES), [listed])
    for row in read_boxes(place / listed):
        of_image.setdefault(f"{part}/{row['ImageID']}.jpg", []).append(row)
    photos = [
        _open_photo(file, fit_within(image_size(place / file)[0]), rows)
        for file, rows in of_image.items()
        if (place / file).is_file()
    ]
    if not photos:
        raise DataError(f"{place / part}: no image of the {len(CLASSES)} classes", "Build it.")
    return objects(OPEN_IMAGES, split, place, photos, list(CLASSES.values()))


def _open_photo(file: str, size: tuple[int, int], rows: list[dict]) -> Photo:
    ends = np.array([[float(row[field]) for field in FIELDS[2:6]] for row in rows])
    categories = [list(CLASSES).index(row["LabelName"]) for row in rows]
    return Photo(file, size, ends.clip(0, 1) * np.tile(size, 2), np.array(categories),
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
                raise ValueError("other columns")
            chosen = [{f: row[f] for f in FIELDS} for row in rows if row["LabelName"] in CLASSES]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file}: not a list of boxes ({error!r})", "Get it again.") from error
    numbers: Counter[str] = Counter()
    for row in chosen:
        row["id"] = f"{row['ImageID']} {numbers[row['ImageID']]}"
        numbers[row["ImageID"]] += 1
    return [row for row in chosen if row["IsGroupOf"] == row["IsDepiction"] == "0"]


def choose(rows: list[dict], split: str) -> list[str]:
    """Images of a hundred objects a class, large enough, by the hash of their ids."""
    of_class: dict[str, list[dict]] = {name: [] for name in list(CLASSES)[SPLITS.index(split) :: 2]}
    for row in rows:
        x0, y0, x1, y1 = (float(row[field]) for field in FIELDS[2:6])
        if (x1 - x0) * (y1 - y0) >= MIN_SHARE and row["LabelName"] in of_class:
            of_class[row["LabelName"]].append(row)
    chosen: set[str] = set()
    for many in of_class.values():
        images = dict.fromkeys(r["ImageID"] for r in sorted(many, key=lambda r: _hash(r["id"])))
        chosen.update(list(images)[:PER_CATEGORY])
    return sorted(chosen)


def build_open_images(
    root: Path | None = None,
    source: Path | None = None,
    mirror: str | None = None,
    retry_dead: bool = False,
    progress: bool = True,
) -> Path:
    """Fetch the boxes, then the images of the forty classes; goes on where it was stopped.

    Args and Raises as :func:`objemb_lib.data.ps_battles.build`.
    """
    from objemb_lib.data.archives import Archive, fetch_links, obtain
    from objemb_lib.data.harvest import Wanted

    folder = Path(root or config.data_root()) / OPEN_IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    wanted = []
    for split, part in PARTS.items():
        listed = f"{part}-annotations-bbox.csv"
        archive = Archive(listed, (f"{LISTS}/{part}/{listed}",), *BOXES[part], check=read_boxes)
        boxes = obtain(archive, folder, source, mirror, progress)
        wanted += [
            Wanted(f"{IMAGES}/{part}/{image}.jpg", folder / part / f"{image}.jpg", check=load_image)
            for image in choose(read_boxes(boxes), split)
        ]
    return fetch_links(folder, wanted, retry_dead, PER_SECOND, progress)
