"""The benchmarks of metric learning: unseen classes are searched by images of their own.

CUB-200-2011 (Wah et al. 2011) and Cars-196 (Krause et al. 2013) train on the first half of their
classes and test on the second, whatever their official classification split says; Stanford Online
Products (Oh Song et al. 2016, who set all three) has a split of its own.

A copy may be a part of the benchmark, and its images may already be cut to their objects: what
differs from the official data is said in a warning and in the data set's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset, content_hash
from objemb_lib.data.folder import check_split, encode_mask, folder_with, note_part
from objemb_lib.data.images import fit_within, image_size, load_image

CARS_IMAGES = 16_185  # of the whole benchmark: half of its annotations are another file
SLACK = 2.0  # pixels that an annotated box may reach beyond its image


Listing = tuple[ImageDataset, np.ndarray]  # every image, there or not; ``(N,)``: those of the test


def cub(split: str, root: Path | None = None) -> ImageDataset:
    """CUB-200-2011: ``train`` are species 1 to 100, ``test`` 101 to 200, each with one box.

    ``root`` is the folder that the archive unpacks to. Where ``segmentations/`` lies beside
    ``images/``, masks are read from it, once: they are kept in the cache. Raises DataError if there
    is no such split, or the folder is another.
    """
    data = load_split(*cub_listing(Path(root or config.data_root() / "cub")), split)
    return _with_masks(data) if (data.root / "segmentations").is_dir() else data


def cars(split: str, root: Path | None = None) -> ImageDataset:
    """Cars-196: ``train`` are models 1 to 98, ``test`` 99 to 196, each with one box.

    ``root`` is a folder with ``cars_annos.mat`` and ``car_ims/``, or with ``devkit/``,
    ``cars_train/`` and ``cars_test/``. Raises DataError if there is no such split, or the folder
    is none of these.
    """
    return load_split(*cars_listing(Path(root or config.data_root() / "cars")), split, CARS_IMAGES)


def sop(split: str, root: Path | None = None) -> ImageDataset:
    """Stanford Online Products: its own ``train`` and ``test``, products of 12 categories.

    ``root`` is a folder with ``Ebay_train.txt`` and ``Ebay_test.txt``. Raises DataError if there
    is no such split, or the folder is another.
    """
    return load_split(*sop_listing(Path(root or config.data_root() / "sop")), split)


# --- what the benchmarks' lists say -------------------------------------------------------


def _read(file: Path, reader: Callable[[Path], dict]) -> dict:
    try:
        return reader(file)
    except (OSError, ValueError, MatReadError, NotImplementedError) as error:
        raise DataError(f"{file}: cannot be read ({error})", "Get the lists again.") from error


def _rows(file: Path) -> dict[str, list[str]]:
    """``{first word: other words}`` of a text file's lines."""
    lines = file.read_text().splitlines()
    return {words[0]: words[1:] for words in map(str.split, lines) if words}


def _mat(file: Path) -> dict:
    return loadmat(file, squeeze_me=True)


def cub_listing(root: Path) -> Listing:
    """What CUB's lists say. Raises DataError if they are absent or contradict each other."""
    place = folder_with(root, ["images.txt"], ["CUB_200_2011"])
    rows = {name: _read(place / f"{name}.txt", _rows) for name in
            ("images", "image_class_labels", "bounding_boxes", "classes")}  # fmt: skip
    ids = list(rows["images"])
    if any(list(rows[name]) != ids for name in ("image_class_labels", "bounding_boxes")):
        raise DataError(f"{place}: its lists name different images", "Unpack the archive again.")
    labels = np.array([int(row[0]) - 1 for row in rows["image_class_labels"].values()])
    boxes = np.array(list(rows["bounding_boxes"].values()), np.float64)
    boxes[:, 2:] += boxes[:, :2]
    files = [f"images/{row[0]}" for row in rows["images"].values()]
    names = [row[0].partition(".")[2] for row in rows["classes"].values()]
    data = ImageDataset("cub", "all", place, files, labels, names, boxes=boxes[:, None],
                        protocol="metric learning")  # fmt: skip
    return data, labels >= 100


def cars_listing(root: Path) -> Listing:
    """What the annotations of Cars-196 say.

    Without the labels of the official test images (``cars_test_annos_withlabels.mat``, which the
    devkit does not hold) only those of ``cars_train/`` are known.

    Raises:
        DataError: no annotations, or other ones.
    """
    place = folder_with(root, ["cars_annos.mat", "devkit"], ["stanford_cars", "cars"])
    if (place / "cars_annos.mat").exists():
        content = _read(place / "cars_annos.mat", _mat)
        names, parts = content["class_names"], [content["annotations"]]
        files = [str(file) for file in parts[0]["relative_im_path"]]
    else:
        names = _read(place / "devkit" / "cars_meta.mat", _mat)["class_names"]
        parts, files = [], []
        labelled = "cars_test_annos_withlabels.mat"
        for folder, options in (("cars_train", ["devkit/cars_train_annos.mat"]),
                                ("cars_test", [labelled, f"devkit/{labelled}"])):  # fmt: skip
            for file in [file for file in options if (place / file).exists()][:1]:
                parts.append(_read(place / file, _mat)["annotations"])
                files += [f"{folder}/{name}" for name in parts[-1]["fname"]]
    column = lambda name: np.concatenate([p[name].astype(np.int64) for p in parts])  # noqa: E731
    labels = column("class") - 1
    corners = [column(f"bbox_{corner}") for corner in ("x1", "y1", "x2", "y2")]
    boxes = np.stack(corners, axis=1).astype(np.float64)
    boxes[:, :2] -= 1  # MATLAB counts pixels from 1 and includes the last
    data = ImageDataset("cars", "all", place, files, labels, [str(name) for name in names],
                        boxes=boxes[:, None], protocol="metric learning")  # fmt: skip
    return data, labels >= 98


