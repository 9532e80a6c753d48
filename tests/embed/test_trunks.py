"""Trunks: parity with the reference implementation, real photographs, true stages, safe folding."""

from __future__ import annotations

import copy
import importlib.util
import os
import urllib.error
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from local_server import Server, status
from PIL import Image
from tiny_scenes import objects_of, scenes
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from objemb_lib.attend.soft import class_activation_region
from objemb_lib.config import DataError, DownloadError
from objemb_lib.detect.detectors import build_detector
from objemb_lib.embed import trunks
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import Region, cut
from objemb_lib.embed.trunks import PIP_WEIGHTS, Stage, Trunk, load_trunk
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.teach.student import Teacher

CPU = torch.device("cpu")
LITES = list(PIP_WEIGHTS)
LATE = pytest.mark.skipif(
    not hasattr(timm.models.DLA, "forward_intermediates"), reason="gives maps from timm 1.0.31 on"
)
RANDOM = ["resnet18", "torchvision/resnet50", "torchvision/mobilenet_v2"]  # need no download


def weights_file(name: str) -> Path:
    package, inside, _ = PIP_WEIGHTS[name]
    return Path(importlib.util.find_spec(package).origin).parent / inside


@pytest.fixture(scope="module")
def photographs() -> list[tuple[Image.Image, int]]:
    """The ImageNet photographs inside foolbox, with their labels."""
    spec = importlib.util.find_spec("foolbox")  # not imported: it wants other frameworks
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    assert len(files) == 20
    return [(Image.open(f).convert("RGB"), int(f.stem.rsplit("_", 1)[1])) for f in files]


def pixels(images: list[Image.Image], size: int, crop: int | None = None) -> Tensor:
    """``(N, 3, crop, crop)`` uint8: each image squeezed to ``size``, then its centre."""
    crop = crop or size
    edge = (size - crop) // 2
    box = (edge, edge, edge + crop, edge + crop)
    small = [im.resize((size, size), Image.Resampling.BICUBIC).crop(box) for im in images]
    return torch.from_numpy(np.stack([np.asarray(im) for im in small])).permute(0, 3, 1, 2)


def vector(trunk: Trunk, images: Tensor) -> Tensor:
    """``(N, C)``: the network's penultimate vectors."""
    return trunk(images)["head"].mean(dim=(2, 3))


# --- real weights -------------------------------------------------------------------------


@pytest.mark.parametrize("name", LITES)
@torch.inference_mode()
def test_parity_with_the_reference_implementation(name: str, photographs: list) -> None:
    trunk = load_trunk(name)
    # The reference pads for one image size, its own.
    size = EfficientNet.get_image_size(dashed := name.replace("_lite", "-lite"))
    reference = EfficientNet.from_name(dashed).eval()
    reference.load_state_dict(torch.load(weights_file(name), weights_only=True))
    real = trunk.normalise(pixels([image for image, _ in photographs[:3]], size))
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = torch.cat([real, noise])
    ours, theirs = trunk(images)["head"], reference.extract_features(images)
    assert theirs.std() > 0.1  # two dead maps would agree too
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-4
    assert (vector(trunk, images) - theirs.mean(dim=(2, 3))).abs().max() < 1e-4


@torch.inference_mode()
def test_lite0_names_imagenet_photographs_right_with_our_normalisation(photographs: list) -> None:
    images, labels = zip(*photographs)
    trunk, labels = load_trunk(), torch.tensor(labels)
    weight, bias = trunks.imagenet_classifier("efficientnet_lite0 at stride 16")
    shown = pixels(images, 256, crop=224)
    logits = F.linear(vector(trunk, trunk.normalise(shown)), weight, bias)
    assert (logits.argmax(dim=1) == labels).sum() >= 17
    loss = F.cross_entropy(logits, labels)
    for wrong in (shown.float() / 255, trunk.normalise(shown.flip(1))):  # plain, blue first
        assert F.cross_entropy(F.linear(vector(trunk, wrong), weight, bias), labels) > loss
    with pytest.raises(DataError, match="without its ImageNet classifier"):
        trunks.imagenet_classifier("resnet18")


