"""Tiny scenes with boxes, masks and categories, and small random networks, for detector tests."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import Detector, build_detector
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk, load_trunk

SIZE = (100, 48)  # of wide pictures, while the trunk sees 64 x 64
PAIR = ("head", "spoc")
QUIET = ExtractOptions(64, cache=False, progress=False)
FULL = [[0, 0, *SIZE]]
CATEGORIES = ("white thing", "black thing")
SCENES = (  # boxes and categories: different shapes, places and numbers
    ([(4, 6, 30, 40), (36, 10, 60, 30)], [0, 1]),
    ([(20, 2, 60, 20)], [1]),
    ([(2, 20, 22, 46)], [0]),
    ([(10, 8, 50, 44)], [0]),
)


def rectangle(box: Sequence[float], size: tuple[int, int], text: bool = True) -> dict:
    """A full box as run lengths; ``text`` as in JSON files, else bytes as pycocotools gives."""
    mask = np.zeros(size[::-1], np.uint8, order="F")
    x0, y0, x1, y1 = (max(0, round(side)) for side in box)
    mask[y0:y1, x0:x1] = 1
    runs = coco_mask.encode(mask)
    return {**runs, "counts": runs["counts"].decode()} if text else runs


def scenes(
    folder: Path,
    many: Sequence[tuple[list, list]] = SCENES,
    crowds: Sequence[list] = (),
    size: tuple[int, int] = (64, 48),
    text: bool = True,
    names: Sequence[str] = CATEGORIES,
) -> ImageDataset:
    """Grey pictures; white rectangles are category 0, black ones 1, darker grey ones unknown."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{i}.png" for i in range(len(many))]
    for file, (boxes, categories) in zip(files, many):
        pixels = np.full((*size[::-1], 3), 128, np.uint8)
        for box, category in zip(boxes, categories):
            x0, y0, x1, y1 = (max(0, round(side)) for side in box)
            pixels[y0:y1, x0:x1] = {0: 255, 1: 0}.get(category, 100)
        Image.fromarray(pixels).save(folder / file)
    return ImageDataset(
        "scenes", "train", folder, files, np.arange(len(many)),
        categories=np.array([c[0] if c else -1 for _, c in many]), category_names=names,
        boxes=[np.array(b, np.float32).reshape(-1, 4) for b, _ in many],
        box_categories=[np.array(c, np.int64) for _, c in many],
        masks=[[rectangle(box, size, text) for box in b] for b, _ in many],
        extra=[{"iscrowd": crowd} for crowd in crowds],
    )  # fmt: skip


@functools.cache
def _lively(name: str) -> Trunk:
    torch.manual_seed(0)
    trunk = load_trunk(name, pretrained=False)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        trunk.train()(torch.randn(8, 3, 64, 64))
    return trunk.eval()


def lively(name: str = "lcnet_035") -> Trunk:
    """A random trunk whose maps do not fade: batch norm knows the noise that it was shown."""
    return copy.deepcopy(_lively(name))


def small(kind: str, name: str = "lcnet_035", seed: int = 0, **how: object) -> Detector:
    """A random detector for images of 64 pixels."""
    torch.manual_seed(seed)
    known = {"categories": CATEGORIES, "size": 64, "channels": 32, "hidden": 16}
    return build_detector(kind, lively(name), **known | how).eval()


def objects_of(
    data: ImageDataset,
    where: Boxes | Region,
    trunk: Trunk | None = None,
    wanted: Sequence[tuple[str, str]] = (("head", "spoc"),),
    **how: object,
) -> Objects:
    """The objects of one place to look at, as a trunk of 64 pixels sees them."""
    region = Region(where) if isinstance(where, Boxes) else where
    options = ExtractOptions(64, **{"progress": False} | how)
    return extract_objects(data, trunk or lively(), wanted, {"some": region}, options)["some"]
