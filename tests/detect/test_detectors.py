"""Detectors on our trunks, and torchvision's: what trains, what stays, and what comes out."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torchvision
from tiny_scenes import CATEGORIES, lively, small
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, WeightsEnum

from objemb_lib.config import DataError, DownloadError
from objemb_lib.detect.detectors import (
    COCO_DETECTORS,
    KINDS,
    Detector,
    build_detector,
    load_coco_detector,
)
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.trunks import load_trunk

TWO_STAGE = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
LOSSES = {
    "faster_rcnn": TWO_STAGE,
    "mask_rcnn": TWO_STAGE | {"loss_mask"},
    "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
}


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images with objects, one without."""
    objects = [([(5, 5, 40, 40)], [1]), ([(2, 8, 20, 60), (30, 30, 60, 60)], [2, 1]), ([], [])]
    targets = [
        {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
         "labels": torch.tensor(labels, dtype=torch.int64),
         "masks": torch.ones((len(boxes), 64, 64), dtype=torch.uint8)}
        for boxes, labels in objects
    ]  # fmt: skip
    return list(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))), targets


@pytest.mark.parametrize("kind", KINDS)
def test_losses_have_names_and_are_finite(kind: str) -> None:
    torch.manual_seed(0)
    detector = small(kind).train()
    images, targets = batch()
    losses = detector(images, targets)
    assert set(losses) == LOSSES[kind]
    assert all(loss.isfinite() and loss.ndim == 0 and loss > 0 for loss in losses.values())
    alone = detector(images[2:], targets[2:])  # a batch without any object
    assert set(alone) == LOSSES[kind] and all(loss.isfinite() for loss in alone.values())
    sum(alone.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_shallow_layers_and_batch_norm_stay_and_the_others_learn() -> None:
    given = lively("efficientnet_lite0")
    detector = build_detector("faster_rcnn", given, CATEGORIES, 64, 32, 16).train()
    body, image = detector.trunk, torch.randn(1, 3, 64, 64)
    norms = {key for key, module in body.named_modules() if isinstance(module, nn.BatchNorm2d)}
    stays = set()
    with torch.no_grad():  # the slow way: move a parameter, and see whether stage 2 does
        before = body(image)["stage2"]
        for key, parameter in body.named_parameters():
            kept = parameter.clone()
            parameter.copy_(kept + 0.1 * torch.randn_like(kept))
            if key.rpartition(".")[0] in norms or not torch.equal(body(image)["stage2"], before):
                stays.add(key)
            parameter.copy_(kept)
    old = {key: value.clone() for key, value in body.state_dict().items()}
    learning = [p for p in detector.parameters() if p.requires_grad]
    sum(detector(*batch()).values()).backward()
    torch.optim.SGD(learning, lr=0.1).step()
    same = {key for key, value in body.state_dict().items() if torch.equal(old[key], value)}
    statistics = old.keys() - dict(body.named_parameters())
    assert same == stays | statistics and any("running_mean" in key for key in statistics)
    assert 5 < len(old) - len(same)
    assert given.fingerprint() == lively("efficientnet_lite0").fingerprint()
    assert all(p.requires_grad for p in given.parameters())


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_detections_lie_in_the_image_and_come_best_first(kind: str) -> None:
    detector = small(kind)
    images = [torch.rand(3, 64, 64), torch.rand(3, 40, 100), torch.rand(3, 90, 30)]
    found, plain = detector(images), detector.network(images)
    assert detector.two_stage == (kind != "fcos") == ("proposals" in found[0])
    for image, one, theirs in zip(images, found, plain, strict=True):
        height, width = image.shape[1:]
        assert len(one["boxes"]) == len(one["labels"]) == len(one["scores"]) > 0
        x0, y0, x1, y1 = one["boxes"].T
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x0 < x1).all() and (y0 < y1).all()
        assert (x1 <= width).all() and (y1 <= height).all()
        assert set(one["labels"].tolist()) <= {1, 2}
        assert (one["scores"].diff() <= 0).all() and (one["scores"] <= 1).all()
        assert ("masks" in one) == (kind == "mask_rcnn")
        if "masks" in one:
            assert one["masks"].shape == (len(one["boxes"]), 1, height, width)
        if detector.two_stage:  # as torchvision's own pass
            assert all(torch.equal(one[key], theirs[key]) for key in theirs)


@torch.inference_mode()
def test_without_masks_the_boxes_are_the_same() -> None:
    detector, cpu, image = small("mask_rcnn"), torch.device("cpu"), torch.rand(3, 64, 64)
    (found,), (bare,) = (detector.for_inference(cpu, masks)([image]) for masks in (True, False))
    assert len(bare["boxes"]) and found.keys() - bare.keys() == {"masks"}
    assert all(torch.equal(found[key], bare[key]) for key in bare)


