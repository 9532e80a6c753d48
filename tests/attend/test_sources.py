"""Boxes of a detector, which runs once, of rules and of chance."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_scenes import FULL, SIZE, small

from objemb_lib.attend import sources
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.metrics import detect, main_recall
from objemb_lib.embed.boxes import Boxes

pytestmark = pytest.mark.usefixtures("on_cpu")


def flipped(raw: bytes) -> bytes:
    """A zip with one bit of its largest member changed."""
    with ZipFile(io.BytesIO(raw)) as parts:
        content = parts.read(max(parts.infolist(), key=lambda one: one.file_size))
    k = raw.index(content)
    return raw[:k] + bytes([raw[k] ^ 1]) + raw[k + 1 :]


def test_a_detector_that_finds_nothing_falls_back(data: ImageDataset) -> None:
    detector = small("mask_rcnn")
    detector.network.roi_heads.score_thresh = 2.0
    seen = detect(detector, data, progress=False)
    kept = sources.detect_cached(detector, data, progress=False)
    assert [len(one["boxes"]) for one in kept] == [0] * 4
    found = sources.detector_boxes(data, detector, seen)
    assert found.fell_back.all() and found.counts.tolist() == [1] * 4


def test_what_was_detected_once_is_not_detected_again(data, monkeypatch) -> None:
    """But with another detector, other data, or of half a file."""
    detector, calls = small("mask_rcnn"), []
    plain = detect(detector, data, progress=False, masks=False)
    monkeypatch.setattr(sources, "detect", lambda *a, **k: calls.append(1) or detect(*a, **k))
    for _ in ("detected", "read"):
        found = sources.detect_cached(detector, data, progress=False)
        for one, expected in zip(found, plain, strict=True):
            assert one.keys() == expected.keys()
            for name in one.keys():
                assert torch.equal(one[name], expected[name]), name
    assert len(calls) == 1
    detector.network.rpn._post_nms_top_n["testing"] = 3
    few = sources.detect_cached(detector, data, progress=False)
    assert len(calls) == 2 and max(len(one["proposals"]) for one in few) <= 3
    with torch.no_grad():
        detector.network.rpn.head.cls_logits.bias[0] += 1
    sources.detect_cached(detector, data, progress=False)
    sources.detect_cached(detector, data.subset([1, 2]), progress=False)
    assert len(calls) == 4
    for times, damage in enumerate((flipped, lambda raw: raw[:-8]), 5):
        for file in Path(os.environ["OBJEMB_CACHE"]).glob("detections/*.pt"):
            file.write_bytes(damage(file.read_bytes()))
        with pytest.warns(UserWarning, match="damaged"):
            sources.detect_cached(detector, data, progress=False)
        assert len(calls) == times
        sources.detect_cached(detector, data, progress=False)
    assert len(calls) == 6


def test_one_object_called_by_two_names_is_found_once(data: ImageDataset) -> None:
    double = {
        "boxes": torch.tensor([[5.0, 5, 30, 30], [6.0, 5, 30, 31], [50, 5, 80, 40]]),
        "labels": torch.tensor([1, 2, 1]),
        "scores": torch.tensor([0.5, 0.8, 0.3]),
    }
    found = sources.detector_boxes(data, small("fcos"), [double] * 4)
    assert found.boxes[0].tolist() == [[6, 5, 30, 31], [50, 5, 80, 40]]


@settings(max_examples=20)
@given(st.integers(0, 99))
def test_random_boxes_keep_sizes_and_stay_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 40, (6, 2))
    given_ = Boxes("some", [np.concatenate([low, low + rng.uniform(1, 8, (6, 2))], 1)])
    data = ImageDataset("sized", "test", Path("."), ["a.png"], [0], content="f")
    data.__dict__["_sizes"] = np.array([[48, 48]])
    moved = sources.random_like(given_, data, seed).boxes[0]
    sides = [b[:, 2:] - b[:, :2] for b in (moved, given_.boxes[0])]
    np.testing.assert_allclose(*sides, atol=1e-4)
    assert moved.min() >= 0 and moved.max() <= 48
    assert np.abs(moved - given_.boxes[0]).max() > 1
    assert np.array_equal(moved, sources.random_like(given_, data, seed).boxes[0])


def test_centre_and_grid_lie_where_they_should(data: ImageDataset) -> None:
    assert sources.centre(data).boxes[0].tolist() == [[25, 12, 75, 36]]
    squares = sources.grid(data).boxes[0]
    assert squares[0].tolist() == FULL[0]
    seen = squares * 60 / np.tile(SIZE, 2)  # as the trunk sees them
    assert sorted(set((seen[:, 2] - seen[:, 0]).round(3).tolist())) == [30, 40, 60]


def test_fixed_boxes_meet_most_main_objects_of_train(data: ImageDataset) -> None:
    """By hand: two objects in one corner, one in another, one in the middle; 100 x 48 pixels."""
    train = replace(data, boxes=[np.array([b], float) for b in (
        [10, 5, 40, 24], [10, 5, 40, 24], [60, 24, 90, 43], [30, 14, 70, 34])],
        box_labels=(), box_categories=(), masks=None)  # fmt: skip
    found = sources.fixed_boxes(train, data, 2)
    assert found.counts.tolist() == [2] * 4 and found.name == "2 fixed boxes"
    met = [main_recall([{"boxes": torch.from_numpy(b)} for b in found.boxes], train, top).tolist()
           for top in (1, 2)]  # fmt: skip
    assert met[0] == [True, True, False, False] and sum(met[1]) == 3
    nothing = {"box_labels": (), "box_categories": ()}  # in the last image
    without = replace(train, boxes=[*train.boxes[:3], np.zeros((0, 4))], **nothing)
    assert np.array_equal(sources.fixed_boxes(without, data, 1).boxes[0], found.boxes[0][:1])
