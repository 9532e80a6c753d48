"""A folder of the user's own photographs, with COCO-format boxes and masks where there are any."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import NoneType
from unicodedata import normalize

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask

from objemb_lib import config
from objemb_lib.config import DataError, ImageError, ObjembError, printable
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.images import fit_within, has_image_suffix, inspect_images, left_out

Size = tuple[int, int]  # (width, height) in pixels
PARTS = 1.5  # what boxes in parts of the sides, of which some reach out, do not exceed

ANNOTATIONS = "annotations.json"
LABELS = "labels.csv"
SPLITS = ("train", "test")
SYSTEM = re.compile(  # what a NAS, Windows, Linux and macOS put among photographs, as thumbnails
    r"[@#](eadir|__thumb|recycle|recently-snapshot|snapshot|sharebin|tmp|synoresource)|lost\+found|__macosx"
    r"|\$recycle\.bin|recycler|found\.\d+|system volume information|temporary items"
    r"|network trash folder|ipod photo cache|resource\.frk|.*\.lrdata",
    re.IGNORECASE,
)
SPLIT_NAMES = re.compile(r"(train|val|valid|test|dev|training|validation|testing)\d*", re.I)
MIN_LABELS = 4  # two to choose by, two to measure on
ARRANGE = (
    f"Give each object, model or species a sub-folder with two photographs at least, {MIN_LABELS} "
    f"sub-folders at least; or put a list {LABELS} of file,label into the folder, or a COCO file "
    f"{ANNOTATIONS}, whose categories say what the photographs show."
)


def folder(
    root: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None = None,
    split: str = "all",
    progress: bool = True,
    labels: str | os.PathLike[str] | None = None,
) -> ImageDataset:
    """A user's own photographs as a data set, in the order of their names.

    Labels are the names of the first level of sub-folders (torchvision's ``ImageFolder``), or
    those of a list. Without either they are the category of the main object, where
    ``annotations`` give one; else -1, unknown, and no image is relevant to another. Folders of
    splits are no labels (a warning says so), nor is one that holds all where ``annotations`` know
    more. The main object, first among the boxes, is the largest that is not a crowd. Left out are
    what is hidden, folders of the system (thumbnails, bins), and, with one warning that counts
    them, photographs that cannot be read. Names may write accents as one character or as two.

    Args:
        annotations: COCO-format JSON whose ``file_name`` are relative to the folder read. Boxes
            are clipped to the image, those without area are dropped; segmentations become
            compressed run lengths, the box itself where an object has none. ``extra`` keeps each
            image's ``annotation_ids`` and ``iscrowd`` in the order of its boxes.
        split: sub-folder of ``root`` to read ("train"), or "all" for ``root`` itself.
        progress: show a progress bar while every image is checked; those that cannot be used
            are left out, with a warning that counts them.
        labels: CSV with the columns ``file`` and ``label``, and if you like ``category`` and
            ``role``: "query" for photographs that only ask, "gallery" for those that are only
            searched. Photographs that it does not name have no label.
    Raises:
        DataError: when the folder is missing or has no usable image, or ``annotations`` or
            ``labels`` are none, inconsistent, or name images that are not in the folder.
    """
    root = Path(os.path.expanduser(root))
    place = root / split if split != "all" else root
    images, categories = read_coco(Path(annotations)) if annotations else ({}, [])
    listed = read_labels(Path(labels)) if labels else {}
    files, others = _walk(place, images.keys() | listed.keys())
    images, listed = _as_stored(images, files), _as_stored(listed, files)
    for path, named in ((annotations, images), (labels, listed)):
        if missing := sorted(named.keys() - set(files)):
            raise DataError(
                f"{path}: names {len(missing)} images that are not in {place}, as {missing[0]}",
                "Read the folder that its paths are relative to (root, split), fetch the missing "
                "images, or take their entries out of the file.",
            )
    good = _usable(place, files, images, others, progress)
    if not labels:
        listed = {file: {"label": file.partition("/")[0]} for file in good if "/" in file}
        named = {row["label"] for row in listed.values()}
        splits = sorted(filter(SPLIT_NAMES.fullmatch, named))
        if splits and len(splits) == len(named):
            note = f"{place}: {', '.join(splits)} are splits, no labels: give the folder of one"
            warnings.warn(note, stacklevel=2)
        if len(named) == len(splits) or len(named) == 1 and categories:
            listed = {}
    parts = _labelled([listed.get(file, {}) for file in good])
    if annotations:
        entries, sizes = [images.get(file, {"objects": []}) for file in good], list(good.values())
        check_boxes(entries, sizes)
        found, objects = annotated(entries, sizes, categories)
        kept = {id(one["bbox"]) for many in objects for one in many}
        if dropped := [o for e in entries for o in e["objects"] if id(o["bbox"]) not in kept]:
            note = f"{len(dropped)} annotated boxes without area in their images dropped: "
            warnings.warn(note + _called(dropped), stacklevel=2)
        found["masks"] = encode_masks(objects, sizes)
        if (parts["labels"] >= 0).any():  # they are no categories: other boxes are of none
            own = [np.where(np.arange(len(boxes)) == 0, label, -1)
                   for boxes, label in zip(found["boxes"], parts["labels"])]  # fmt: skip
            found |= {part: parts[part] for part in ("labels", "label_names")} | {"box_labels": own}
        parts |= found
    return ImageDataset(root.resolve().name, split, place, tuple(good), **parts)


def _usable(
    place: Path, files: list[str], noted: dict, others: list[ObjembError], progress: bool
) -> dict[str, Size]:
    """``{file: upright size}`` of images that can be used and are as ``noted``; warns of the rest,
    and of boxes that may have been drawn on an image before its rotation by EXIF."""
    good, broken, turned = {}, [], []
    for file, seen in zip(files, inspect_images([place / file for file in files], progress)):
        if isinstance(seen, ImageError):
            broken.append(seen)
            continue
        (size, orientation), entry = seen, noted.get(file, {})
        stated = entry.get("width"), entry.get("height")
        if all(stated) and stated != size:
            problem = (f"{place / file}: annotated at {stated[0]} x {stated[1]} pixels, "
                       f"but {size[0]} x {size[1]} when upright")  # fmt: skip
            remedy = ("Use the photograph that was annotated; if only its rotation flag differs, "
                      "save it upright and annotate that.")  # fmt: skip
            broken.append(ImageError(problem, remedy))
            continue
        good[file] = size
        told = orientation > 4 and all(stated) and size[0] != size[1]  # its sides tell
        if entry.get("objects") and orientation > 1 and not told:
            turned.append(file)
    errors = broken + others
    lost = sum(isinstance(error, ImageError) for error in errors)
    if not good:
        problem = f"{place}: none of its {lost} images can be used; {errors[0].problem}"
        raise DataError(problem, errors[0].remedy)
    if errors:
        note = f"{place}: {lost} of {len(good) + lost} images skipped"
        if lost < len(errors):
            note += f", {len(errors) - lost} folders not opened"
        for remedy in dict.fromkeys(error.remedy for error in errors):
            some = [f"\n  {error.problem}" for error in errors if error.remedy == remedy]
            more = f"\n  and {len(some) - 3} more" if len(some) > 3 else ""
            note += "".join(some[:3]) + more + f"\n  What to do: {remedy}"
        warnings.warn(printable(note), stacklevel=3)
    if turned:
        note = f"{len(turned)} annotated images are turned by their EXIF flag, as {turned[0]}"
        doubt = "; boxes that were drawn on them as they are stored are at wrong places"
        remedy = "What to do: Look at some; save those that are wrong upright, and annotate that."
        warnings.warn(f"{place}: {note}{doubt}\n  {remedy}", stacklevel=3)
    return good


def _labelled(rows: Sequence[dict[str, str]]) -> dict:
    """The parts of an ImageDataset that a list's rows give, one an image."""
    parts, roles = {}, np.array([row.get("role", "") for row in rows])
    for part, column in (("labels", "label"), ("categories", "category")):
        names = [normalize("NFC", row.get(column, "")) for row in rows]
        known, number = np.unique(["", *names], return_inverse=True)  # "" is the first
        parts |= {part: number[1:] - 1, f"{column}_names": known[1:].tolist()}
    return parts | {"queries": np.flatnonzero(roles != "gallery"),
                    "gallery": np.flatnonzero(roles != "query")}  # fmt: skip


def folder_splits(path: str | Path) -> tuple[ImageDataset, ImageDataset]:
    """A folder's training and test images: the first half of its labels, and the second.

    As CUB-200-2011 and Cars-196 are halved for retrieval: by class, in the order of the names.
    ``annotations.json`` (COCO) and ``labels.csv`` in the folder are read, see :func:`folder`. With
    boxes, photographs without one are left out, with a warning. Raises DataError: no path, or
    fewer than four labels of two photographs.
    """
    if not str(path):
        raise DataError("folder: no folder is named", "Say which: folder:PATH.")
    path = Path(os.path.expanduser(path))
    there = {f: path / f if (path / f).is_file() else None for f in (ANNOTATIONS, LABELS)}
    data = folder(path, annotations := there[ANNOTATIONS], labels=there[LABELS])
    boxed = np.array([len(boxes) > 0 for boxes in data.boxes])
    if annotations and not boxed.all():
        note = f"{path}: {(~boxed).sum()} of {len(data)} photographs have no box: left out"
        warnings.warn(note, stacklevel=2)
        data = data.subset(boxed, keep_roles=True)
    labels, counts = np.unique(data.labels[data.labels >= 0], return_counts=True)
    labels = labels[counts > 1]
    if len(labels) < MIN_LABELS:
        raise DataError(f"{path}: {len(labels)} labels of two photographs or more", ARRANGE)
    first = labels[len(labels) // 2]
    halves = (data.labels >= 0) & (data.labels < first), data.labels >= first
    return tuple(replace(data.subset(half, keep_roles=True), split=split)
                 for split, half in zip(SPLITS, halves))  # fmt: skip


def list_images(place: Path) -> list[str]:
    """Image files below ``place`` as sorted relative paths with forward slashes.

    Raises DataError: no such folder, or no image in it; says what there is instead.
    """
    return _walk(place)[0]


def _walk(place: Path, named: Collection[str] = ()) -> tuple[list[str], list[ObjembError]]:
    """:func:`list_images` and, whatever they are called, those that are ``named`` (NFC); and why
    other photographs, and folders, are left out."""
    if not place.is_dir():
        here = ", ".join(sorted(p.name for p in place.parent.glob("*/"))[:10]) or "nothing"
        remedy = f"Beside it are: {here}. Relative paths start at {Path.cwd()}."
        raise DataError(f"{place}: no such folder", remedy)
    found, left, kinds, seen = [], [], Counter(), set()

    def closed(error: OSError) -> None:
        problem = f"{error.filename}: a folder that cannot be opened ({error.strerror})"
        left.append(DataError(problem, "Change its permissions."))

    for where, folders, names in os.walk(place, followlinks=True, onerror=closed):
        if (real := os.path.realpath(where)) in seen:  # a link to a folder already read
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if f[0] != "." and not SYSTEM.fullmatch(f))
        for path in map(Path(where).joinpath, sorted(names)):
            file, suffix = path.relative_to(place).as_posix(), path.suffix.lower()
            hidden, error = path.name.startswith(".") and suffix != ".icloud", None
            if hidden or not has_image_suffix(path):
                if normalize("NFC", file) not in named:
                    kinds[suffix or path.name] += 1
                    if hidden or not (error := left_out(path)):
                        continue
            if file != printable(file):
                error = ImageError(f"{path}: its name is not UTF-8", "Rename it.")
            left.append(error) if error else found.append(file)
    if not found:
        held = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(3)) or "nothing at all"
        why = "; ".join([f"it holds {held}", *(error.problem for error in left[:1])])
        remedy = "Put photographs into it, or convert them to JPEG or PNG."
        remedy = " ".join([remedy, *(error.remedy for error in left[:1])])
        raise DataError(f"{place}: no images in this folder ({why})", remedy)
    return sorted(found), left


