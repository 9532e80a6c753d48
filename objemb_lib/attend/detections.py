"""Boxes from anywhere: a file, a function or a detector's name, checked at this one door."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.attend.proposer import propose
from objemb_lib.attend.sources import detect_cached, detector_boxes
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import encode_mask
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import Boxes, or_whole
from objemb_lib.embed.extract import ExtractOptions
from objemb_lib.embed.trunks import from_hub

# torchvision's light COCO detectors, which give boxes and no embedding
LIGHT = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")

Found = tuple  # boxes (K, 4), scores (K,), and masks, if there are any, (K, H, W)
Find = Callable[[Image.Image], Found]


def boxes_from(
    source: str | Path | Find, dataset: ImageDataset, name: str = "", progress: bool = True
) -> Boxes:
    """The boxes that somebody or something gives for the images of a data set.

    Args:
        source: a file of COCO results (a list of ``image_id``, ``bbox``, ``score`` and, if you
            like, ``segmentation``), or of COCO annotations that are detections; a function
            ``find(image) -> boxes, scores[, masks]`` with ``boxes`` ``(K, 4)`` x0, y0, x1, y1 in
            pixels of the upright image; or the name of a detector: one of ours,
            ``torchvision/MODEL`` for those of COCO, one of :data:`LIGHT`, or ``proposer``.
        name: for tables; default the file's, the function's, the detector's.
    Returns:
        the whole image where there is no box (``fell_back`` says where).
    Raises:
        DataError: naming the image: boxes that are not ``(K, 4)``, as many scores as boxes, finite,
            in pixels and on the image. Or no such file or detector. DownloadError: its weights.
    """
    if callable(source):
        return _from_function(
            source, dataset, name or getattr(source, "__name__", "find"), progress
        )
    if Path(source).suffix == ".json":
        return _from_file(Path(source), dataset, name or Path(source).stem)
    if (light := str(source).removeprefix("torchvision/")) in LIGHT:
        return _from_function(light_detector(light), dataset, name or light, progress)
    if source == "proposer":
        found = propose(dataset, options=ExtractOptions(progress=progress))
        return replace(found, name=name or source)
    detector = load_detector(str(source))
    found = detect_cached(detector, dataset, progress=progress)
    boxes = detector_boxes(dataset, detector, found)
    return replace(boxes, name=name or str(source), source=str(source))


def light_detector(name: str, pretrained: bool = True) -> Find:
    """One of :data:`LIGHT` as a function of an image; False gives random weights, asking nobody."""
    make = torchvision.models.get_model
    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    network = from_hub(name, lambda: make(name, weights=weights, weights_backbone=None))
    network = network.eval().requires_grad_(False).to(config.device())

    def find(image: Image.Image) -> Found:
        (found,) = network([pil_to_tensor(image).to(config.device()) / 255])
        return found["boxes"].cpu().numpy(), found["scores"].cpu().numpy()

    find.__name__ = name
    return find


def _from_function(find: Find, dataset: ImageDataset, name: str, progress: bool) -> Boxes:
    found = []
    with torch.inference_mode():
        for i in tqdm(range(len(dataset)), name, unit="image", disable=not progress):
            boxes, scores, *masks = find(dataset.image(i))
            one = checked(dataset, i, boxes, scores, *masks)
            runs = [
                [coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in some] for some in masks
            ]
            found.append((*one, *runs))
    return _gathered(name, dataset, found)


def _from_file(path: Path, dataset: ImageDataset, name: str) -> Boxes:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Give a COCO file in JSON.") from error
    images = told.get("images", []) if isinstance(told, dict) else []
    entries = told.get("annotations") if isinstance(told, dict) else told
    if not isinstance(entries, list) or not all("image_id" in e and "bbox" in e for e in entries):
        remedy = "Give COCO results, a list of image_id, bbox and score, or COCO annotations."
        raise DataError(f"{path} holds no boxes", remedy)
    numbers = _image_numbers(dataset, images)
    mine: list[list[dict]] = [[] for _ in range(len(dataset))]
    for entry in entries:
        if (i := numbers.get(str(entry["image_id"]))) is not None:
            mine[i].append(entry)
    if entries and not any(mine):
        raise DataError(
            f"{path}: none of its {len(entries)} boxes is of an image of {dataset}",
            "Let image_id be the number in the file's name, the name itself, or the id of an entry "
            "in `images` that gives its file_name.",
        )
    return _gathered(name, dataset, [_read(dataset, i, some) for i, some in enumerate(mine)])


def _image_numbers(dataset: ImageDataset, images: Sequence[Mapping]) -> dict[str, int]:
    """``image_id`` as text -> index: by the file's ``images``, else by a photograph's own name."""
    by_name = {}
    for i, file in enumerate(dataset.files):
        path = PurePosixPath(file)
        for called in (file, path.name, path.stem):
            by_name.setdefault(called, i)
            if called.isdecimal():  # 000000000139.jpg is image 139 of COCO
                by_name.setdefault(str(int(called)), i)
    if not images:
        return by_name
    named = {str(image["id"]): str(image["file_name"]) for image in images}
    found = {k: by_name.get(file, by_name.get(Path(file).name)) for k, file in named.items()}
    return {k: i for k, i in found.items() if i is not None}


def _read(dataset: ImageDataset, i: int, entries: Sequence[Mapping]) -> Found:
    """The boxes of an image's entries of a COCO file, whose boxes are x, y, width, height."""
    if not entries:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    try:
        corners = np.array([entry["bbox"] for entry in entries], np.float64)
        scores = np.array([entry.get("score", 1.0) for entry in entries], np.float64)
    except (ValueError, TypeError) as error:
        problem = f"{dataset.names[i]}: a bbox or score that is no number ({error})"
        raise DataError(problem, "Give x, y, width, height and a score.") from error
    if corners.shape[1:] == (4,):
        corners[:, 2:] += corners[:, :2]
    found = checked(dataset, i, corners, scores)
    if not all(entry.get("segmentation") for entry in entries):
        return found
    size = tuple(dataset.sizes()[i].tolist())
    return *found, [encode_mask(e["segmentation"], b, size) for e, b in zip(entries, corners)]


