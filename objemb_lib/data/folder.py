"""A folder of the user's own photographs, with COCO-format boxes and masks where there are any."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from objemb_lib.config import DataError, ImageError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.images import IMAGE_SUFFIXES, fit_within, measure_images

Size = tuple[int, int]  # (width, height) in pixels

ANNOTATIONS = "annotations.json"
LABELS = "labels.csv"
SPLITS = ("train", "test")
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
    ``annotations`` give one; else -1, unknown, and no image is relevant to another. The main
    object, first among the boxes, is the largest that is not a crowd. Hidden files and files with
    other suffixes are left out.

    Args:
        root: the folder.
        annotations: COCO-format JSON whose ``file_name`` are relative to the folder read. Boxes
            are clipped to the image, those without area are dropped; segmentations become
            compressed run lengths, the box itself where an object has none. ``extra`` keeps each
            image's ``image_id``, and ``annotation_ids`` and ``iscrowd`` in the order of its boxes.
        split: sub-folder of ``root`` to read ("train"), or "all" for ``root`` itself.
        progress: show a progress bar while every image is checked; those that cannot be used
            are left out, with a warning that counts them.
        labels: CSV or JSON (a list of objects) with the columns ``file`` and ``label``, and if
            you like ``category`` and ``role``: "query" for photographs that only ask, "gallery"
            for those that are only searched. Photographs that it does not name have no label.
    Raises:
        DataError: when the folder is missing or has no usable image, or ``annotations`` or
            ``labels`` are none, inconsistent, or name images that are not in the folder.
    """
    place = _place(Path(root), split)
    files = list_images(place)
    coco = None if annotations is None else read_coco(Path(annotations))
    listed = None if labels is None else read_labels(Path(labels))
    for path, named in ((annotations, coco.images if coco else ()), (labels, listed or ())):
        _require(path, named, place, files)
    sizes = dict(zip(files, measure_images([place / file for file in files], progress)))
    for file, size in sizes.items() if coco else ():
        sizes[file] = _agreed(place / file, size, coco.images.get(file, {}))
    good = _usable(place, sizes)
    parts = _from_folders(list(good)) if listed is None else _from_list(list(good), listed)
    if coco:
        parts |= _annotated(coco, good, parts["labels"])
    return ImageDataset(Path(root).resolve().name, split, place, tuple(good), **parts)


