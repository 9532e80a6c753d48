"""The networks: torchvision's detectors on any trunk of ours, and those that it trained on COCO."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torchvision
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from objemb_lib.config import DataError
from objemb_lib.embed.regions import roi_align
from objemb_lib.embed.trunks import PlainStages, Trunk, from_hub, torchvision_weights, trunk_of

KINDS = ("faster_rcnn", "mask_rcnn", "fcos")
STRIDES = (8, 16, 32)  # objects of 30 to 170 pixels: finer levels cost much and find nothing more
BEFORE = "torchvision/resnet50:IMAGENET1K_V1"  # the weights that COCO training began with
COCO_DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
)

Target = dict[str, Tensor]
Losses = dict[str, Tensor]


class Pyramid(nn.Module):
    """A trunk and a feature pyramid (FPN) over its last stages: what torchvision calls a backbone.

    Args:
        levels: for each level, finest first, the stage of the trunk that feeds it.
    Source: Lin et al., Feature Pyramid Networks for Object Detection, 2017.
    """

    def __init__(self, body: Trunk, fpn: nn.Module, levels: dict[str, str], channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.levels, self.out_channels = body, fpn, levels, channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(N, 3, H, W)`` normalised images to ``{level: (N, channels, H/stride, W/stride)}``."""
        return self.pyramid(self.body(images))

    def pyramid(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """The levels, from the trunk's maps."""
        return self.fpn({level: maps[stage] for level, stage in self.levels.items()})


class Pool(nn.Module):
    """torchvision's RoIAlign of a pyramid as matrix products, see :func:`regions.roi_align`."""

    def __init__(self, pool: MultiScaleRoIAlign) -> None:
        super().__init__()
        self.pool = pool

    def forward(
        self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Tensor:
        """``(K_1 + ... + K_N, C, h, w)``, as :class:`MultiScaleRoIAlign` gives it."""
        pool, (first, *_) = self.pool, boxes
        if pool.scales is None or not first.is_cpu:  # what it learns from the first image
            return pool(maps, boxes, sizes)
        levels = pool.map_levels(boxes)
        each, found = levels.split([len(b) for b in boxes]), []
        for k, (name, scale) in enumerate(zip(pool.featmap_names, pool.scales)):
            some = [b[level == k] for b, level in zip(boxes, each)]
            least = [torch.maximum(b[:, 2:], b[:, :2] + 1 / scale) for b in some]
            half = [torch.cat([b[:, :2], c], 1) + 0.5 / scale for b, c in zip(some, least)]
            found.append(roi_align(maps[name], half, pool.output_size[0], scale))
        return torch.cat(found)[levels.argsort(stable=True).argsort()]


class FrozenNorm(nn.Module):
    """A network whose batch norm stays as ImageNet left it: a batch of eight says too little."""

    def train(self, mode: bool = True) -> FrozenNorm:
        """Training mode for all but batch norm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class Detector(FrozenNorm):
    """A detection network with what is needed to build it again.

    Args:
        kind: one of :data:`KINDS` or :data:`COCO_DETECTORS`.
        network: torchvision's model; its ``backbone`` is a :class:`Pyramid`.
        categories: names; the network's label ``k + 1`` is category ``k``.
        frozen: the stage up to which its trunk did not learn, if deeper than stride 4.
    """

    def __init__(
        self, kind: str, network: nn.Module, categories: Sequence[str], size: int, frozen: str = ""
    ) -> None:
        super().__init__()
        self.kind, self.categories, self.size, self.frozen = kind, tuple(categories), size, frozen
        self.ready: torch.device | None = None  # for detection only, there
        self.network = network

    @property
    def trunk(self) -> Trunk:
        """The trunk inside, as it is now."""
        return self.network.backbone.body

    @property
    def two_stage(self) -> bool:
        """Whether it proposes boxes first, and then looks at each of them (RoI head)."""
        return hasattr(self.network, "roi_heads")

    def __repr__(self) -> str:
        count, kinds = sum(p.numel() for p in self.parameters()) / 1e6, len(self.categories)
        what = f"{self.kind} on {self.trunk.name}, {kinds} categories"
        return f"Detector({what}, {self.size} px, {count:.1f} M parameters)"

    def about(self) -> dict:
        """What a card must say so that the detector can be built again."""
        what = {"kind": self.kind, "trunk": self.trunk.name}
        what |= {"frozen": self.frozen} if self.frozen else {}
        return what | {"categories": list(self.categories), "size": self.size}

    def for_inference(self, device: torch.device, masks: bool = True) -> Detector:
        """A copy that only detects, faster, and without masks if nobody wants them; such a copy
        gives itself."""
        if self.ready == device:
            return self
        fast = copy.deepcopy(self).to(device, memory_format=torch.channels_last).eval()
        fast.network.backbone.body, fast.ready = fast.trunk.for_inference(device), device
        if self.two_stage:
            heads = fast.network.roi_heads
            heads.mask_roi_pool = heads.mask_roi_pool if masks else None
            for name in ("box_roi_pool", "mask_roi_pool") if fast.trunk.engine.on else ():
                if pool := getattr(heads, name):
                    setattr(heads, name, Pool(pool))
        return fast

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> Losses | list[Target]:
        """``{name: loss}`` in training; else detections, best first.

        Args:
            images: ``(3, H, W)`` float pixels in 0..1 each, not normalised.
            targets: in training: ``boxes`` ``(K, 4)`` as x0, y0, x1, y1, ``labels`` ``(K,)``
                from 1, and for Mask R-CNN ``masks`` ``(K, H, W)``.
        Returns:
            for each image ``boxes``, ``labels``, ``scores``, from Mask R-CNN ``masks``
            ``(K, 1, H, W)`` in 0..1, and from two-stage detectors ``proposals`` ``(P, 4)``, best
            first: boxes that hold *something*, of no category yet.
        """
        if self.training:
            return self.network(images, targets)
        if self.two_stage:
            return self.with_maps(images)[0]
        return [_without_rubbish(one) for one in self.network(images)]

    def with_maps(
        self, images: list[Tensor]
    ) -> tuple[list[Target], dict[str, Tensor], list[Tensor]]:
        """A two-stage detector's detections as ``forward`` gives them, and what a branch needs to
        join it: the trunk's maps, and the detections' boxes in pixels of the trunk's input.

        Source: Ren et al., Faster R-CNN, 2015; the steps of torchvision's GeneralizedRCNN.
        """
        network = self.network
        batch, _ = network.transform(images)
        maps = network.backbone.body(batch.tensors)
        levels = network.backbone.pyramid(maps)
        proposals, _ = network.rpn(batch, levels)
        found, _ = network.roi_heads(levels, proposals, batch.image_sizes)
        inside = [one["boxes"] for one in found]
        sizes = [tuple(image.shape[-2:]) for image in images]
        found = network.transform.postprocess(found, batch.image_sizes, sizes)
        for one, boxes, seen, size in zip(found, proposals, batch.image_sizes, sizes):
            one["proposals"] = resize_boxes(boxes, seen, size)
        return found, maps, inside


def _without_rubbish(found: Target) -> Target:
    """Without background (label 0) and boxes without area, which one-stage networks keep."""
    boxes = found["boxes"]
    keep = (found["labels"] > 0) & (boxes[:, 2:] - boxes[:, :2] >= 0.01).all(dim=1)
    return {key: value[keep] for key, value in found.items()}


@torch.inference_mode(False)  # freeze() needs gradients, whoever calls
def build_detector(
    kind: str,
    trunk: Trunk,
    categories: Sequence[str],
    size: int = 256,
    channels: int = 96,
    hidden: int = 256,
    frozen: str = "",
) -> Detector:
    """A detector on a copy of a trunk, its head with random weights.

    Batch norm is frozen, and so is every layer up to stride 4: half of the backward pass is saved.

    Args:
        frozen: a deeper stage up to which nothing learns, so that its map stays what it was.
        size: images are resized to this side; anchors go from an eighth to three quarters of it.
        channels: of the pyramid. hidden: width of the box head's vector.
    """
    if kind not in KINDS:
        raise DataError(f"no detector called {kind!r}", f"Use one of {', '.join(KINDS)}.")
    stages = {stage.stride: stage for stage in trunk.stages.values()}  # the deepest wins
    if missing := [str(stride) for stride in STRIDES if stride not in stages]:
        problem = f"{trunk.name} has no map of stride {', '.join(missing)}"
        raise DataError(problem, "Use a trunk of stride 32, such as efficientnet_lite0.")
    body = copy.deepcopy(trunk)
    freeze(body, frozen)
    fpn = FeaturePyramidNetwork([stages[s].channels for s in STRIDES], channels)
    levels = {f"fpn{s.bit_length() - 1}": stages[s].name for s in STRIDES}
    common = {
        "backbone": Pyramid(body, fpn, levels, channels),
        "num_classes": len(categories) + 1,
        "min_size": size,
        "max_size": size,
        "image_mean": trunk.mean.flatten().tolist(),
        "image_std": trunk.std.flatten().tolist(),
    }
    if kind == "fcos":  # has no anchors; torchvision says a level's range by one, a stride wide
        points = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * len(STRIDES))
        network = FCOS(**common, score_thresh=0.05, anchor_generator=points)
    else:
        network = _two_stage(kind, common, size, channels, hidden)
    return Detector(kind, network, categories, size, frozen)


def _two_stage(kind: str, common: dict, size: int, channels: int, hidden: int) -> nn.Module:
    """Faster or Mask R-CNN, smaller than torchvision's defaults, which are for 800 pixels."""
    levels, classes = list(common["backbone"].levels), common.pop("num_classes")
    sides = tuple((round(size * part),) for part in (1 / 8, 1 / 4, 1 / 2, 3 / 4))
    anchors = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 4)
    common["backbone"].fpn.extra_blocks = LastLevelMaxPool()  # a fourth level for large objects
    scale = round(size * 224 / 800)  # which level an object is pooled from, as for 800 pixels
    parts = {
        "rpn_anchor_generator": anchors,
        "rpn_pre_nms_top_n_train": 400,
        "rpn_pre_nms_top_n_test": 300,
        "rpn_post_nms_top_n_train": 200,
        "rpn_post_nms_top_n_test": 100,
        "rpn_batch_size_per_image": 128,
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2, canonical_scale=scale),
        "box_head": TwoMLPHead(channels * 7 * 7, hidden),
        "box_predictor": FastRCNNPredictor(hidden, classes),
        "box_batch_size_per_image": 64,
    }
    if kind == "faster_rcnn":
        return FasterRCNN(**common, **parts)
    return MaskRCNN(
        **common,
        **parts,
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2, canonical_scale=scale),
        mask_head=MaskRCNNHeads(channels, (channels, channels), 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes),
    )