def _as_stored(named: dict[str, dict], files: Sequence[str]) -> dict[str, dict]:
    """``named`` (NFC) by the names on the disk, where accents may be one character or two."""
    stored = {normalize("NFC", file): file for file in files} | {file: file for file in files}
    return {stored.get(name, name): row for name, row in named.items()}


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """File -> its row of a list of labels, see :func:`folder`. Raises DataError: it is none."""
    rows = read_table(path, dtype=str, keep_default_na=False, encoding="utf-8-sig",
                      skipinitialspace=True)  # fmt: skip
    if not {"file", "label"} <= set(rows) or not (rows.label != "").any():
        problem = f"{path}: not a list of labels"
        raise DataError(problem, "Give CSV with the columns file and label.")
    found: dict[str, dict[str, str]] = {}
    for row in rows[rows.label != ""].to_dict("records"):
        role, file = row.get("role", ""), _path(row["file"])
        if role not in ("", "query", "gallery"):
            raise DataError(f"{path}: {file} has the role {role!r}", "Use query, gallery or none.")
        if found.setdefault(file, row | {"file": file}) != row | {"file": file}:
            raise DataError(f"{path}: {file} is listed twice, each time another", "List it once.")
    return found


def _path(text: str) -> str:
    """A path in a file as names are compared: with forward slashes, in NFC."""
    return normalize("NFC", PurePosixPath(text.replace("\\", "/")).as_posix())


