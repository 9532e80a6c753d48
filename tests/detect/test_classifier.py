"""The control beside the detectors: it learns which categories are on an image, from no box."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_scenes import CATEGORIES, lively, scenes, small
from torch import nn

from objemb_lib.course.train import train_detector
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.classifier import (
    CLASSIFIER,
    Classifier,
    load_classifier,
    practised,
    score_classifier,
)
from objemb_lib.detect.weights import LIMIT, read_card, weights_root
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach.training import Schedule

pytest_plugins = ("tiny_battles",)
pytestmark = pytest.mark.usefixtures("on_cpu")


def test_a_toy_is_learned_with_the_layers_that_a_detector_has(tmp_path: Path) -> None:
    places = [(4, 6, 30, 40), (30, 4, 60, 40), (10, 10, 50, 44), (20, 2, 60, 30)]
    shown = [([place], [kind]) for kind in (0, 1) for place in places]
    data, trunk = scenes(tmp_path / "toy", shown), lively()
    schedule = Schedule(steps=40, batch_size=4, rate=4e-3, warmup=5)
    learnt = train_detector("classifier", data, trunk, tmp_path, schedule, 64, progress=False)
    found = score_classifier(learnt, data)
    assert found == {"image labels, mAP": 1.0, "the same, by chance": 0.5}
    theirs = small("faster_rcnn").trunk
    for (name, now), then, other in zip(
        learnt.trunk.named_parameters(), trunk.parameters(), theirs.parameters(), strict=True
    ):
        assert now.requires_grad == other.requires_grad, name
        assert now.requires_grad or torch.equal(now, then), name
    assert learnt.trunk.fingerprint() != trunk.fingerprint()
    norms = [m for m in learnt.train().modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)


def test_the_loss_asks_for_labels_alone() -> None:
    """By hand: logits are the biases; an image of both, one of the second twice, one of none."""
    made = Classifier(lively(), CATEGORIES, 64)
    made.linear.weight.data.zero_()
    made.linear.bias.data = torch.tensor([0.0, 2.0])
    images = [torch.rand(3, 64, 64) for _ in range(3)]
    targets = [{"labels": torch.tensor(labels).long()} for labels in ([1, 2], [2, 2], [])]
    zero, right, wrong = torch.tensor([0.0, -2.0, 2.0]).exp().log1p()
    expected = (3 * zero + 2 * right + wrong) / 6
    assert made(images, targets)["loss_labels"].item() == pytest.approx(expected.item())


def test_the_shipped_control_is_the_one_of_its_card(mini_battles_built: Path) -> None:
    """On a part of the scenes it knows categories; with OBJEMB_SLOW=1 as well as its card says."""
    card, learnt, data = read_card(CLASSIFIER), load_classifier(), mini_battles("battle")
    assert (weights_root() / "classifier.safetensors").stat().st_size <= LIMIT
    assert card["command"] and card["data"] and card["log"] and card["curve"]
    assert card["schedule"] == read_card("faster_rcnn")["schedule"]
    stated = card["metrics on mini-battles/battle"]
    if os.environ.get("OBJEMB_SLOW") == "1":
        assert score_classifier(learnt, data) == pytest.approx(stated, abs=0.002)
    found = score_classifier(learnt, data.subset(range(0, len(data), 8)))
    assert found["image labels, mAP"] > 2 * found["the same, by chance"]
    (control,) = practised("efficientnet_lite0").values()
    assert control.name == "efficientnet_lite0 trained on scenes" and not practised("resnet18")
    pairs = list(zip(learnt.trunk.parameters(), load_trunk().parameters(), strict=True))
    same = [torch.equal(now, then.half().float()) for now, then in pairs]
    frozen = [not now.requires_grad for now, _ in pairs]
    assert same == frozen and 0 < sum(frozen) < len(frozen)