def checked(
    dataset: ImageDataset, i: int, boxes: object, scores: object, masks: object = None
) -> Found:
    """Boxes and scores (and masks) of image ``i``, if they can be what they are said to be.

    Raises:
        DataError: naming the image, see :func:`boxes_from`.
    """
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    size, where = dataset.sizes()[i], dataset.names[i]

    def refuse(problem: str, remedy: str) -> None:
        raise DataError(f"{where}: {problem}", remedy)

    if boxes.ndim != 2 or boxes.shape[1] != 4:
        refuse(f"boxes of shape {boxes.shape}", "Give (K, 4): x0, y0, x1, y1 in pixels.")
    if scores.shape != (len(boxes),) or (masks is not None and len(masks) != len(boxes)):
        masked = "" if masks is None else f", {len(masks)} masks"
        refuse(f"{len(boxes)} boxes, scores of shape {scores.shape}{masked}", "Give one a box.")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        refuse("a box or a score that is not a finite number", "Leave it out.")
    if len(boxes) and (boxes[:, 2:] < boxes[:, :2]).any():
        refuse("a box whose right side is left of its left one, or low above high",
               "Give corners x0, y0, x1, y1 (a file: x, y, width, height).")  # fmt: skip
    if len(boxes) and boxes.max() <= 1.5 and boxes.max() > 0 and size.min() > 2:
        refuse("coordinates from 0 to 1", "Multiply them by the image's width and height.")
    outside = (boxes[:, :2] >= size).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    if outside.any():
        refuse(f"box {boxes[outside][0].tolist()} is not on its {size[0]} x {size[1]} pixels",
               "Boxes are in pixels of the upright photograph at its full size.")  # fmt: skip
    return boxes, scores


def _gathered(name: str, dataset: ImageDataset, found: Sequence[Found]) -> Boxes:
    order = [np.argsort(-one[1], kind="stable") for one in found]  # best first
    masks = [[one[2][k] for k in o] if len(one) > 2 else [] for one, o in zip(found, order)]
    masked = all(len(m) == len(o) for m, o in zip(masks, order))
    return or_whole(
        name,
        dataset,
        [one[0][o] for one, o in zip(found, order)],
        [one[1][o] for one, o in zip(found, order)],
        masks if masked else None,
        name,
    )
