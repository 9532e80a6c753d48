"""A data set as training targets: which boxes count, and that masks and labels stay with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_scenes import SCENES, scenes
from torchvision.ops import masks_to_boxes

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.teach.targets import (
    GRANULARITIES,
    MIN_SIDE,
    augmentation,
    draw_batches,
    example,
    in_categories,
    relabel,
)


def as_it_is(image: torch.Tensor, target: dict) -> tuple:
    return image, target


def test_an_example_is_the_image_with_its_objects(tmp_path: Path) -> None:
    data = scenes(tmp_path)
    pixels, target = example(data, 0, masks=True)
    assert (pixels.permute(1, 2, 0).numpy() == np.asarray(data.image(0))).all()
    assert target["boxes"].tolist() == [[4, 6, 30, 40], [36, 10, 60, 30]]
    assert target["labels"].tolist() == [1, 2] and target["labels"].dtype == torch.int64
    assert target["objects"].tolist() == data.box_labels[0].tolist()
    assert target["masks"].shape == (2, 48, 64)
    for k, (x0, y0, x1, y1) in enumerate(SCENES[0][0]):
        assert target["masks"][k, y0:y1, x0:x1].all()
        assert target["masks"][k].sum() == (x1 - x0) * (y1 - y0)
    assert "masks" not in example(data, 0)[1]


def test_only_boxes_that_can_be_learned_are_kept_and_those_are_clipped(tmp_path: Path) -> None:
    boxes = [
        (-5, -3, 20, 70),  # over three edges: clipped
        (10, 10, 10, 30),  # no area
        (10, 10, 13, 40),  # too narrow
        (30, 10, 50, 30),  # of no known category
        (90, 10, 120, 30),  # outside
        (40, 20, 60, 44),  # a crowd
        (62, 5, 80, 25),  # two pixels of it inside
        (30, 30, 34, 34),  # just large enough
    ]
    crowd = [False] * 5 + [True] + [False] * 2
    data = scenes(tmp_path, [(boxes, [1, 0, 0, -1, 0, 0, 0, 0])], crowds=[crowd])
    _, target = example(replace(data, box_labels=[np.arange(8)]), 0, masks=True)
    assert target["boxes"].tolist() == [[0, 0, 20, 48], [30, 30, 34, 34]]
    assert target["labels"].tolist() == [2, 1] and target["objects"].tolist() == [0, 7]
    assert masks_to_boxes(target["masks"]).tolist() == [[0, 0, 19, 47], [30, 30, 33, 33]]


def test_an_image_without_objects_has_empty_targets(tmp_path: Path) -> None:
    data = scenes(tmp_path, [([], []), ([(3, 3, 30, 30)], [0])])
    _, target = example(data, 0, masks=True)
    shapes = {key: tuple(value.shape) for key, value in target.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "objects": (0,), "masks": (0, 48, 64)}
    _, target = augmentation(64)(*example(data, 0, masks=True))
    assert target["masks"].shape == (0, 64, 64)
    _, targets = draw_batches(data, 9, as_it_is)(torch.Generator())
    assert all(len(target["boxes"]) == 1 for target in targets)  # only the other is drawn


def test_a_data_set_without_anything_to_learn_is_refused_by_name(tmp_path: Path) -> None:
    nothing = [
        scenes(tmp_path / "no boxes", [([], []), ([], [])]),
        scenes(tmp_path / "unknown", [([(3, 3, 30, 30)], [-1])]),
        scenes(tmp_path / "crowd", [([(3, 3, 30, 30)], [0])], crowds=[[True]]),
        in_categories(scenes(tmp_path / "other"), ("left", "right")),
    ]
    for data in nothing:
        with pytest.raises(DataError, match="scenes/train: no image has a box with a category"):
            draw_batches(data, 2, as_it_is)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Scenes with an object of no category among them."""
    many = [*SCENES[:2], ([(4, 4, 24, 24), (30, 6, 60, 40)], [1, -1]), SCENES[3]]
    return scenes(tmp_path_factory.mktemp("scenes"), many)


