"""Where boxes come from: a file, a function, a detector, the truth, a rule, or chance.

Who says where to look is *hard attention*: what lies inside a box is kept, the rest is forgotten.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.attend.proposer import load_proposer, propose, warn_if_learned
from objemb_lib.attend.sources import detect_cached, detector_boxes, fingerprint, kept, random_like
from objemb_lib.config import DataError
from objemb_lib.data.coco import VISIBLE
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import check_boxes, covers, encode_mask, images_by_id
from objemb_lib.detect.detectors import Detector
from objemb_lib.detect.metrics import detect
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import Boxes, or_whole, true_boxes
from objemb_lib.embed.extract import ExtractOptions
from objemb_lib.embed.regions import WHOLE, Region, crop, every_image_has_a_box
from objemb_lib.embed.trunks import from_hub, load_trunk

PROPOSER = "proposer"  # made for photographs, comes with the course
TOP = 5  # boxes of an image that a lesson looks at
# torchvision's light COCO detectors, which give boxes and no embedding
LIGHT = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")

Found = tuple  # boxes (K, 4), scores (K,), and masks, if there are any, (K, H, W)
Find = Callable[[Image.Image], Found]
Source = str | Path | Find | Detector


def source_name(source: Source) -> str:
    """What tables call a source of boxes: the name of its file, function or detector.

    >>> source_name("photos/yolox_nano_*.json"), source_name("torchvision/fcos_resnet50_fpn")
    ('yolox_nano', 'fcos_resnet50_fpn')
    """
    if isinstance(source, Detector):
        return source.kind
    if callable(source):
        return getattr(source, "__name__", "find")
    path = Path(source)
    return path.stem.strip("*_") if path.suffix == ".json" else path.name.partition(":")[0]


def boxes_from(source: Source, dataset: ImageDataset, progress: bool = True) -> Boxes:
    """The boxes that somebody or something gives for the images of a data set.

    Args:
        source: a file of COCO results (a list of ``image_id``, ``bbox``, ``score`` and, if you
            like, ``segmentation``), or of COCO annotations that are detections, or several, as
            ``yolox_*.json``; a function ``find(image) -> boxes, scores[, masks]`` with ``boxes``
            ``(K, 4)`` x0, y0, x1, y1 in pixels of the upright image; a detector, or its name: one
            of ours, ``torchvision/MODEL`` for those of COCO, one of :data:`LIGHT`, or ``proposer``.
    Returns:
        named after its source, the whole image where there is no box (``fell_back`` says where).
    Raises:
        DataError: naming the image: boxes that are not ``(K, 4)``, as many scores as boxes, finite,
            in pixels and on the image. Or no such file or detector. DownloadError: its weights.
    """
    name, source = source_name(source), _opened(source)
    if source == PROPOSER:
        return _proposed(dataset, progress)
    if isinstance(source, Detector):
        found = detect_cached(source, dataset, progress=progress)
        return detector_boxes(dataset, source, found)
    if callable(source):
        return _from_function(source, dataset, name, progress)
    return _from_files(Path(source), dataset, name)


def _proposed(dataset: ImageDataset, progress: bool) -> Boxes:
    """What the shipped proposer finds, or found before."""
    key = ["proposer 1", dataset.fingerprint, fingerprint(load_proposer()),
           load_trunk().fingerprint(), config.device().type, config.precision()]  # fmt: skip
    warn_if_learned(dataset)

    def find() -> list[dict]:
        found = propose(dataset, options=ExtractOptions(progress=progress))
        some = zip(map(torch.from_numpy, found.boxes), map(torch.from_numpy, found.scores))
        return [{"boxes": boxes, "scores": scores} for boxes, scores in some]

    found = kept(key, find)
    boxes, scores = ([one[part].numpy() for one in found] for part in ("boxes", "scores"))
    return or_whole(PROPOSER, dataset, boxes, scores, source=PROPOSER)


def _opened(source: Source) -> Source:
    """A detector in place of its name."""
    if callable(source) or source == PROPOSER or Path(source).suffix == ".json":
        return source
    name = source_name(source)
    return light_detector(name) if name in LIGHT else load_detector(str(source))


def box_sources(
    dataset: ImageDataset,
    detector: Source,
    proposer: Source = "",
    seed: int = config.SEED,
    progress: bool = True,
) -> dict[str, Region]:
    """Where to look in each image of a data set, from nowhere to the truth, by name.

    What needs true boxes (or masks) is there only where every image has one.

    Args:
        detector, proposer: see :func:`boxes_from`; the five best boxes of each. No second one where
            none is named, or the same.
        seed: of the random boxes, the controls: as many, of the same sizes, at random places.
    """
    true = true_boxes(dataset) if every_image_has_a_box(dataset) else None
    guesses = boxes_from(detector, dataset, progress).top(TOP)
    found = {"whole image": WHOLE}
    if true:
        found["random boxes"] = Region(random_like(true, dataset, seed))
    found["random boxes, detector's sizes"] = Region(random_like(guesses, dataset, seed))
    if proposer and proposer != detector:
        found["proposer's boxes"] = Region(boxes_from(proposer, dataset, progress).top(TOP))
    found["detector's boxes"] = Region(guesses)
    if true:
        found["true boxes"] = Region(true)
    if true and true.masks is not None:
        found["true boxes, masks"] = Region(true, masked=True)
    return found | ({"crop": crop(dataset)} if true else {})


def detection_ms(source: Source, dataset: ImageDataset, images: int = 10) -> float:
    """Median time in ms that a source needs to look at one image; of a file, 0.

    One image at a time, the first not counted.
    """
    source, taken = _opened(source), []
    if isinstance(source, (str, Path)) and source != PROPOSER:
        return 0.0
    source = source.for_inference(config.device()) if isinstance(source, Detector) else source
    for i in range(min(images, len(dataset))):
        one, start = dataset.subset([i]), time.perf_counter()
        if isinstance(source, Detector):  # not from the cache
            detect(source, one, progress=False, masks=False)
        elif source == PROPOSER:
            propose(one, options=ExtractOptions(progress=False))
        else:
            boxes_from(source, one, progress=False)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[1:] or taken)


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


def _from_files(pattern: Path, dataset: ImageDataset, name: str) -> Boxes:
    """Boxes of COCO files; windows of photographs get what lies in them."""
    mine, count = [[] for _ in range(len(dataset))], 0
    paths = sorted(pattern.parent.glob(pattern.name))
    if not paths:
        raise DataError(f"{pattern}: no such file", "Name a COCO file of boxes, or a detector.")
    for path in paths:
        images, entries = _content(path)
        owners, count = _image_numbers(dataset, images), count + len(entries)
        for entry in entries:
            for i in owners.get(normalize("NFC", str(entry["image_id"])), ()):
                mine[i].append(entry)
    if count and not any(mine):
        raise DataError(
            f"{pattern}: none of its {count} boxes is of an image of {dataset}",
            "Let image_id be the number in the file's name, the name itself, or the id of an entry "
            "in `images` that gives its file_name.",
        )
    photographs = replace(dataset, crops=()) if len(dataset.crops) else dataset
    found = [_read(photographs, i, some) for i, some in enumerate(mine)]
    told = [
        {"objects": [{"bbox": [*b[:2], *(b[2:] - b[:2])], "id": f"of {file}"} for b in one[0]]}
        for one, file in zip(found, dataset.files)
    ]
    check_boxes(told, photographs.sizes().tolist())
    for i, window in enumerate(dataset.crops):
        if window is not None:
            found[i] = _inside(window, *found[i][:2])
    return _gathered(name, dataset, found)


def _content(path: Path) -> tuple[dict, Sequence[Mapping]]:
    """The ``images`` by their ids, if there are any, and the boxes of a COCO file."""
    try:
        told = json.loads(path.read_bytes())
        whole = isinstance(told, dict)
        images = images_by_id(told.get("images") or ()) if whole else {}
    except DataError as error:
        raise DataError(f"{path}: {error.problem}", error.remedy) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}", "Give a COCO file in JSON.") from error
    entries = told.get("annotations") if whole else told
    if not isinstance(entries, list) or not all(
        isinstance(one, dict) and {"image_id", "bbox"} <= one.keys() for one in entries
    ):
        remedy = "Give COCO results, a list of image_id, bbox and score, or COCO annotations."
        raise DataError(f"{path} holds no boxes", remedy)
    return images, entries


def _image_numbers(dataset: ImageDataset, images: Mapping) -> dict[str, list[int]]:
    """``image_id`` as text -> indices: by the file's ``images``, else by a photograph's name."""
    by_name: dict[str, list[int]] = {}
    for i, file in enumerate(dataset.files):
        path = PurePosixPath(normalize("NFC", file))
        called = {str(path), path.name, path.stem}
        if path.stem.isdecimal():  # 000000000139.jpg is image 139 of COCO
            called.add(str(int(path.stem)))
        for one in called:
            by_name.setdefault(one, []).append(i)
    if not images:
        return by_name
    named = {str(one): PurePosixPath(image["file_name"]) for one, image in images.items()}
    return {k: by_name.get(str(file)) or by_name.get(file.name, []) for k, file in named.items()}


def _inside(window: Sequence[int], boxes: np.ndarray, scores: np.ndarray) -> Found:
    """Of a photograph's boxes those that show half of themselves in a window, and where."""
    low, high = np.array(window[:2] * 2, np.float32), np.array(window[2:] * 2, np.float32)
    seen, area = boxes.clip(low, high), lambda some: np.prod(some[:, 2:] - some[:, :2], axis=1)
    there = area(seen) >= VISIBLE * np.maximum(area(boxes), 1e-9)
    return seen[there] - low, scores[there]


