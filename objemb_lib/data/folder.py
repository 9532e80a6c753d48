"""A folder of the user's own photographs, with COCO-format boxes and masks where there are any."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from objemb_lib.config import DataError, ImageError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.images import IMAGE_SUFFIXES, fit_within, measure_images

Size = tuple[int, int]  # (width, height) in pixels


def folder(
    root: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None = None,
    split: str = "all",
    skip_broken: bool = True,
    progress: bool = True,
) -> ImageDataset:
    """A user's own photographs as a data set, in the order of their names.

    Labels are the names of the first level of sub-folders (torchvision's ``ImageFolder``). Without
    sub-folders they are the category of the main object, where ``annotations`` give one; else -1,
    unknown, and no image is relevant to another. The main object, first among the boxes, is the
    largest that is not a crowd. Hidden files and files with other suffixes are left out.

    Args:
        root: the folder.
        annotations: COCO-format JSON whose ``file_name`` are relative to the folder read. Boxes
            are clipped to the image, those without area are dropped; segmentations become
            compressed run lengths, the box itself where an object has none. ``extra`` keeps each
            image's ``image_id``, and ``annotation_ids``, ``iscrowd`` and ``box_categories`` in the
            order of its boxes.
        split: sub-folder of ``root`` to read ("train"), or "all" for ``root`` itself.
        skip_broken: leave out images that cannot be used, with a warning that counts them.
        progress: show a progress bar while every image is checked.
    Raises:
        DataError: when the folder is missing or has no usable image, or ``annotations`` are not
            COCO, inconsistent, or name images that are not in the folder.
        ImageError: for the first broken image, with ``skip_broken=False``.
    """
    place = _place(Path(root), split)
    files = list_images(place)
    coco = None if annotations is None else _read_coco(Path(annotations), place, files)
    sizes = measure_images([place / file for file in files], progress)
    if coco:
        sizes = [_agreed(place / f, size, coco.sizes.get(f)) for f, size in zip(files, sizes)]
    good, broken = _sort_out(place, files, sizes, skip_broken)
    labels, names = _folder_labels(list(good))
    parts: dict = {"labels": labels, "label_names": names}
    notes = [_broken_note(place, broken, len(files))] if broken else []
    if coco:
        objects, dropped = _objects(coco, good)
        parts |= _annotated(coco, list(good), objects, labels)
        notes += [f"{coco.path}: {dropped} boxes without area dropped"] if dropped else []
    for note in notes:
        warnings.warn(note, stacklevel=2)
    data = ImageDataset(Path(root).resolve().name, split, place, tuple(good), **parts)
    if coco:  # other boxes: other embeddings, though the photographs are the same
        both = hashlib.sha256(f"{data.fingerprint}{coco.digest}".encode()).hexdigest()
        data = replace(data, fingerprint=both)
    return data


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
            of numbers near the image.
    """
    width, height = size
    if isinstance(segmentation, dict):
        return _encode_runs(segmentation, height, width)
    polygons = [p for p in segmentation or () if len(p) > 4]  # two points have no inside
    for polygon in polygons:  # on these pycocotools guesses, or does not come back
        if len(polygon) % 2 or not np.all(np.abs(polygon) < 10 * max(size)):
            raise ValueError("a polygon that is not pairs of numbers near the image")
    x0, y0, x1, y1 = map(float, box)
    polygons = polygons or [[x0, y0, x0, y1, x1, y1, x1, y0]]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _encode_runs(runs: dict, height: int, width: int) -> dict:
    counts = runs["counts"]
    if list(runs["size"]) != [height, width]:
        raise ValueError(f"a mask of {runs['size']}, the image is {[height, width]}")
    if isinstance(counts, list):
        if sum(counts) != width * height or min(counts) < 0:
            raise ValueError("run lengths that do not add up to the image")
        return coco_mask.frPyObjects(runs, height, width)
    if not counts:  # pycocotools would hand out uninitialised memory
        raise ValueError("a mask without run lengths")
    encoded = {"size": [height, width], "counts": counts}
    coco_mask.decode(encoded)  # fails on damaged run lengths: better now than in a later cell
    return encoded


@dataclass(frozen=True)
class _Coco:
    """What a COCO file says, by file name."""

    path: Path
    digest: str
    sizes: dict[str, Size | None]
    ids: dict[str, int | str]
    objects: dict[str, list[dict]]
    names: list[str]
    category: dict[int, int]  # COCO's id -> index into names
    has_masks: bool


@dataclass(frozen=True)
class _Object:
    """One annotated object, in pixels of the image as it is loaded."""

    box: np.ndarray
    category: int
    mask: dict | None
    crowd: bool
    id: int | str | None


def _place(root: Path, split: str) -> Path:
    place = root if split == "all" else root / split
    if not place.is_dir():
        what = "a file" if place.exists() else "no such folder"
        here = sorted(p.name for p in root.iterdir() if p.is_dir())[:10] if root.is_dir() else []
        raise DataError(
            f"{place}: {what}",
            f"Choose a split among {', '.join(here)}, or 'all'."
            if here and split != "all"
            else f"Name a folder of photographs; relative paths start at {Path.cwd()}.",
        )
    return place


def _read_coco(path: Path, place: Path, files: Sequence[str]) -> _Coco:
    remedy = "Give a COCO instances file: JSON with images, annotations and categories."
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "Check the path.") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})", remedy) from error
    try:
        coco = _by_file(content, path, hashlib.sha256(raw).hexdigest())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not a COCO annotation file ({why})", remedy) from error
    if missing := sorted(set(coco.sizes) - set(files)):
        raise DataError(
            f"{path}: names {len(missing)} of {len(coco.sizes)} images that are not in {place}: "
            f"{', '.join(missing[:3])}",
            "Read the folder that its file_name are relative to (root, split), "
            "fetch the missing images, or take their entries out of the file.",
        )
    return coco