def folder_splits(path: str | Path) -> tuple[ImageDataset, ImageDataset]:
    """A folder's training and test images: the first half of its labels, and the second.

    As CUB-200-2011 and Cars-196 are halved for retrieval: by class, in the order of the names.
    ``annotations.json`` (COCO) and ``labels.csv`` in the folder are read, see :func:`folder`. With
    boxes, photographs without one are left out, with a warning.

    Raises:
        DataError: no path, or fewer than four labels of two photographs; says how to arrange them.
    """
    if not str(path):
        raise DataError("folder: no folder is named", "Say which: folder:PATH.")
    path = Path(path).expanduser()
    annotations, listed = ((path / f if (path / f).is_file() else None)
                           for f in (ANNOTATIONS, LABELS))  # fmt: skip
    data = folder(path, annotations, labels=listed)
    if annotations:
        boxed = np.array([len(boxes) > 0 for boxes in data.boxes])
        if not boxed.all():
            note = f"{path}: {(~boxed).sum()} of {len(data)} photographs have no box: left out"
            warnings.warn(note, stacklevel=2)
            data = data.subset(boxed, keep_roles=True)
    labels, counts = np.unique(data.labels[data.labels >= 0], return_counts=True)
    labels = labels[counts > 1]
    if len(labels) < MIN_LABELS:
        raise DataError(f"{path}: {len(labels)} labels of two photographs or more", ARRANGE)
    known, train = data.labels >= 0, data.labels < labels[len(labels) // 2]
    halves = (known & train, known & ~train)
    return tuple(replace(data.subset(half, keep_roles=True), split=split)
                 for split, half in zip(SPLITS, halves))  # fmt: skip


def list_images(place: Path) -> list[str]:
    """Image files below ``place`` as sorted relative paths with forward slashes.

    Raises:
        DataError: when there is none; says which other kinds of file there are.
    """
    found, others, seen = [], Counter(), set()
    for where, folders, names in os.walk(place, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link to a folder already read
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                found.append((Path(where) / name).relative_to(place).as_posix())
            else:
                others[suffix or name] += 1
    if not found:
        kinds = ", ".join(f"{n} {kind}" for kind, n in others.most_common(3)) or "nothing at all"
        raise DataError(
            f"{place}: no images in this folder (it holds {kinds})",
            "Put photographs into it, or convert them to JPEG or PNG (HEIC and raw files too).",
        )
    return sorted(found)


def _place(root: Path, split: str) -> Path:
    place = root if split == "all" else root / split
    if not place.is_dir():
        here = sorted(p.name for p in root.iterdir() if p.is_dir())[:10] if root.is_dir() else []
        raise DataError(
            f"{place}: {'a file' if place.exists() else 'no such folder'}",
            f"Choose a split among {', '.join(here)}, or 'all'."
            if here and split != "all"
            else f"Name a folder of photographs; relative paths start at {Path.cwd()}.",
        )
    return place


def _require(path: object, named: Iterable[str], place: Path, files: Sequence[str]) -> None:
    if missing := sorted(set(named) - set(files)):
        raise DataError(
            f"{path}: names {len(missing)} images that are not in {place}: "
            f"{', '.join(missing[:3])}",
            "Read the folder that its paths are relative to (root, split), fetch the missing "
            "images, or take their entries out of the file.",
        )


def _agreed(path: Path, size: Size | ImageError, entry: dict) -> Size | ImageError:
    annotated = entry.get("width"), entry.get("height")
    if isinstance(size, ImageError) or not all(annotated) or annotated == size:
        return size
    return ImageError(
        f"{path}: annotated at {annotated[0]} x {annotated[1]} pixels, "
        f"but {size[0]} x {size[1]} when upright",
        "Use the photograph that was annotated; if only its rotation flag differs, "
        "save it upright and annotate that.",
    )


def _usable(place: Path, sizes: dict[str, Size | ImageError]) -> dict[str, Size]:
    broken = [size for size in sizes.values() if isinstance(size, ImageError)]
    if len(broken) == len(sizes):
        raise DataError(f"{place}: none of its {len(sizes)} images can be used; "
                        f"{broken[0].problem}", broken[0].remedy)  # fmt: skip
    if broken:
        shown = "".join(f"\n  {error.problem}" for error in broken[:3])
        more = f"\n  and {len(broken) - 3} more" if len(broken) > 3 else ""
        note = f"{place}: {len(broken)} of {len(sizes)} images skipped{shown}{more}"
        warnings.warn(note, stacklevel=3)
    return {file: size for file, size in sizes.items() if not isinstance(size, ImageError)}


# --- labels ---------------------------------------------------------------------------------


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """File -> its row of a list of labels, CSV or JSON; see :func:`folder`.

    Raises:
        DataError: it cannot be read, has no such columns, or no labels.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))
        listed = {PurePosixPath(row["file"]).as_posix(): row for row in rows if row["label"]}
        if not listed:
            raise ValueError("it names nothing")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        remedy = "Give CSV with the columns file and label, or JSON: a list of such objects."
        raise DataError(f"{path}: not a list of labels ({error!r})", remedy) from error
    return listed


def _numbered(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The number of each name among all names in their order, and these; "" is -1."""
    known = sorted(set(names) - {""})
    number = {name: i for i, name in enumerate(known)} | {"": -1}
    return np.array([number[name] for name in names], np.int64), known


def _from_folders(files: Sequence[str]) -> dict:
    names = [file.partition("/")[0] if "/" in file else "" for file in files]
    return dict(zip(("labels", "label_names"), _numbered(names)))


def _from_list(files: Sequence[str], listed: dict[str, dict]) -> dict:
    rows = [listed.get(file, {}) for file in files]
    column = lambda name: [str(row.get(name) or "") for row in rows]  # noqa: E731
    parts = dict(zip(("labels", "label_names"), _numbered(column("label"))))
    parts |= dict(zip(("categories", "category_names"), _numbered(column("category"))))
    roles = np.array(column("role"))
    return parts | {"queries": np.flatnonzero(roles != "gallery"),
                    "gallery": np.flatnonzero(roles != "query")}  # fmt: skip


# --- COCO -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coco:
    """What a COCO file says, by the paths of its images.

    Args:
        images: path -> the image's entry.
        objects: path -> its annotations, each with its category's ``number``, an index into
            ``names``.
        names: of the categories, in the order of their ids.
        path: of the file.
    """

    images: dict[str, dict]
    objects: dict[str, list[dict]]
    names: list[str]
    path: Path


def read_coco(path: Path) -> Coco:
    """A COCO instances file.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    try:
        content = json.loads(path.read_bytes())
        categories = sorted(content["categories"], key=lambda entry: entry["id"])
        number = {entry["id"]: i for i, entry in enumerate(categories)}
        images = {  # a path without "./"
            PurePosixPath(entry["file_name"].replace("\\", "/")).as_posix(): entry
            for entry in content["images"]
        }
        objects: dict[str, list[dict]] = {file: [] for file in images}
        of_image = {entry["id"]: objects[file] for file, entry in images.items()}
        for entry in content["annotations"]:
            if entry["image_id"] not in of_image or entry["category_id"] not in number:
                raise ValueError(f"annotation {entry.get('id')} is of an unknown image or category")
            entry["number"] = number[entry["category_id"]]
            of_image[entry["image_id"]].append(entry)
        return Coco(images, objects, [str(entry["name"]) for entry in categories], path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "Check the path.") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        remedy = "Give a COCO instances file: JSON with images, annotations and categories."
        raise DataError(f"{path}: not COCO annotations ({error!r})", remedy) from error


def clip_boxes(xywh: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """COCO boxes as corners inside the image, and which of them keep any area.

    Args:
        xywh: ``(K, 4)`` left, top, width, height in pixels.
        size: (width, height) of the image.
    Returns:
        ``(K, 4)`` float32 boxes ``(x0, y0, x1, y1)`` and ``(K,)`` boolean.

    >>> boxes, kept = clip_boxes([[-5, 2, 10, 4], [90, 0, 30, 30], [3, 3, 0, 9]], (100, 20))
    >>> boxes.tolist(), kept.tolist()  # doctest: +NORMALIZE_WHITESPACE
    ([[0.0, 2.0, 5.0, 6.0], [90.0, 0.0, 100.0, 20.0], [3.0, 3.0, 3.0, 12.0]], [True, True, False])
    """
    left_top, extent = np.split(np.asarray(xywh, np.float64).reshape(-1, 4), 2, axis=1)
    corners = np.concatenate([left_top, left_top + extent], axis=1)
    boxes = np.clip(corners, 0, [*size, *size]).astype(np.float32)
    return boxes, (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def encode_mask(segmentation: list | dict | None, box: np.ndarray, size: Size) -> dict:
    """A COCO segmentation of any kind as compressed run lengths of the whole image.

    Args:
        segmentation: list of polygons ``[x, y, x, y, ...]``; run lengths, plain or compressed;
            or nothing, for a mask that fills ``box``.
        box: ``(x0, y0, x1, y1)``.
        size: (width, height) of the image.
    Raises:
        ValueError: for run lengths of an image of another size, and points that are not pairs
            of numbers near the image: on these pycocotools guesses, or does not come back.
    """
    width, height = size
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if list(segmentation["size"]) != [height, width] or not counts:
            raise ValueError(f"a mask of {segmentation['size']}, the image is {[height, width]}")
        if not isinstance(counts, list):
            coco_mask.decode(segmentation)  # fails where damaged: better now than in a later cell
            return {"size": [height, width], "counts": counts}
        if sum(counts) != width * height or min(counts) < 0:
            raise ValueError("run lengths that do not add up to the image")
        return coco_mask.frPyObjects(segmentation, height, width)
    polygons = [p for p in segmentation or () if len(p) > 4]  # two points have no inside
    for polygon in polygons:
        if len(polygon) % 2 or not np.all(np.abs(polygon) < 10 * max(size)):
            raise ValueError("a polygon that is not pairs of numbers near the image")
    x0, y0, x1, y1 = map(float, box)
    polygons = polygons or [[x0, y0, x0, y1, x1, y1, x1, y0]]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _annotated(coco: Coco, sizes: dict[str, Size], labels: np.ndarray) -> dict:
    """The parts of an ImageDataset that annotations give.

    Where folders or a list gave ``labels``, they name the main object, and the other boxes are
    unknown: categories number other things than labels do, and must not be taken for them.
    """
    masked = any(one.get("segmentation") for many in coco.objects.values() for one in many)
    objects = [_objects(coco, file, size, masked) for file, size in sizes.items()]
    dropped = sum(len(coco.objects.get(file, ())) for file in sizes) - sum(map(len, objects))
    if dropped:
        warnings.warn(f"{coco.path}: {dropped} boxes without area dropped", stacklevel=3)
    categories = [np.array([one["number"] for one in found], np.int64) for found in objects]
    main = np.array([c[0] if len(c) else -1 for c in categories], np.int64)
    parts = {
        "categories": main,
        "category_names": coco.names,
        "box_categories": categories,
        "boxes": [np.reshape([o["box"] for o in found], (-1, 4)).astype(np.float32)
                  for found in objects],
        "masks": [[o["mask"] for o in found] for found in objects] if masked else None,
        "extra": [
            {
                "image_id": coco.images.get(file, {}).get("id"),
                "annotation_ids": [one.get("id") for one in found],
                "iscrowd": [bool(one.get("iscrowd")) for one in found],
            }
            for file, found in zip(sizes, objects)
        ],
    }  # fmt: skip
    if np.all(labels < 0):
        return parts | {"labels": main, "label_names": coco.names, "box_labels": categories}
    return parts | {"box_labels": [np.where(np.arange(len(c)) == 0, label, -1)
                                   for c, label in zip(categories, labels)]}  # fmt: skip


def _objects(coco: Coco, file: str, size: Size, masked: bool) -> list[dict]:
    """Annotated objects with box and mask in pixels of the loaded image, the main one first."""
    found = []
    for entry in coco.objects.get(file, ()):
        try:
            (box,), (kept,) = clip_boxes(entry["bbox"], size)
            mask = encode_mask(entry.get("segmentation"), box, size) if kept and masked else None
        except Exception as error:  # pycocotools raises plain Exception
            raise DataError(
                f"{coco.path}: annotation {entry.get('id')} of {file} cannot be used ({error})",
                "Correct its bbox [x, y, width, height] and segmentation, or take it out.",
            ) from error
        if kept:
            box, mask = _as_loaded(box, mask, size)
            found.append(entry | {"box": box, "mask": mask})
    area = lambda one: float(np.prod(one["box"][2:] - one["box"][:2]))  # noqa: E731
    return sorted(found, key=lambda one: (bool(one.get("iscrowd")), -area(one)))


def _as_loaded(box: np.ndarray, mask: dict | None, size: Size) -> tuple[np.ndarray, dict | None]:
    """Very large images are reduced when they are loaded: so are their boxes and masks."""
    loaded = fit_within(size)
    if loaded == size:
        return box, mask
    if mask is not None:
        small = Image.fromarray(coco_mask.decode(mask)).resize(loaded, Image.Resampling.NEAREST)
        mask = coco_mask.encode(np.asfortranarray(small))
    return box * np.tile(np.divide(loaded, size), 2).astype(np.float32), mask


# --- a benchmark's folder -------------------------------------------------------------------


def check_split(name: str, split: str, splits: Sequence[str] = SPLITS) -> None:
    """Raise DataError, naming those there are, if a data set has no such split."""
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}", f"Use {' or '.join(splits)}.")


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


def note_part(name: str, root: Path, found: int, total: int, more: Sequence[str] = ()) -> str:
    """The name of a data set of which ``found`` of ``total`` images are there, and a warning."""
    if found < total or more:
        note = f"{root}: {found:,} of the {total:,} images of {name} are here"
        warnings.warn("; ".join([note, *more]), stacklevel=5)
    return f"{name} (part)" if found < total else name
