"""torchvision's COCO detectors behind our interface, with random weights in place of downloads."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, WeightsEnum

from objemb_lib.config import DataError, DownloadError
from objemb_lib.detect.coco import COCO_DETECTORS, load_coco_detector
from objemb_lib.detect.detectors import Detector
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.weights import load_detector

SIZE = 64
FASTER = "torchvision/fasterrcnn_resnet50_fpn"
IMAGENET = ResNet50_Weights.IMAGENET1K_V1.transforms()


def busy(network: nn.Module) -> None:
    """Let a random network find something, but not much: its heads are slow."""
    if hasattr(network, "roi_heads"):
        network.rpn._post_nms_top_n = {"training": 20, "testing": 20}
        network.roi_heads.score_thresh, network.roi_heads.detections_per_img = 0.0, 5
    else:
        network.score_thresh, network.detections_per_img = 0.0, 5


@pytest.fixture(scope="module", params=COCO_DETECTORS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Detector, nn.Module]]:
    """A detector of ours, and torchvision's backbone from before it was adopted."""
    kept, real = {}, torchvision.models.get_model

    def get_model(*args: object, **how: object) -> nn.Module:
        network = real(*args, **how)
        kept["backbone"] = network.backbone
        return network

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "get_model", get_model)
        detector = load_coco_detector(f"torchvision/{request.param}", False, SIZE)
    yield detector, kept["backbone"].eval()


@torch.inference_mode()
def test_the_adopted_backbone_is_torchvisions(pair: tuple) -> None:
    detector, theirs = pair
    ours = detector.network.backbone
    for mine, their in ((ours.body, theirs.body), (ours.fpn, theirs.fpn)):
        mine, their = mine.state_dict(), their.state_dict()
        assert len(mine) == len(their) > 10
        assert all(a.data_ptr() == b.data_ptr() for a, b in zip(mine.values(), their.values()))
    images = torch.randn(1, 3, SIZE, SIZE)
    levels, expected = ours(images), theirs(images)
    assert list(levels) == list(expected) and ours.out_channels == theirs.out_channels == 256
    assert all(torch.equal(levels[name], expected[name]) for name in expected)
    maps, inner = ours.body(images), list(theirs.body(images).values())
    for name, map_ in zip(("stage5", "stage4", "stage3"), inner[::-1]):
        assert torch.equal(maps[name], map_)
    assert torch.equal(maps["head"], maps["stage5"])


@torch.inference_mode()
def test_it_detects(pair: tuple) -> None:
    detector, _ = pair
    busy(detector.network)
    (found,) = detector([torch.rand(3, 48, SIZE)])
    assert len(found["boxes"]) > 0
    boxes, labels = found["boxes"], found["labels"]
    assert boxes.min() >= 0 and boxes[:, 2].max() <= SIZE and boxes[:, 3].max() <= 48
    assert 1 <= labels.min() and labels.max() <= len(detector.categories) == 90
    assert detector.categories[:2] == ("person", "bicycle") and detector.categories[17] == "dog"
    assert ("masks" in found) == (detector.kind == "maskrcnn_resnet50_fpn")


@torch.inference_mode()
def test_as_a_trunk_it_is_a_resnet50_with_a_pyramid(pair: tuple) -> None:
    detector, theirs = pair
    trunk, two_stage = DetectorTrunk(detector), hasattr(detector.network, "roi_heads")
    body = {s.name: (s.channels, s.stride) for s in trunk.stages.values()
            if not s.per_box and not s.name.startswith("fpn")}  # fmt: skip
    assert body == {
        "stage1": (64, 2), "stage2": (256, 4), "stage3": (512, 8), "stage4": (1024, 16),
        "stage5": (2048, 32), "head": (2048, 32),
    }  # fmt: skip
    fpn = {s.name: (s.channels, s.stride) for s in trunk.stages.values() if s.name[:3] == "fpn"}
    every = {"fpn2": 4, "fpn3": 8, "fpn4": 16, "fpn5": 32}
    if not two_stage:
        every.pop("fpn2")
    assert fpn == {name: (256, stride) for name, stride in every.items()}
    assert tuple(trunk.mean.flatten().tolist()) == pytest.approx(IMAGENET.mean)
    assert tuple(trunk.std.flatten().tolist()) == pytest.approx(IMAGENET.std)
    images = torch.randn(2, 3, SIZE, SIZE)
    maps, expected = trunk(images), theirs(images)
    for name, level in zip(fpn, expected.values()):
        assert torch.equal(maps[name], level), name
    boxes = torch.tensor([[3.0, 5, 11, 13], [4, 10, 60, 50]])
    roi, vectors = (trunk.box_features(maps, name, boxes) for name in ("roi", "box_head"))
    assert roi.shape == (2, 256, 7, 7)
    assert vectors.shape[:2] == (2, trunk.stages["box_head"].channels)
    if two_stage:
        heads = detector.network.roi_heads
        pooled = heads.box_roi_pool(expected, [box[None] for box in boxes], [(SIZE, SIZE)] * 2)
        assert torch.equal(roi, pooled)
        assert torch.allclose(vectors[:, :, 0, 0], heads.box_head(pooled), atol=1e-5)


# --- weights ------------------------------------------------------------------------------


def test_downloaded_weights_decide_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    builder = torchvision.models.detection.fasterrcnn_resnet50_fpn
    reference = builder(weights=None, weights_backbone=None).eval()
    state, asked = reference.state_dict(), []

    def get(self: WeightsEnum, *args: object, **how: object) -> dict[str, Tensor]:
        asked.append(str(self))
        return state

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get)
    detector = load_detector(f"{FASTER}:COCO_V1")
    assert asked == ["FasterRCNN_ResNet50_FPN_Weights.COCO_V1"]  # and not ImageNet's before
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        maps, expected = DetectorTrunk(detector)(images), reference.backbone(images)
    for name, level in zip(("fpn2", "fpn3", "fpn4", "fpn5"), ("0", "1", "2", "3")):
        assert torch.allclose(maps[name], expected[level], rtol=1e-2, atol=1e-3), name
    assert "COCO_V1" in detector.trunk.weights and not detector.training


def test_no_network_is_one_readable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(self: WeightsEnum, *args: object, **how: object) -> dict[str, Tensor]:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get)
    with pytest.raises(DownloadError, match=f"{FASTER} could not be fetched.*no route") as caught:
        load_detector(FASTER)
    assert "network" in caught.value.remedy


def test_unknown_models_and_weights_are_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="no COCO detector 'ssd300_vgg16'") as caught:
        load_detector("torchvision/ssd300_vgg16")
    assert all(name in caught.value.remedy for name in COCO_DETECTORS)
    with pytest.raises(DataError, match="no weights 'COCO_V9'") as caught:
        load_detector(f"{FASTER}:COCO_V9")
    assert "COCO_V1" in caught.value.remedy
