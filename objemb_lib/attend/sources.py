"""Boxes that a detector gives, and those of rules and of chance, with which they must compare."""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from torchvision.ops import box_iou, nms

from objemb_lib import config
from objemb_lib.cache import atomic_path
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import Detector, Target
from objemb_lib.detect.metrics import detect
from objemb_lib.embed.boxes import Boxes, or_whole
from objemb_lib.embed.pooling import rmac_grid

SAME = 0.5  # overlap (IoU) from which two detections are one object called by two names


def detect_cached(detector: Detector, dataset: ImageDataset, progress: bool = True) -> list[Target]:
    """:func:`detect` without masks, and what it found is kept: nothing is detected twice.

    The cache is keyed by the images, the detector's weights and settings, and the kind of device.
    """
    key = ["2", dataset.fingerprint, fingerprint(detector), False, config.device().type]
    return kept(key, lambda: detect(detector, dataset, progress=progress, masks=False))


def kept(key: Sequence[str | bool], find: Callable[[], list[Target]]) -> list[Target]:
    """What was found in the images of a data set, from the cache if it was found before.

    ``key`` is all that decides it.
    """
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    path = config.cache_root() / "detections" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            try:
                with ZipFile(path) as parts:  # their checksums torch writes, but does not look at
                    if parts.testzip() or any(one.external_attr for one in parts.infolist()):
                        raise BadZipFile("the checksum or a flag of a part is another")
                return torch.load(path, weights_only=True)
            except (BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
                warnings.warn(f"{path} is damaged ({error}): detecting again", stacklevel=2)
        found = find()
        with atomic_path(path) as part:
            # Copies: a view would be saved with all that it is a view of.
            own = lambda v: v.clone() if isinstance(v, torch.Tensor) else v  # noqa: E731
            torch.save([{k: own(v) for k, v in one.items()} for one in found], part)
    return found


def fingerprint(detector: nn.Module) -> str:
    """Hash of every weight, and of every number that says how its modules detect."""
    digest = hashlib.sha256(repr(detector).encode())
    for name, tensor in sorted(detector.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    for name, module in detector.named_modules():
        for what, value in sorted(vars(module).items()):
            if what != "training" and _is_plain(value):
                digest.update(f"{name} {what} {value}".encode())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return bool(value) and all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))


def detector_boxes(dataset: ImageDataset, detector: Detector, found: Sequence[Target]) -> Boxes:
    """What a detector found, whatever it calls it; the whole image where it found nothing.

    Detections of different categories that overlap by :data:`SAME` are one object.

    Args:
        found: as :func:`detect` gives it.
    """
    keep = [nms(one["boxes"], one["scores"], SAME) for one in found]
    boxes = [one["boxes"][k].numpy() for one, k in zip(found, keep)]
    scores = [one["scores"][k].numpy() for one, k in zip(found, keep)]
    return or_whole(detector.kind, dataset, boxes, scores, source=detector.kind)


def centre(dataset: ImageDataset) -> Boxes:
    """A box in the middle, of half the image's sides: photographers put things there."""
    return _fractions("centre box", dataset, np.array([[0.25, 0.25, 0.75, 0.75]]))


def grid(dataset: ImageDataset) -> Boxes:
    """R-MAC's squares as boxes: where to look, for somebody who knows nothing of objects.

    On the square that a trunk sees, so that every image has the same ones.

    Source: Tolias et al., Particular Object Retrieval with Integral Max-Pooling of CNN
    Activations, 2016, "R-MAC".
    """
    fine = 60  # cells a side: the squares of three levels meet whole cells
    found = [
        (x / fine, y / fine, (x + side) / fine, (y + side) / fine)
        for side, tops, lefts in rmac_grid(fine, fine, 3)
        for y in tops
        for x in lefts
    ]
    return _fractions("R-MAC grid", dataset, np.array(found))


def fixed_boxes(train: ImageDataset, dataset: ImageDataset, top: int = 5) -> Boxes:
    """The boxes, of all on a grid of tenths, that together meet most main objects of ``train``.

    Chosen one by one; the same for every image: what a detector must see more than.
    """
    ends = [(a, b) for a in np.linspace(0, 1, 11) for b in np.linspace(0, 1, 11) if b - a > 0.15]
    every = torch.tensor([[x0, y0, x1, y1] for x0, x1 in ends for y0, y1 in ends])
    main = [b[0] / np.tile(size, 2) for b, size in zip(train.boxes, train.sizes()) if len(b)]
    meets, chosen = box_iou(every, torch.tensor(np.array(main))).numpy() >= SAME, []
    for _ in range(top):
        chosen.append(int(meets.sum(axis=1).argmax()))
        meets = meets[:, ~meets[chosen[-1]]]
    found = _fractions(f"{top} fixed boxes", dataset, every[chosen].numpy())
    return replace(found, scores=[1 / np.arange(1, top + 1)] * len(dataset))


def _fractions(name: str, dataset: ImageDataset, ends: np.ndarray) -> Boxes:
    """The same boxes for every image, given as parts of its sides."""
    return Boxes(name, [ends * np.tile(size, 2) for size in dataset.sizes()], source="fixed")


def random_like(boxes: Boxes, dataset: ImageDataset, seed: int = config.SEED) -> Boxes:
    """As many boxes of the same sizes, each at a random place: the control that must lose.

    It tells what *where* is worth from what it is worth to look at less.
    """
    rng, moved = np.random.default_rng(seed), []
    for many, size in zip(boxes.boxes, dataset.sizes()):
        sides = np.minimum(many[:, 2:] - many[:, :2], size)
        corner = rng.uniform(size=sides.shape) * (size - sides)
        moved.append(np.concatenate([corner, corner + sides], axis=1))
    return Boxes("random boxes", moved, boxes.scores, source=f"random, sizes of {boxes.name}")