@torch.inference_mode()
def test_the_trunk_sees_images_normalised_as_it_wants_them() -> None:
    detector, seen = small("fcos", "efficientnet_lite0"), {}
    detector.network.backbone.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    image = torch.rand(3, 64, 64)
    detector([image])
    assert np.allclose(seen["x"][0], (image - 0.5) / 0.5, atol=1e-5)  # Lite's: not ImageNet's
    detector([torch.rand(3, 128, 128)])
    assert seen["x"].shape == (1, 3, 64, 64)  # resized to what it was built for


SIZE = 64
FASTER = "torchvision/fasterrcnn_resnet50_fpn"
IMAGENET = ResNet50_Weights.IMAGENET1K_V1.transforms()


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
def test_torchvisions_is_a_resnet50_with_a_pyramid_and_detects(pair: tuple) -> None:
    detector, theirs = pair
    trunk = DetectorTrunk(detector)
    shapes = {s.name: (s.channels, s.stride) for s in trunk.stages.values() if not s.per_box}
    assert shapes == {
        "stage1": (64, 2), "stage2": (256, 4), "stage3": (512, 8), "stage4": (1024, 16),
        "stage5": (2048, 32), "head": (2048, 32), "fpn3": (256, 8), "fpn4": (256, 16),
        "fpn5": (256, 32), **({"fpn2": (256, 4)} if detector.two_stage else {}),
    }  # fmt: skip
    assert tuple(trunk.mean.flatten().tolist()) == pytest.approx(IMAGENET.mean)
    assert tuple(trunk.std.flatten().tolist()) == pytest.approx(IMAGENET.std)
    images = torch.randn(2, 3, SIZE, SIZE)
    maps, expected, inner = trunk(images), theirs(images), list(theirs.body(images).values())
    for name, map_ in zip(("stage5", "stage4", "stage3"), inner[::-1]):
        assert torch.equal(maps[name], map_)
    for name, level in zip((s for s in trunk.stages if s.startswith("fpn")), expected.values()):
        assert torch.equal(maps[name], level), name
    boxes = torch.tensor([[3.0, 5, 11, 13], [4, 10, 60, 50]])
    roi, vectors = (trunk.box_features(maps, name, boxes) for name in ("roi", "box_head"))
    assert roi.shape == (2, 256, 7, 7)
    assert vectors.shape[:2] == (2, trunk.stages["box_head"].channels)
    if detector.two_stage:
        heads = detector.network.roi_heads
        pooled = heads.box_roi_pool(expected, [box[None] for box in boxes], [(SIZE, SIZE)] * 2)
        assert torch.equal(roi, pooled)
        assert torch.allclose(vectors[:, :, 0, 0], heads.box_head(pooled), atol=1e-5)
        detector.network.rpn._post_nms_top_n = {"training": 20, "testing": 20}  # heads are slow
    scored = heads if detector.two_stage else detector.network
    scored.score_thresh, scored.detections_per_img = 0.0, 5  # random weights find something
    (found,) = detector([torch.rand(3, 48, SIZE)])
    boxes, labels = found["boxes"], found["labels"]
    assert len(boxes) and boxes.min() >= 0 and boxes[:, 2].max() <= SIZE and boxes[:, 3].max() <= 48
    assert 1 <= labels.min() and labels.max() <= len(detector.categories) == 90
    assert detector.categories[:2] == ("person", "bicycle") and detector.categories[17] == "dog"
    assert ("masks" in found) == (detector.kind == "maskrcnn_resnet50_fpn")


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


def test_no_network_and_what_there_is_not_are_one_readable_error(monkeypatch) -> None:
    def get(self: WeightsEnum, *args: object, **how: object) -> dict[str, Tensor]:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get)
    with pytest.raises(DownloadError, match=f"{FASTER} could not be fetched.*no route"):
        load_detector(FASTER)
    with pytest.raises(DataError, match=r"(?s)no COCO detector 'ssd300_vgg16'.*fcos_resnet50_fpn"):
        load_detector("torchvision/ssd300_vgg16")
    with pytest.raises(DataError, match="with weights COCO_V9"):
        load_detector(f"{FASTER}:COCO_V9")
    with pytest.raises(DataError, match="(?s)no detector called 'yolo'.*fcos"):
        build_detector("yolo", lively(), CATEGORIES)
    fine = load_trunk("efficientnet_lite0", pretrained=False, stride=16)
    with pytest.raises(DataError, match="has no map of stride 32"):
        build_detector("fcos", fine, CATEGORIES)