def _by_file(content: dict, path: Path, digest: str) -> _Coco:
    categories = sorted(content["categories"], key=lambda entry: entry["id"])
    file_of, sizes, ids = {}, {}, {}
    for entry in content["images"]:
        file = PurePosixPath(entry["file_name"].replace("\\", "/")).as_posix()  # drops "./"
        width, height = entry.get("width"), entry.get("height")
        file_of[entry["id"]], ids[file] = file, entry["id"]
        sizes[file] = (int(width), int(height)) if width and height else None
    objects: dict[str, list[dict]] = {}
    category = {entry["id"]: i for i, entry in enumerate(categories)}
    for entry in content["annotations"]:
        if entry["image_id"] not in file_of or entry["category_id"] not in category:
            raise ValueError(f"annotation {entry.get('id')} is of an unknown image or category")
        objects.setdefault(file_of[entry["image_id"]], []).append(entry)
    names = [str(entry["name"]) for entry in categories]
    has_masks = any(entry.get("segmentation") for entry in content["annotations"])
    return _Coco(path, digest, sizes, ids, objects, names, category, has_masks)


def _agreed(path: Path, size: Size | ImageError, annotated: Size | None) -> Size | ImageError:
    if isinstance(size, ImageError) or annotated in (None, size):
        return size
    return ImageError(
        f"{path}: annotated at {annotated[0]} x {annotated[1]} pixels, "
        f"but {size[0]} x {size[1]} when upright",
        "Use the photograph that was annotated; if only its rotation flag differs, "
        "save it upright and annotate that.",
    )


def _sort_out(
    place: Path, files: Sequence[str], sizes: Sequence[Size | ImageError], skip_broken: bool
) -> tuple[dict[str, Size], list[ImageError]]:
    broken = [size for size in sizes if isinstance(size, ImageError)]
    good = {f: size for f, size in zip(files, sizes) if not isinstance(size, ImageError)}
    if broken and not skip_broken:
        raise broken[0]
    if not good:
        raise DataError(
            f"{place}: none of its {len(files)} images can be used; {broken[0].problem}",
            broken[0].remedy,
        )
    return good, broken


