"""The benchmarks of metric learning: unseen classes are searched by images of their own.

CUB-200-2011 (Wah et al. 2011) and Cars-196 (Krause et al. 2013) train on the first half of their
classes and test on the second, whatever their official classification split says; Stanford Online
Products (Oh Song et al. 2016, who set all three) has a split of its own.

A copy may be a part of the benchmark, and its images may already be cut to their objects: what
differs from the official data is said in a warning and in the data set's name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from tqdm.contrib.concurrent import thread_map

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import SPLITS, encode_mask, note_part, open_copy, read_table
from objemb_lib.data.images import fit_within, image_size, load_image

CARS_IMAGES = 16_185  # of the whole benchmark: half of its annotations are another file
SLACK = 2.0  # pixels that an annotated box may reach beyond its image


def cub(split: str, root: Path | None = None) -> ImageDataset:
    """CUB-200-2011: ``train`` are species 1 to 100, ``test`` 101 to 200, each with one box.

    ``root`` is the folder that the archive unpacks to; masks are read from ``segmentations/``
    beside ``images/``. Raises DataError: no such split, the folder is another, or its lists
    contradict each other.
    """
    place = open_copy("cub", split, root, ["images.txt"], ["CUB_200_2011"])
    images, classes, boxes, names = (
        read_table(place / f"{name}.txt", sep=" ", header=None, index_col=0)
        for name in ("images", "image_class_labels", "bounding_boxes", "classes")
    )
    if not images.index.equals(classes.index) or not images.index.equals(boxes.index):
        raise DataError(f"{place}: its lists name different images", "Unpack the archive again.")
    labels, boxes = classes[1].to_numpy() - 1, boxes.to_numpy(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    files = [f"images/{file}" for file in images[1]]
    data = ImageDataset("cub", split, place, files, labels, [n.partition(".")[2] for n in names[1]],
                        boxes=boxes[:, None], protocol="metric learning")  # fmt: skip
    data = load_split(data, labels >= 100)
    return _with_masks(data) if (place / "segmentations").is_dir() else data


def cars(split: str, root: Path | None = None) -> ImageDataset:
    """Cars-196: ``train`` are models 1 to 98, ``test`` 99 to 196, each with one box.

    ``root`` is a folder with ``cars_annos.mat`` and ``car_ims/``, or with ``devkit/``,
    ``cars_train/`` and ``cars_test/``. Without the labels of the official test images
    (``cars_test_annos_withlabels.mat``, which the devkit does not hold) only those of
    ``cars_train/`` are known. Raises as :func:`cub`.
    """
    place = open_copy("cars", split, root, ["cars_annos.mat", "devkit"], ["stanford_cars", "cars"])
    if (place / "cars_annos.mat").exists():
        content = _mat(place / "cars_annos.mat")
        names, parts = content["class_names"], [content["annotations"]]
        files = [str(file) for file in parts[0]["relative_im_path"]]
    else:
        names, files, parts = _mat(place / "devkit" / "cars_meta.mat")["class_names"], [], []
        for folder, listed in (("cars_train", "cars_train_annos.mat"),
                               ("cars_test", "cars_test_annos_withlabels.mat")):  # fmt: skip
            for file in [*place.glob(f"devkit/{listed}"), *place.glob(listed)][:1]:
                parts.append(_mat(file)["annotations"])
                files += [f"{folder}/{name}" for name in parts[-1]["fname"]]
    column = lambda name: np.concatenate([p[name].astype(np.int64) for p in parts])  # noqa: E731
    corners = [column(f"bbox_{corner}") for corner in ("x1", "y1", "x2", "y2")]
    boxes = np.stack(corners, axis=1).astype(np.float64)
    boxes[:, :2] -= 1  # MATLAB counts pixels from 1 and includes the last
    labels = column("class") - 1
    data = ImageDataset("cars", split, place, files, labels, [str(name) for name in names],
                        boxes=boxes[:, None], protocol="metric learning")  # fmt: skip
    return load_split(data, labels >= 98, CARS_IMAGES)


def _mat(file: Path) -> dict:
    try:
        return loadmat(file, squeeze_me=True)
    except (OSError, ValueError, MatReadError, NotImplementedError) as error:
        raise DataError(f"{file}: cannot be read ({error})", "Get the lists again.") from error


def sop(split: str, root: Path | None = None) -> ImageDataset:
    """Stanford Online Products: its own ``train`` and ``test``, products of 12 categories.

    ``root`` is a folder with ``Ebay_train.txt`` and ``Ebay_test.txt``. Raises as :func:`cub`.
    """
    place = open_copy("sop", split, root, ["Ebay_train.txt"], ["Stanford_Online_Products"])
    parts = [read_table(place / f"Ebay_{split}.txt", sep=" ") for split in SPLITS]
    rows = pd.concat(parts, ignore_index=True)
    categories = rows.super_class_id.to_numpy()
    names = {c: file.partition("_final/")[0] for c, file in zip(categories.tolist(), rows.path)}
    data = ImageDataset(
        "sop", split, place, rows.path.tolist(), rows.class_id - 1,
        [f"product {i}" for i in range(1, rows.class_id.max() + 1)],
        categories - 1, [names.get(i, "") for i in range(1, max(names) + 1)],
        protocol="metric learning, products",
    )  # fmt: skip
    return load_split(data, np.arange(len(rows)) >= len(parts[0]))


# --- lists -> splits, from the images that are there --------------------------------------


def load_split(data: ImageDataset, test: np.ndarray, total: int = 0) -> ImageDataset:
    """The images of ``data.split`` that are there, all querying and all searched.

    Where a copy has images of only one official split, its classes are halved in their order:
    the first half trains. The data set is then called "(part)", as any incomplete one.

    Args:
        data: every image of the benchmark, whether it is there or not, with boxes in pixels of
            the stored image.
        test: ``(N,)`` boolean: images of the test split.
        total: images of the whole benchmark, where ``data`` has fewer.
    Raises:
        DataError: no image of the split is there.
    """
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
    chosen = here & (test if data.split == "test" else ~test)
    if not chosen.any():
        raise DataError(f"{data.root}: its images show one class only", "Two classes are needed.")
    part = data.subset(chosen)
    if len(part.boxes[0]):
        boxes, fits = zip(*(_box(data.root / f, box) for f, box in zip(part.files, part.boxes)))
        part = replace(part, boxes=boxes)
        if not all(fits):
            said.append(f"{fits.count(False)} of {len(part)} boxes lie outside their image, "
                        "which is then taken as cut to its object")  # fmt: skip
    return replace(part, name=note_part(part, here.sum(), total or len(here), said))


def _box(path: Path, box: np.ndarray) -> tuple[np.ndarray, bool]:
    """A box as ``(1, 4)`` pixels of the loaded image, and whether it is of this version of it."""
    size, upright = image_size(path)
    inside = box.clip(0, np.tile(size, 2))
    fits = upright and np.abs(inside - box).max() <= SLACK and (inside[:, 2:] > inside[:, :2]).all()
    if not fits:  # another version of the image: all of it is the object
        inside = np.array([[0, 0, *size]])
    scale = np.divide(fit_within(size), size)  # very large images are reduced when loaded
    return (inside * np.tile(scale, 2)).astype(np.float32), fits


def _with_masks(data: ImageDataset) -> ImageDataset:
    """Masks of the pixels that most annotators marked; the box where an image has none."""

    def mask(i: int) -> list[dict]:
        (box,), size = data.boxes[i], tuple(data.sizes()[i].tolist())
        drawn = data.root / data.files[i].replace("images/", "segmentations/", 1)
        if (drawn := drawn.with_suffix(".png")).exists():
            grey = load_image(drawn).convert("L")
            if grey.size == size:  # else the image is another version than the mask's
                return [coco_mask.encode(np.asfortranarray(np.asarray(grey) >= 128, np.uint8))]
        return [encode_mask(None, box, size)]

    return replace(data, masks=thread_map(mask, range(len(data)), max_workers=8, desc="masks"))