# --- stages -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LITES + RANDOM)
@torch.inference_mode()
def test_stages_say_what_the_maps_are(name: str) -> None:
    trunk = load_trunk(name, pretrained=name in PIP_WEIGHTS)
    maps = trunk(torch.rand(2, 3, 128, 96))
    assert list(maps) == list(trunk.stages)
    assert list(maps) == ["stage1", "stage2", "stage3", "stage4", "stage5", "head"]
    assert [stage.stride for stage in trunk.stages.values()] == [2, 4, 8, 16, 32, 32]
    for stage in trunk.stages.values():
        expected = (2, stage.channels, 128 // stage.stride, 96 // stage.stride)
        assert maps[stage.name].shape == expected, stage


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "torchvision/mobilenet_v2", "vit_tiny_patch16_224"]
)
@torch.inference_mode()
def test_nothing_deeper_than_what_is_asked_is_computed(name: str) -> None:
    trunk, images = load_trunk(name, pretrained=False), torch.rand(2, 3, 64, 96)
    every, ran = trunk(images), []
    for layer in trunk.after("stage4") if "vit" not in name else [trunk.network.network.norm]:
        layer.register_forward_hook(lambda *_: ran.append(1))
    for last in ("stage2", "stage4"):
        maps = trunk(images, last)
        assert list(maps) == list(every)[: list(every).index(last) + 1]
        assert all(torch.equal(maps[stage], every[stage]) for stage in maps)
    assert not ran
    assert trunk.deepest(["stage1", "stage4", "stage2"]) == "stage4"
    assert trunk.deepest(["head", "stage4"]) == trunk.deepest(["fpn3"]) == "head"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cait_xxs24_224", "AssertionError: .*224"),  # takes no other size
        ("mvitv2_tiny", r"maps of shapes .*\(1, 4, 768\)"),
        # its small images are larger than ours
        pytest.param("inception_v3", "RuntimeError: .*Kernel size", marks=LATE),
        ("torchvision/swin_t", "maps of shapes"),
        ("torchvision/googlenet", "Error"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight init:FutureWarning")
def test_networks_without_maps_are_refused(name: str, why: str) -> None:
    with pytest.raises(DataError, match=f"{name} has no feature maps.*{why}"):
        load_trunk(name, pretrained=False)


# --- vision transformers ------------------------------------------------------------------

VITS = [
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2.lvd142m",  # four registers beside the class token
    "vit_xsmall_patch16_clip_224",  # a norm before the blocks, too
    "vit_base_patch16_siglip_224",  # patches only
    "eva02_tiny_patch14_224",  # rotary position embeddings, too
]


@pytest.fixture(scope="module", params=VITS)
def vit(request: pytest.FixtureRequest) -> Trunk:
    torch.manual_seed(0)
    return load_trunk(request.param, pretrained=False)


@pytest.mark.parametrize("cells", [None, (5, 9)], ids=["native size", "another size"])
@torch.inference_mode()
def test_a_transformers_maps_are_timms_own_patch_tokens(
    vit: Trunk, cells: tuple[int, int] | None
) -> None:
    reference = timm.create_model(vit.name, num_classes=0).eval()  # of one size only
    reference.load_state_dict(vit.network.network.state_dict())
    patch = reference.patch_embed.patch_size[0]
    if cells:
        reference.set_input_size((cells[0] * patch, cells[1] * patch))
    height, width = reference.patch_embed.grid_size
    images = torch.randn(1, 3, height * patch, width * patch)
    seen = []  # what each block gives, and at last the final norm
    for layer in (*reference.blocks, reference.norm):
        layer.register_forward_hook(lambda *given: seen.append(given[-1]))
    assert torch.equal(reference.forward_features(images), seen[-1])
    maps, first = vit(images), reference.num_prefix_tokens
    assert list(maps) == ["stage1", "stage2", "stage3", "stage4", "head"] == list(vit.stages)
    depths = {10: (1, 4, 6, 9), 12: (2, 5, 8, 11)}[len(reference.blocks)]
    for (stage, found), depth in zip(maps.items(), (*depths, -1)):
        assert found.shape == (1, vit.stages[stage].channels, height, width)
        theirs = seen[depth][:, first:]  # class and register tokens come first
        assert torch.allclose(found.flatten(2).mT, theirs, rtol=1e-4, atol=1e-5), stage
    mean = timm.get_pretrained_cfg(vit.name).mean
    assert vit.mean.flatten().tolist() == pytest.approx(mean)


@pytest.mark.parametrize("size", [64, 256])  # patches of 14: five with padding, 18 in 252
@torch.inference_mode()
def test_a_box_cut_from_a_transformers_map_lies_where_it_should(vit: Trunk, size: int) -> None:
    stride = vit.stages["stage1"].stride
    side = round(size / stride)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    corners = torch.stack([x, y, x + 1, y + 1], dim=-1).reshape(-1, 4).float() * stride
    images = torch.zeros(1, 3, size, size)
    plain = vit(images)["stage1"]
    for row, column in ((1, side - 2), (side - 1, 0)):
        square, y0, x0 = images.clone(), row * stride, column * stride
        square[:, :, y0 : y0 + stride, x0 : x0 + stride] = 2
        change = (vit(square)["stage1"] - plain).norm(dim=1, keepdim=True)
        assert change.shape[2:] == (side, side)
        brightest = cut(vit, {"stage1": change}, "stage1", [corners]).mean(dim=(1, 2, 3))
        assert brightest.argmax() == change.argmax() == row * side + column


@pytest.mark.parametrize("on", ["map", "pixels"])
@pytest.mark.usefixtures("on_cpu")
def test_objects_on_a_transformers_map_are_pooled_and_found(
    vit: Trunk, on: str, tmp_path: Path
) -> None:
    data, context = scenes(tmp_path), 0.5  # without, every crop of a rectangle is one colour
    wanted = [(stage, pooling) for stage in ("stage3", "head") for pooling in POOLINGS]
    objects = objects_of(data, Region(true_boxes(data), on, context), vit, wanted, cache=False)
    for (stage, _), vectors in objects.vectors.items():
        assert vectors.shape == (5, vit.stages[stage].channels) and np.isfinite(vectors).all()
    index = ObjectIndex(vit.stages["head"].channels)
    index.add(objects, ("head", "spoc"), data.names)
    for image, vector in zip(objects.image, objects.vectors["head", "spoc"]):
        best = index.search(vector, 1)[0]
        assert best.image == image and best.score > 0.999


@pytest.mark.usefixtures("on_cpu")
def test_a_transformer_can_teach_but_makes_no_detector_nor_cam(vit: Trunk, tmp_path: Path) -> None:
    boxes = [torch.tensor([[2.0, 3, 40, 30], [0, 0, 64, 48]]), torch.zeros(0, 4)]
    vectors = Teacher(vit, size=56)(torch.rand(2, 3, 48, 64), boxes)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
    assert vectors.shape == (2, vit.stages["head"].channels)
    with pytest.raises(DataError, match="no map of stride 8"):
        build_detector("fcos", vit, ["thing"])
    with pytest.raises(DataError, match="without its ImageNet classifier"):
        class_activation_region(scenes(tmp_path), vit)
    with pytest.raises(KeyError, match="no layers after"):
        vit.after("stage4")


# --- folding ------------------------------------------------------------------------------


def stir(trunk: Trunk) -> Trunk:
    """Batch norms as after training: fresh ones do nothing, and folding nothing is easy."""
    generator = torch.Generator().manual_seed(0)
    for norm in trunk.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.2, generator=generator)
    return trunk