def _broken_note(place: Path, broken: Sequence[ImageError], total: int) -> str:
    shown = "".join(f"\n  {error.problem}" for error in broken[:3])
    more = f"\n  and {len(broken) - 3} more" if len(broken) > 3 else ""
    return f"{place}: {len(broken)} of {total} images skipped{shown}{more}"


def _folder_labels(files: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    first = [file.partition("/")[0] if "/" in file else "" for file in files]
    names = sorted(set(first) - {""})
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    return np.array([number[name] for name in first], np.int64), names


def _objects(coco: _Coco, sizes: dict[str, Size]) -> tuple[list[list[_Object]], int]:
    """Each image's objects, the main one first, and how many were dropped for want of area."""
    found = [_objects_of(coco, file, size) for file, size in sizes.items()]
    annotated = sum(len(coco.objects.get(file, ())) for file in sizes)
    return found, annotated - sum(map(len, found))


def _objects_of(coco: _Coco, file: str, size: Size) -> list[_Object]:
    found = []
    for entry in coco.objects.get(file, ()):
        try:
            (box,), (kept,) = clip_boxes(entry["bbox"], size)
            if not kept:
                continue
            mask = None
            if coco.has_masks:
                mask = encode_mask(entry.get("segmentation"), box, size)
        except Exception as error:  # pycocotools raises plain Exception
            raise DataError(
                f"{coco.path}: annotation {entry.get('id')} of {file} cannot be used ({error})",
                "Correct its bbox [x, y, width, height] and segmentation, or take it out.",
            ) from error
        box, mask = _as_loaded(box, mask, size)
        category, crowd = coco.category[entry["category_id"]], bool(entry.get("iscrowd"))
        found.append(_Object(box, category, mask, crowd, entry.get("id")))
    return sorted(found, key=lambda o: (o.crowd, -float(np.prod(o.box[2:] - o.box[:2]))))


def _as_loaded(box: np.ndarray, mask: dict | None, size: Size) -> tuple[np.ndarray, dict | None]:
    """Very large images are reduced when they are loaded: so are their boxes and masks."""
    loaded = fit_within(size)
    if loaded == size:
        return box, mask
    scale = np.array([loaded[0] / size[0], loaded[1] / size[1]] * 2, np.float32)
    if mask is not None:
        small = Image.fromarray(coco_mask.decode(mask)).resize(loaded, Image.Resampling.NEAREST)
        mask = coco_mask.encode(np.asfortranarray(small))
    return box * scale, mask


def _annotated(
    coco: _Coco, files: Sequence[str], objects: list[list[_Object]], labels: np.ndarray
) -> dict:
    """The parts of an ImageDataset that annotations give.

    Where folders gave ``labels``, they name the main object, and the other boxes are unknown:
    categories number other things than labels do, and must not be taken for them.
    """
    categories = [np.array([o.category for o in found], np.int64) for found in objects]
    main = np.array([c[0] if len(c) else -1 for c in categories], np.int64)
    parts: dict = {"categories": main, "category_names": coco.names, "box_labels": categories,
                   "box_categories": categories}  # fmt: skip
    if np.all(labels < 0):
        parts |= {"labels": main, "label_names": coco.names}
    else:
        parts["box_labels"] = [
            np.where(np.arange(len(c)) == 0, label, -1) for c, label in zip(categories, labels)
        ]
    parts["boxes"] = [
        np.reshape([o.box for o in found], (-1, 4)).astype(np.float32) for found in objects
    ]
    parts["masks"] = [[o.mask for o in found] for found in objects] if coco.has_masks else None
    parts["extra"] = [
        {
            "image_id": coco.ids.get(file),
            "annotation_ids": [o.id for o in found],
            "iscrowd": [o.crowd for o in found],
        }
        for file, found in zip(files, objects)
    ]
    return parts
