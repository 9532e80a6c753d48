"""A detector as a trunk: everything inside it that can become an embedding, by name.

- ``stage1`` ... ``head``: the body's maps, as detection training left them
- ``fpn3`` ... ``fpn5``: the pyramid's levels, of stride 8 to 32
- ``roi``: a box, cut out of the level that fits its size (what the box head sees)
- ``box_head``: a box's vector, from which its category is told (two-stage: the last hidden layer;
  one-stage: the classification tower)
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from objemb_lib.detect.detectors import Detector
from objemb_lib.embed.regions import CELLS
from objemb_lib.embed.trunks import Stage, Trunk, per_image


class DetectorTrunk(Trunk):
    """A copy of a detector's trunk, with its pyramid and its head's vectors as further stages."""

    def __init__(self, detector: Detector) -> None:
        network = copy.deepcopy(detector.network).requires_grad_(False)
        pyramid, body = network.backbone, network.backbone.body
        channels, classifier = pyramid.out_channels, getattr(network, "roi_heads", None)
        strides = {level: body.stages[stage].stride for level, stage in pyramid.levels.items()}
        names = {level: f"fpn{stride.bit_length() - 1}" for level, stride in strides.items()}
        width = classifier.box_predictor.cls_score.in_features if classifier else channels
        levels = [Stage(name, channels, strides[level]) for level, name in names.items()]
        heads = [Stage("roi", channels, 0, per_box=True), Stage("box_head", width, 0, per_box=True)]
        stages, name = [*body.stages.values(), *levels, *heads], f"{detector.kind} on {body.name}"
        normalisation = (part.flatten().tolist() for part in (body.mean, body.std))
        super().__init__(name, body.network, stages, *normalisation, "detection")
        self.inputs, self.levels = pyramid.levels, names
        self.fpn, self.box_head, self.tower = pyramid.fpn, None, None
        if classifier:
            self.pool, self.box_head = classifier.box_roi_pool, classifier.box_head
        else:
            scale = round(detector.size * 224 / 800)  # which level a box is cut out of
            self.pool = MultiScaleRoIAlign(list(names), CELLS, 2, canonical_scale=scale)
            self.tower = network.head.classification_head.conv
        self.to(body.mean.device).eval()

    def forward(self, images: Tensor, last: str = "head") -> dict[str, Tensor]:
        """``(N, 3, H, W)`` normalised images to the maps of body and pyramid; see Trunk."""
        found = super().forward(images, last)  # the body's come first among the stages
        if last != "head":
            return found
        pyramid = self.fpn({level: found[stage] for level, stage in self.inputs.items()})
        return found | {name: pyramid[level] for level, name in self.levels.items()}

    def box_features(self, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]) -> Tensor:
        """Of ``roi`` and ``box_head``, see :meth:`Trunk.box_features`."""
        if stage not in ("roi", "box_head"):
            return super().box_features(maps, stage, boxes)
        levels = {level: maps[name] for level, name in self.levels.items()}
        name, finest = next(iter(self.levels.items()))
        size = tuple(n * self.stages[finest].stride for n in levels[name].shape[-2:])
        each, dtype = per_image(boxes, levels[name].device), levels[name].dtype
        if stage == "box_head" and self.tower is not None:
            needed = self._needed(each)
            levels = {n: self.tower(v) if n in needed else v for n, v in levels.items()}
        # Not in half precision: RoIAlign lacks it on CPUs, and it would move boxes by pixels.
        single = {level: map_.float() for level, map_ in levels.items()}
        pooled = self.pool(single, each, [size] * len(each)).to(dtype)
        if stage == "roi" or self.box_head is None:
            return pooled
        return self.box_head(pooled)[:, :, None, None]

    def _needed(self, boxes: list[Tensor]) -> set[str]:
        """The levels that boxes will be cut out of: the tower costs as much as the trunk."""
        exponents = [self.stages[name].stride.bit_length() - 1 for name in self.levels.values()]
        scale = self.pool.canonical_scale
        mapper = initLevelMapper(exponents[0], exponents[-1], canonical_scale=scale)
        return {list(self.levels)[k] for k in mapper(boxes).tolist()}

    def fingerprint(self) -> str:
        """As of any trunk, and of the scale that says which level a box is cut out of."""
        scale = str(self.pool.canonical_scale)
        return hashlib.sha256((super().fingerprint() + scale).encode()).hexdigest()