@pytest.mark.parametrize(
    "name",
    ["efficientnet_lite0", "resnet18", "torchvision/mobilenet_v2", "convnext_atto", "regnetx_002",
     "test_vit", pytest.param("dla34", marks=LATE)],
)  # fmt: skip
@torch.inference_mode()
def test_for_inference_folds_and_keeps_every_map(name: str) -> None:
    trunk = load_trunk(name, pretrained=name in PIP_WEIGHTS)
    trunk = trunk if name in PIP_WEIGHTS else stir(trunk)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    fast = trunk.for_inference(CPU)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    images = trunk.normalise(torch.rand(2, 3, 96, 96))
    slow = trunk(images)
    for stage, found in fast(images).items():
        assert (found - slow[stage]).abs().max() < 1e-3 * slow[stage].abs().max(), stage
    after = trunk.state_dict()  # the original keeps its batch norms
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


class Written(nn.Module):
    """Layers written conv, norm; run in the order asked for; the stage is what ``map`` sees."""

    def __init__(self, order: str, wide: int = 8) -> None:
        super().__init__()
        self.order = order
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(8, wide, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, maps = self.stem(x).relu(), []
        layers = {"conv": self.conv, "norm": self.norm, "relu": torch.relu}
        for layer in self.order.split():
            if layer == "map":
                maps.append(x)
            else:
                x = layers[layer](x)
        return x, maps


def written(order: str, wide: int = 8) -> Trunk:
    torch.manual_seed(0)
    stages = [Stage("stage1", 8, 2), Stage("head", wide, 2)]
    return stir(Trunk("t", Written(order, wide), stages, (0.5,) * 3, (0.5,) * 3, "random")).eval()


@pytest.mark.parametrize(
    ("order", "wide", "folds"),
    [
        ("map conv norm relu", 8, True),
        ("map norm relu conv", 8, False),  # written conv, norm; run the other way round
        ("map conv relu norm", 8, False),
        ("conv map norm relu", 8, False),  # the head would stay, the stage would not
        ("map norm relu conv", 16, False),  # cannot even be folded: other channels
    ],
)
@torch.inference_mode()
def test_layers_that_run_in_another_order_are_not_folded_wrongly(order, wide, folds) -> None:
    trunk = written(order, wide)
    images = torch.randn(2, 3, 32, 32)
    fast = trunk.for_inference(CPU)
    slow = trunk(images)
    for stage, found in fast(images).items():
        assert torch.allclose(found, slow[stage], atol=1e-4), stage
    assert isinstance(fast.network.norm, nn.BatchNorm2d) is not folds


# --- names, weights, errors ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet18.nobody", 32), ("torchvision/nothing", 32), ("", 32),
     ("torchvision/resnet50:IMAGENET1K_V9", 32), ("efficientnet_lite0", 8), ("resnet18", 16)],
)  # fmt: skip
def test_what_there_is_not_is_refused_before_anything_is_fetched(name: str, stride: int) -> None:
    with pytest.raises(DataError):
        load_trunk(name, stride=stride)


