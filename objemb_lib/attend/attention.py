"""Attention: networks that say where to look, hard (boxes, masks) and soft (weights on the map).

Hard attention keeps what lies inside a box and forgets the rest; soft attention keeps everything,
some of it more. :func:`sources` gives every kind of :mod:`boxes` of a data set by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from objemb_lib import config
from objemb_lib.cache import Store
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.detectors import Detector, Target
from objemb_lib.detect.metrics import detect
from objemb_lib.embed import boxes as rooms
from objemb_lib.embed.boxes import ObjectBoxes, ObjectRegion, image_sizes
from objemb_lib.embed.regions import WHOLE, Region
from objemb_lib.embed.trunks import Trunk, imagenet_classifier

SAME = 0.5  # overlap (IoU) from which two detections are one object called by two names
SOURCES = (
    "whole image", "true boxes", "true masks", "detector, top 1", "detector, top 3",
    "detector, top 5", "detector, score >= 0.5", "detector masks, top 5", "proposals, top 10",
    "R-MAC grid", "centre box", "random boxes",
)  # fmt: skip


def run_detector(
    dataset: ImageDataset, detector: Detector, masks: bool = False, progress: bool = True
) -> list[Target]:
    """:func:`detect`, and what a two-stage detector proposed on the way, in the same pass.

    Returns:
        for each image what ``detect`` gives, and ``proposals`` ``(P, 4)`` in pixels of it, best
        first: boxes that hold *something*, of no category yet. One-stage detectors have none.
    Source: Ren et al., Faster R-CNN, 2015, section 3 (region proposal network).
    """
    proposer, seen = getattr(detector.network, "rpn", None), []
    if proposer is None:
        return detect(detector, dataset, progress=progress, masks=masks)

    def keep(_: nn.Module, given: tuple, out: tuple) -> None:
        seen.extend((b.cpu(), size[::-1]) for b, size in zip(out[0], given[0].image_sizes))

    hook = proposer.register_forward_hook(keep)
    try:
        found = detect(detector, dataset, progress=progress, masks=masks)
    finally:
        hook.remove()
    for one, (proposals, size), image in zip(found, seen, image_sizes(dataset)):
        one["proposals"] = proposals * torch.tensor(image / size).float().repeat(2)
    return found


def detect_cached(
    dataset: ImageDataset, detector: Detector, masks: bool = False, progress: bool = True
) -> list[Target]:
    """:func:`run_detector`, and what it found is kept: the next time nothing is detected again.

    The cache is keyed by the images, the detector's weights and settings, and the kind of device.

    Raises:
        CacheError: the cache cannot be written, or holds another detector's boxes.
    """
    key = {"version": "1", "data": dataset.fingerprint, "detector": _fingerprint(detector),
           "masks": str(masks), "device": config.device().type}  # fmt: skip
    store = Store(config.cache_root() / "detections", key)
    with store.lock():
        parts = _parts(store)
        if parts and all(store.has((part, "all")) for part in parts):
            return _unpacked({part: store.read((part, "all")) for part in parts})
        found = run_detector(dataset, detector, masks, progress)
        packed = _packed(found)
        for part, values in packed.items():
            store.write(values, (part, "all"))
        store.write(_text([*packed]), ("order", "all"))  # last: all others are there
    return found


def _parts(store: Store) -> list[str]:
    """What was kept; nothing as long as not all of it is there."""
    there = store.has(("order", "all"))
    return json.loads(store.read(("order", "all")).tobytes()) if there else []


def _text(what: object) -> np.ndarray:
    return np.frombuffer(json.dumps(what).encode(), np.uint8)


def _packed(found: Sequence[Target]) -> dict[str, np.ndarray]:
    """All images' arrays behind one another, with how many rows each has; masks as text."""
    names = [name for name in found[0] if name != "rles"]
    packed = {name: torch.cat([one[name] for one in found]).numpy() for name in names}
    counts = {f"{n}_counts": np.array([len(one[n]) for one in found]) for n in names}
    masks = {"rles": _text([one["rles"] for one in found])} if "rles" in found[0] else {}
    return packed | counts | masks


def _unpacked(packed: dict[str, np.ndarray]) -> list[Target]:
    found: list[Target] = [{} for _ in next(v for n, v in packed.items() if n.endswith("_counts"))]
    for name, values in packed.items():
        if name == "rles":
            each = json.loads(values.tobytes())
        elif f"{name}_counts" in packed:
            each = torch.from_numpy(values).split(packed[f"{name}_counts"].tolist())
        else:
            continue
        for one, some in zip(found, each):
            one[name] = some
    return found


def _fingerprint(detector: Detector) -> str:
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
        return bool(value) and all(map(_is_plain, value.values()))
    if isinstance(value, (tuple, list)):
        return bool(value) and all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))