def _read(dataset: ImageDataset, i: int, entries: Sequence[Mapping]) -> Found:
    """The boxes of an image's entries of a COCO file, whose boxes are x, y, width, height."""
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
    try:
        return *found, [encode_mask(e["segmentation"], b, size) for e, b in zip(entries, corners)]
    except ValueError as error:
        problem = f"{dataset.names[i]}: a segmentation that cannot be used ({error})"
        raise DataError(problem, "Give polygons or run lengths of the whole image.") from error


def checked(
    dataset: ImageDataset, i: int, boxes: object, scores: object, masks: object = None
) -> Found:
    """Boxes and scores (and masks) of image ``i``, if they can be what they are said to be.

    Raises DataError, naming the image, see :func:`boxes_from`.
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
    if masks is not None and any(np.shape(m) != tuple(size[::-1]) for m in masks):
        refuse(f"masks that are not {size[1]} x {size[0]}", "Give (K, height, width).")
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
    boxes, scores, masks = [], [], []
    for (many, sure, *given), size in zip(found, dataset.sizes().tolist()):
        best_first = np.argsort(-sure, kind="stable")
        boxes.append(many[best_first])
        scores.append(sure[best_first])
        # a mask of nothing, or of what lies beside its box, leaves nothing to embed
        masks.append([runs[k] if covers(runs[k], many[k]) else encode_mask(None, many[k], size)
                      for runs in given for k in best_first])  # fmt: skip
    masked = all(len(some) == len(many) for some, many in zip(masks, boxes))
    return or_whole(name, dataset, boxes, scores, masks if masked else None, name)
