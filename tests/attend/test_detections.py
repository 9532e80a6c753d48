"""Boxes from a file, a function or a detector's name, and what is refused at this door."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_scenes import PAIR, QUIET, lively, scenes, small

from objemb_lib.attend import detections
from objemb_lib.attend.detections import box_sources, boxes_from, light_detector
from objemb_lib.attend.objects import choices, evaluate_objects, looked_at, meets_main
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder
from objemb_lib.embed.boxes import Boxes, true_boxes
from objemb_lib.embed.extract import extract_objects
from objemb_lib.embed.regions import Region

SIZE = (100, 48)


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    return scenes(tmp_path / "scenes", size=SIZE)


NAMES = [
    "whole image", "random boxes", "random boxes, detector's sizes", "proposer's boxes",
    "detector's boxes", "true boxes", "true boxes, masks", "crop",
]  # fmt: skip


def written(tmp_path: Path, what: object) -> Path:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(what))
    return path


def result(image: object, box: list, score: float = 0.5, **more: object) -> dict:
    return {"image_id": image, "category_id": 1, "bbox": box, "score": score, **more}


@pytest.mark.parametrize("by", ["file", "stem", "number", "images"])
def test_a_results_file_finds_its_photographs_by_any_of_their_names(by, data, tmp_path) -> None:
    ids = {"file": data.files[2], "stem": Path(data.files[2]).stem, "number": 2, "images": 77}
    entries = [result(ids[by], [10, 5, 20, 30], 0.2), result(ids[by], [1, 2, 3, 4], 0.9)]
    images = [{"id": 77, "file_name": data.files[2]}]
    told = {"images": images, "annotations": entries} if by == "images" else entries
    found = boxes_from(written(tmp_path, told), data)
    assert found.boxes[2].tolist() == [[1, 2, 4, 6], [10, 5, 30, 35]]  # the surest first
    assert found.fell_back.tolist() == [True, True, False, True]
    assert (found.name, found.source) == ("boxes", "boxes")  # named after the file


def test_windows_of_photographs_get_what_lies_in_them_from_several_files(data, tmp_path) -> None:
    windows = replace(data.subset([0, 0]), crops=[(0, 0, 50, 48), (40, 10, 100, 48)])
    for k, box in enumerate(([10, 5, 20, 30], [45, 12, 30, 20])):
        (tmp_path / f"found_{k}.json").write_text(json.dumps([result(0, box)]))
    found = boxes_from(tmp_path / "found_*.json", windows)
    assert found.name == "found"  # the second box shows a sixth of itself in the first window
    assert [b.tolist() for b in found.boxes] == [[[10, 5, 30, 35]], [[5, 2, 35, 22]]]


def test_masks_of_a_file_come_along_if_every_box_has_one(data, tmp_path) -> None:
    square = {"segmentation": [[10, 5, 30, 5, 30, 35, 10, 35]]}
    entries = [result(i, [10, 5, 20, 30], **square) for i in range(4)]
    found = boxes_from(written(tmp_path, entries), data)
    mask = found.mask(0, 0)
    assert mask.shape == SIZE[::-1] and mask[10, 20] and not mask[10, 40]
    assert boxes_from(written(tmp_path, entries + [result(0, [1, 1, 9, 9])]), data).masks is None


def test_a_function_is_asked_for_each_photograph(data) -> None:
    def left_half(image):
        width, height = image.size
        mask = np.zeros((1, height, width), bool)
        mask[:, :, : width // 2] = True
        return np.array([[0, 0, width / 2, height]]), np.array([0.7]), mask

    found = boxes_from(left_half, data, progress=False)
    assert found.source == "left_half" and found.counts.tolist() == [1] * 4
    assert found.boxes[1].tolist() == [[0, 0, 50, 48]] and found.mask(3, 0).mean() == 0.5
    nothing = boxes_from(lambda image: ([], []), data, progress=False)
    assert nothing.fell_back.all()


BAD = {
    "another number of scores": ([[1, 1, 9, 9]], [0.5, 0.4]),
    "one flat box": ([1, 1, 9, 9], [0.5]),
    "five numbers": ([[1, 1, 9, 9, 0.5]], [0.5]),
    "from 0 to 1": ([[0.1, 0.2, 0.6, 0.9]], [0.5]),
    "a NaN": ([[1, 1, np.nan, 9]], [0.5]),
    "a score of NaN": ([[1, 1, 9, 9]], [np.nan]),
    "width and height": ([[60, 30, 20, 10]], [0.5]),
    "of a larger photograph": ([[400, 100, 900, 300]], [0.5]),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_a_box_is_refused_naming_the_photograph(what, data) -> None:
    with pytest.raises(DataError, match=r"0\.png") as caught:
        boxes_from(lambda image: BAD[what], data, progress=False)
    assert caught.value.remedy


def test_a_mask_too_few_is_refused(data) -> None:
    with pytest.raises(DataError, match="1 masks"):
        boxes = np.array([[1, 1, 9, 9], [2, 2, 8, 8]])
        boxes_from(lambda image: (boxes, np.ones(2), np.ones((1, 48, 100))), data, progress=False)


def test_names_in_a_file_are_compared_in_one_form(data, tmp_path) -> None:
    """paperless-ngx#4485; and a mark before the JSON, backslashes."""
    renamed = replace(data, files=["caf\u00e9.png", *data.files[1:]])
    one = [result(77, [1, 2, 3, 4])]
    told = {"images": [{"id": 77, "file_name": "p\\cafe\u0301.png"}], "annotations": one}
    path = written(tmp_path, told)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (tmp_path / "scenes" / data.files[0]).rename(tmp_path / "scenes" / renamed.files[0])
    assert boxes_from(path, renamed).boxes[0].tolist() == [[1, 2, 4, 6]]


