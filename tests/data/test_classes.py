"""CUB, Cars and products: official lists, real photographs, copies that hold only a part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from objemb_lib.config import DataError
from objemb_lib.data import classes
from objemb_lib.data.classes import cars, cub, load_split, sop
from objemb_lib.data.dataset import ImageDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*images of .* are here")
Write = Callable[..., Path]


def lines(file: Path, *rows: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in rows))


def small_cub(root: Path, make_image: Write) -> Path:
    """Four images of classes 1, 100, 101 and 200, in the official layout."""
    species = {1: "001.A", 100: "100.B", 101: "101.C", 200: "200.D"}
    for i, folder in enumerate(species.values(), 1):
        make_image(root / "images" / folder / f"x_{i}.jpg", size=(40, 30), seed=i)
    numbered = list(enumerate(species.items(), 1))
    lines(root / "images.txt", *(f"{i} {folder}/x_{i}.jpg" for i, (_, folder) in numbered))
    lines(root / "image_class_labels.txt", *(f"{i} {c}" for i, (c, _) in numbered))
    lines(root / "bounding_boxes.txt", *(f"{i} 3.0 4.0 {10 * i}.0 20.0" for i, _ in numbered))
    lines(root / "classes.txt", *(f"{c} {folder}" for c, folder in species.items()))
    return root


def test_official_cub_lists(real_photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split counts as every paper states them; boxes are of some bird in each image."""
    root = real_photographs / "CUB_200_2011_text"
    with pytest.raises(DataError, match=r"none of the 11,788 images.*Albatross"):
        cub("train", root)
    monkeypatch.setattr(
        classes, "load_split", lambda *listed: SimpleNamespace(root=root, got=listed)
    )
    found, test = cub("train", root).got
    assert [(~test).sum(), test.sum()] == [5_864, 5_924]
    assert len(np.unique(found.labels[~test])) == len(np.unique(found.labels[test])) == 100
    assert not set(found.labels[test]) & set(found.labels[~test])
    assert found.label_names[0] == "Black_footed_Albatross"
    assert all(
        f".{found.label_names[lab]}/" in file for file, lab in zip(found.files, found.labels)
    )
    assert found.boxes.shape == (11_788, 1, 4) and found.boxes.min() >= 0
    assert (found.boxes[..., 2:] > found.boxes[..., :2]).all()
    assert found.boxes[0].tolist() == [[60, 27, 60 + 325, 27 + 304]]  # its line: 60 27 325 304


def test_cub_splits_by_class_and_keeps_boxes(tmp_path: Path, make_image: Write) -> None:
    root = small_cub(tmp_path / "CUB_200_2011", make_image)
    with pytest.warns(UserWarning, match="1 of 2 boxes lie outside"):
        test = cub("test", tmp_path)  # the folder above will do
    train = cub("train", root)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 99], [100, 199])
    assert train.boxes[0].tolist() == [[3, 4, 13, 24]]
    # 3 + 40 is 3 pixels beyond the 40 of the image: another version of it; so all of it
    assert [b.tolist() for b in test.boxes] == [[[3, 4, 33, 24]], [[0, 0, 40, 30]]]
    assert train.protocol == "metric learning" and train.name == test.name == "cub"
    assert train.fingerprint != test.fingerprint