def sop_listing(root: Path) -> Listing:
    """What the products' lists say. Raises DataError if one is absent or damaged."""
    place = folder_with(root, ["Ebay_train.txt"], ["Stanford_Online_Products"])
    parts = [list(_read(place / f"Ebay_{split}.txt", _rows).values())[1:]
             for split in ("train", "test")]  # fmt: skip
    labels, categories, files = zip(*(row for part in parts for row in part))
    labels, categories = np.array(labels, np.int64) - 1, np.array(categories, np.int64) - 1
    test = np.repeat([False, True], [len(part) for part in parts])
    names = {c: file.partition("_final/")[0] for c, file in zip(categories.tolist(), files)}
    coarse = [names.get(i, "") for i in range(max(names) + 1)]
    products = [f"product {i + 1}" for i in range(labels.max() + 1)]
    data = ImageDataset("sop", "all", place, files, labels, products, categories, coarse,
                        protocol="metric learning, products")  # fmt: skip
    return data, test


# --- lists -> splits, from the images that are there --------------------------------------


def load_split(data: ImageDataset, test: np.ndarray, split: str, total: int = 0) -> ImageDataset:
    """The images of one split that are there, all querying and all searched.

    Where a copy has images of only one official split, its classes are halved in their order:
    the first half trains. The data set is then called "(part)", as any incomplete one.

    Args:
        data: every image of the benchmark, whether it is there or not, with boxes in pixels of
            the stored image. test: ``(N,)`` boolean: images of the test split.
        total: images of the whole benchmark, where ``data`` has fewer.
    Raises:
        DataError: no such split, or no image of it is there.
    """
    check_split(data.name, split)
    here, said = np.array([(data.root / file).is_file() for file in data.files]), []
    if not here.any():
        raise DataError(
            f"{data.root}: none of the {len(here):,} images of {data.name} are there "
            f"(the first would be {data.files[0]})",
            "Put the images beside the annotations, as the official archive has them; for a "
            "folder of images alone, one sub-folder a class, use folder:PATH.",
        )
    if not (here & test).any() or not (here & ~test).any():
        known = np.unique(data.labels[here])
        test = np.isin(data.labels, known[len(known) // 2 :])
        said.append("of one official split only: its classes are halved, the first half trains")
    chosen = here & (test if split == "test" else ~test)
    if not chosen.any():
        raise DataError(f"{data.root}: its images show one class only", "Two classes are needed.")
    part = data.subset(chosen)
    if len(part.boxes[0]):
        paths = [data.root / file for file in part.files]
        boxes, fits = zip(*(_box(path, box) for path, box in zip(paths, part.boxes)))
        part = replace(part, boxes=boxes)
        if not all(fits):
            said.append(f"{fits.count(False)} of {len(part)} boxes lie outside their image, "
                        "which is then taken as cut to its object")  # fmt: skip
    name = note_part(data.name, data.root, here.sum(), total or len(here), said)
    return replace(part, name=name, split=split)


def _box(path: Path, box: np.ndarray) -> tuple[np.ndarray, bool]:
    """A box as ``(1, 4)`` pixels of the loaded image, and whether it is of this version of it."""
    size, upright = image_size(path)
    edge = np.tile(size, 2)
    inside = box.clip(0, edge)
    fits = upright and np.abs(inside - box).max() <= SLACK and (inside[:, 2:] > inside[:, :2]).all()
    if not fits:  # another version of the image: all of it is the object
        inside = np.array([[0, 0, *size]])
    scale = np.divide(fit_within(size), size)  # very large images are reduced when loaded
    return (inside * np.tile(scale, 2)).astype(np.float32), fits


def _with_masks(data: ImageDataset) -> ImageDataset:
    """Masks of the pixels that most annotators marked; the box where an image has none."""
    stems = [file.removeprefix("images/").rpartition(".")[0] for file in data.files]
    drawn = [f"segmentations/{stem}.png" for stem in stems]
    there = [file for file in drawn if (data.root / file).exists()]
    known = f"{data.fingerprint} {there} {content_hash(data.root, there)}"
    name = hashlib.sha256(known.encode()).hexdigest()
    cached = config.cache_root() / "masks" / f"{name}.json"
    if not cached.exists():
        found = [_mask(data, i, file) for i, file in enumerate(tqdm(drawn, "Reading masks"))]
        runs = [one | {"counts": one["counts"].decode()} for one in found]
        atomic_write_text(cached, json.dumps(runs))
    return replace(data, masks=[[one] for one in json.loads(cached.read_text())])


def _mask(data: ImageDataset, i: int, file: str) -> dict:
    width, height = data.sizes()[i].tolist()
    if (data.root / file).exists():
        grey = np.asarray(load_image(data.root / file).convert("L"))
        if grey.shape == (height, width):  # else the image is another version than the mask's
            return coco_mask.encode(np.asfortranarray(grey >= 128, np.uint8))
    return encode_mask(None, data.boxes[i][0], (width, height))
