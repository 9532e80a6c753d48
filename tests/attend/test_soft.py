"""Soft attention: weights of cells by hand, and through extraction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_gallery import BOXES, coloured
from tiny_scenes import PAIR, lively, objects_of

from objemb_lib.attend import soft
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.regions import Region

pytestmark = pytest.mark.usefixtures("on_cpu")


def test_a_class_activation_map_by_hand() -> None:
    """Two channels, one cell each; the classifier's class 1 listens to channel 1 only."""
    features = torch.zeros(1, 2, 2, 2)
    features[0, 0, 0, 0], features[0, 1, 1, 1] = 2.0, 3.0
    weight, bias = torch.tensor([[1.0, 0], [0, 1]]), torch.zeros(2)
    heat = soft.class_activation(features, weight, bias)
    assert heat.tolist() == [[[0, 0], [0, 1]]]
    against = soft.class_activation(features, -weight, bias)
    assert against.tolist() == [[[1, 1], [1, 1]]]  # no cell speaks for any class
    sure = soft.class_activation(features, weight, torch.tensor([9.0, 0]))
    assert sure.tolist() == [[[1, 0], [0, 0]]]


def test_activity_and_similarity_by_hand() -> None:
    features = torch.zeros(1, 2, 1, 2)
    features[0, :, 0, 0], features[0, 0, 0, 1] = torch.tensor([3.0, 5.0]), 6.0
    assert torch.allclose(soft.activity(features), torch.tensor([[[0.8, 0.6]]]).sqrt())
    near = soft.similarity(features[0], torch.tensor([0.0, 2.0]))
    assert torch.allclose(near, torch.tensor([[5 / 34**0.5, 0]]))


def test_soft_attention_goes_through_extraction(tmp_path: Path, monkeypatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = ImageDataset("one", "test", tmp_path, ["a.png"], [0])
    trunk = lively()
    weight = torch.randn(10, trunk.stages["head"].channels)
    monkeypatch.setattr(soft, "imagenet_classifier", lambda _: (weight, torch.zeros(10)))
    region = soft.class_activation_region(data, trunk)
    found = objects_of(data, region, trunk)
    with torch.inference_mode():
        head = trunk(trunk.normalise(torch.from_numpy(noise).permute(2, 0, 1)[None]))["head"]
        heat = soft.class_activation(head, weight, torch.zeros(10))
    expected = (head * heat[:, None]).mean(dim=(2, 3))
    np.testing.assert_allclose(found.vectors[PAIR], expected, rtol=1e-3, atol=1e-4)
    monkeypatch.undo()
    with pytest.raises(DataError, match="comes without its ImageNet classifier"):
        soft.class_activation_region(data, trunk)


def test_overlays_are_bright_where_something_is_pooled(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    trunk = lively("efficientnet_lite0")
    region = Region(true_boxes(data))
    vector = np.ones(trunk.stages["stage4"].channels, np.float32)
    found = soft.overlays(data, 0, trunk, "stage4", region, vector, 64)
    inside = np.zeros((30, 40))
    for x0, y0, x1, y1 in BOXES["a.png"]:
        inside[y0:y1, x0:x1] = 1
    assert np.array_equal(found["boxes"], inside) and "masks" not in found
    pixels = torch.from_numpy(np.array(data.image(0).resize((64, 64), 3, reducing_gap=2.0)))
    with torch.inference_mode():
        seen = trunk(trunk.normalise(pixels.permute(2, 0, 1)[None]))["stage4"][0]
    total = seen.clamp(min=0).sum(dim=0).sqrt()
    assert np.allclose(found["CroW"], total / total.max(), atol=1e-3)
    alike = torch.nn.functional.cosine_similarity(seen, torch.ones_like(seen), dim=0)
    assert np.allclose(found["similarity"], alike.clamp(min=0), atol=1e-4)
    with pytest.raises(DataError, match="same stage"):
        soft.overlays(data, 0, trunk, "stage4", region, vector[:5], 64)