def freeze(trunk: Trunk, last: str = "") -> None:
    """Freeze batch norm, and every layer that stride 4, or a ``last`` stage, depends on."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    names = list(trunk.stages)
    shallow = [name for name in names if trunk.stages[name].stride <= 4]
    shallow = names[: names.index(last) + 1] if last else shallow
    free = [p for p in trunk.parameters() if p.requires_grad]
    if not (free and shallow):
        return
    with torch.enable_grad():
        maps = trunk.eval()(torch.zeros(1, 3, 64, 64))
        total = sum(maps[name].sum() for name in shallow)
    # Whatever gets a gradient from the shallow maps made them; no need to know the network.
    for parameter, needed in zip(free, torch.autograd.grad(total, free, allow_unused=True)):
        parameter.requires_grad_(needed is None)


def load_coco_detector(name: str, pretrained: bool = True, size: int = 800) -> Detector:
    """A detector of torchvision, trained on COCO.

    Args:
        name: ``torchvision/MODEL[:WEIGHTS]``, MODEL one of :data:`COCO_DETECTORS`.
        pretrained: False gives random weights and asks nobody; a trained one's state fits.
        size: shorter side in pixels that images are resized to.
    """
    model, weights = torchvision_weights(name)
    if model not in COCO_DETECTORS:
        raise DataError(f"no COCO detector {model!r}", f"Use one of {', '.join(COCO_DETECTORS)}.")
    how = {"weights": weights if pretrained else None, "weights_backbone": None, "min_size": size}
    network = from_hub(name, lambda: torchvision.models.get_model(model, **how))
    if not pretrained and not model.endswith("_v2"):  # version 2 trained its batch norm, too
        freeze_batch_norm_2d(network.backbone.body)
        for module in network.backbone.body.modules():
            if isinstance(module, FrozenBatchNorm2d):  # as the trained ones have it
                module.eps = 1e-5 if model.startswith("fcos") else 0.0
    theirs, pixels = network.backbone, network.transform
    mean, std = pixels.image_mean, pixels.image_std
    said = f"COCO ({weights})" if pretrained else "random"
    trunk = trunk_of(BEFORE, theirs.body, PlainStages, mean, std, said)
    stages = list({stage.stride: stage.name for stage in trunk.stages.values()}.values())
    used = stages[-len(theirs.fpn.inner_blocks) :]
    levels = {str(number): stage for number, stage in enumerate(used)}  # as its heads know them
    network.backbone = Pyramid(trunk, theirs.fpn, levels, theirs.out_channels)
    return Detector(model, network, weights.meta["categories"][1:], size).eval()
