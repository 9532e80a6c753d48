"""Shipped weights: they come back as they were, and nothing else is taken for them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_scenes import CATEGORIES, lively

from objemb_lib.config import DataError
from objemb_lib.data.archives import sha256_file
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect import weights
from objemb_lib.detect.detectors import KINDS, Detector, build_detector
from objemb_lib.detect.metrics import coco_ap, detect, main_recall, score_detector
from objemb_lib.detect.weights import cards_table, load_detector, read_card, save_weights

pytest_plugins = ("tiny_battles",)
AP_SPREAD = 0.12  # of a part of 120 scenes: four standard deviations, bootstrap over the scenes
SHIPPED = [  # the others have tests of their own
    name
    for name in sorted(path.stem for path in weights.weights_root().glob("*.json"))
    if {"kind", "categories"} <= read_card(name).keys() and "student" not in read_card(name)
]


def built(kind: str = "faster_rcnn", seed: int = 0) -> Detector:
    """A small detector of the sizes that are shipped (others are not said on a card)."""
    torch.manual_seed(seed)
    return build_detector(kind, lively(), CATEGORIES, 64).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    detector = built(kind).to(memory_format=torch.channels_last)  # as training leaves it
    path = save_weights(detector, {"minutes": 3}, "ours", tmp_path)
    again = load_detector("ours", tmp_path)
    assert path == tmp_path / "ours.safetensors" and not again.training
    ours, theirs = detector.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert theirs[key].dtype == value.dtype, key
        assert torch.allclose(theirs[key], value, rtol=2**-11, atol=2**-24), key  # fp16's step
    assert (again.kind, again.categories, again.size) == (kind, CATEGORIES, 64)
    assert again.trunk.name == "lcnet_035"
    count = sum(value.numel() for value in ours.values())
    assert 2 * count <= path.stat().st_size < 2.2 * count + 50_000


def test_what_somebody_trained_is_found_by_its_name_but_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "runs" / "weights"
    for name in ("ours", "faster_rcnn"):
        save_weights(built(), {}, name, own)
    monkeypatch.setattr(weights.config, "PROJECT", tmp_path)
    assert load_detector("ours").size == 64
    assert load_detector("faster_rcnn").size == 256


def test_the_card_is_complete_and_what_is_true_wins(tmp_path: Path) -> None:
    path = save_weights(built(), {"command": "make", "log": [{"step": 1}]}, "ours", tmp_path)
    card = read_card("ours", tmp_path)
    assert card == {
        "kind": "faster_rcnn", "trunk": "lcnet_035", "categories": list(CATEGORIES), "size": 64,
        "sha256": sha256_file(path), "command": "make", "log": [{"step": 1}],
    }  # fmt: skip
    save_weights(built("fcos", seed=1), card, "ours", tmp_path)  # an old card, another file
    again = read_card("ours", tmp_path)
    assert again["kind"] == "fcos" and again["sha256"] == sha256_file(path) != card["sha256"]
    assert again["command"] == "make" and load_detector("ours", tmp_path).kind == "fcos"


def test_what_is_absent_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="(?s)called 'ours'.*There are: none"):
        load_detector("ours", tmp_path / "nowhere")
    path = save_weights(built(), {}, "ours", tmp_path)
    save_weights(built(), {}, "another", tmp_path)
    with pytest.raises(DataError, match="(?s)called 'theirs'.*There are: another, ours"):
        load_detector("theirs", tmp_path)
    card, file = read_card("ours", tmp_path), tmp_path / "ours.json"
    others = ({"sha256": "0"}, {"kind": "yolo"}, {"kind": "fcos"}, {"trunk": "lcnet_050"})
    for text in ("{", "[1]", '{"kind": "fcos"}', *(json.dumps({**card, **o}) for o in others)):
        file.write_text(text)
        with pytest.raises(DataError):
            load_detector("ours", tmp_path)
    file.write_text(json.dumps(card))
    load_detector("ours", tmp_path)
    data = path.read_bytes()
    for where in (0, 100, len(data) - 1):  # one changed byte is seen
        path.write_bytes(data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :])
        with pytest.raises(DataError, match=r"ours\.safetensors is not the file"):
            load_detector("ours", tmp_path)
    path.write_bytes(b"not safetensors")
    file.write_text(json.dumps({**card, "sha256": sha256_file(path)}))
    for _ in ("not safetensors", "absent"):
        with pytest.raises(DataError, match=r"ours\.safetensors cannot be loaded"):
            load_detector("ours", tmp_path)
        path.unlink(missing_ok=True)


def test_nothing_is_written_of_a_file_or_numbers_that_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"would hold [\d,]+ bytes"):
        save_weights(built(), {}, "ours", tmp_path, limit=100_000)
    assert list(tmp_path.iterdir()) == []
    for value in (70_000.0, float("nan")):
        detector = built()
        detector.network.backbone.fpn.inner_blocks[0][0].bias.data[3] = value
        with pytest.raises(DataError, match=r"inner_blocks\.0\.0\.bias does not fit"):
            save_weights(detector, {}, "ours", tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_the_table_states_what_the_cards_do(tmp_path: Path) -> None:
    for name, metrics in (("one", {"AP": 0.25}), ("two", {"AP": 0.5, "mask AP": 0.125})):
        card = {"schedule": {"steps": 3}, "metrics on mini-battles/battle": metrics}
        save_weights(built(), card, name, tmp_path)
    table = cards_table(["one", "two", "torchvision/fcos_resnet50_fpn"], tmp_path)
    assert table["steps"].tolist() == [3, 3] and table["AP"].to_dict() == {"one": 0.25, "two": 0.5}
    assert table["mask AP"].isna().tolist() == [True, False]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_those_of_their_card(name: str) -> None:
    file = weights.weights_root() / f"{name}.safetensors"
    assert file.stat().st_size <= weights.LIMIT == 12_000_000
    card = read_card(name)
    assert sha256_file(file) == card["sha256"]
    detector = load_detector(name)
    assert detector.kind == card["kind"] and detector.categories == tuple(card["categories"])
    assert all(value.isfinite().all() for value in detector.state_dict().values())
    assert card["command"] and card["data"] and card["log"] and card["curve"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_find_what_their_card_says(name: str, mini_battles_built: Path) -> None:
    """On a part of the scenes; with OBJEMB_SLOW=1 on all of them, and then every metric."""
    stated, data = read_card(name)["metrics on mini-battles/battle"], mini_battles("battle")
    if os.environ.get("OBJEMB_SLOW") == "1":
        found = score_detector(load_detector(name), data, progress=False)
        # Another processor rounds otherwise: shares to 0.002, the count of detections to 0.2 %.
        assert found == pytest.approx(stated, abs=0.002, rel=0.002)
        return
    # Evenly spread: neighbours show the same objects.
    data = data.subset(np.linspace(0, len(data) - 1, 120).astype(int))
    found = detect(load_detector(name), data, progress=False, masks=False)
    recall = stated["recall of main objects, IoU 0.5"]
    share = (recall * 120 + 2) / 124  # not 0 where all were found
    allowed = 4 * np.sqrt(share * (1 - share) / 120)
    assert abs(main_recall(found, data).mean() - recall) <= allowed
    assert coco_ap(found, data)["AP50"] == pytest.approx(stated["box AP50"], abs=AP_SPREAD)
