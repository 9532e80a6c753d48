"""torchvision's COCO detectors behind the interface of ours: the paper's own pairing.

Against ``torchvision/resnet50:IMAGENET1K_V1``, the weights that their training began with, they
compare the same trunk before and after detection training at the paper's scale.
"""

from __future__ import annotations

import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from objemb_lib.config import DataError
from objemb_lib.detect.detectors import Detector, Pyramid
from objemb_lib.embed.trunks import Trunk, from_hub, torchvision_trunk_of

BEFORE = "torchvision/resnet50:IMAGENET1K_V1"
COCO_DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
)


def load_coco_detector(name: str, pretrained: bool = True, size: int = 800) -> Detector:
    """A detector of torchvision.

    Args:
        name: ``torchvision/MODEL`` or ``torchvision/MODEL:WEIGHTS``, MODEL one of
            :data:`COCO_DETECTORS`.
        pretrained: False gives random weights and asks nobody; a trained one's state fits.
        size: shorter side in pixels that images are resized to.
    Raises:
        DataError: unknown model or weights. DownloadError: the weights cannot be fetched.
    """
    model, _, chosen = name.removeprefix("torchvision/").partition(":")
    if model not in COCO_DETECTORS:
        raise DataError(f"no COCO detector {model!r}", f"Use one of {', '.join(COCO_DETECTORS)}.")
    enum = torchvision.models.get_model_weights(model)
    try:
        weights = enum[chosen] if chosen else enum.DEFAULT
    except KeyError as error:
        known = ", ".join(w.name for w in enum)
        raise DataError(f"{model} has no weights {chosen!r}", f"Use {known}.") from error

    def make() -> nn.Module:
        return torchvision.models.get_model(
            model, weights=weights if pretrained else None, weights_backbone=None, min_size=size
        )

    network = from_hub(name, make) if pretrained else _as_trained(make(), model)
    network.backbone = _adopt(network, f"COCO ({weights})" if pretrained else "random")
    return Detector(model, network, weights.meta["categories"][1:], size).eval()


def _as_trained(network: nn.Module, model: str) -> nn.Module:
    """Batch norm as the trained network has it: frozen, bar version 2, whose own is trained."""
    if not model.endswith("_v2"):
        _freeze_norms(network.backbone.body, 1e-5 if model.startswith("fcos") else 0.0)
    return network


def _freeze_norms(module: nn.Module, eps: float) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _freeze_norms(child, eps)


def _adopt(network: nn.Module, weights: str) -> Pyramid:
    """torchvision's backbone as a :class:`Pyramid`, its levels under the names its heads know."""
    theirs, transform = network.backbone, network.transform
    mean, std = tuple(transform.image_mean), tuple(transform.image_std)
    parts = list(theirs.body.children())
    trunk = torchvision_trunk_of(BEFORE, parts, mean, std, weights)
    return AdoptedPyramid(trunk, theirs.fpn, theirs.out_channels)


class AdoptedPyramid(Pyramid):
    """A pyramid that exists already.

    Args:
        fpn: torchvision's, over the deepest stages of ``trunk``.
    """

    def __init__(self, trunk: Trunk, fpn: nn.Module, channels: int) -> None:
        nn.Module.__init__(self)
        stages = list({stage.stride: stage.name for stage in trunk.stages.values()}.values())
        used = stages[-len(fpn.inner_blocks) :]
        self.levels = {str(number): stage for number, stage in enumerate(used)}
        self.body, self.fpn, self.out_channels = trunk, fpn, channels
