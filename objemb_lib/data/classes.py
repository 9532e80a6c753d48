"""The benchmarks of metric learning: unseen classes are searched by images of their own.

CUB-200-2011 (Wah et al. 2011) and Cars-196 (Krause et al. 2013) train on the first half of their
classes and test on the second, whatever their official classification split says; Stanford Online
Products (Oh Song et al. 2016, who set all three) has a split of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
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
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import encode_mask, list_images
from objemb_lib.data.images import fit_within, image_size, load_image
from objemb_lib.data.listing import Listing, folder_with, load_split

CUB_IMAGES, CARS_IMAGES = 11_788, 16_185  # of the whole benchmarks, for copies of a part


def cub(split: str, root: Path | None = None) -> ImageDataset:
    """CUB-200-2011: ``train`` are species 1 to 100, ``test`` 101 to 200, each with one box.

    Where ``segmentations/`` lies beside ``images/``, masks are read from it, once; they are kept
    in the cache.

    Args:
        split: "train" or "test".
        root: folder that the archive unpacks to, or one with a sub-folder per species.
    Raises:
        DataError: no such split, or the folder is none of these.
    """
    data = _load(cub_listing, "cub", split, root)
    return _with_masks(data) if (data.root / "segmentations").is_dir() else data


def cars(split: str, root: Path | None = None) -> ImageDataset:
    """Cars-196: ``train`` are models 1 to 98, ``test`` 99 to 196, each with one box.

    Args:
        split: "train" or "test".
        root: folder with ``cars_annos.mat`` and ``car_ims/``, or with ``devkit/``,
            ``cars_train/`` and ``cars_test/``.
    Raises:
        DataError: no such split, or the folder is none of these.
    """
    return _load(cars_listing, "cars", split, root)


def sop(split: str, root: Path | None = None) -> ImageDataset:
    """Stanford Online Products: its own ``train`` and ``test``, products of 12 categories.

    Args:
        split: "train" or "test".
        root: folder with ``Ebay_train.txt`` and ``Ebay_test.txt``.
    Raises:
        DataError: no such split, or the folder is none of these.
    """
    return _load(sop_listing, "sop", split, root)


def _load(listing, name: str, split: str, root: Path | None) -> ImageDataset:
    root = Path(root or config.data_root() / name)
    place, found = listing(root)
    return load_split(found, place, split)


def cub_listing(root: Path) -> tuple[Path, Listing]:
    """The folder of CUB's lists, and what they say; files are below ``images/``.

    Raises:
        DataError: no list and no species folders, or lists that contradict each other.
    """
    try:
        place = folder_with(root, ["images.txt"], ["CUB_200_2011"])
    except DataError:
        if not root.is_dir():
            raise
        return root, _by_species(root)
    rows = {name: _rows(place / f"{name}.txt") for name in
            ("images", "image_class_labels", "bounding_boxes", "classes")}  # fmt: skip
    ids = list(rows["images"])
    if any(list(rows[name]) != ids for name in ("image_class_labels", "bounding_boxes")):
        raise DataError(f"{place}: its lists name different images", "Unpack the archive again.")
    labels = np.array([int(row[0]) - 1 for row in rows["image_class_labels"].values()])
    boxes = np.array([row for row in rows["bounding_boxes"].values()], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    files = [f"images/{row[0]}" for row in rows["images"].values()]
    names = [row[0].partition(".")[2] for row in rows["classes"].values()]
    return place, Listing("cub", files, labels, names, labels >= 100, boxes)


def _with_masks(data: ImageDataset) -> ImageDataset:
    """Masks of the pixels that most annotators marked; the box where an image has none."""
    key = hashlib.sha256(f"{data.fingerprint} masks 1".encode()).hexdigest()
    cached = config.cache_root() / "masks" / f"{key}.json"
    if not cached.exists():
        found = [_mask(data, i) for i in tqdm(range(len(data)), "Reading masks")]
        runs = [{"size": one["size"], "counts": one["counts"].decode()} for one in found]
        atomic_write_text(cached, json.dumps(runs))
    masks = [[one] for one in json.loads(cached.read_text())]
    return replace(data, masks=masks, fingerprint=key)


def _mask(data: ImageDataset, i: int) -> dict:
    file = data.root / "segmentations" / Path(data.files[i]).relative_to("images")
    size = fit_within(image_size(data.root / data.files[i])[0])
    file = file.with_suffix(".png")
    if file.exists():
        grey = np.asarray(load_image(file).convert("L"))
        if grey.shape == size[::-1]:  # else the image is another version than the mask's
            return coco_mask.encode(np.asfortranarray(grey >= 128, np.uint8))
    return encode_mask(None, data.boxes[i][0], size)


def _by_species(root: Path) -> Listing:
    """A copy of the images alone. Folders called ``001.Black_footed_Albatross`` say their class;
    without numbers the order of the names stands in, and no official split is known."""
    files = [file for file in list_images(root) if "/" in file]
    species = sorted({file.split("/")[-2] for file in files})
    if not files:
        raise DataError(f"{root}: no images in sub-folders", "One sub-folder per species.")
    numbers = [re.match(r"(\d{3})\.", name) for name in species]
    known = all(numbers)
    number = {s: int(m[1]) - 1 if known else i for i, (s, m) in enumerate(zip(species, numbers))}
    names = {number[one]: one.partition(".")[2] if known else one for one in species}
    labels = np.array([number[file.split("/")[-2]] for file in files])
    test = labels >= 100 if known else np.ones(len(files), bool)
    listed = [names.get(i, "") for i in range(max(names) + 1)]
    return Listing("cub", files, labels, listed, test, total=CUB_IMAGES)


def _rows(file: Path) -> dict[str, list[str]]:
    """``{first word: other words}`` of a text file's lines."""
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})", "Unpack it again.") from error
    return {words[0]: words[1:] for words in map(str.split, lines) if words}


