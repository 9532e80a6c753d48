"""A folder of the user's own photographs, with COCO-format boxes and masks where there are any."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask

from objemb_lib import config
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
    place = Path(root) / split if split != "all" else Path(root)
    files = list_images(place)
    images, categories = read_coco(Path(annotations)) if annotations else ({}, [])
    listed = read_labels(Path(labels)) if labels else {}
    for path, named in ((annotations, images), (labels, listed)):
        if missing := sorted(named.keys() - set(files)):
            raise DataError(
                f"{path}: names {len(missing)} images that are not in {place}, as {missing[0]}",
                "Read the folder that its paths are relative to (root, split), fetch the missing "
                "images, or take their entries out of the file.",
            )
    good = _usable(place, files, images, progress)
    if not labels:
        listed = {file: {"label": file.partition("/")[0]} for file in good if "/" in file}
    parts = _labelled([listed.get(file, {}) for file in good])
    if annotations:
        entries, sizes = [images.get(file, {"objects": []}) for file in good], list(good.values())
        found, objects = annotated(entries, sizes, categories)
        if dropped := sum(len(e["objects"]) - len(many) for e, many in zip(entries, objects)):
            warnings.warn(f"{dropped} annotated boxes without area dropped", stacklevel=2)
        found["masks"] = encode_masks(objects, sizes)
        if (parts["labels"] >= 0).any():  # they are no categories: other boxes are of none
            own = [np.where(np.arange(len(boxes)) == 0, label, -1)
                   for boxes, label in zip(found["boxes"], parts["labels"])]  # fmt: skip
            found |= {part: parts[part] for part in ("labels", "label_names")}
            found |= {"box_labels": own}
        parts |= found
    return ImageDataset(Path(root).resolve().name, split, place, tuple(good), **parts)


def _usable(place: Path, files: list[str], noted: dict[str, dict], progress: bool) -> dict:
    """``{file: upright size}`` of images that can be used and are as ``noted``; warns of others."""
    good, broken = {}, []
    for file, size in zip(files, measure_images([place / file for file in files], progress)):
        entry = noted.get(file, {})
        annotated = entry.get("width"), entry.get("height")
        if not isinstance(size, ImageError) and all(annotated) and annotated != size:
            size = ImageError(
                f"{place / file}: annotated at {annotated[0]} x {annotated[1]} pixels, "
                f"but {size[0]} x {size[1]} when upright",
                "Use the photograph that was annotated; if only its rotation flag differs, "
                "save it upright and annotate that.",
            )
        if isinstance(size, ImageError):
            broken.append(size)
        else:
            good[file] = size
    if not good:
        problem = f"{place}: none of its {len(files)} images can be used; {broken[0].problem}"
        raise DataError(problem, broken[0].remedy)
    if broken:
        shown = "".join(f"\n  {error.problem}" for error in broken[:3])
        more = f"\n  and {len(broken) - 3} more" if len(broken) > 3 else ""
        note = f"{place}: {len(broken)} of {len(files)} images skipped{shown}{more}"
        warnings.warn(note, stacklevel=3)
    return good


def _labelled(rows: Sequence[dict[str, str]]) -> dict:
    """The parts of an ImageDataset that a list's rows give, one an image."""
    parts, roles = {}, np.array([row.get("role", "") for row in rows])
    for part, column, named in (("labels", "label", "label_names"),
                                ("categories", "category", "category_names")):  # fmt: skip
        names = [row.get(column, "") for row in rows]
        known, number = np.unique(["", *names], return_inverse=True)  # "" is the first
        parts |= {part: number[1:] - 1, named: known[1:].tolist()}
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
    path = Path(path).expanduser()
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
    if not place.is_dir():
        here = ", ".join(sorted(p.name for p in place.parent.glob("*/"))[:10]) or "nothing"
        remedy = f"Beside it are: {here}. Relative paths start at {Path.cwd()}."
        raise DataError(f"{place}: no such folder", remedy)
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


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """File -> its row of a list of labels, see :func:`folder`. Raises DataError: it is none."""
    rows = read_table(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if not {"file", "label"} <= set(rows) or not (rows.label != "").any():
        problem = f"{path}: not a list of labels"
        raise DataError(problem, "Give CSV with the columns file and label.")
    rows = rows[rows.label != ""].to_dict("records")
    return {PurePosixPath(row["file"]).as_posix(): row for row in rows}


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
    has the ``number`` of its category among the names, which are in the order of their ids.
    Raises DataError: it cannot be read, or is no such file.
    """
    try:
        content = json.loads(path.read_bytes())
        categories = sorted(content["categories"], key=lambda entry: entry["id"])
        number = {entry["id"]: i for i, entry in enumerate(categories)}
        by_id = {entry["id"]: entry | {"objects": []} for entry in content["images"]}
        for entry in content["annotations"]:
            if entry["image_id"] not in by_id or entry["category_id"] not in number:
                raise ValueError(f"annotation {entry.get('id')} is of an unknown image or category")
            entry["number"] = number[entry["category_id"]]
            by_id[entry["image_id"]]["objects"].append(entry)
        plain = lambda name: PurePosixPath(name.replace("\\", "/")).as_posix()  # noqa: E731 - no ./
        images = {plain(entry["file_name"]): entry for entry in by_id.values()}
        return images, [str(entry["name"]) for entry in categories]
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        remedy = "Give a COCO instances file: JSON with images, annotations and categories."
        raise DataError(f"{path}: not COCO annotations ({error!r})", remedy) from error


def encode_mask(segmentation: list | dict | None, box: np.ndarray, size: Size) -> dict:
    """A COCO segmentation as compressed run lengths of an image of ``size`` (width, height).

    It is polygons ``[x, y, x, y, ...]``, or run lengths, plain or compressed, or nothing: then the
    mask fills ``box``, ``(x0, y0, x1, y1)``. Raises ValueError: run lengths of an image of another
    size, or points that are not pairs of numbers near the image: on these pycocotools guesses, or
    does not come back.
    """
    width, height = size
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if list(segmentation["size"]) != [height, width] or not counts:
            raise ValueError(f"a mask of {segmentation['size']}, the image is {[height, width]}")
        if isinstance(counts, list):
            if sum(counts) != width * height or min(counts) < 0:
                raise ValueError("run lengths that do not add up to the image")
            return coco_mask.frPyObjects(segmentation, height, width)
        coco_mask.decode(segmentation)  # fails where damaged: better now than in a later cell
        return {"size": [height, width], "counts": counts}
    polygons = [p for p in segmentation or () if len(p) > 4]  # two points have no inside
    for polygon in polygons:
        if len(polygon) % 2 or not np.all(np.abs(polygon) < 10 * max(size)):
            raise ValueError("a polygon that is not pairs of numbers near the image")
    x0, y0, x1, y1 = map(float, box)
    polygons = polygons or [[x0, y0, x0, y1, x1, y1, x1, y0]]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def annotated(
    entries: Sequence[dict], sizes: Sequence[Size], names: Sequence[str]
) -> tuple[dict, list[list[dict]]]:
    """The parts of an ImageDataset that annotations give, less the masks; and the annotations of
    each image in the order of its boxes.

    The largest that is not a crowd, the main object, is first; those without area are left out.

    Args:
        entries: of the images, as :func:`read_coco` gives them. names: of the categories.
        sizes: (width, height) of the images as they are stored, upright.
    Raises:
        DataError: naming annotations without a usable box.
    """
    boxes, objects = [], []
    for entry, size in zip(entries, sizes):
        many = entry["objects"]
        try:
            xywh = np.array([one["bbox"] for one in many], np.float64).reshape(-1, 4)
        except (KeyError, TypeError, ValueError) as error:
            raise _unusable(many, error) from error
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

    Raises DataError, naming an annotation without a usable outline.
    """
    if not any(one.get("segmentation") for many in objects for one in many):
        return None

    def encode(one: dict, size: Size) -> dict:
        try:
            mask = encode_mask(one.get("segmentation"), one["corners"], size)
        except Exception as error:  # pycocotools raises plain Exception
            raise _unusable([one], error) from error
        if (loaded := fit_within(size)) == tuple(size):
            return mask
        # Very large images are reduced when they are loaded: so are their masks.
        small = Image.fromarray(coco_mask.decode(mask)).resize(loaded, Image.Resampling.NEAREST)
        return coco_mask.encode(np.asfortranarray(small))

    return [[encode(one, size) for one in many] for many, size in zip(objects, sizes)]


def _unusable(objects: Sequence[dict], error: Exception) -> DataError:
    ids = ", ".join(str(one.get("id")) for one in objects)
    return DataError(
        f"annotation {ids} cannot be used ({error})",
        "Correct its bbox [x, y, width, height] and segmentation, or take it out.",
    )


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
        splits: what the benchmark has.
    Raises:
        DataError: no such split, or no such folder.
    """
    check_split(name, split, splits)
    root = Path(root or config.data_root() / name)
    for place in (root, *(root / one for one in inside)):
        if any((place / one).exists() for one in holds):
            return place
    raise DataError(
        f"{root}: {' or '.join(holds)} is not there",
        "Name the folder that its archive unpacks to, or build it with data/download.py.",
    )


def note_part(data: ImageDataset, found: int, total: int, more: Sequence[str] = ()) -> str:
    """What a data set is called of whose images only a part is there, and a warning."""
    if found < total or more:
        note = f"{data.root}: {found:,} of the {total:,} images of {data.name} are here"
        warnings.warn("; ".join([note, *more]), stacklevel=5)
    return f"{data.name} (part)" if found < total else data.name
