"""A detector as a trunk: every stage against what the detector itself computes."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_scenes import small
from torch import Tensor
from torchvision.ops import roi_align

from objemb_lib.detect.detectors import KINDS, Detector
from objemb_lib.detect.features import DetectorTrunk

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("on_cpu")
BOXES = torch.tensor([[3.0, 5, 11, 13], [8, 2, 29.5, 22], [4, 10, 60, 50], [0, 0, 64, 64]])


@pytest.fixture(scope="module", params=KINDS)
def detector(request: pytest.FixtureRequest) -> Detector:
    return small(request.param)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def close(a: Tensor, b: Tensor, part: float = 1e-4) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= part * b.abs().max())


def by_hand(levels: dict[str, Tensor], box: Tensor, i: int) -> Tensor:
    """A box cut out of the level that fits it: FPN's equation 1, with 18 px as its 224."""
    side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
    level = min(5, max(3, math.floor(4 + math.log2(side / 18))))
    map_ = levels[f"fpn{level}"][i : i + 1]
    return roi_align(map_, [box[None]], 7, 1 / 2**level, sampling_ratio=2, aligned=False)


@torch.inference_mode()
def test_maps_are_those_of_the_detector(detector: Detector) -> None:
    trunk, images = DetectorTrunk(detector), noise(2, 3, 64, 96)
    maps, body = trunk(images), detector.trunk(images)
    pyramid = detector.network.backbone(images)
    for name, expected in body.items():
        assert torch.equal(maps[name], expected) and expected.std() > 0.01, name
    for name in ("fpn3", "fpn4", "fpn5"):
        assert torch.equal(maps[name], pyramid[name]) and pyramid[name].std() > 0.01, name
    assert list(maps) == [*body, "fpn3", "fpn4", "fpn5"]
    assert list(trunk.stages) == [*maps, "roi", "box_head"]
    for name, map_ in maps.items():
        stage = trunk.stages[name]
        assert map_.shape == (2, stage.channels, 64 // stage.stride, 96 // stage.stride), name


@torch.inference_mode()
def test_boxes_are_cut_out_of_the_level_that_fits(detector: Detector) -> None:
    images = noise(4, 3, 64, 128)  # height and width apart
    trunk = DetectorTrunk(detector)
    maps = trunk(images)
    boxes = BOXES.clone()
    boxes[1, 0::2] += 90  # right of the square
    levels = {name: maps[name] for name in ("fpn3", "fpn4", "fpn5")}
    roi = trunk.box_features(maps, "roi", boxes)
    expected = torch.cat([by_hand(levels, box, i) for i, box in enumerate(boxes)])
    assert close(roi, expected, 1e-5) and roi.shape == (4, 32, 7, 7)
    if detector.kind == "fcos":
        tower = detector.network.head.classification_head.conv
        levels = {name: tower(level) for name, level in levels.items()}
        expected = torch.cat([by_hand(levels, box, i) for i, box in enumerate(boxes)])
        assert close(trunk.box_features(maps, "box_head", boxes), expected, 1e-5)


@torch.inference_mode()
def test_many_boxes_an_image_are_each_cut_out_of_their_own_image(detector: Detector) -> None:
    trunk = DetectorTrunk(detector)
    maps = trunk(noise(3, 3, 64, 64))
    many = [BOXES, BOXES[:0], BOXES[[2, 0]]]  # four boxes, none, two
    for stage in ("roi", "box_head"):
        found = trunk.box_features(maps, stage, many)
        alone = [
            trunk.box_features({k: m[i : i + 1] for k, m in maps.items()}, stage, [box[None]])
            for i, boxes in enumerate(many)
            for box in boxes
        ]
        assert len(found) == 6 and close(found, torch.cat(alone), 1e-5), stage
        assert not close(found[4], found[2])  # the same box of another image
        assert not len(trunk.box_features(maps, stage, [BOXES[:0]] * 3))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.inference_mode()
def test_the_copy_for_inference_gives_the_same(detector: Detector, precision: str) -> None:
    trunk, images = DetectorTrunk(detector), noise(4, 3, 64, 64)
    quick, part = trunk.for_inference(CPU, precision), {"fp32": 1e-4, "bf16": 0.1}[precision]
    assert quick.mean.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    maps, expected = quick(images.to(quick.mean.dtype)), trunk(images)
    for name, map_ in maps.items():
        assert close(map_.float(), expected[name], part), name
    for name in ("roi", "box_head"):
        given = quick.box_features(maps, name, BOXES).float()
        same = trunk.box_features({k: map_.float() for k, map_ in maps.items()}, name, BOXES)
        assert close(given, same, {"fp32": 1e-4, "bf16": 0.01 if name == "roi" else 0.1}[precision])
        if precision == "fp32":
            assert close(given, trunk.box_features(expected, name, BOXES)), name


def test_later_training_does_not_reach_the_copy(detector: Detector) -> None:
    trunk = DetectorTrunk(detector)
    before = trunk.fingerprint()
    assert DetectorTrunk(detector).fingerprint() == before
    network = detector.network
    head = network.roi_heads.box_head if detector.two_stage else network.head.classification_head
    for part in (detector.trunk, network.backbone.fpn, head):
        parameter = next(part.parameters())
        parameter.data += 1e-3
        assert DetectorTrunk(detector).fingerprint() != before == trunk.fingerprint()
        parameter.data -= 1e-3
    assert not any(p.requires_grad for p in trunk.parameters())
    assert any(p.requires_grad for p in detector.parameters())


def test_the_scale_that_picks_the_level_is_part_of_the_fingerprint() -> None:
    small_images, large = (DetectorTrunk(small("fcos", size=size)) for size in (64, 256))
    assert small_images.fingerprint() != large.fingerprint()
