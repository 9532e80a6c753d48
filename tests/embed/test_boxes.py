"""Boxes from every source: broken ones refused, absent ones said, and pooled box by box."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_scenes import lively, scenes, small

from objemb_lib.attend import attention
from objemb_lib.config import DataError, ImageError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.embed import boxes, extract
from objemb_lib.embed.boxes import ObjectBoxes, ObjectRegion
from objemb_lib.embed.extract import extract_objects, extract_regions
from objemb_lib.embed.regions import CROP, ROI, WHOLE, roi_align, usable

SIZE = (100, 48)  # of the pictures, while the trunk sees 64 x 64
PAIR = ("head", "spoc")
FULL = [[0, 0, *SIZE]]


@pytest.fixture(autouse=True)
def on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    monkeypatch.delenv("OBJEMB_PRECISION", raising=False)


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    return scenes(tmp_path / "scenes", size=SIZE)


def objects_of(data: ImageDataset, *regions: ObjectRegion | ObjectBoxes, **how) -> dict:
    known = {"trunk": lively(), "wanted": [PAIR], "size": 64, "progress": False}
    return extract_objects(data, regions=regions, **known | how)


# --- RoIAlign -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
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


# --- what is no box -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "words"),
    [([5, 5, np.nan, 9], "none"), ([9, 5, 5, 9], "none"), ([0, 0, np.inf, 9], "none")],
)
def test_what_is_no_box_is_refused(box: list, words: str, data: ImageDataset) -> None:
    with pytest.raises(DataError, match=words):
        ObjectBoxes("made up", [np.array([box])] * 4)
    with pytest.raises(DataError, match=words):
        boxes.or_whole("made up", data, [np.array([box])] * 4)


def test_an_image_without_a_box_is_refused_with_the_way_out(data: ImageDataset) -> None:
    with pytest.raises(DataError, match="image 1 has no box") as caught:
        ObjectBoxes("made up", [FULL, []])
    assert "or_whole" in caught.value.remedy


def test_lengths_must_agree(data: ImageDataset) -> None:
    with pytest.raises(DataError, match="other scores"):
        ObjectBoxes("made up", [FULL], scores=[np.ones(2)])
    with pytest.raises(DataError, match="masks of another number"):
        ObjectBoxes("made up", [FULL], masks=[[], []])
    with pytest.raises(DataError, match="boxes of 1 images"):
        boxes.or_whole("made up", data, [FULL])
    with pytest.raises(DataError, match="are not of"):
        objects_of(data, ObjectBoxes("made up", [FULL]))
    with pytest.raises(DataError, match="same name"):
        objects_of(data, boxes.whole(data), boxes.whole(data))


def test_a_broken_photograph_is_named(data: ImageDataset) -> None:
    (Path(data.root) / data.files[2]).write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"2\.png"):
        boxes.whole(data)


def test_nothing_found_means_the_whole_image_and_is_said(data: ImageDataset) -> None:
    none = np.zeros((0, 4))
    outside = np.array([[200, 5, 240, 9], [-9, 3, 0, 20]])  # to the right, to the left
    found = boxes.or_whole("guess", data, [none, outside, [[5, 5, 20, 20]], none])
    assert found.fell_back.tolist() == [True, True, False, True]
    assert "3 of them whole because nothing was found" in repr(found)
    assert found.boxes[0].tolist() == FULL == found.boxes[1].tolist()
    vectors = objects_of(data, found)["guess"].vectors[PAIR]
    whole = objects_of(data, boxes.whole(data))["whole image"].vectors[PAIR]
    assert np.array_equal(vectors[[0, 1, 3]], whole[[0, 1, 3]])
    assert not np.allclose(vectors[2], whole[2])


def test_a_detector_that_finds_nothing_falls_back(data: ImageDataset) -> None:
    detector = small("mask_rcnn")
    detector.network.roi_heads.score_thresh = 2.0
    seen = attention.run_detector(data, detector, masks=True, progress=False)
    kept = attention.detect_cached(data, detector, masks=True, progress=False)
    assert [len(one["boxes"]) for one in kept] == [0] * 4 and kept[0]["rles"] == []
    found = attention.detector_boxes(data, detector, seen, masks=True)
    assert found.fell_back.all() and found.counts.tolist() == [1] * 4
    masked = objects_of(data, ObjectRegion(found, masked=True))["detector, masked"]
    whole = objects_of(data, boxes.whole(data))["whole image"]
    np.testing.assert_allclose(masked.vectors[PAIR], whole.vectors[PAIR], rtol=1e-5)


@pytest.mark.parametrize("kind", ["mask_rcnn", "fcos"])
def test_what_was_detected_once_is_not_detected_again(data, kind, monkeypatch) -> None:
    detector, masks = small(kind), kind == "mask_rcnn"
    first = attention.detect_cached(data, detector, masks, progress=False)
    plain = attention.run_detector(data, detector, masks, progress=False)
    monkeypatch.setattr(attention, "run_detector", lambda *_: pytest.fail("detected again"))
    again = attention.detect_cached(data, detector, masks, progress=False)
    for found in (first, again):
        for one, expected in zip(found, plain, strict=True):
            assert one.keys() == expected.keys() and one.get("rles") == expected.get("rles")
            for name in one.keys() - {"rles"}:
                assert torch.equal(one[name], expected[name]), name


def test_another_detector_or_half_a_file_is_detected_anew(data, monkeypatch) -> None:
    calls, look = [], attention.run_detector
    monkeypatch.setattr(attention, "run_detector", lambda *given: calls.append(1) or look(*given))
    detector = small("faster_rcnn")
    attention.detect_cached(data, detector, progress=False)
    detector.network.rpn._post_nms_top_n["testing"] = 3
    few = attention.detect_cached(data, detector, progress=False)
    assert len(calls) == 2 and max(len(one["proposals"]) for one in few) <= 3
    with torch.no_grad():
        detector.network.rpn.head.cls_logits.bias[0] += 1
    attention.detect_cached(data, detector, progress=False)
    attention.detect_cached(data.subset([1, 2]), detector, progress=False)
    assert len(calls) == 4
    for half in Path(os.environ["OBJEMB_CACHE"]).glob("detections/*/proposals-all.safetensors"):
        half.write_bytes(half.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="damaged"):
        attention.detect_cached(data, detector, progress=False)
    assert len(calls) == 5


def test_a_box_partly_outside_is_clipped(data: ImageDataset) -> None:
    wild, tame = [[-30, 10, 40, 90]], [[0, 10, 40, 48]]
    found = boxes.or_whole("guess", data, [wild] * 4)
    assert found.boxes[0].tolist() == tame and not found.fell_back.any()
    direct = objects_of(data, ObjectBoxes("direct", [wild] * 4))["direct"].vectors[PAIR]
    clipped = objects_of(data, found)["guess"].vectors[PAIR]
    np.testing.assert_allclose(direct, clipped)


@pytest.mark.parametrize(
    "box", [[7, 7, 7, 7], [3, 4, 4, 5], [99.5, 47.5, 99.6, 47.6], [5, 0, 5, 48]]
)
def test_a_box_of_a_pixel_or_without_area_is_a_pixel(box: list, data: ImageDataset) -> None:
    found = ObjectBoxes("speck", [[box, [0, 0, 30, 30]]] * 4)
    for on in ("map", "pixels"):
        vectors = objects_of(data, found, on=on)["speck"].vectors[PAIR]
        assert np.isfinite(vectors).all() and (np.abs(vectors).max(axis=1) > 0).all(), on
    region = ObjectRegion(found)
    x0, y0, x1, y1 = region.look(data, 0, SIZE, 64)[0] * np.array([100, 48, 100, 48]) / 64
    assert x1 - x0 >= 0.99 and y1 - y0 >= 0.99 and 0 <= x0 and x1 <= 100.01 and y1 <= 48.01


# --- many boxes ---------------------------------------------------------------------------


def thrown(data: ImageDataset, counts: list[int], seed: int = 0) -> ObjectBoxes:
    rng, found = np.random.default_rng(seed), []
    for count in counts:
        low = rng.uniform(0, 30, (count, 2))
        found.append(np.concatenate([low, low + rng.uniform(5, 18, (count, 2))], axis=1))
    return ObjectBoxes("thrown", found, [np.arange(c, 0, -1) / c for c in counts])


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("counts", [[1, 3, 1, 2], [300, 1, 40, 17]])
def test_each_object_is_pooled_as_if_it_were_alone(
    counts: list[int], batch_size: int, data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of boxes are cut in portions, and still come out image by image, in their order."""
    monkeypatch.setattr(extract, "PART", 3)  # the cache's files hold different numbers of rows
    found = thrown(data, counts)
    made = objects_of(data, found, batch_size=batch_size)["thrown"]
    assert np.bincount(made.image).tolist() == counts and len(made) == sum(counts)
    assert np.array_equal(made.boxes, np.concatenate(found.boxes))
    for row in {0, counts[0] - 1, counts[0], sum(counts[:2]), sum(counts) - 1}:
        i = int(made.image[row])
        alone = replace(data, boxes=[made.boxes[row][None]] * 4, masks=None, box_labels=(),
                        box_categories=())  # fmt: skip
        expected = extract.extract(alone, lively(), [PAIR], ROI, 64, cache=False, progress=False)
        np.testing.assert_allclose(made.vectors[PAIR][row], expected[PAIR][i], rtol=1e-3, atol=1e-4)
    again = objects_of(data, found, cache=False)["thrown"]
    np.testing.assert_allclose(again.vectors[PAIR], made.vectors[PAIR], rtol=1e-3, atol=1e-4)