@settings(max_examples=120)
@given(seed=st.integers(0, 2**31), which=st.integers(0, 3), keep_shape=st.booleans())
def test_masks_and_labels_follow_their_boxes(data, seed: int, which: int, keep_shape: bool) -> None:
    pixels, before = example(data, which, masks=True)
    torch.manual_seed(seed)
    image, target = augmentation(64, keep_shape)(pixels, before)
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1
    boxes, labels, masks = (target[part] for part in ("boxes", "labels", "masks"))
    assert len(boxes) == len(labels) == len(masks) == len(target["objects"])
    assert len(boxes) <= len(before["boxes"])
    assert masks.shape[1:] == (64, 64)
    assert (boxes >= 0).all() and (boxes <= 64).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all()
    for box, label, mask in zip(boxes, labels, masks):
        rows, columns = (torch.nonzero(mask.any(dim)).flatten() for dim in (1, 0))
        around = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (around - box).abs().max() <= 1.5  # the mask is of whole pixels
        colour = image[:, mask.bool()].mean()  # colours change, but white stays brighter
        assert colour > 0.5 if label == 1 else colour < 0.4


def test_photographs_keep_their_shape_where_that_is_asked_for(data: ImageDataset) -> None:
    """The box is 40 x 36 of 64 x 48 pixels: stretched to a square it would be 40 x 48."""
    (pixels, target), scales = example(data, 3), []
    for seed in range(40):
        torch.manual_seed(seed)
        image, found = augmentation(64, keep_shape=True)(pixels, target)
        assert image.shape == (3, 64, 64)
        for x0, y0, x1, y1 in found["boxes"].tolist():
            if min(x0, y0) > 0 and max(x1, y1) < 64:  # not cut off
                scales.append((x1 - x0) / 40)
                assert (y1 - y0) / 36 == pytest.approx(scales[-1], abs=0.03)
    assert min(scales) < 0.9 and max(scales) > 1.1 and all(0.79 < s < 1.26 for s in scales)


def test_boxes_are_numbered_as_a_detector_does(tmp_path: Path) -> None:
    data = scenes(tmp_path, names=("zebra", "cat"))
    many = [*SCENES[0][1], -1]
    there = ("dog", "N/A", "cat", "N/A", "zebra")
    assert in_categories(data, data.category_names) is data
    found = in_categories(data, there)
    assert found.category_names == there and found.fingerprint == data.fingerprint
    for before, after in zip(data.box_categories, found.box_categories):
        assert after.tolist() == [{0: 4, 1: 2}[c] for c in before.tolist()]
    some = in_categories(scenes(tmp_path, [(SCENES[0][0] + [(1, 1, 9, 9)], many)],
                                names=("zebra", "unicorn")), there)  # fmt: skip
    assert some.box_categories[0].tolist() == [4, -1, -1]


def test_each_process_draws_its_share_of_the_same_batch(tmp_path, monkeypatch) -> None:
    data, shares = scenes(tmp_path), []
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        generator = torch.Generator().manual_seed(5)
        pixels, targets = draw_batches(data, 6, as_it_is, masks=True)(generator)
        assert len(pixels) == 6 // count and set(targets[0]) >= {"boxes", "labels", "masks"}
        shares.append([t["boxes"].tolist() for t in targets])
    whole, first, second = shares
    assert first == whole[::2] and second == whole[1::2] and first != second


def test_boxes_can_be_called_by_coarser_and_finer_names() -> None:
    data = ImageDataset(
        "d", "s", Path(), ["a", "b"], [5, 7], label_names=[f"o{i}" for i in range(8)],
        categories=[0, 1], category_names=["bird", "tool"],
        boxes=[np.zeros((2, 4)), np.zeros((1, 4))],
        box_labels=[np.array([5, 7]), np.array([7])],
        box_categories=[np.array([0, -1]), np.array([1])], content="f",
    )  # fmt: skip
    one, same, each = (relabel(data, labels) for labels in GRANULARITIES)
    assert same is data
    assert [c.tolist() for c in one.box_categories] == [[0, -1], [0]]  # unknown stays unknown
    assert one.category_names == ("object",)
    assert [c.tolist() for c in each.box_categories] == [[0, 1], [1]]  # those that occur, no more
    assert each.category_names == ("o5", "o7") and each.labels.tolist() == data.labels.tolist()