@pytest.mark.parametrize(
    "images",
    [[{"id": 1, "file_name": "0.png"}, {"id": 1, "file_name": "1.png"}], ["0.png"],
     [{"file_name": "0.png"}], [{"id": 1, "file_name": None}]],
)  # fmt: skip
def test_images_of_a_file_that_cannot_be_told_apart_are_refused(images, data, tmp_path) -> None:
    """obss/sahi#98: all boxes went to the last of one id."""
    told = {"images": images, "annotations": [result(1, [1, 2, 3, 4])]}
    with pytest.raises(DataError, match="boxes.json"):
        boxes_from(written(tmp_path, told), data)


@pytest.mark.parametrize("told", [{"images": []}, [{"bbox": [1, 2, 3, 4]}], "text", 7, [7]])
def test_a_file_without_boxes_is_refused(told, data, tmp_path) -> None:
    with pytest.raises(DataError, match="holds no boxes"):
        boxes_from(written(tmp_path, told), data)


@pytest.mark.parametrize("bad", [{"bbox": [1, 2, "3", None]}, {"bbox": [1, 2]}, {"score": "sure"}])
def test_an_entry_that_is_no_box_is_refused_naming_the_photograph(bad, data, tmp_path) -> None:
    with pytest.raises(DataError, match=r"1\.png"):
        boxes_from(
            written(tmp_path, [result(1, [1, 2, 3, 4]), result(1, [2, 2, 3, 4]) | bad]), data
        )


def test_masks_of_others_cover_pixels_of_their_boxes(data, tmp_path) -> None:
    """cocoapi#175: an empty mask, or one beside its box, gave a vector of zeros."""
    beside = [[60, 30, 70, 30, 70, 40, 60, 40]]
    entry = result(data.files[0], [10, 5, 20, 30], segmentation=beside)
    found = boxes_from(written(tmp_path, [entry]), data.subset([0]))
    assert found.mask(0, 0).sum() == 600 and found.mask(0, 0)[5:35, 10:30].all()
    box = np.array([[10, 5, 30, 35]])
    blank = lambda image: (box, [1.0], np.zeros((1, *image.size[::-1]), bool))  # noqa: E731
    assert boxes_from(blank, data).mask(2, 0).sum() == 600
    turned = lambda image: (box, [1.0], np.ones((1, *image.size), bool))  # noqa: E731
    with pytest.raises(DataError, match=data.files[0] + ": masks that are not 48 x 100"):
        boxes_from(turned, data)
    entry["segmentation"] = {"size": [9, 9], "counts": [81]}
    with pytest.raises(DataError, match=data.files[0] + ": a segmentation that cannot be used"):
        boxes_from(written(tmp_path, [entry]), data)


def test_corners_in_a_file_are_refused(data, tmp_path) -> None:
    entries = [result(file, [40, 20, 90, 44]) for file in data.files]
    with pytest.raises(DataError, match="as corners"):
        boxes_from(written(tmp_path, entries), data)


def test_a_file_of_other_photographs_is_refused(data, tmp_path) -> None:
    with pytest.raises(DataError, match="none of its 1 boxes"):
        boxes_from(written(tmp_path, [result("holiday", [1, 2, 3, 4])]), data)
    with pytest.raises(DataError, match="no such file"):
        boxes_from(tmp_path / "absent.json", data)


