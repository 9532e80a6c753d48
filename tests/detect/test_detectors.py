"""Detectors on our trunks: what trains, what stays, and what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_scenes import CATEGORIES, lively, small
from torch import Tensor, nn
from torchvision.ops import box_iou

from objemb_lib.config import DataError
from objemb_lib.detect.detectors import KINDS, Detector, build_detector
from objemb_lib.detect.weights import load_state
from objemb_lib.embed.trunks import Stage, Trunk

TRUNKS = ["efficientnet_lite0", "lcnet_035"]
TWO_STAGE = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
LOSSES = {
    "faster_rcnn": TWO_STAGE,
    "mask_rcnn": TWO_STAGE | {"loss_mask"},
    "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
}


def target(boxes: list, labels: list, size: tuple[int, int] = (64, 64)) -> dict[str, Tensor]:
    masks = torch.zeros((len(boxes), *size), dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
    }


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images with objects, one without."""
    images = list(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    objects = [([(5, 5, 40, 40)], [1]), ([(2, 8, 20, 60), (30, 30, 60, 60)], [2, 1]), ([], [])]
    return images, [target(*one) for one in objects]


def one_step(detector: Detector) -> None:
    torch.manual_seed(0)
    detector.train()
    learning = [p for p in detector.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=0.1)
    sum(detector(*batch()).values()).backward()
    optimiser.step()


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_have_names_and_are_finite(kind: str, name: str) -> None:
    torch.manual_seed(0)
    detector = small(kind, name).train()
    images, targets = batch()
    losses = detector(images, targets)
    assert set(losses) == LOSSES[kind]
    assert all(loss.isfinite() and loss.ndim == 0 and loss > 0 for loss in losses.values())
    alone = detector(images[2:], targets[2:])  # a batch without any object
    assert set(alone) == LOSSES[kind] and all(loss.isfinite() for loss in alone.values())
    sum(alone.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_detections_lie_in_the_image_and_come_best_first(kind: str, name: str) -> None:
    detector = small(kind, name)
    images = [torch.rand(3, 64, 64), torch.rand(3, 40, 100), torch.rand(3, 90, 30)]
    found = detector(images)
    assert len(found) == 3
    for image, one in zip(images, found):
        height, width = image.shape[1:]
        assert len(one["boxes"]) == len(one["labels"]) == len(one["scores"]) > 0
        x0, y0, x1, y1 = one["boxes"].T
        assert (x0 >= 0).all() and (y0 >= 0).all()
        assert (x1 <= width).all() and (y1 <= height).all()
        assert (x0 < x1).all() and (y0 < y1).all()
        assert set(one["labels"].tolist()) <= {1, 2}
        assert (one["scores"].diff() <= 0).all() and (one["scores"] <= 1).all()
        assert ("masks" in one) == (kind == "mask_rcnn")
        if "masks" in one:
            assert one["masks"].shape == (len(one["boxes"]), 1, height, width)
            assert 0 <= one["masks"].min() and one["masks"].max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_learns_one_scene(kind: str) -> None:
    torch.manual_seed(0)
    detector = small(kind).train()
    image = torch.full((3, 64, 64), 0.5)
    image[:, 10:50, 16:40] = 1
    optimiser = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        sum(detector([image], [target([(16, 10, 40, 50)], [2])]).values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimiser.step()
    with torch.inference_mode():
        (found,) = detector.eval()([image])
    assert found["labels"][0] == 2
    assert box_iou(found["boxes"][:1], torch.tensor([[16.0, 10, 40, 50]])) > 0.5


@pytest.mark.parametrize("name", TRUNKS)
def test_shallow_layers_and_batch_norm_stay_and_the_others_learn(name: str) -> None:
    detector = small("faster_rcnn", name)
    body, images = detector.trunk, torch.randn(1, 3, 64, 64)
    norms = {p for m in body.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    stays, unused = {}, set()
    with torch.no_grad():  # the slow way: move a parameter, and see which maps move
        before = body(images)
        for key, parameter in body.named_parameters():
            kept = parameter.clone()
            parameter.copy_(kept + 0.1 * torch.randn_like(kept))
            after = body(images)
            parameter.copy_(kept)
            stays[key] = parameter in norms or not torch.equal(after["stage2"], before["stage2"])
            if torch.equal(after["head"], before["head"]):
                unused.add(key)  # LCNet's last convolution follows the pooling
    old = {key: value.clone() for key, value in body.state_dict().items()}
    one_step(detector)
    new = body.state_dict()
    same = {key: torch.equal(old[key], new[key]) for key in old}
    assert len(unused) <= 2
    assert {k: same[k] for k in stays.keys() - unused} == {
        k: stays[k] for k in stays.keys() - unused
    }
    assert 5 < sum(not value for value in same.values()) < len(stays)
    statistics = [key for key in old if key not in stays]
    assert any("running_mean" in key for key in statistics)
    assert all(same[key] for key in statistics)


@pytest.mark.parametrize("kind", KINDS)
def test_the_given_trunk_is_not_changed(kind: str) -> None:
    trunk = lively()
    before = trunk.fingerprint()
    one_step(detector := build_detector(kind, trunk, CATEGORIES, 64, 32, 16))
    assert detector.trunk.fingerprint() != before == trunk.fingerprint()
    assert all(p.requires_grad and p.grad is None for p in trunk.parameters())


@torch.inference_mode()
def test_the_trunk_sees_images_normalised_as_it_wants_them() -> None:
    detector, seen = small("fcos", "efficientnet_lite0"), {}
    detector.network.backbone.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    image = torch.rand(3, 64, 64)
    detector([image])
    assert np.allclose(seen["x"][0], (image - 0.5) / 0.5, atol=1e-5)  # Lite's: not ImageNet's
    detector([torch.rand(3, 128, 128)])
    assert seen["x"].shape == (1, 3, 64, 64)  # resized to what it was built for


class Shallow(nn.Module):
    """Two maps, of stride 2 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(3, 3, 3, 2, 1) for _ in range(2))

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.two(self.one(x)), [self.one(x)]


def test_what_cannot_be_built_is_refused() -> None:
    stages = [Stage("stage1", 3, 2), Stage("head", 3, 8)]
    shallow = Trunk("shallow", Shallow(), stages, (0.5,) * 3, (0.5,) * 3, "random")
    for kind in KINDS:
        with pytest.raises(DataError, match="shallow has no map of stride 16, 32") as caught:
            build_detector(kind, shallow, CATEGORIES)
        assert "efficientnet_lite0" in caught.value.remedy
    with pytest.raises(DataError, match="no detector called 'yolo'") as caught:
        build_detector("yolo", lively(), CATEGORIES)
    assert all(kind in caught.value.remedy for kind in KINDS)
    with pytest.raises(DataError, match="at least one category"):
        build_detector("fcos", lively(), ())


def test_weights_of_another_network_are_refused() -> None:
    path, ours = Path("somewhere.safetensors"), small("faster_rcnn")
    others = [small("faster_rcnn", "mobilenetv3_small_050"), small("fcos"),
              small("faster_rcnn", categories=("one", "two", "three"))]  # fmt: skip
    for other in others:
        with pytest.raises(DataError, match=r"somewhere\.safetensors.*another network"):
            load_state(ours, other.state_dict(), path)
    other = small("faster_rcnn", seed=5).train()
    image = [torch.rand(3, 64, 64)]
    with torch.inference_mode():
        found = load_state(ours, other.state_dict(), path)(image)
        assert torch.equal(found[0]["boxes"], other.eval()(image)[0]["boxes"])
