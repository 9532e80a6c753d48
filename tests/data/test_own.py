"""A folder of one's own photographs: halved by label, with boxes where a COCO file gives them."""

from __future__ import annotations

import json

import pytest

from objemb_lib.config import DataError
from objemb_lib.data import catalogue
from objemb_lib.data.own import ANNOTATIONS


@pytest.fixture
def photographs(tmp_path, make_image):
    """Four species of two birds, and a single owl."""
    for k, name in enumerate(("crow", "heron", "owl", "robin", "tern")):
        for i in range(1 if name == "owl" else 2):
            make_image(f"{name}/{i}.png", seed=10 * k + i)
    return tmp_path


def names(data):
    return [data.label_names[label] for label in data.labels]


def test_the_first_half_of_the_labels_trains_and_the_second_tests(photographs):
    train, tests = catalogue.load_splits(f"folder:{photographs}")
    assert names(train) == ["crow"] * 2 + ["heron"] * 2 + ["owl"]  # halved by labels that count
    assert names(tests["test"]) == ["robin"] * 2 + ["tern"] * 2
    assert list(tests) == ["test"] and (train.split, tests["test"].split) == ("train", "test")
    assert train.fingerprint != tests["test"].fingerprint
    assert not any(len(boxes) for boxes in train.boxes)


def test_photographs_without_a_label_are_in_neither_half(photographs, make_image):
    make_image("loose.png", seed=99)
    train, tests = catalogue.load_splits(f"folder:{photographs}")
    assert "loose.png" not in [*train.files, *tests["test"].files]
    assert len(train) + len(tests["test"]) == 9


def test_boxes_are_read_where_the_folder_has_them(photographs):
    files = sorted(p.relative_to(photographs).as_posix() for p in photographs.glob("*/*.png"))
    images = [{"id": i, "file_name": f, "width": 40, "height": 30} for i, f in enumerate(files)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 3, 10, 20], "area": 200}
        for i, file in enumerate(files)
        if "owl" not in file
    ]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "bird"}]}
    (photographs / ANNOTATIONS).write_text(json.dumps(coco))
    with pytest.warns(UserWarning, match="1 of 9 photographs have no box"):
        train, tests = catalogue.load_splits(f"folder:{photographs}")
    assert names(tests["test"]) == ["robin"] * 2 + ["tern"] * 2  # by folder, not by "bird"
    assert [boxes.tolist() for boxes in train.boxes] == [[[2, 3, 12, 23]]] * 4


def test_too_few_labels_say_how_to_arrange_photographs(tmp_path, make_image):
    for i in range(6):
        make_image(f"{i}.png", seed=i)
    with pytest.raises(DataError, match="0 labels") as error:
        catalogue.load_splits(f"folder:{tmp_path}")
    assert "sub-folder" in error.value.remedy and ANNOTATIONS in error.value.remedy


def test_a_folder_must_be_named():
    with pytest.raises(DataError, match="no folder is named"):
        catalogue.load_splits("folder")
