"""Boxes and regions: broken ones refused, absent ones said, pooled box by box."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from tiny_scenes import FULL, PAIR, QUIET, SIZE, lively, objects_of, scenes, small

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.embed import extract as room
from objemb_lib.embed.boxes import Boxes, or_whole, true_boxes, whole_image
from objemb_lib.embed.extract import ExtractOptions, extract, extract_regions
from objemb_lib.embed.regions import WHOLE, Region, crop, every_image_has_a_box, roi, roi_align

pytestmark = pytest.mark.usefixtures("on_cpu")


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from([(8, 8), (1, 5), (13, 6)]), st.sampled_from([1, 3, 7]))
def test_two_products_give_the_numbers_of_torchvisions_loop(seed, shape, cells):
    """Also for boxes that leave the image, are thin as a hair, or lie wholly outside."""
    random = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, *shape, generator=random)
    each = []
    for count in (3, 0) if seed % 2 else (1, 4):
        low = torch.rand(count, 2, generator=random) * 160 - 40
        each.append(torch.cat([low, low + 90 * torch.rand(count, 2, generator=random) ** 3], 1))
    ours = roi_align(maps, each, cells, 1 / 8)
    theirs = torchvision.ops.roi_align(maps, each, cells, 1 / 8, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_what_is_no_box_absent_or_of_another_length_is_refused(data: ImageDataset) -> None:
    for box in ([5, 5, np.nan, 9], [9, 5, 5, 9]):
        for make in (lambda b: Boxes("made up", b), lambda b: or_whole("made up", data, b)):
            with pytest.raises(DataError, match="image 0: not a box"):
                make([np.array([box])] * 4)
    with pytest.raises(DataError, match=r"(?s)image 1 has no box.*or_whole"):
        Boxes("made up", [FULL, []])
    with pytest.raises(DataError, match="other numbers"):
        Boxes("made up", [FULL], scores=[np.ones(2)])
    with pytest.raises(DataError, match="masks of another number"):
        Boxes("made up", [FULL], masks=[[], []])
    with pytest.raises(DataError, match="are not of"):
        objects_of(data, Boxes("made up", [FULL]))


def test_nothing_found_means_the_whole_image_and_is_said(data: ImageDataset) -> None:
    none = np.zeros((0, 4))
    outside = np.array([[200, 5, 240, 9], [-9, 3, 0, 20]])  # to the right, to the left
    found = or_whole("guess", data, [none, outside, [[5, 5, 20, 20]], none])
    assert found.fell_back.tolist() == [True, True, False, True]
    assert "3 of them whole because nothing was found" in repr(found)
    assert found.boxes[0].tolist() == FULL == found.boxes[1].tolist()
    vectors = objects_of(data, found).vectors[PAIR]
    whole = objects_of(data, whole_image(data)).vectors[PAIR]
    assert np.array_equal(vectors[[0, 1, 3]], whole[[0, 1, 3]])
    assert not np.allclose(vectors[2], whole[2])


def test_a_box_partly_outside_is_clipped(data: ImageDataset) -> None:
    wild, tame = [[-30, 10, 40, 90]], [[0, 10, 40, 48]]
    found = or_whole("guess", data, [wild] * 4)
    assert found.boxes[0].tolist() == tame and not found.fell_back.any()
    direct = objects_of(data, Boxes("direct", [wild] * 4)).vectors[PAIR]
    clipped = objects_of(data, found).vectors[PAIR]
    np.testing.assert_allclose(direct, clipped)


@pytest.mark.parametrize(
    "box", [[7, 7, 7, 7], [3, 4, 4, 5], [99.5, 47.5, 99.6, 47.6], [5, 0, 5, 48]]
)
def test_a_box_of_a_pixel_or_without_area_is_a_pixel(box: list, data: ImageDataset) -> None:
    found = Boxes("speck", [[box, [0, 0, 30, 30]]] * 4)
    for on in ("map", "pixels"):
        vectors = objects_of(data, Region(found, on)).vectors[PAIR]
        assert np.isfinite(vectors).all() and (np.abs(vectors).max(axis=1) > 0).all(), on
    region = Region(found)
    x0, y0, x1, y1 = region.input_boxes(0, SIZE, 64)[0] * np.array([100, 48, 100, 48]) / 64
    assert x1 - x0 >= 0.99 and y1 - y0 >= 0.99 and 0 <= x0 and x1 <= 100.01 and y1 <= 48.01


def thrown(data: ImageDataset, counts: list[int], seed: int = 0) -> Boxes:
    rng, found = np.random.default_rng(seed), []
    for count in counts:
        low = rng.uniform(0, 30, (count, 2))
        found.append(np.concatenate([low, low + rng.uniform(5, 18, (count, 2))], axis=1))
    return Boxes("thrown", found, [np.arange(c, 0, -1) / c for c in counts])


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("counts", [[1, 3, 1, 2], [300, 1, 40, 17]])
def test_each_object_is_pooled_as_if_it_were_alone(counts, batch_size, data, monkeypatch) -> None:
    """Hundreds of boxes are cut in portions, and still come out image by image, in their order."""
    monkeypatch.setattr(room, "PART", 3)  # the cache's files hold different numbers of rows
    found = thrown(data, counts)
    made = objects_of(data, found, batch_size=batch_size)
    assert np.bincount(made.image).tolist() == counts and len(made) == sum(counts)
    assert np.array_equal(made.boxes, np.concatenate(found.boxes))
    for row in {0, counts[0] - 1, counts[0], sum(counts[:2]), sum(counts) - 1}:
        i = int(made.image[row])
        alone = replace(data, boxes=[made.boxes[row][None]] * 4, masks=None, box_labels=(),
                        box_categories=())  # fmt: skip
        expected = extract(alone, lively(), [PAIR], roi(alone), QUIET)
        np.testing.assert_allclose(made.vectors[PAIR][row], expected[PAIR][i], rtol=1e-3, atol=1e-4)
    again = objects_of(data, found, cache=False)
    np.testing.assert_allclose(again.vectors[PAIR], made.vectors[PAIR], rtol=1e-3, atol=1e-4)


def test_sources_share_one_forward_pass_and_the_cache(data, monkeypatch) -> None:
    trunk, passes = lively(), []
    seen = type(trunk).forward
    monkeypatch.setattr(
        type(trunk), "forward", lambda self, x, *last: passes.append(len(x)) or seen(self, x, *last)
    )
    many, options = thrown(data, [3, 1, 2, 9]), ExtractOptions(64, progress=False)
    regions = {"whole": WHOLE, "many": Region(many), "true": Region(true_boxes(data), context=0.2)}
    first = extract_regions(data, trunk, [PAIR], regions, options)
    assert sum(n for n in passes if n != 1) == len(data)  # probes are single images
    passes.clear()
    again = extract_regions(data, trunk, [PAIR], regions, options)
    assert not passes
    assert all(np.array_equal(first[name][PAIR], again[name][PAIR]) for name in first)
    for name, region in regions.items():
        alone = extract(data, trunk, [PAIR], region, QUIET)[PAIR]
        np.testing.assert_allclose(alone, first[name][PAIR], rtol=1e-4, atol=1e-5)
    passes.clear()
    objects_of(data, replace(many, name="the same boxes"), trunk=trunk)
    assert not passes  # names decide nothing


def test_what_an_image_costs_is_measured_object_by_object(data, monkeypatch) -> None:
    """A clock that counts forward passes: one an image on the map, one an object on pixels."""
    trunk, passes = lively(), []
    seen = type(trunk).forward
    monkeypatch.setattr(
        type(trunk),
        "forward",
        lambda self, x, *last: passes.append(x.shape) or seen(self, x, *last),
    )
    monkeypatch.setattr(room.time, "perf_counter", lambda: len(passes) / 1000)
    boxes = thrown(data, [3, 3, 3, 3])
    ways = {on: (trunk, [PAIR], Region(boxes, on), 64) for on in ("map", "pixels")}
    assert room.benchmark_latency(data, ways) == pytest.approx({"map": 1, "pixels": 3})
    assert room.benchmark_latency(data, ways, images=1) == pytest.approx({"map": 1, "pixels": 3})


def test_outside_the_mask_counts_as_nothing(data: ImageDataset) -> None:
    """A mask of the left half: the vector is that of a map whose right half is 0."""
    half = np.zeros((48, 100), np.uint8, order="F")
    half[:, :50] = 1
    runs = coco_mask.encode(half)
    runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    found = replace(whole_image(data), masks=[[runs]] * 4)
    region = Region(found, masked=True)
    weights = region.mask_shares(0, SIZE)[0]
    assert weights.shape == (7, 7)
    assert torch.allclose(weights[:, :3], torch.ones(7, 3)) and not weights[:, 4:].any()
    assert torch.allclose(weights[:, 3], torch.full((7,), 0.5), atol=0.05)
    made = [objects_of(data, one).vectors[PAIR] for one in (region, Region(found))]
    assert not np.allclose(*made)


def test_run_lengths_may_be_text_or_bytes(tmp_path: Path) -> None:
    """Files hold text, pycocotools gives bytes: the same masks, the same place in the cache."""
    text, raw = (
        true_boxes(scenes(tmp_path / str(kind), size=SIZE, text=kind)) for kind in (True, False)
    )
    assert isinstance(raw.masks[0][0]["counts"], bytes) and raw.digest == text.digest
    assert np.array_equal(raw.mask(0, 1), text.mask(0, 1)) and raw.mask(0, 1).any()


def test_a_box_without_a_mask_is_its_own(data: ImageDataset) -> None:
    whole = Region(whole_image(data), masked=True)
    made = [objects_of(data, one).vectors[PAIR] for one in (whole, Region(whole.boxes))]
    np.testing.assert_allclose(*made, rtol=1e-6)


def test_masks_that_are_not_there_are_asked_for_in_vain(data: ImageDataset) -> None:
    with pytest.raises(DataError, match="whole image has no masks"):
        Region(masked=True)
    masked = Region(true_boxes(data), masked=True)
    with pytest.raises(DataError, match="cannot be cropped"):
        Region(true_boxes(data), "pixels", masked=True)
    trunk = DetectorTrunk(small("faster_rcnn"))
    with pytest.raises(DataError, match="box_head has no place for a mask"):
        objects_of(data, masked, trunk=trunk, wanted=[("box_head", "spoc")])


def test_top_takes_the_best(data: ImageDataset) -> None:
    found = Boxes("guess", [[[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 4, 4]]] * 2,
                        [[0.2, 0.9, 0.4], [0.1, 0.1, 0.3]])  # fmt: skip
    best = found.top(2)
    assert best.boxes[0].tolist() == [[1, 1, 9, 9], [2, 2, 4, 4]]
    assert best.boxes[1].tolist() == [[2, 2, 4, 4], [0, 0, 5, 5]]  # of equals the first


def test_true_boxes_are_a_place_to_look_only_where_every_image_has_one(data: ImageDataset) -> None:
    assert every_image_has_a_box(data, data)
    some = replace(data, boxes=[np.zeros((0, 4)), *data.boxes[1:]], box_labels=(),
                   box_categories=(), masks=None)  # fmt: skip
    assert not every_image_has_a_box(data, some)
    with pytest.warns(UserWarning, match="no box is known in 1 of 4 images"):
        crop(some)


def test_other_boxes_of_the_same_images_are_another_place_in_the_cache(data: ImageDataset) -> None:
    """Two regions of one name, in one call and in two."""
    left, right = (Boxes("guess", [[[x, 0, x + 40, 48]]] * 4) for x in (0, 50))
    regions = {"left": Region(left), "right": Region(right)}
    both = extract_regions(data, lively(), [PAIR], regions, ExtractOptions(64, progress=False))
    assert not np.allclose(both["left"][PAIR], both["right"][PAIR])
    for name, boxes in (("left", left), ("right", right)):
        assert np.array_equal(objects_of(data, boxes).vectors[PAIR], both[name][PAIR])