def test_a_detector_by_its_name_or_none(data) -> None:
    for name in ("mask_rcnn", "proposer"):
        found = boxes_from(name, data.subset([0]), progress=False)
        assert isinstance(found, Boxes) and (found.name, found.source) == (name, name)
    with pytest.raises(DataError):
        boxes_from("yolo9000", data)


def test_every_way_of_looking_by_its_name(data: ImageDataset) -> None:
    found = box_sources(data, small("mask_rcnn"), small("fcos"), progress=False)
    assert list(found) == NAMES and found["true boxes, masks"].masked
    boxes = {name: region.boxes for name, region in found.items() if region.boxes}
    assert max(boxes[name].counts.max() for name in boxes if "or's" in name) <= 5
    like = boxes["random boxes, detector's sizes"].counts
    assert like.tolist() == boxes["detector's boxes"].counts.tolist()
    made = extract_objects(data, lively(), [PAIR], found, QUIET)
    assert all(np.isfinite(one.vectors[PAIR]).all() for one in made.values())


def test_what_is_not_known_is_left_out(data: ImageDataset, tmp_path) -> None:
    """Masks, truth of images without boxes; boxes of a file, at most five, need no detector."""
    entries = [result(i, [10, 5, 20 + k, 30], 0.1 * k) for i in range(4) for k in range(9)]
    file = written(tmp_path, entries)
    assert list(box_sources(replace(data, masks=None), file, file)) == [
        name for name in NAMES if name not in ("true boxes, masks", "proposer's boxes")
    ]
    nobody = replace(data, boxes=[np.zeros((0, 4)), *data.boxes[1:]], box_labels=(),
                     box_categories=(), masks=None)  # fmt: skip
    found = box_sources(nobody, file)
    assert list(found) == ["whole image", "random boxes, detector's sizes", "detector's boxes"]
    assert found["detector's boxes"].boxes.counts.tolist() == [5] * 4
    assert looked_at(nobody, found)["main objects met"].isna().all()
    assert looked_at(data, found).loc["detector's boxes", "boxes an image"] == 5


def test_choices_are_those_of_one_setting_after_the_other(data: ImageDataset) -> None:
    data = replace(data, labels=np.array([0, 0, 1, 1]), box_labels=(), box_categories=())
    pairs, region = [PAIR, ("stage4", "spoc")], Region(true_boxes(data))
    found = choices(data, lively(), region, pairs, (0.0, -0.2), QUIET)
    assert list(found) == [(pair, c) for pair in pairs for c in (0.0, -0.2)]
    one = {"": replace(region, context=-0.2)}
    (alone,) = extract_objects(data, lively(), pairs[1:], one, QUIET).values()
    expected = evaluate_objects(alone, data, pairs[1]).mean("mAP")
    assert found[pairs[1], -0.2] == pytest.approx(expected)


def test_what_the_proposer_found_is_not_computed_again(data, monkeypatch) -> None:
    first = boxes_from("proposer", data, progress=False)
    monkeypatch.setattr(detections, "propose", None)
    again = boxes_from("proposer", data, progress=False)
    for part in ("boxes", "scores"):
        for one, other in zip(getattr(first, part), getattr(again, part), strict=True):
            np.testing.assert_array_equal(one, other)
    monkeypatch.setenv("OBJEMB_PRECISION", "bf16")  # of other maps
    with pytest.raises(TypeError):
        boxes_from("proposer", data, progress=False)


@pytest.mark.parametrize("name", detections.LIGHT)
def test_torchvisions_light_detectors_give_boxes(name, data) -> None:
    """With random weights: theirs cannot be fetched everywhere."""
    found = boxes_from(light_detector(name, pretrained=False), data.subset([0]), progress=False)
    assert found.source == name and len(found) == 1


@pytest.mark.parametrize(("detector", "least"), [("yolox_nano", 0.8), ("nanodet_m", 0.75)])
def test_boxes_of_real_detectors_meet_the_main_objects(real_photographs, detector, least) -> None:
    place = real_photographs / "coco"
    truth = place / "annotations" / "instances_val2017.json"
    data = folder(place, annotations=truth, split="val2017", progress=False)
    found = boxes_from(place / "boxes" / f"{detector}_val2017.json", data)
    boxed = np.array([len(b) > 0 for b in data.boxes])
    assert meets_main(data, found.top(5))[boxed].mean() >= least