def detector_boxes(
    dataset: ImageDataset, detector: Detector, found: Sequence[Target], masks: bool = False
) -> ObjectBoxes:
    """What a detector found, whatever it calls it; the whole image where it found nothing.

    Detections of different categories that overlap by :data:`SAME` are one object.

    Args:
        found: as :func:`run_detector` gives it. masks: keep the masks as well.
    Raises:
        DataError: ``masks`` of a detector that gives none.
    """
    if masks and any("rles" not in one for one in found):
        raise DataError(f"{detector.kind} gives no masks", "Use a mask_rcnn, look with masks.")
    keep = [nms(one["boxes"], one["scores"], SAME) for one in found]
    return rooms.or_whole(
        "detector",
        dataset,
        [one["boxes"][k].numpy() for one, k in zip(found, keep)],
        [one["scores"][k].numpy() for one, k in zip(found, keep)],
        [[one["rles"][j] for j in k.tolist()] for one, k in zip(found, keep)] if masks else None,
        detector.kind,
    )


def proposal_boxes(
    dataset: ImageDataset, detector: Detector, found: Sequence[Target], top: int = 10
) -> ObjectBoxes:
    """A two-stage detector's proposals. Arguments as for :func:`detector_boxes`.

    Scores are ``1 / rank``: torchvision keeps the order of the proposals, not what made it.

    Raises:
        DataError: a one-stage detector.
    """
    if any("proposals" not in one for one in found):
        raise DataError(f"{detector.kind} proposes nothing", "Look with a two-stage detector.")
    some = [one["proposals"][:top].numpy() for one in found]
    scores = [1 / np.arange(1, len(b) + 1) for b in some]
    return rooms.or_whole(f"proposals, top {top}", dataset, some, scores, None, detector.kind)


def possible(*datasets: ImageDataset, names: Sequence[str] = SOURCES) -> list[str]:
    """The sources that all images of some data sets have: truth is not known everywhere."""
    boxed = all(len(boxes) for data in datasets for boxes in data.boxes)
    needs = {"true boxes": boxed, "random boxes": boxed}
    needs["true masks"] = boxed and all(data.masks is not None for data in datasets)
    return [name for name in names if needs.get(name, True)]


def sources(
    dataset: ImageDataset,
    names: Sequence[str] = SOURCES,
    detector: Detector | None = None,
    seed: int = config.SEED,
    progress: bool = True,
) -> dict[str, ObjectRegion]:
    """Boxes of a data set by the names of :data:`SOURCES`; a detector runs once for all of them.

    What it found is cached, see :func:`detect_cached`.

    Args:
        detector: where a name asks for one; a Mask R-CNN where a name asks for masks.
        seed: of the random boxes, which have the sizes of the true ones.
    Returns:
        ``{name: region}`` for :func:`extract.extract_objects`, each called by its name.
    Raises:
        DataError: unknown name, a detector that is asked for and not given, masks that are not
        there.
    """
    if unknown := [name for name in names if name not in SOURCES]:
        raise DataError(f"no boxes called {unknown[0]!r}", f"Use {'; '.join(SOURCES)}.")
    asked = [name for name in names if name.startswith(("detector", "proposals"))]
    if asked and detector is None:
        raise DataError(f"{asked[0]!r} needs a detector", "Pass load_detector('mask_rcnn').")
    masks = "detector masks, top 5" in names
    found = detect_cached(dataset, detector, masks, progress) if asked else []
    return {name: _source(name, dataset, detector, found, masks, seed) for name in names}


def _source(
    name: str,
    dataset: ImageDataset,
    detector: Detector | None,
    found: Sequence[Target],
    masks: bool,
    seed: int,
) -> ObjectRegion:
    simple = {"whole image": rooms.whole, "R-MAC grid": rooms.grid, "centre box": rooms.centre}
    if name in simple:
        return ObjectRegion(simple[name](dataset))
    if name.startswith("proposals"):
        return ObjectRegion(proposal_boxes(dataset, detector, found))
    if name.startswith("detector"):
        k = 100 if "score" in name else int(name.rpartition(" ")[2])
        threshold = 0.5 if "score" in name else -np.inf
        boxes = detector_boxes(dataset, detector, found, masks).top(k, threshold, name)
        return ObjectRegion(boxes, masked="masks" in name, called=name)
    true = rooms.true_boxes(dataset)
    if name == "random boxes":
        return ObjectRegion(rooms.random_like(true, dataset, seed))
    return ObjectRegion(true, masked=name == "true masks", called=name)


# --- soft attention, the contrast ---------------------------------------------------------


def activity(features: Tensor) -> Tensor:
    """CroW's spatial weights: where many channels are active at once.

    Args:
        features: ``(N, C, H, W)``.
    Returns:
        ``(N, H, W)``, each image's between 0 and 1.
    Source: Kalantidis et al., Cross-dimensional Weighting, 2016, section 3.
    """
    total = features.float().clamp(min=0).sum(dim=1)
    norm = total.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-6)
    return (total / norm).sqrt()


