"""Where boxes come from: a file, a function, a detector, the truth, a rule, or chance.

Who says where to look is *hard attention*: what lies inside a box is kept, the rest is forgotten.
:func:`boxes_from` is the one door for boxes of others, and checks them; :func:`box_sources` gives
all that notebook 03 compares.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.attend.proposer import load_proposer, propose, warn_if_learned
from objemb_lib.attend.sources import (
    detect_cached,
    detector_boxes,
    fingerprint,
    kept,
    random_like,
)
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import check_boxes, images_by_id
from objemb_lib.detect.detectors import Detector
from objemb_lib.detect.metrics import detect
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import Boxes, or_whole, true_boxes
from objemb_lib.embed.extract import ExtractOptions
from objemb_lib.embed.regions import WHOLE, Region, crop, every_image_has_a_box
from objemb_lib.embed.trunks import load_trunk

PROPOSER = "proposer"  # made for photographs, comes with the course
TOP = 5  # boxes of an image that a lesson looks at

Found = tuple[np.ndarray, np.ndarray]  # boxes (K, 4), scores (K,)
Find = Callable[[Image.Image], Found]
Source = str | Path | Find | Detector


def source_name(source: Source) -> str:
    """What tables call a source of boxes: the name of its file, function or detector.

    >>> source_name("photos/yolox_nano.json"), source_name("torchvision/fcos_resnet50_fpn")
    ('yolox_nano', 'fcos_resnet50_fpn')
    """
    if isinstance(source, Detector):
        return source.kind
    if callable(source):
        return getattr(source, "__name__", "find")
    path = Path(source)
    return path.stem if path.suffix == ".json" else path.name.partition(":")[0]


def boxes_from(source: Source, dataset: ImageDataset, progress: bool = True) -> Boxes:
    """The boxes that somebody or something gives for the images of a data set.

    Args:
        source: a file of COCO results (a list of ``image_id``, ``bbox``, ``score``), or of COCO
            annotations that are detections; a function ``find(image) -> boxes, scores`` with
            ``boxes`` ``(K, 4)`` x0, y0, x1, y1 in pixels of the upright image; a detector, or its
            name: one of ours, ``torchvision/MODEL`` for those of COCO, or ``proposer``.
    Returns:
        named after its source, the whole image where there is no box (``fell_back`` says where).
    Raises:
        DataError: naming the image: boxes that are not ``(K, 4)``, as many scores as boxes, finite,
            in pixels and on the image. Or no such file or detector, or a file for a data set of
            windows. DownloadError: its weights.
    """
    name, source = source_name(source), _opened(source)
    if source == PROPOSER:
        return _proposed(dataset, progress)
    if isinstance(source, Detector):
        found = detect_cached(source, dataset, progress=progress)
        return detector_boxes(dataset, source, found)
    if callable(source):
        return _from_function(source, dataset, name, progress)
    return _from_file(Path(source), dataset, name)


def _proposed(dataset: ImageDataset, progress: bool) -> Boxes:
    """What the shipped proposer finds, or found before."""
    key = ["proposer 1", dataset.fingerprint, fingerprint(load_proposer()),
           load_trunk().fingerprint(), config.device().type]  # fmt: skip
    warn_if_learned(dataset)

    def find() -> list[dict]:
        found = propose(dataset, options=ExtractOptions(progress=progress))
        some = zip(map(torch.from_numpy, found.boxes), map(torch.from_numpy, found.scores))
        return [{"boxes": boxes, "scores": scores} for boxes, scores in some]

    boxes, scores = ([one[part].numpy() for one in kept(key, find)] for part in ("boxes", "scores"))
    return or_whole(PROPOSER, dataset, boxes, scores, source=PROPOSER)


def _opened(source: Source) -> Source:
    """A detector in place of its name."""
    if callable(source) or source == PROPOSER or Path(source).suffix == ".json":
        return source
    return load_detector(str(source))


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


def detection_ms(source: Source, dataset: ImageDataset) -> float:
    """Median time in ms that a source needs to look at one image; of a file, 0.

    Of the first ten, one at a time, the very first not counted.
    """
    source, taken = _opened(source), []
    if isinstance(source, Detector):  # not from the cache
        network = source.for_inference(config.device(), masks=False)
        look = partial(detect, network, progress=False, masks=False)
    elif source == PROPOSER:
        look = partial(propose, options=ExtractOptions(progress=False))
    elif callable(source):
        look = partial(boxes_from, source, progress=False)
    else:
        return 0.0
    for i in range(min(10, len(dataset))):
        one, start = dataset.subset([i]), time.perf_counter()
        look(dataset=one)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[1:] or taken)


def _from_function(find: Find, dataset: ImageDataset, name: str, progress: bool) -> Boxes:
    found = []
    with torch.inference_mode():
        for i in tqdm(range(len(dataset)), name, unit="image", disable=not progress):
            found.append(checked(dataset, i, *find(dataset.image(i))))
    return _gathered(name, dataset, found)


def _from_file(path: Path, dataset: ImageDataset, name: str) -> Boxes:
    if any(window is not None for window in dataset.crops):
        problem = f"{path} says where to look on photographs, {dataset} has windows of them"
        raise DataError(problem, "Name a detector, which looks at each window.")
    images, entries = _content(path)
    owners, mine = _image_numbers(dataset, images), [[] for _ in range(len(dataset))]
    for entry in entries:
        for i in owners.get(normalize("NFC", str(entry["image_id"])), ()):
            mine[i].append(entry)
    if entries and not any(mine):
        raise DataError(
            f"{path}: none of its {len(entries)} boxes is of an image of {dataset}",
            "Let image_id be the number in the file's name, the name itself, or the id of an entry "
            "in `images` that gives its file_name.",
        )
    found = [_read(dataset, i, some) for i, some in enumerate(mine)]
    told = [
        {"objects": [{"bbox": [*b[:2], *(b[2:] - b[:2])], "id": f"of {file}"} for b in boxes]}
        for (boxes, _), file in zip(found, dataset.files)
    ]
    check_boxes(told, dataset.sizes().tolist())
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
    return checked(dataset, i, corners, scores)


def checked(dataset: ImageDataset, i: int, boxes: object, scores: object) -> Found:
    """Boxes and scores of image ``i``, if they can be what they are said to be.

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
    if scores.shape != (len(boxes),):
        refuse(f"{len(boxes)} boxes, scores of shape {scores.shape}", "Give one a box.")
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
    order = [np.argsort(-scores, kind="stable") for _, scores in found]  # best first
    boxes = [boxes[o] for (boxes, _), o in zip(found, order)]
    scores = [scores[o] for (_, scores), o in zip(found, order)]
    return or_whole(name, dataset, boxes, scores, source=name)
