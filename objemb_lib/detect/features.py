"""A detector as a trunk: everything inside it that can become an embedding, by name.

- ``stage1`` ... ``head``: the body's maps, as detection training left them
- ``fpn3`` ... ``fpn5``: the pyramid's levels, of stride 8 to 32
- ``roi``: a box, cut out of the level that fits its size (what the box head sees)
- ``box_head``: a box's vector, from which its category is told: the last hidden layer of a
  two-stage detector, the classification tower of a one-stage one
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import log2

from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from objemb_lib.config import DataError
from objemb_lib.detect.detectors import Detector
from objemb_lib.embed.regions import CELLS
from objemb_lib.embed.trunks import Stage, Trunk, per_image


class DetectorTrunk(Trunk):
    """The trunk of a detector, with its pyramid and its head's vectors as further stages.

    Args:
        detector: is copied; later training does not reach the copy.
    """

    def __init__(self, detector: Detector) -> None:
        network = copy.deepcopy(detector.network).requires_grad_(False)
        pyramid, body = network.backbone, network.backbone.body
        self_stages = list(body.stages.values())
        levels = {name: body.stages[stage] for name, stage in pyramid.levels.items()}
        fpn = [
            Stage(_named(stage.stride), pyramid.out_channels, stage.stride)
            for stage in levels.values()
        ]
        head = _BoxHead(network, list(pyramid.levels), detector.size)
        boxes = [
            Stage("roi", pyramid.out_channels, 0, per_box=True),
            Stage("box_head", head.channels, 0, per_box=True),
        ]
        super().__init__(
            f"{detector.kind} on {body.name}",
            body.network,
            [*self_stages, *fpn, *boxes],
            tuple(body.mean.flatten().tolist()),
            tuple(body.std.flatten().tolist()),
            "detection",
        )
        self.body_stages = [stage.name for stage in self_stages]
        self.levels = {name: (s.name, _named(s.stride)) for name, s in levels.items()}
        self.fpn, self.head = pyramid.fpn, head
        self.to(body.mean.device).eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(N, 3, H, W)`` normalised images to the maps of body and pyramid."""
        head, maps = self.network.forward_intermediates(images)
        found = dict(zip(self.body_stages, [*maps, head]))
        inputs = {name: found[stage] for name, (stage, _) in self.levels.items()}
        pyramid = self.fpn(OrderedDict(inputs))
        return found | {named: pyramid[name] for name, (_, named) in self.levels.items()}

    def box_features(self, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]) -> Tensor:
        """Of ``roi`` and ``box_head``, see :meth:`Trunk.box_features`."""
        if stage not in ("roi", "box_head"):
            return super().box_features(maps, stage, boxes)
        levels = {name: maps[named] for name, (_, named) in self.levels.items()}
        finest = next(iter(self.levels.values()))[1]
        height, width = (n * self.stages[finest].stride for n in maps[finest].shape[-2:])
        each = per_image(boxes, maps[finest].device)
        return self.head(levels, each, (height, width), stage == "box_head")

    def fingerprint(self) -> str:
        """As of any trunk, and of the scale that says which level a box is cut out of."""
        scale = str(self.head.pool.canonical_scale)
        return hashlib.sha256((super().fingerprint() + scale).encode()).hexdigest()


class _BoxHead(nn.Module):
    """Box features of either kind of detector."""

    def __init__(self, network: nn.Module, levels: list[str], size: int) -> None:
        super().__init__()
        roi_heads = getattr(network, "roi_heads", None)
        if roi_heads is not None:
            self.pool, self.head, self.tower = roi_heads.box_roi_pool, roi_heads.box_head, None
            self.channels = roi_heads.box_predictor.cls_score.in_features
        else:
            self.scale = round(size * 224 / 800)
            self.pool = MultiScaleRoIAlign(levels, CELLS, 2, canonical_scale=self.scale)
            self.head, self.tower = None, network.head.classification_head.conv
            self.channels = network.backbone.out_channels

    def forward(
        self, levels: dict[str, Tensor], boxes: list[Tensor], image: tuple[int, int], vectors: bool
    ) -> Tensor:
        if vectors and self.tower is not None:
            needed = self._needed(levels, boxes, image)
            levels = {n: self.tower(v) if n in needed else v for n, v in levels.items()}
        dtype = next(iter(levels.values())).dtype
        # Not in half precision: RoIAlign lacks it on CPUs, and it would move boxes by pixels.
        levels = {name: level.float() for name, level in levels.items()}
        pooled = self.pool(levels, boxes, [image] * len(boxes)).to(dtype)
        return self.head(pooled)[:, :, None, None] if vectors and self.head is not None else pooled

    def _needed(
        self, levels: dict[str, Tensor], boxes: list[Tensor], image: tuple[int, int]
    ) -> set[str]:
        """The levels that the boxes will be cut from: the tower costs as much as the trunk."""
        exponents = [round(log2(image[0] / level.shape[-2])) for level in levels.values()]
        mapper = initLevelMapper(exponents[0], exponents[-1], canonical_scale=self.scale)
        return {list(levels)[k] for k in mapper(boxes).tolist()}


def _named(stride: int) -> str:
    return f"fpn{stride.bit_length() - 1}"


def check_same_trunk(trunk: str, detectors: Mapping[str, Detector]) -> None:
    """Raise DataError unless every detector stands on the trunk that it is compared with."""
    for name, detector in detectors.items():
        if detector.trunk.name != trunk:
            raise DataError(
                f"{name} was trained on {detector.trunk.name}, not on {trunk}",
                f"Set TRUNK to {detector.trunk.name!r}: only then do only the weights differ.",
            )