@pytest.mark.parametrize(
    ("part", "other", "why"),
    [
        (2, "0" * 64, r"efficientnet-lite0-57934424\.pth.*sha256"),
        (0, "no_such_package", "efficientnet_lite0.*not installed"),
        (1, "models/another.pth", "efficientnet_lite0.*not installed"),
    ],
)
def test_absent_and_other_weights_say_what_to_install(part, other, why, monkeypatch) -> None:
    known = list(PIP_WEIGHTS["efficientnet_lite0"])
    known[part] = other
    monkeypatch.setitem(PIP_WEIGHTS, "efficientnet_lite0", tuple(known))
    with pytest.raises(DataError, match=f"(?s){why}.*==0.1.0"):
        load_trunk()


@pytest.mark.parametrize(
    ("name", "loader"),
    [("resnet18", (timm, "create_model")),
     ("vit_small_patch14_dinov2.lvd142m", (timm, "create_model")),
     ("torchvision/resnet50", (torchvision.models, "get_model"))],
)  # fmt: skip
def test_no_network_is_one_readable_error(name: str, loader: tuple, monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(*loader, unreachable)
    monkeypatch.setattr(trunks, "get_hf_file_metadata", lambda *_, **__: None)
    # The remedy names what works without a network.
    with pytest.raises(DownloadError, match=f"(?s){name}.*Name or service.*efficientnet_lite0"):
        load_trunk(name)


@pytest.mark.parametrize(
    ("answer", "kept", "requests", "loaded"),
    [(lambda handler: handler.connection.close(), False, 1, False),
     (lambda handler: handler.connection.close(), True, 0, True),
     (status(404), False, 1, True), (status(200), False, 1, True)],
)  # fmt: skip
def test_a_hub_that_does_not_answer_is_asked_once(
    answer, kept: bool, requests: int, loaded: bool, server: Server, tmp_path: Path, monkeypatch
) -> None:
    """By itself it asks for a minute; not at all where its cache has the weights."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(trunks, "hf_hub_url", lambda *_: server.url(answer))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    if kept:
        place = tmp_path / "models--timm--resnet18.a1_in1k"
        for file, text in {"refs/main": "abc", "snapshots/abc/model.safetensors": ""}.items():
            (place / file).parent.mkdir(parents=True)
            (place / file).write_text(text)
    make, calls = timm.create_model, []
    random = lambda name, **_: calls.append(name) or make(name)  # noqa: E731
    monkeypatch.setattr(timm, "create_model", random)
    if loaded:
        load_trunk("resnet18")
    else:
        with pytest.raises(DownloadError, match="(?s)resnet18.*Connect to the network"):
            load_trunk("resnet18")
    assert len(server.seen) == requests and bool(calls) == loaded


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V2"),  # torchvision's own choice
        ("resnet101:IMAGENET1K_V1", "ResNet101_Weights.IMAGENET1K_V1"),
    ],
)
@torch.inference_mode()
def test_torchvision_weights_are_the_named_ones_and_decide_the_maps(
    name: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights in place of the download."""
    torch.manual_seed(1)
    reference = torchvision.models.get_model(name.partition(":")[0], weights=None).eval()
    seen = []

    def get(self: WeightsEnum, *args: object, **how: object) -> dict[str, Tensor]:
        seen.append(str(self))
        return reference.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get)
    trunk = load_trunk(f"torchvision/{name}")
    assert seen == [asked] and asked.rpartition(".")[2] in trunk.weights
    shown = torchvision.models.get_weight(asked).transforms()
    assert trunk.mean.flatten().tolist() == pytest.approx(shown.mean)
    assert trunk.std.flatten().tolist() == pytest.approx(shown.std)
    reference.fc = nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(vector(trunk, images), reference(images), rtol=1e-4, atol=1e-5)