def read_table(file: Path, **options: object) -> pd.DataFrame:
    """``pandas.read_csv`` with ``options``. Raises DataError, naming the file."""
    try:
        return pd.read_csv(file, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as a table ({error})", "Get it again.") from error


# --- COCO -----------------------------------------------------------------------------------


def read_coco(path: Path) -> tuple[dict[str, dict], list[str]]:
    """The images of a COCO instances file by their paths, and the names of the categories.

    Each image is its entry in the file, and with its annotations as ``objects``; each of these
    has the ``number`` of its category among the names, which are in the order of their ids, and
    the ``file`` it is of. Paths and names are in one form, NFC; categories of one name are one.
    Raises DataError: it cannot be read, is no such file, or contradicts itself.
    """
    try:
        content = json.loads(path.read_bytes())
        names, number = _categories(content["categories"])
        by_id = images_by_id(content["images"])
        for entry in content["annotations"]:
            image, category = entry["image_id"], entry["category_id"]
            if image not in by_id or category not in number:
                problem = f"{_called([entry])} is of image {image!r} and category {category!r}"
                remedy = "Write ids alike, all as numbers or all as text; or take it out."
                raise DataError(f"{problem}, which are not both listed", remedy)
            entry |= {"number": number[category], "file": by_id[image]["file_name"]}
            _check_annotation(entry)
            by_id[image]["objects"].append(entry)
        ids = Counter(entry.get("id") for entry in content["annotations"])
    except DataError as error:
        raise DataError(f"{path}: {error.problem}", error.remedy) from error
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        remedy = "Give a COCO instances file: JSON with images, annotations and categories."
        raise DataError(f"{path}: not COCO annotations ({error!r})", remedy) from error
    for what, many in (("annotations share the id", ids),
                       ("categories, taken as one, share the name",
                        Counter(names[n] for n in number.values()))):  # fmt: skip
        if twice := [str(one) for one, n in many.items() if n > 1 and one is not None]:
            warnings.warn(f"{path}: {what} {', '.join(twice[:5])}", stacklevel=3)
    return {entry["file_name"]: entry for entry in by_id.values()}, names


def _categories(entries: Sequence[dict]) -> tuple[list[str], dict]:
    """The names of categories in the order of their ids, and id -> number among them."""
    by_id: dict = {}
    for entry in entries:
        one, name = entry["id"], entry["name"]
        if type(name) not in (str, int) or not (name := normalize("NFC", str(name)).strip()):
            raise DataError(f"category {one!r} is called {name!r}", "Give it a name.")
        if by_id.setdefault(one, name) != name:
            problem = f"category {one!r} is called {by_id[one]} and {name}"
            raise DataError(problem, "Give each category an id of its own.")
    names: dict[str, str] = {}
    for one in sorted(by_id):
        names.setdefault(by_id[one].casefold(), by_id[one])
    number = {name: i for i, name in enumerate(names)}
    return [*names.values()], {one: number[name.casefold()] for one, name in by_id.items()}


def images_by_id(entries: Sequence[dict]) -> dict:
    """id -> image, with no ``objects`` yet. Raises DataError: two of one id or one name."""
    by_id, ids = {}, {}
    for entry in entries:
        one, file = entry["id"], _path(entry["file_name"])
        entry = entry | {"file_name": file, "objects": []}
        for side in ("width", "height"):
            if type(entry.get(side)) not in (int, float, type(None)):
                problem = f"{file}: its {side} {entry[side]!r} is no number"
                raise DataError(problem, "Give pixels, without quotes.")
        first, again = [[e["file_name"], e.get("width"), e.get("height")]
                        for e in (by_id.setdefault(one, entry), entry)]  # fmt: skip
        if first != again:
            problem = f"two images have the id {one!r}, {first} and {again}"
            raise DataError(problem, "Nobody can tell whose the boxes are: give each its own id.")
        if ids.setdefault(again[0], one) != one:
            problem = f"{file} is listed twice, under the ids {ids[again[0]]!r} and {one!r}"
            raise DataError(problem, "List it once, and give its annotations that id.")
    return by_id


def _check_annotation(entry: dict) -> None:
    """Raise DataError where text or nothing stands for a number."""
    box, crowd = entry.get("bbox"), entry.get("iscrowd")
    four = type(box) is list and len(box) == 4 and {*map(type, box)} <= {int, float}
    if not four or any(abs(side) > 1e9 for side in box):
        raise _unusable([entry], f"its bbox {str(box)[:80]} is not four numbers of pixels")
    if crowd not in (None, 0, 1):
        raise _unusable([entry], f"its iscrowd {crowd!r} is neither 0 nor 1")


def check_boxes(entries: Sequence[dict], sizes: Sequence[Size]) -> None:
    """Whether the ``bbox`` of all ``objects`` of ``entries`` can be x, y, width, height in pixels.

    Raises DataError: they are parts of the sides (0 to 1); or 95% fit their images as corners and
    25% do not as they should. Warns where fewer do not.
    """
    many = np.array([one for entry in entries for one in entry["objects"]], object)
    xywh = np.array([one["bbox"] for one in many], np.float64).reshape(-1, 4)
    counts = [len(entry["objects"]) for entry in entries]
    size = np.repeat(np.array(sizes, np.float64).reshape(-1, 2), counts, axis=0)
    low, extent = xywh[:, :2], xywh[:, 2:]
    real = (extent > 0).all(axis=1)
    parts = real & (np.abs(xywh) <= PARTS).all(axis=1) & (size > 2).all(axis=1)
    if parts.any():
        why = "coordinates from 0 to 1: multiply by the image's width and height"
        raise _unusable(many[parts], why)
    corners = ((low >= 0) & (extent > low) & (extent <= size + 1)).all(axis=1)
    out = real & (low + extent > 1.02 * size + 1).any(axis=1)
    if out.any() and corners[real].mean() >= 0.95:
        if out[real].mean() >= 0.25:
            raise _unusable(many[out], "out of the image, while as corners x0, y0, x1, y1 it fits")
        note = f"{_called(many[out])} reaches out of the image: is bbox x, y, width, height?"
        warnings.warn(note, stacklevel=3)


def encode_mask(segmentation: list | dict | None, box: np.ndarray, size: Size) -> dict:
    """A COCO segmentation as compressed run lengths of an image of ``size`` (width, height).

    It is polygons ``[x, y, x, y, ...]``, or run lengths, plain or compressed, or nothing: then the
    mask fills ``box``, ``(x0, y0, x1, y1)``, one pixel at least. Raises ValueError: run lengths of
    an image of another size, or points that are not pairs of numbers near the image, or parts of
    its sides: on these pycocotools guesses, or does not come back.
    """
    width, height = size
    shape = [height, width]
    try:
        if isinstance(segmentation, dict):
            counts = segmentation["counts"]
            if list(segmentation["size"]) != shape or not counts:
                raise ValueError(f"a mask of {segmentation['size']}, the image is {shape}")
            if isinstance(counts, list):
                if sum(counts) != width * height or min(counts) < 0:
                    raise ValueError("run lengths that do not add up to the image")
                return coco_mask.frPyObjects(segmentation, height, width)
            coco_mask.decode(segmentation)  # fails where damaged: better now than in a later cell
            return {"size": shape, "counts": counts}
        if not isinstance(segmentation, (list, NoneType)):
            raise ValueError(f"a segmentation of {type(segmentation).__name__}")
        polygons = [p for p in segmentation or () if len(p) > 4]  # two points have no inside
        for polygon in polygons:
            if len(polygon) % 2 or not np.all(np.abs(polygon) < 10 * max(size)):
                raise ValueError("a polygon that is not pairs of numbers near the image")
        if polygons and min(size) > 2 and max(np.abs(p).max() for p in polygons) <= PARTS:
            raise ValueError("a polygon in coordinates from 0 to 1")
        x0, y0, x1, y1 = map(float, box)
        filled = polygons or [[x0, y0, x0, y1, x1, y1, x1, y0]]
        mask = coco_mask.merge(coco_mask.frPyObjects(filled, height, width))
        if polygons or coco_mask.area(mask):
            return mask
        low = np.floor(box[:2]).clip(0, np.subtract(size, 1))  # less than a pixel: the whole pixel
        return encode_mask(None, [*low, *np.maximum(np.ceil(box[2:]), low + 1)], size)
    except Exception as error:  # pycocotools raises plain Exception
        raise ValueError(str(error)) from error


def covers(mask: dict, box: np.ndarray) -> bool:
    """Whether a mask has pixels, and those of its extent are not beside ``box``."""
    x, y, width, height = coco_mask.toBbox(mask)
    across = x < box[2] + 1 and x + width > box[0] - 1  # outlines are rounded to pixels
    return bool(width and height and across and y < box[3] + 1 and y + height > box[1] - 1)


def annotated(
    entries: Sequence[dict], sizes: Sequence[Size], names: Sequence[str]
) -> tuple[dict, list[list[dict]]]:
    """The parts of an ImageDataset that annotations give, less the masks; and the annotations of
    each image in the order of its boxes.

    The largest that is not a crowd, the main object, is first; those without area are left out.

    Args:
        entries: of the images, as :func:`read_coco` gives them. names: of the categories.
        sizes: (width, height) of the images as they are stored, upright.
    """
    boxes, objects = [], []
    for entry, size in zip(entries, sizes):
        many = entry["objects"]
        xywh = np.array([one["bbox"] for one in many], np.float64).reshape(-1, 4)
        corners = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
        corners = corners.clip(0, [*size, *size]).astype(np.float32)
        extent = corners[:, 2:] - corners[:, :2]
        order = np.lexsort((-np.prod(extent, axis=1), [bool(o.get("iscrowd")) for o in many]))
        order = order[(extent > 0).all(axis=1)[order]]
        scale = np.divide(fit_within(size), size).astype(np.float32)  # of very large images
        boxes.append(corners[order] * np.tile(scale, 2))
        objects.append([many[k] | {"corners": corners[k]} for k in order])
    categories = [np.array([one["number"] for one in many], np.int64) for many in objects]
    main = np.array([c[0] if len(c) else -1 for c in categories], np.int64)
    crowds = [[bool(one.get("iscrowd")) for one in many] for many in objects]
    told = [{"annotation_ids": [one.get("id") for one in many], "iscrowd": crowd}
            for many, crowd in zip(objects, crowds)]  # fmt: skip
    return {"labels": main, "label_names": names, "categories": main, "category_names": names,
            "boxes": boxes, "box_labels": categories, "box_categories": categories,
            "extra": told}, objects  # fmt: skip


def encode_masks(objects: list[list[dict]], sizes: Sequence[Size]) -> list[list[dict]] | None:
    """Annotations' masks, as run lengths of the images as they are loaded; None without any.

    The box stands in, with a warning, where an outline covers no pixel of it: such a mask leaves
    nothing to embed. Raises DataError, naming an annotation without a usable outline.
    """
    if not any(one.get("segmentation") for many in objects for one in many):
        return None

    beside = []

    def encode(one: dict, size: Size) -> dict:
        try:
            mask = encode_mask(one.get("segmentation"), one["corners"], size)
        except ValueError as error:
            raise _unusable([one], error) from error
        if not covers(mask, one["corners"]):
            beside.append(one)
            mask = encode_mask(None, one["corners"], size)
        if (loaded := fit_within(size)) == tuple(size):
            return mask
        # Very large images are reduced when they are loaded: so are their masks.
        small = Image.fromarray(coco_mask.decode(mask)).resize(loaded, Image.Resampling.NEAREST)
        return coco_mask.encode(np.asfortranarray(small))

    masks = [[encode(one, size) for one in many] for many, size in zip(objects, sizes)]
    if beside:
        note = f"{_called(beside)}: its segmentation covers no pixel of its bbox, which stands in"
        warnings.warn(note, stacklevel=3)
    return masks


def _unusable(objects: Sequence[dict], error: object) -> DataError:
    remedy = "Correct its bbox [x, y, width, height] and segmentation, or take it out."
    return DataError(f"{_called(objects)} cannot be used ({error})", remedy)


def _called(objects: Sequence[dict]) -> str:
    """How messages call annotations: by five ids, and the file of the first."""
    ids = [str(one.get("id")) for one in objects]
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    file = f"{objects[0]['file']}: " if "file" in objects[0] else ""
    return f"{file}annotation {', '.join(ids[:5])}{more}"


# --- a benchmark's folder -------------------------------------------------------------------


def check_split(name: str, split: str, splits: Sequence[str] = SPLITS) -> None:
    """Raise DataError, naming those there are, if a data set has no such split."""
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}", f"Use {' or '.join(splits)}.")


def open_copy(
    name: str,
    split: str,
    root: Path | None,
    holds: Sequence[str],
    inside: Sequence[str] = (),
    splits: Sequence[str] = SPLITS,
) -> Path:
    """The folder of a benchmark's copy: ``root``, or its sub-folder among ``inside``.

    Args:
        root: default: where ``data/download.py`` builds it.
        holds: files or folders of which one at least is in it.
    Raises:
        DataError: no such split, or no such folder.
    """
    check_split(name, split, splits)
    root = Path(root or config.data_root() / name)
    for place in (root, *(root / one for one in inside)):
        if any((place / one).exists() for one in holds):
            return place
    remedy = "Name the folder that its archive unpacks to, or build it with data/download.py."
    raise DataError(f"{root}: {' or '.join(holds)} is not there", remedy)


def note_part(data: ImageDataset, found: int, total: int, more: Sequence[str] = ()) -> str:
    """What a data set is called of whose images only a part is there, and a warning."""
    if found < total or more:
        note = f"{data.root}: {found:,} of the {total:,} images of {data.name} are here"
        warnings.warn("; ".join([note, *more]), stacklevel=5)
    return f"{data.name} (part)" if found < total else data.name
