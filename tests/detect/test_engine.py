"""Detectors by the engine find what torch finds: nothing, in several images, at other sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.detectors import COCO_DETECTORS, KINDS, Detector, load_coco_detector
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed import compiled

CPU = torch.device("cpu")
pytest_plugins = ("tiny_battles",)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, torch_alone: None) -> None:
    monkeypatch.setattr(compiled, "ENOUGH", 1)
    monkeypatch.setattr(compiled, "LARGE", 1)
    monkeypatch.delenv("OBJEMB_ENGINE")


def check(detector: Detector, batches: list[list[Tensor]]) -> Detector:
    """That the copy by the engine finds the same, once it has taken over."""
    fast = detector.for_inference(CPU)
    for images in batches:
        fast(images)  # is compiled
        for one, other in zip(fast(images), detector(images), strict=True):
            assert one.keys() == other.keys()
            for boxes in {"boxes", "proposals"} & one.keys():
                assert len(one[boxes]) == len(other[boxes])
                if len(one[boxes]):
                    assert box_iou(one[boxes], other[boxes]).max(dim=1).values.min() >= 0.99
            torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=1e-3)
            if "masks" in one and len(one["masks"]):
                assert ((one["masks"] > 0.5) != (other["masks"] > 0.5)).float().mean() < 1e-3
    return fast


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_photographs_grey_and_other_sizes(kind: str, mini_battles_built: Path) -> None:
    data = mini_battles("battle")
    pixels = [np.asarray(data.image(i), np.float32) / 255 for i in range(3)]
    images = [torch.from_numpy(p).permute(2, 0, 1).contiguous() for p in pixels]
    wide, grey = images[0][:, :150], torch.full((3, 256, 256), 0.5)
    detector = load_detector(kind)
    assert len(detector([wide])[0]["boxes"])
    nothing = [[grey], [wide, grey]] if kind != "fcos" else []  # which finds a hundred, all alike
    assert not any(len(detector(some)[-1]["boxes"]) for some in nothing)
    fast = check(detector, [images[:1], images, [wide], *nothing])
    done = fast.trunk.engine.compiled.values()
    assert len(done) == 2 and all(done)


@pytest.mark.parametrize("name", COCO_DETECTORS)
@torch.inference_mode()
def test_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    detector = load_coco_detector(f"torchvision/{name}", False, 64)
    scored = detector.network.roi_heads if detector.two_stage else detector.network
    scored.score_thresh, scored.detections_per_img = 0.0, 5  # random weights find something
    if detector.two_stage:
        detector.network.rpn._post_nms_top_n = {"training": 20, "testing": 20}  # heads are slow
    check(detector, [[torch.rand(3, 48, 64)], [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]])