def test_fingerprint_is_of_the_content() -> None:
    one = load_trunk()
    assert one.fingerprint() == load_trunk().fingerprint()
    others = [load_trunk("efficientnet_lite1"), load_trunk(pretrained=False)]
    changed = copy.deepcopy(one)
    next(changed.parameters()).data.view(-1)[0] += 1e-3
    brighter = copy.deepcopy(one)
    brighter.mean += 0.01  # other pixels reach the network: other vectors
    renamed = copy.deepcopy(one)
    renamed.name = "mine"
    every = [t.fingerprint() for t in (one, *others, changed, brighter, renamed)]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "torchvision/mobilenet_v2"])
def test_the_layers_after_a_stage_make_the_head_of_its_map(name: str) -> None:
    trunk = load_trunk(name, pretrained=False)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        maps = trunk(images)
        for stage in ("stage3", "stage4"):
            x = maps[stage]
            for layer in trunk.after(stage):
                x = layer(x)
            assert torch.allclose(x, maps["head"], rtol=1e-4, atol=1e-6)
    for stage in ("head", "stage9", "fpn3"):
        with pytest.raises(KeyError, match="no layers after"):
            trunk.after(stage)


# --- a dilated last stage, and the classifier ---------------------------------------------


@torch.inference_mode()
def test_a_dilated_last_stage_has_the_same_weights_at_twice_the_resolution() -> None:
    usual, dilated = load_trunk(), load_trunk(stride=16)
    assert dilated.stages["head"].stride == dilated.stages["stage5"].stride == 16
    assert dilated.name != usual.name and dilated.fingerprint() != usual.fingerprint()
    for key, tensor in usual.state_dict().items():
        assert torch.equal(tensor, dilated.state_dict()[key]), key
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    plain, fine = usual(images), dilated(images)
    assert torch.equal(plain["stage4"], fine["stage4"])
    assert fine["head"].shape == (1, 1280, 8, 8) and plain["head"].shape == (1, 1280, 4, 4)
    # Every second cell saw the same pixels through the same weights, but for the padding.
    apart = (fine["head"][..., 1::2, 1::2] - plain["head"]).abs().mean()
    assert apart < 0.5 * plain["head"].abs().mean()