def class_activation(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Class activation maps: where a classifier sees the class that it would name.

    Args:
        features: ``(N, C, H, W)``, the map before global average pooling.
        weight, bias: of the classifier, ``(classes, C)`` and ``(classes,)``.
    Returns:
        ``(N, H, W)`` between 0 and 1; all 1 where no cell speaks for the class.
    Source: Zhou et al., Learning Deep Features for Discriminative Localization, 2016, eq. 2.
    """
    named = F.linear(features.mean(dim=(2, 3)), weight, bias).argmax(dim=1)
    heat = torch.einsum("nchw,nc->nhw", features, weight[named]).clamp(min=0)
    most = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(most > 0, heat / most.clamp(min=1e-12), torch.ones_like(heat))


def similarity(features: Tensor, vector: Tensor) -> Tensor:
    """``(H, W)``: the cosine of each cell of a ``(C, H, W)`` map with a ``(C,)`` vector."""
    cells = F.normalize(features.float(), dim=0)
    return torch.einsum("chw,c->hw", cells, F.normalize(vector.float(), dim=0))


@torch.inference_mode()
def overlays(
    dataset: ImageDataset,
    i: int,
    trunk: Trunk,
    stage: str,
    region: ObjectRegion,
    vector: np.ndarray | None = None,
    size: int = 256,
) -> dict[str, np.ndarray]:
    """What is pooled of an image, as maps in 0..1 of any resolution.

    ``boxes`` (RoIAlign) and, where the region has any, ``masks``: 1 inside. ``CroW``:
    :func:`activity` by its largest value. ``similarity``: that of each cell to a vector, where
    negative 0.

    Args:
        stage: of the trunk; not one per box. vector: ``(C,)`` of the same stage.
    Raises:
        DataError: a stage per box, or a vector of another one.
    """
    if trunk.stages[stage].per_box:
        raise DataError(f"{stage} has no map", "Choose a stage of the whole image.")
    pixels = torch.from_numpy(WHOLE.pixels(dataset, i, size).copy()).permute(2, 0, 1)[None]
    features = trunk(trunk.normalise(pixels.to(trunk.mean.device)))[stage].float().cpu()
    found = {"boxes": rooms.inside(dataset, i, region.boxes, region.margin)}
    if region.boxes.masks is not None:
        found["masks"] = rooms.inside(dataset, i, region.boxes, region.margin, masked=True)
    weights = activity(features)[0].numpy()
    found["CroW"] = weights / max(float(weights.max()), 1e-12)
    if vector is not None:
        if len(vector) != features.shape[1]:
            raise DataError(
                f"a vector of {len(vector)} numbers for {stage}, which has {features.shape[1]}",
                "Pool the query at the same stage.",
            )
        alike = similarity(features[0], torch.from_numpy(np.asarray(vector, np.float32)))
        found["similarity"] = alike.clamp(min=0).numpy()
    return found


@dataclass(frozen=True, eq=False, repr=False)
class ClassActivation:
    """The whole image, its cells weighted by :func:`class_activation`: a soft region.

    Args:
        boxes: :func:`boxes.whole` of the data set.
        weight, bias: of the trunk's ImageNet classifier, see :func:`class_activation_of`.
    """

    boxes: ObjectBoxes
    weight: Tensor
    bias: Tensor
    name: str = "CAM"

    def __repr__(self) -> str:
        content = self.weight.numpy().tobytes() + self.bias.numpy().tobytes()
        return f"ClassActivation({hashlib.sha256(content).hexdigest()})"

    @property
    def seen(self) -> Region:
        """The whole image."""
        return WHOLE

    def rows(self, images: range) -> int:
        """One vector an image."""
        return len(images)

    def look(self, dataset: ImageDataset, i: int, image: tuple[int, int], size: int) -> np.ndarray:
        """``(1, 4)``: all of it."""
        return WHOLE.look(dataset, i, image, size)

    def features(
        self, trunk: Trunk, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]
    ) -> Tensor:
        """``(N, C, H, W)``: the stage's map times the weights."""
        head = maps["head"].float()
        heat = class_activation(head, self.weight.to(head.device), self.bias.to(head.device))
        heat = F.interpolate(heat[:, None], maps[stage].shape[-2:], mode="bilinear")
        return maps[stage].float() * heat

    def weights(self, dataset: ImageDataset, i: int) -> None:
        """They are in the features already."""
        return None


def class_activation_of(trunk: Trunk, dataset: ImageDataset) -> ClassActivation:
    """Soft attention by the ImageNet classifier that was taken off a trunk.

    Raises:
        DataError: of a trunk whose classifier did not come with it.
    """
    return ClassActivation(rooms.whole(dataset), *imagenet_classifier(trunk.name))