def cars_listing(root: Path) -> tuple[Path, Listing]:
    """The folder of the Cars-196 annotations, and what they say.

    Without the labels of the official test images (``cars_test_annos_withlabels.mat``, which the
    devkit does not hold) only those of ``cars_train/`` are known.

    Raises:
        DataError: no annotations, or other ones.
    """
    place = folder_with(root, ["cars_annos.mat", "devkit"], ["stanford_cars", "cars"])
    if (place / "cars_annos.mat").exists():
        content = _mat(place / "cars_annos.mat")
        notes, names = content["annotations"], content["class_names"]
        files = [str(file) for file in notes["relative_im_path"]]
    else:
        names = _mat(place / "devkit" / "cars_meta.mat")["class_names"]
        train = _mat(place / "devkit" / "cars_train_annos.mat")["annotations"]
        files, parts = [f"cars_train/{file}" for file in train["fname"]], [train]
        labelled = "cars_test_annos_withlabels.mat"
        for file in (place / labelled, place / "devkit" / labelled):
            if file.exists() and len(parts) == 1:
                parts.append(_mat(file)["annotations"])
                files += [f"cars_test/{name}" for name in parts[1]["fname"]]
        fields = ["class", *_CORNERS]
        notes = {f: np.concatenate([p[f].astype(np.int64) for p in parts]) for f in fields}
    labels = np.asarray(notes["class"], np.int64) - 1
    boxes = np.stack([np.asarray(notes[corner], np.float64) for corner in _CORNERS], axis=1)
    boxes[:, :2] -= 1  # MATLAB counts pixels from 1 and includes the last
    return place, Listing("cars", files, labels, [str(n) for n in names], labels >= 98, boxes,
                          total=CARS_IMAGES)  # fmt: skip


_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def _mat(file: Path) -> dict:
    try:
        return loadmat(file, squeeze_me=True)
    except (OSError, ValueError, MatReadError, NotImplementedError) as error:
        raise DataError(
            f"{file}: cannot be read ({error})", "Get the annotations again."
        ) from error


def sop_listing(root: Path) -> tuple[Path, Listing]:
    """The folder of the products' lists, and what they say.

    Raises:
        DataError: a list is absent or damaged.
    """
    place = folder_with(root, ["Ebay_train.txt"], ["Stanford_Online_Products"])
    files, labels, categories, test = [], [], [], []
    names: dict[int, str] = {}
    for split in ("train", "test"):
        for _, (label, category, file) in list(_rows(place / f"Ebay_{split}.txt").items())[1:]:
            files.append(file)
            labels.append(int(label) - 1)
            categories.append(int(category) - 1)
            test.append(split == "test")
            names[categories[-1]] = file.partition("_final/")[0]
    coarse = [names.get(i, "") for i in range(max(names) + 1)]
    products = [f"product {i + 1}" for i in range(max(labels) + 1)]
    return place, Listing("sop", files, np.array(labels), products, np.array(test), None,
                          np.array(categories), coarse, "metric learning, products")  # fmt: skip