def test_stages_of_a_detector_take_many_boxes_too(data: ImageDataset) -> None:
    trunk, wanted = DetectorTrunk(small("faster_rcnn")), [("roi", "spoc"), ("box_head", "spoc")]
    found = thrown(data, [20, 1, 2, 1])
    made = objects_of(data, found, trunk=trunk, wanted=wanted)["thrown"]
    one = ObjectBoxes("one", [b[-1:] for b in found.boxes])
    last = objects_of(data, one, trunk=trunk, wanted=wanted)["one"]
    for pair in wanted:
        rows = np.cumsum([20, 1, 2, 1]) - 1
        np.testing.assert_allclose(
            made.vectors[pair][rows], last.vectors[pair], rtol=1e-3, atol=1e-4
        )


def test_sources_share_one_forward_pass_and_the_cache(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, passes = lively(), []
    seen = type(trunk).forward
    monkeypatch.setattr(
        type(trunk), "forward", lambda self, x: passes.append(len(x)) or seen(self, x)
    )
    both = [boxes.grid(data), ObjectRegion(boxes.true_boxes(data), margin=0.2)]
    first = extract_regions(data, trunk, [PAIR], [WHOLE, *map(_region, both)], 64, progress=False)
    assert sum(n for n in passes if n != 1) == len(data)  # probes are single images
    passes.clear()
    again = extract_regions(data, trunk, [PAIR], [WHOLE, *map(_region, both)], 64, progress=False)
    assert not passes
    assert all(np.array_equal(first[name][PAIR], again[name][PAIR]) for name in first)
    renamed = replace(boxes.grid(data), name="the same boxes")
    objects_of(data, renamed, trunk=trunk)
    assert not passes  # names decide nothing
    other = boxes.grid(data, levels=2)
    moved = objects_of(data, other, trunk=trunk)["R-MAC grid"]
    assert passes and len(moved) == 4 * 5


def _region(one: ObjectBoxes | ObjectRegion) -> ObjectRegion:
    return one if isinstance(one, ObjectRegion) else ObjectRegion(one)


def test_crops_are_those_of_the_data_set(data: ImageDataset) -> None:
    found = objects_of(data, boxes.true_boxes(data), on="pixels")["true boxes"]
    main = extract.extract(data, lively(), [PAIR], CROP, 64, cache=False, progress=False)[PAIR]
    first = np.flatnonzero(np.diff(found.image, prepend=-1))
    np.testing.assert_allclose(found.vectors[PAIR][first], main, rtol=1e-3, atol=1e-4)
    assert len(found) == 5


def test_what_an_image_costs_is_measured_object_by_object(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that counts forward passes: one an image on the map, one an object on pixels."""
    trunk, passes = lively(), []
    seen = type(trunk).forward
    monkeypatch.setattr(
        type(trunk), "forward", lambda self, x: passes.append(x.shape) or seen(self, x)
    )
    monkeypatch.setattr(extract.time, "perf_counter", lambda: len(passes) / 1000)
    region = ObjectRegion(thrown(data, [3, 3, 3, 3]))
    ways = {on: (trunk, [PAIR], region, 64, on) for on in ("map", "pixels")}
    assert extract.benchmark_latency(data, ways) == pytest.approx({"map": 1, "pixels": 3})
    assert extract.benchmark_latency(data, ways, images=1) == pytest.approx({"map": 1, "pixels": 3})


# --- masks --------------------------------------------------------------------------------


def test_outside_the_mask_counts_as_nothing(data: ImageDataset) -> None:
    """A mask of the left half: the vector is that of a map whose right half is 0."""
    half = np.zeros((48, 100), np.uint8, order="F")
    half[:, :50] = 1
    runs = boxes.coco_mask.encode(half)
    runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    found = replace(boxes.whole(data), masks=[[runs]] * 4)
    region = ObjectRegion(found, masked=True)
    weights = region.weights(data, 0)[0]
    assert weights.shape == (7, 7)
    assert torch.allclose(weights[:, :3], torch.ones(7, 3)) and not weights[:, 4:].any()
    assert torch.allclose(weights[:, 3], torch.full((7,), 0.5), atol=0.05)
    maps = {"head": torch.rand(1, 5, 2, 2)}
    trunk = lively()
    cut = region.features(trunk, maps, "head", [torch.tensor([[0.0, 0, 64, 64]])]) * weights
    assert not cut[..., 4:].any() and cut[..., :3].all()
    made = objects_of(data, region, ObjectRegion(found))
    assert not np.allclose(*(one.vectors[PAIR] for one in made.values()))


def test_run_lengths_may_be_text_or_bytes(tmp_path: Path) -> None:
    """Files hold text, pycocotools gives bytes: the same masks, the same place in the cache."""
    text, raw = (
        boxes.true_boxes(scenes(tmp_path / str(kind), size=SIZE, text=kind))
        for kind in (True, False)
    )
    assert isinstance(raw.masks[0][0]["counts"], bytes) and raw.digest == text.digest
    assert np.array_equal(raw.mask(0, 1), text.mask(0, 1)) and raw.mask(0, 1).any()


def test_masks_that_are_not_there_are_asked_for_in_vain(data: ImageDataset) -> None:
    with pytest.raises(DataError, match="grid has no masks"):
        ObjectRegion(boxes.grid(data), masked=True)
    with pytest.raises(DataError, match="faster_rcnn gives no masks"):
        attention.sources(data, ["detector masks, top 5"], small("faster_rcnn"), progress=False)
    without = replace(data, masks=None)
    with pytest.raises(DataError, match="has no masks"):
        attention.sources(without, ["true masks"])
    masked = ObjectRegion(boxes.true_boxes(data), masked=True)
    with pytest.raises(DataError, match="masked has no crops"):
        objects_of(data, masked, on="pixels")
    trunk = DetectorTrunk(small("faster_rcnn"))
    with pytest.raises(DataError, match="box_head has no place for a mask"):
        objects_of(data, masked, trunk=trunk, wanted=[("box_head", "spoc")])


# --- the sources --------------------------------------------------------------------------


def test_every_source_by_its_name(data: ImageDataset) -> None:
    found = attention.sources(data, detector=small("mask_rcnn"), progress=False)
    assert list(found) == list(attention.SOURCES) == [region.name for region in found.values()]
    for region in found.values():
        assert len(region.boxes) == len(data) and region.boxes.counts.min() >= 1
    counts = {name: region.boxes.counts.max() for name, region in found.items()}
    assert counts["detector, top 1"] == counts["centre box"] == counts["whole image"] == 1
    assert counts["detector, top 3"] <= 3 and counts["R-MAC grid"] == 14
    assert found["detector masks, top 5"].masked and found["true masks"].masked
    made = objects_of(data, *found.values())
    assert all(np.isfinite(one.vectors[PAIR]).all() for one in made.values())


def test_sources_that_need_truth_are_left_out_where_it_is_not_known(data: ImageDataset) -> None:
    rest = [name for name in attention.SOURCES if name not in ("true boxes", "random boxes")]
    assert attention.possible(data) == list(attention.SOURCES)
    unmasked = replace(data, masks=None)
    assert set(attention.SOURCES) - set(attention.possible(data, unmasked)) == {"true masks"}
    nobody = (np.zeros((0, 4), np.float32),)
    one_less = replace(data, boxes=nobody + tuple(data.boxes[1:]), box_labels=(),
                       box_categories=(), masks=None)  # fmt: skip
    assert attention.possible(one_less) == [name for name in rest if name != "true masks"]


def test_unknown_sources_and_detectors_that_are_not_there(data: ImageDataset) -> None:
    with pytest.raises(DataError, match="no boxes called 'oracle'") as caught:
        attention.sources(data, ["whole image", "oracle"])
    assert "R-MAC grid" in caught.value.remedy
    with pytest.raises(DataError, match="needs a detector"):
        attention.sources(data, ["detector, top 3"])
    with pytest.raises(DataError, match="fcos proposes nothing"):
        attention.sources(data, ["proposals, top 10"], small("fcos"), progress=False)


@torch.inference_mode()
def test_proposals_are_those_of_the_network_in_pixels_of_the_image(data: ImageDataset) -> None:
    """The network sees the pictures of 100 x 48 at 64 x 31."""
    detector = small("faster_rcnn")
    found = attention.run_detector(data, detector, progress=False)
    plain = attention.detect(detector, data, progress=False)
    for i, one in enumerate(found):
        pixels = torch.from_numpy(np.asarray(data.image(i)).copy()).permute(2, 0, 1) / 255
        images, _ = detector.network.transform([pixels])
        features = detector.network.backbone(images.tensors)
        (boxes_,), _ = detector.network.rpn(images, features)
        height, width = images.image_sizes[0]
        expected = boxes_ * torch.tensor([100 / width, 48 / height] * 2)
        assert len(expected) > 10
        # Among random weights' near-equal scores, rounding may let one box pass another.
        apart = torch.cdist(expected, one["proposals"], p=torch.inf).min(dim=1).values
        assert (apart < 0.1).float().mean() > 0.9
        assert torch.equal(one["boxes"], plain[i]["boxes"])
    assert not detector.network.rpn._forward_hooks
    best = attention.proposal_boxes(data, detector, found, top=3)
    assert best.counts.tolist() == [3] * 4 and best.scores[0].tolist() == pytest.approx(
        [1, 1 / 2, 1 / 3]
    )


def test_top_takes_the_best_and_never_none(data: ImageDataset) -> None:
    found = ObjectBoxes("guess", [[[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 4, 4]]] * 2,
                        [[0.2, 0.9, 0.4], [0.1, 0.1, 0.3]])  # fmt: skip
    best = found.top(2)
    assert best.boxes[0].tolist() == [[1, 1, 9, 9], [2, 2, 4, 4]]
    assert best.boxes[1].tolist() == [[2, 2, 4, 4], [0, 0, 5, 5]]  # of equals the first
    sure = found.top(9, threshold=0.4)
    assert sure.counts.tolist() == [2, 1] and sure.boxes[1].tolist() == [[2, 2, 4, 4]]


def test_one_object_called_by_two_names_is_found_once(data: ImageDataset) -> None:
    double = {
        "boxes": torch.tensor([[5.0, 5, 30, 30], [6.0, 5, 30, 31], [50, 5, 80, 40]]),
        "labels": torch.tensor([1, 2, 1]),
        "scores": torch.tensor([0.5, 0.8, 0.3]),
    }
    found = attention.detector_boxes(data, small("fcos"), [double] * 4)
    assert found.boxes[0].tolist() == [[6, 5, 30, 31], [50, 5, 80, 40]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99))
def test_random_boxes_keep_sizes_and_stay_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 40, (6, 2))
    given_ = ObjectBoxes("some", [np.concatenate([low, low + rng.uniform(1, 8, (6, 2))], 1)])
    data = ImageDataset("sized", "test", Path("."), ["a.png"], [0], content="f")
    data.__dict__["_sizes"] = np.array([[48, 48]])
    moved = boxes.random_like(given_, data, seed).boxes[0]
    sides = [b[:, 2:] - b[:, :2] for b in (moved, given_.boxes[0])]
    np.testing.assert_allclose(*sides, atol=1e-4)
    assert moved.min() >= 0 and moved.max() <= 48
    assert np.abs(moved - given_.boxes[0]).max() > 1
    assert np.array_equal(moved, boxes.random_like(given_, data, seed).boxes[0])


def test_centre_and_grid_lie_where_they_should(data: ImageDataset) -> None:
    assert boxes.centre(data).boxes[0].tolist() == [[25, 12, 75, 36]]
    squares = boxes.grid(data).boxes[0]
    assert squares[0].tolist() == FULL[0]
    seen = squares * 60 / np.tile(SIZE, 2)  # as the trunk sees them
    assert sorted(set((seen[:, 2] - seen[:, 0]).round(3).tolist())) == [30, 40, 60]


# --- soft attention -----------------------------------------------------------------------


def test_a_class_activation_map_by_hand() -> None:
    """Two channels, one cell each; the classifier's class 1 listens to channel 1 only."""
    features = torch.zeros(1, 2, 2, 2)
    features[0, 0, 0, 0], features[0, 1, 1, 1] = 2.0, 3.0
    weight, bias = torch.tensor([[1.0, 0], [0, 1]]), torch.zeros(2)
    heat = attention.class_activation(features, weight, bias)
    assert heat.tolist() == [[[0, 0], [0, 1]]]
    against = attention.class_activation(features, -weight, bias)
    assert against.tolist() == [[[1, 1], [1, 1]]]  # no cell speaks for any class
    sure = attention.class_activation(features, weight, torch.tensor([9.0, 0]))
    assert sure.tolist() == [[[1, 0], [0, 0]]]


def test_activity_and_similarity_by_hand() -> None:
    features = torch.zeros(1, 2, 1, 2)
    features[0, :, 0, 0], features[0, 0, 0, 1] = torch.tensor([3.0, 5.0]), 6.0
    assert torch.allclose(attention.activity(features), torch.tensor([[[0.8, 0.6]]]).sqrt())
    near = attention.similarity(features[0], torch.tensor([0.0, 2.0]))
    assert torch.allclose(near, torch.tensor([[5 / 34**0.5, 0]]))


def test_soft_attention_goes_through_extraction(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = ImageDataset("one", "test", tmp_path, ["a.png"], [0])
    trunk = lively()
    weight = torch.randn(10, trunk.stages["head"].channels)
    soft = attention.ClassActivation(boxes.whole(data), weight, torch.zeros(10))
    found = objects_of(data, soft, boxes.whole(data), trunk=trunk)
    with torch.inference_mode():
        head = trunk(trunk.normalise(torch.from_numpy(noise).permute(2, 0, 1)[None]))["head"]
        heat = attention.class_activation(head, weight, torch.zeros(10))
    expected = (head * heat[:, None]).mean(dim=(2, 3))
    np.testing.assert_allclose(found["CAM"].vectors[PAIR], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(DataError, match="CAM has no crops"):
        objects_of(data, soft, trunk=trunk, on="pixels")
    with pytest.raises(DataError, match="comes without its ImageNet classifier"):
        attention.class_activation_of(trunk, data)


def test_true_boxes_are_a_place_to_look_only_where_every_image_has_one(data: ImageDataset) -> None:
    assert usable([WHOLE, ROI, CROP], data, data) == [WHOLE, ROI, CROP]
    some = replace(data, boxes=[np.zeros((0, 4)), *data.boxes[1:]], box_labels=(),
                   box_categories=(), masks=None)  # fmt: skip
    assert usable([WHOLE, ROI, CROP], data, some) == [WHOLE]