def test_cub_masks_are_those_of_most_annotators(
    tmp_path: Path, make_image: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segmentations are grey: a fifth of white for each of five people who marked a pixel."""
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    root = small_cub(tmp_path / "cub", make_image)
    assert cub("train", root).masks is None
    grey = np.zeros((30, 40), np.uint8)
    grey[5:20, 4:12], grey[20:25] = 153, 102  # three of five, two of five
    for name in ("001.A/x_1", "101.C/x_3"):
        file = root / "segmentations" / f"{name}.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(grey).save(file)
    data = cub("train", root)
    assert np.array_equal(data.mask(0), grey == 153)
    box = np.zeros((30, 40), bool)
    box[4:24, 3:23] = True  # image 2 has no mask: its box stands in
    assert np.array_equal(data.mask(1), box)
    assert data.fingerprint != cub("test", root).fingerprint
    Image.fromarray(grey[::-1]).save(root / "segmentations" / "001.A" / "x_1.png")
    assert np.array_equal(cub("train", root).mask(0), grey[::-1] == 153)


def test_cub_lists_that_contradict_each_other(tmp_path: Path, make_image: Write) -> None:
    root = small_cub(tmp_path, make_image)
    lines(root / "bounding_boxes.txt", "1 0 0 9 9")
    with pytest.raises(DataError, match="different images"):
        cub("train", root)


def test_real_cars(real_photographs: Path) -> None:
    """784 images of the first 98 models, cut to their boxes, with the official annotations."""
    root = real_photographs / "stanford_cars"
    with pytest.warns(UserWarning, match=r"784 of the 16,185.*halved"):
        train = cars("train", root)
    test = cars("test", root)
    assert (len(train), len(test)) == (392, 392)
    assert set(train.labels) == set(range(49)) and set(test.labels) == set(range(49, 98))
    assert train.label_names[0] == "AM General Hummer SUV 2000"
    assert len(train.label_names) == 196
    for i in (0, 100, 391):  # the image is the box
        assert tuple(train.boxes[i][0]) == (0, 0, *train.image(i).size)


def car_notes(rows: list[tuple], **more: list) -> np.ndarray:
    kinds = [(k, "O") for k in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", *more)]
    notes = np.zeros(len(rows), kinds)
    for i, row in enumerate(rows):
        notes[i] = (*row, *(values[i] for values in more.values()))
    return notes


def test_cars_in_both_layouts(tmp_path: Path, make_image: Write) -> None:
    """The whole set as one file, and as the devkit with the labelled test annotations."""
    rows = [(2, 3, 20, 15, 98), (1, 1, 40, 30, 99)]  # MATLAB's: from 1, the last included
    names = np.array([f"model {i}" for i in range(1, 197)], object)
    one, two = tmp_path / "one", tmp_path / "two"
    for i, name in enumerate(("000001.jpg", "000002.jpg")):
        make_image(one / "car_ims" / name, seed=i)
    make_image(two / "cars_train" / "00001.jpg", seed=0)
    make_image(two / "cars_test" / "00001.jpg", seed=1)
    paths = ["car_ims/000001.jpg", "car_ims/000002.jpg"]
    whole = {"annotations": car_notes(rows, relative_im_path=paths), "class_names": names}
    savemat(one / "cars_annos.mat", whole)
    (two / "devkit").mkdir()
    savemat(two / "devkit" / "cars_meta.mat", {"class_names": names})
    for file, row in (("devkit/cars_train_annos.mat", rows[:1] * 2),
                      ("cars_test_annos_withlabels.mat", rows[1:] * 2)):  # fmt: skip
        fname = ["00001.jpg", "absent.jpg"]
        savemat(two / file, {"annotations": car_notes(row, fname=fname)})
    for root in (one, two):
        train, test = cars("train", root), cars("test", root)
        assert (train.labels.tolist(), test.labels.tolist()) == ([97], [98])
        assert train.boxes[0].tolist() == [[1, 2, 20, 15]]
        assert test.boxes[0].tolist() == [[0, 0, 40, 30]]
        assert train.label_names[97] == "model 98"


def test_damaged_cars_are_named(tmp_path: Path) -> None:
    (tmp_path / "cars_annos.mat").write_bytes(b"MATLAB 5.0" * 100)
    with pytest.raises(DataError, match=r"cars_annos\.mat: cannot be read"):
        cars("train", tmp_path)
    with pytest.raises(DataError, match=r"devkit is not there"):
        cars("train", tmp_path / "absent")


def test_products_have_their_own_split(tmp_path: Path, make_image: Write) -> None:
    head = "image_id class_id super_class_id path"
    rows = {"train": ["1 1 1 bicycle_final/1_0.JPG", "2 1 1 bicycle_final/1_1.JPG"],
            "test": ["3 2 1 bicycle_final/2_0.JPG", "4 3 12 toaster_final/3_0.JPG"]}  # fmt: skip
    root = tmp_path / "Stanford_Online_Products"
    for split, listed in rows.items():
        lines(root / f"Ebay_{split}.txt", head, *listed)
        for row in listed:
            make_image(root / row.split()[-1], format="JPEG")
    train, test = sop("train", tmp_path), sop("test", tmp_path)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0], [1, 2])
    assert test.categories.tolist() == [0, 11]
    assert (test.category_names[0], test.category_names[11]) == ("bicycle", "toaster")
    assert test.protocol == "metric learning, products" and not len(test.boxes[0])


def made_up(root: Path, make_image: Write, labels: list[int], **parts: object) -> tuple:
    files = [f"{i}.jpg" for i in range(len(labels))]
    for file in files:
        make_image(root / file)
    labels = np.array(labels)
    names = [f"class {i}" for i in range(labels.max() + 1)]
    return ImageDataset("made-up", "test", root, files, labels, names, **parts), labels >= 2


def test_a_missing_image_makes_it_a_part(tmp_path: Path, make_image: Write) -> None:
    found = made_up(tmp_path, make_image, [0, 1, 2, 3])
    assert load_split(*found).name == "made-up"
    (tmp_path / "3.jpg").unlink()
    with pytest.warns(UserWarning, match="3 of the 4 images of made-up are here"):
        assert load_split(*found).name == "made-up (part)"
    alone, test = made_up(tmp_path / "alone", make_image, [1, 1])
    assert len(load_split(alone, test)) == 2
    with pytest.raises(DataError, match="one class"):
        load_split(replace(alone, split="train"), test)
    with pytest.raises(DataError, match="no split 'val'"):
        cub("val", tmp_path)


def test_boxes_follow_images_that_are_reduced_and_not_those_that_are_turned(
    tmp_path: Path, make_image: Write
) -> None:
    """A turned image's box was drawn on the pixels as they are stored: all of it is the object."""
    boxes = np.array([[[0, 0, 40, 30]], [[100, 10, 8192, 30.0]], [[0, 0, 9, 9]]])
    found = made_up(tmp_path, make_image, [0, 2, 2], boxes=boxes)
    make_image(tmp_path / "1.jpg", size=(8192, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(tmp_path / "2.jpg", exif=exif)
    with pytest.warns(UserWarning, match="1 of 2 boxes"):
        data = load_split(*found)
    assert [data.image(i).size for i in (0, 1)] == [(4096, 20), (30, 40)]
    assert [box.tolist() for box in data.boxes] == [[[50, 5, 4096, 15]], [[0, 0, 30, 40]]]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-1, 0, 41.5, 5], [0, 0, 40, 5]),  # a little outside: cut
        ([-3, 0, 9, 5], [0, 0, 40, 30]),  # far outside: the box is of another image
        ([4, 4, 4, 9], [0, 0, 40, 30]),  # no area
    ],
)
@pytest.mark.filterwarnings("ignore:.*boxes lie outside")
def test_boxes_are_cut_or_not_believed(tmp_path: Path, make_image: Write, box, expected) -> None:
    found = made_up(tmp_path, make_image, [0, 2], boxes=np.array([[box], [box]], float))
    assert load_split(*found).boxes[0].tolist() == [expected]
