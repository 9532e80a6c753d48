"""A proposer: what it should say of each cell, a toy that it learns, the one that is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_scenes import lively
from torchvision.ops import box_iou

from objemb_lib.attend import proposer as module
from objemb_lib.attend.detections import boxes_from
from objemb_lib.attend.proposer import (
    KEPT,
    Proposer,
    cross_fitted,
    load_proposer,
    propose,
    targets,
    train_proposer,
)
from objemb_lib.config import DataError
from objemb_lib.data.archives import sha256_file
from objemb_lib.data.coco import coco_photographs
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.metrics import main_recall
from objemb_lib.detect.weights import read_card, save_weights, weights_root
from objemb_lib.embed.extract import ExtractOptions
from objemb_lib.embed.trunks import load_trunk

CHANNELS = {"head": 1280, "stage5": 320, "stage4": 112}
QUIET = ExtractOptions(64, cache=False, progress=False)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    monkeypatch.delenv("OBJEMB_PRECISION", raising=False)


@pytest.fixture
def lively_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few channels as the small trunk of the tests has cells to find components in."""
    monkeypatch.setattr(module, "KEPT", dict.fromkeys(KEPT, 8))


def maps(images: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Made-up maps of a trunk at 256 pixels."""
    random = torch.Generator().manual_seed(seed)
    side = {"head": 8, "stage5": 8, "stage4": 16}
    return {s: torch.rand(images, c, side[s], side[s], generator=random)
            for s, c in CHANNELS.items()}  # fmt: skip


def squares(folder: Path, count: int, seed: int = 0) -> ImageDataset:
    """A bright rectangle on a dark, noisy ground each."""
    rng, boxes = np.random.default_rng(seed), []
    for i in range(count):
        width, height = rng.integers(30, 70, 2)
        x, y = rng.integers(0, 120 - width), rng.integers(0, 100 - height)
        pixels = rng.integers(0, 60, (100, 120, 3)).astype(np.uint8)
        pixels[y : y + height, x : x + width] += 180
        Image.fromarray(pixels).save(folder / f"{seed}-{i}.png")
        boxes.append(np.array([[x, y, x + width, y + height]], np.float32))
    files = [f"{seed}-{i}.png" for i in range(count)]
    return ImageDataset("squares", str(seed), folder, files, np.zeros(count), boxes=boxes)


def test_the_targets_of_cells_by_hand() -> None:
    """Four cells in a row: in the main object, in a smaller one inside it, in neither, in a speck
    that meets no centre."""
    main, small, speck = [0, 0, 0.5, 1], [0.2, 0.3, 0.45, 0.7], [0.8, 0.1, 0.85, 0.2]
    truth = targets(torch.tensor([main, small, speck]), 1, 4)
    assert truth[:, 0].tolist() == [1, 1, 0, 1]
    assert truth[:, 1].tolist() == [1, 1, 0, 0]
    assert truth[1, 2:].tolist() == main  # the main object's, though the other is smaller
    assert torch.equal(truth[3, 2:], torch.tensor(speck))
    turned = targets(torch.tensor([small, main]), 1, 4)
    assert torch.equal(turned[1, 2:], torch.tensor(small)) and turned[0, 2:].tolist() == main


@torch.inference_mode()
def test_guesses_lie_inside_and_those_kept_differ() -> None:
    torch.manual_seed(0)
    proposer = Proposer(CHANNELS).eval()
    boxes, scores = proposer(maps(2))
    assert boxes.shape == (2, 3 * 256, 4) and scores.shape == (2, 3 * 256)
    assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[..., 2:] >= boxes[..., :2]).all()
    assert 0 <= scores.min() and scores.max() <= 1
    for some, sure in proposer.best(maps(2), 4):
        assert len(some) == len(sure) <= 4 and (sure[:-1] >= sure[1:]).all()
        overlaps = box_iou(some, some) - torch.eye(len(some))
        assert overlaps.max() <= module.OVERLAP


def test_a_short_training_learns_a_toy_and_repeats_itself(tmp_path: Path, lively_kept) -> None:
    learn, others, trunk = squares(tmp_path, 36), squares(tmp_path, 20, seed=1), lively()
    before, state = trunk.fingerprint(), torch.get_rng_state()
    how, recall = {"trunk": trunk, "members": 2, "options": QUIET}, []
    hardly, again, learnt = (train_proposer([learn], epochs=n, **how) for n in (1, 1, 60))
    assert trunk.fingerprint() == before and torch.equal(torch.get_rng_state(), state)
    for key, value in hardly.state_dict().items():
        assert torch.allclose(again.state_dict()[key], value, atol=1e-5), key
    for proposer in (hardly, learnt):
        found = propose(others, proposer, trunk, options=QUIET)
        assert max(found.counts) <= 5 and found.source == "proposer"
        assert all((b >= 0).all() and (b <= [120, 100, 120, 100]).all() for b in found.boxes)
        targets = [{"boxes": torch.from_numpy(b)} for b in found.boxes]
        recall.append(main_recall(targets, others).mean())
    assert recall[1] >= 0.5 and recall[1] > recall[0] + 0.2, recall


def test_no_fold_is_measured_by_what_it_taught(tmp_path: Path, lively_kept, monkeypatch) -> None:
    folds = [[squares(tmp_path, 3, 1)], [squares(tmp_path, 3, 2), squares(tmp_path, 3, 3)]]
    taught = []
    train = module.train_proposer

    def watched(datasets, *given, **how):
        taught.append([data.split for data in datasets])
        return train(datasets, *given, **how)

    monkeypatch.setattr(module, "train_proposer", watched)
    also, how = squares(tmp_path, 2, 4), {"epochs": 1, "members": 1, "options": QUIET}
    found = cross_fitted(folds, [also], trunk=lively(), **how)
    assert taught == [["2", "3", "4"], ["1", "4"]] and [len(one) for one in found] == [3, 3, 3]


def test_nothing_is_learned_without_boxes(tmp_path: Path) -> None:
    data = squares(tmp_path, 2)
    bare = ImageDataset("bare", "all", tmp_path, data.files, data.labels)
    with pytest.raises(DataError, match="no photograph has a box"):
        train_proposer([bare], lively(), options=QUIET)


def test_a_trunk_without_its_stages_is_refused(tmp_path: Path) -> None:
    trunk, data = load_trunk("test_vit", pretrained=False), squares(tmp_path, 2)
    for use in (lambda: train_proposer([data], trunk), lambda: propose(data, trunk=trunk)):
        with pytest.raises(DataError, match="test_vit has no stage5"):
            use()


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    proposer = Proposer(CHANNELS, members=1).eval()
    save_weights(proposer, {"command": "none"}, "mine", tmp_path)
    again = load_proposer("mine", tmp_path)
    for one, other in zip(proposer(maps(1)), again(maps(1))):
        assert torch.allclose(one, other, atol=5e-3)
    with pytest.raises(DataError, match="no proposer"):
        load_proposer("fcos")


# --- what is shipped ------------------------------------------------------------------------


def test_the_shipped_proposer_is_the_one_of_its_card() -> None:
    card, file = read_card("proposer"), weights_root() / "proposer.safetensors"
    assert sha256_file(file) == card["sha256"] and file.stat().st_size <= 2_000_000
    assert card["channels"] == CHANNELS and "COCO" in card["attribution"] and card["licence"]
    ids = [number for many in card["photographs"].values() for number in many]
    assert len(ids) == len(set(ids)) == 318  # all that it learned from, none twice
    ((name, scores),) = [(k, v) for k, v in card.items() if k.startswith("metrics on")]
    assert "did not learn from" in name and scores["recall of main objects, 5 best"] >= 0.65
    proposer = load_proposer()
    twice = [proposer.best(maps(1))[0] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice))


@pytest.mark.filterwarnings("ignore:.*are here")
def test_the_shipped_proposer_on_real_photographs(real_photographs: Path) -> None:
    """It has learned from them: that it runs on any photograph, not how well."""
    data = coco_photographs("test", real_photographs / "coco").subset(range(6))
    with pytest.warns(UserWarning, match="learned from 6 of these 6"):
        found = boxes_from("proposer", data, progress=False)
    assert len(found) == 6 and not found.fell_back.any()
    for boxes, scores, size in zip(found.boxes, found.scores, data.sizes()):
        assert 1 <= len(boxes) <= 5 and (boxes >= 0).all() and (boxes <= np.tile(size, 2)).all()
        assert (np.diff(scores) <= 0).all()
