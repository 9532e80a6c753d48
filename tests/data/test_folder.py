"""A user's own photographs: labels from folders, boxes and masks from COCO files, bad input."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from objemb_lib.config import DataError
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import ANNOTATIONS, LABELS, annotated, encode_mask, folder, list_images

MakeImage = Callable[..., Path]


def read(root: Path, annotations: Path | None = None, **options) -> ImageDataset:
    return folder(root, annotations, progress=False, **options)


# ---- a folder, no annotations --------------------------------------------------------------


def test_labels_are_the_first_sub_folders(make_image: MakeImage, tmp_path: Path) -> None:
    for name in ("pets/dog/b.jpg", "pets/cat/z.PNG", "pets/cat/young/a.jpeg", "pets/loose.png"):
        make_image(name, seed=len(name))
    data = read(tmp_path / "pets")
    assert data.files == ("cat/young/a.jpeg", "cat/z.PNG", "dog/b.jpg", "loose.png")
    assert data.label_names == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1, -1]
    assert np.flatnonzero(data.relevant(0)).tolist() == [1]
    assert not data.relevant(3).any()
    assert (data.name, data.split, data.masks) == ("pets", "all", None)
    assert data.image(2).size == (40, 30)


@pytest.mark.parametrize(
    "names",
    [("train", "valid", "test"), ("TRAIN", "Validation"), ("val2017",)],
)
def test_splits_are_no_labels(make_image: MakeImage, tmp_path: Path, names: tuple[str]) -> None:
    for seed, name in enumerate(names):
        make_image(f"export/{name}/{seed}.jpg", seed=seed)
    with pytest.warns(UserWarning, match=f"{sorted(names)[0]}.* splits, no labels"):
        data = folder(tmp_path / "export", progress=False)
    assert set(data.labels.tolist()) == {-1} and not data.label_names
    make_image("export/cup/9.jpg", seed=9)  # beside objects they are some
    assert len(read(tmp_path / "export").label_names) == len(names) + 1


def test_one_folder_that_holds_all_says_less_than_annotations(pair: Path, tmp_path: Path) -> None:
    """easezyc/deep-transfer-learning#4: images/ beside a COCO file was the only label."""
    (tmp_path / "export").mkdir()
    pair.rename(tmp_path / "export" / "images")
    images = [{"id": 7, "file_name": "images/a.png"}, {"id": 9, "file_name": "images/b.png"}]
    annotations = [annotation(1, [0, 0, 9, 9]), annotation(2, [0, 0, 20, 20], 18, image_id=9)]
    path = write_coco(tmp_path / "export" / "boxes.json", annotations, images=images)
    data = read(tmp_path / "export", path)
    assert data.labels.tolist() == data.categories.tolist() and len(set(data.labels)) == 2
    assert read(tmp_path / "export").label_names == ["images"]  # without one it is a label


def test_the_home_folder_may_be_named(pair: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(pair.parent))
    assert len(read(Path("~") / pair.name)) == len(read(f"~/{pair.name}")) == 2


def test_hidden_and_other_files_are_left_out(make_image: MakeImage, tmp_path: Path) -> None:
    for name in ("a.jpg", "._b.jpg", ".thumbnails/c.jpg", "cat/.trash/d.png"):
        make_image(name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "Thumbs.db").write_bytes(b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is wrong with such a folder
        assert read(tmp_path).files == ("a.jpg",)


def test_links_are_followed_but_not_in_circles(make_image: MakeImage, tmp_path: Path) -> None:
    make_image("elsewhere/a.jpg")
    make_image("pets/dog/b.jpg")
    (tmp_path / "pets" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pets" / "dog" / "again").symlink_to(tmp_path / "pets")
    assert read(tmp_path / "pets").files == ("cat/a.jpg", "dog/b.jpg")


def test_a_split_is_a_sub_folder(make_image: MakeImage, tmp_path: Path) -> None:
    for name in ("birds/train/wren/a.jpg", "birds/test/wren/b.jpg", "birds/test/jay/c.jpg"):
        make_image(name)
    data = read(tmp_path / "birds", split="test")
    assert (data.name, data.split, data.files) == ("birds", "test", ("jay/c.jpg", "wren/b.jpg"))
    with pytest.raises(DataError, match="val(.|\n)*Beside it are: test, train"):
        read(tmp_path / "birds", split="val")


# ---- folders and images that cannot be used ------------------------------------------------


@pytest.mark.usefixtures("without_heif")
def test_folders_that_hold_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as caught:
        read(tmp_path / "photoss")
    assert "Relative paths start at" in caught.value.remedy
    with pytest.raises(DataError, match="nothing at all"):
        read(tmp_path)
    for i in range(3):
        (tmp_path / f"IMG_{i}.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(DataError, match=r"3 \.heic") as caught:
        read(tmp_path)
    assert "convert them to JPEG" in caught.value.remedy


def test_broken_images_are_skipped_with_a_count(make_image: MakeImage, tmp_path: Path) -> None:
    paths = [make_image(f"{name}.png") for name in "apqrst"]
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[:80])
    with pytest.warns(UserWarning, match="5 of 6 images skipped") as caught:
        assert read(tmp_path).files == ("a.png",)
    (warning,) = caught
    shown = [f"{name}.png" in str(warning.message) for name in "pqrst"]
    assert shown == [True, True, True, False, False]
    assert warning.filename == __file__  # it points at the reader's line, not into the library
    paths[0].unlink()
    with pytest.raises(DataError, match=r"none of its 5 images(.|\n)*p\.png"):
        read(tmp_path)


# ---- photographs that are lost or gained ----------------------------------------------------

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)


def said(read_it: Callable, *words: str) -> ImageDataset:
    """What is read, with one warning that says all the words."""
    with pytest.warns(UserWarning) as caught:
        data = read_it()
    assert len(caught) == 1
    for word in words:
        assert word in str(caught[0].message)
    return data


@pytest.mark.usefixtures("without_heif")
def test_heic_is_counted_with_the_remedy(make_image: MakeImage, tmp_path: Path) -> None:
    """photoview#748, burrow#283: 40 of 42 photographs vanished."""
    for i in range(2):
        make_image(f"cup/IMG_{i}.JPG", seed=i)
    for i in range(40):
        (tmp_path / f"cup/IMG_{100 + i}.HEIC").write_bytes(HEIC)
    words = "40 of 42 images skipped", "IMG_100.HEIC", "and 37 more", "pip install pillow-heif"
    assert len(said(lambda: read(tmp_path), *words)) == 2


JPEG_2000 = b"\0\0\0\x0cjP  \r\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.jpg_large", "JPEG", "JPEG by another suffix"),
        ("no_suffix", "PNG", "PNG by another"),
        ("c.1", "WEBP", "WEBP by another"),
        ("really.HEIC", "JPEG", "JPEG by another"),
        (".b.HEIC.icloud", b"bplist00", "still in iCloud"),
        ("d.jxl", b"\xff\x0a", "JPEG XL"),
        ("e.dng", b"II*\0", "raw"),
        ("f.CR2", b"x", "raw"),
        ("g.jp2", JPEG_2000, "JPEG 2000"),
        ("h", JPEG_2000, "JPEG 2000"),
        ("i", HEIC, "pillow-heif"),
        ("j.HIF", b"", "pillow-heif"),
        ("k.bin", b"8BPS", "Photoshop"),
        ("l", None, "cannot be read (No such file"),  # a link to a disk that is not there
        (os.fsdecode(b"caf\xe9.jpg"), "JPEG", "caf\\udce9.jpg: its name is not UTF-8"),
        (os.fsdecode(b"tass\xe9/b.jpg"), "JPEG", "not UTF-8"),  # ownphotos#112, dupeguru#335
    ],
)
@pytest.mark.usefixtures("without_heif")
def test_no_photograph_is_lost_in_silence(
    make_image: MakeImage, tmp_path: Path, name: str, content: bytes | str | None, words: str
) -> None:
    make_image("a.jpg")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.symlink_to(tmp_path / "elsewhere")
    elif isinstance(content, str):
        Image.new("RGB", (8, 8)).save(path, content)
    else:
        path.write_bytes(content)
    data = said(lambda: read(tmp_path), "1 of 2 images skipped", words, "What to do: ")
    assert data.files == ("a.jpg",)


@pytest.mark.parametrize(
    "name", ["a.txt", "b.json", "c.mp4", "d.xmp", ".e.pdf.icloud", "f.svg", "Makefile"]
)
def test_what_is_no_photograph_is_no_matter(make_image, tmp_path: Path, name: str) -> None:
    make_image("a.jpg")
    (tmp_path / name).write_bytes(b"BM or P6, and other words")
    os.mkfifo(tmp_path / "pipe")  # to read it would take for ever
    assert read(tmp_path).files == ("a.jpg",)


@pytest.mark.parametrize("named", [".hidden.jpg", "no_suffix", "b.jpg_large"])
def test_what_a_file_names_is_read_whatever_its_name(make_image, tmp_path: Path, named) -> None:
    make_image("p/a.jpg")
    make_image("p/b.jpg", seed=1).rename(tmp_path / "p" / named)
    images = [{"id": 7, "file_name": named}, {"id": 9, "file_name": "a.jpg"}]
    coco = write_coco(tmp_path / "a.json", [annotation(1, [0, 0, 9, 9])], images=images)
    assert set(read(tmp_path / "p", coco).files) == {"a.jpg", named}
    labels = write_labels(tmp_path / "labels.csv", [{"file": named, "label": "cup"}])
    assert set(read(tmp_path / "p", labels=labels).files) == {"a.jpg", named}


@pytest.mark.usefixtures("without_heif")
def test_a_heic_that_a_file_names_is_no_missing_one(make_image, tmp_path: Path) -> None:
    make_image("p/a.jpg")
    (tmp_path / "p/b.HEIC").write_bytes(HEIC)
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.HEIC"}]
    coco = write_coco(tmp_path / "a.json", [], images=images)
    said(lambda: read(tmp_path / "p", coco), "1 of 2", "b.HEIC", "pillow-heif")


@pytest.mark.parametrize(
    "place",
    ["@eaDir/a.jpg", "cup/@eaDir/a.jpg", "@__thumb", "Previews.lrdata", "#recycle",
     "#snapshot/daily", "@Recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX",
     "System Volume Information", "found.000"],
)  # fmt: skip
def test_folders_of_the_system_are_left_out(make_image, tmp_path: Path, place: str) -> None:
    """MMM-BackgroundSlideshow#26, photoprism#1543: thumbnails became photographs, and a label."""
    make_image("cup/a.jpg")
    make_image("@home #1/b.jpg")  # a name of the user's own
    make_image(f"{place}/SYNOPHOTO_THUMB_M.jpg", size=(8, 6))
    data = read(tmp_path)
    assert data.files == ("@home #1/b.jpg", "cup/a.jpg")
    assert data.label_names == ["@home #1", "cup"]


def test_a_folder_that_may_not_be_opened_is_said(make_image, tmp_path: Path, monkeypatch) -> None:
    for name in ("cup/a.jpg", "dog/b.jpg"):
        make_image(name)
    scan = os.scandir

    def deny(path: str) -> object:  # chmod does not stop root
        if str(path).endswith(denied):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    denied = "dog"
    words = "0 of 1 images skipped, 1 folders not opened", "dog", "permissions"
    assert said(lambda: read(tmp_path), *words).label_names == ["cup"]
    denied = str(tmp_path)
    with pytest.raises(DataError, match=r"cannot be opened(.|\n)*permissions"):
        read(tmp_path)


FORMS = [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")]


@pytest.mark.parametrize(("disk", "text"), FORMS)
def test_names_are_compared_in_one_form(make_image, tmp_path: Path, disk: str, text: str) -> None:
    """paperbanana#234, paperless-ngx#4485: macOS decomposes accents, others do not."""
    stored = normalize(disk, "M\u00fctze/caf\u00e9.jpg")
    make_image(f"p/{stored}")
    make_image("p/" + normalize(text, "M\u00fctze/b.jpg"), seed=1)
    data = read(tmp_path / "p")
    assert stored in data.files and data.label_names == ["M\u00fctze"]  # one, not two
    images = [{"id": 7, "file_name": normalize(text, stored)}]
    coco = write_coco(tmp_path / "a.json", [annotation(1, [1, 1, 20, 20])], images=images)
    boxes = read(tmp_path / "p", coco).boxes
    assert sorted(map(len, boxes)) == [0, 1]
    rows = [{"file": normalize(text, stored), "label": normalize(disk, "tass\u00e9")}]
    data = read(tmp_path / "p", labels=write_labels(tmp_path / "labels.csv", rows))
    assert data.label_names == ["tass\u00e9"]


def test_a_photograph_whose_name_is_not_utf_8_says_so(make_image, tmp_path: Path) -> None:
    path = make_image(os.fsdecode(b"q\xe9.jpg"))
    with pytest.raises(DataError, match=r"q\\udce9\.jpg(.|\n)*Rename it"):
        ImageDataset("one", "query", tmp_path, [path.name], [-1])


# ---- COCO annotations ----------------------------------------------------------------------

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]  # neither sorted nor 0, 1, ...


def annotation(number: int, bbox: list[float], category: int = 3, **more) -> dict:
    return {"id": number, "image_id": 7, "category_id": category, "bbox": bbox} | more


def write_coco(path: Path, annotations: list[dict], **changes) -> Path:
    """Two images of 40 x 30: a.png (id 7), which ``annotations`` are of, and b.png (id 9)."""
    images = [
        {"id": 9, "file_name": "./b.png", "width": 40, "height": 30},
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
    ]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES} | changes
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def pair(make_image: MakeImage, tmp_path: Path) -> Path:
    """Folder with a.png and b.png, 40 x 30 pixels."""
    make_image("pair/a.png")
    make_image("pair/b.png", seed=1)
    return tmp_path / "pair"


def test_boxes_by_hand(pair: Path, tmp_path: Path, make_image: MakeImage) -> None:
    make_image("pair/c.png")  # which the file does not name
    annotations = [
        annotation(1, [1, 2, 3, 4], 18),
        annotation(2, [-5, -5, 25, 15]),  # clipped to 20 x 10: the largest object
        annotation(3, [30, 20, 50, 50], 18),  # clipped to 10 x 10
        annotation(4, [0, 0, 40, 30], iscrowd=1),  # larger, but no object
        annotation(5, [4, 4, 0, 9]),  # no width
        annotation(6, [60, 4, 9, 9]),  # outside
        annotation(7, [float("nan"), 0, 9, 9]),
    ]
    with pytest.warns(UserWarning, match="3 annotated boxes without area"):
        data = read(pair, write_coco(tmp_path / "boxes.json", annotations))
    expected = [[0, 0, 20, 10], [30, 20, 40, 30], [1, 2, 4, 6], [0, 0, 40, 30]]
    assert data.files == ("a.png", "b.png", "c.png") and data.boxes[0].tolist() == expected
    assert data.boxes[0].dtype == np.float32
    assert data.boxes[1].shape == (0, 4)
    assert data.label_names == data.category_names == ["car", "dog"]
    assert data.box_labels[0].tolist() == [0, 1, 1, 0]
    assert data.labels.tolist() == data.categories.tolist() == [0, -1, -1]
    assert data.masks is None
    assert data.extra[0]["annotation_ids"] == [2, 3, 1, 4]
    assert data.extra[0]["iscrowd"] == [False, False, False, True]


def test_folders_name_the_main_object_and_no_other(make_image: MakeImage, tmp_path: Path) -> None:
    make_image("pair/rex/a.png")
    make_image("pair/fido/b.png", seed=1)
    images = [{"id": 7, "file_name": "rex\\a.png"}, {"id": 9, "file_name": "fido/b.png"}]
    annotations = [annotation(1, [0, 0, 9, 9]), annotation(2, [0, 0, 20, 20], 18)]
    path = write_coco(tmp_path / "boxes.json", annotations, images=images)
    data = read(tmp_path / "pair", path)
    assert data.files == ("fido/b.png", "rex/a.png")
    assert data.label_names == ["fido", "rex"]
    assert data.labels.tolist() == [0, 1]
    assert data.categories.tolist() == [-1, 1]
    assert data.box_labels[1].tolist() == [1, -1]  # category 0 is a car, label 0 is Fido
    assert data.box_categories[1].tolist() == [1, 0]
    assert not data.junk(0)[1]


def block(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (40, 30)) -> np.ndarray:
    mask = np.zeros(size[::-1], np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def test_all_kinds_of_segmentation(pair: Path, tmp_path: Path) -> None:
    target = block(4, 6, 20, 16)
    flat = target.ravel("F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.r_[0, changes, flat.size]).tolist()  # starts with background, as COCO asks
    compressed = coco_mask.encode(np.asfortranarray(target))["counts"].decode()
    halves = [[4, 6, 12, 6, 12, 16, 4, 16], [12, 6, 20, 6, 20, 16, 12, 16]]
    box = [4, 6, 16, 10]
    annotations = [
        annotation(1, box, segmentation=halves),
        annotation(2, box, segmentation={"size": [30, 40], "counts": runs}, iscrowd=1),
        annotation(3, box, segmentation={"size": [30, 40], "counts": compressed}, iscrowd=1),
        annotation(4, box, segmentation=[], iscrowd=1),  # none: its box
        annotation(5, box, segmentation=[[1, 1, 2, 2]], iscrowd=1),  # a line: its box
    ]
    data = read(pair, write_coco(tmp_path / "masks.json", annotations))
    for k in range(5):
        assert np.array_equal(data.mask(0, k), target), annotations[k]["id"]
        assert isinstance(data.masks[0][k]["counts"], (bytes, str))  # compressed
    assert data.masks[1] == []


def test_very_large_images_and_their_boxes_are_reduced_together(
    make_image: MakeImage, tmp_path: Path
) -> None:
    make_image("wide/a.png", size=(8192, 64))
    square = [4096, 16, 4160, 16, 4160, 48, 4096, 48]
    images = [{"id": 7, "file_name": "a.png", "width": 8192, "height": 64}]
    annotations = [annotation(1, [4096, 16, 64, 32], segmentation=[square])]
    data = read(tmp_path / "wide", write_coco(tmp_path / "a.json", annotations, images=images))
    assert data.image(0).size == (4096, 32)
    assert data.boxes[0].tolist() == [[2048, 8, 2080, 24]]
    assert np.array_equal(data.mask(0), block(2048, 8, 2080, 24, (4096, 32)))


def test_rotated_photographs_need_upright_annotations(pair: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(pair / "a.png") as image:
        image.save(pair / "a.png", exif=exif)
    upright = [{"id": 7, "file_name": "a.png", "width": 30, "height": 40}]
    path = write_coco(tmp_path / "up.json", [annotation(1, [0, 0, 30, 40])], images=upright)
    data = read(pair, path)
    assert data.boxes[0].tolist() == [[0, 0, 30, 40]]
    assert data.image(0).size == (30, 40)

    path = write_coco(tmp_path / "lying.json", [annotation(1, [0, 0, 40, 30])])
    with pytest.warns(UserWarning, match=r"1 of 2 images(.|\n)*a\.png: annotated at 40 x 30"):
        assert read(pair, path).files == ("b.png",)


@pytest.mark.parametrize("text", [
    "{", "[]", "\N{SNOWMAN}",
    '{"images": [], "annotations": []}',
    '{"images": [{"file_name": 7, "id": 7}], "annotations": [], "categories": []}',
    '{"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}], "categories": []}',
    '{"images": null, "annotations": null, "categories": null}',
])  # fmt: skip
def test_files_that_are_not_coco(pair: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.json: not COCO"):
        read(pair, path)


def test_annotations_of_what_is_not_there(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not COCO"):
        read(pair, tmp_path / "none.json")
    for fault in ({"image_id": 8}, {"category_id": 1}):
        path = write_coco(tmp_path / "a.json", [annotation(31, [0, 0, 9, 9]) | fault])
        with pytest.raises(DataError, match="annotation 31"):
            read(pair, path)
    (pair / "b.png").unlink()
    with pytest.raises(DataError, match=r"names 1 images that are not in .* b\.png"):
        read(pair, write_coco(tmp_path / "a.json", [annotation(1, [0, 0, 9, 9])]))


@pytest.mark.parametrize(
    "fault",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": ["a", 2, 3, 4]},
        {"segmentation": {"size": [40, 30], "counts": [1200]}},  # width and height swapped
        {"segmentation": {"size": [30, 40], "counts": [5, 5]}},
        {"segmentation": {"size": [30, 40], "counts": ""}},
        {"segmentation": {"size": [30, 40], "counts": "zzzz!!"}},
        {"segmentation": [[0, 0, float("nan"), 5, 5, 5]]},  # pycocotools would not come back
        {"segmentation": [[0, 0, 1e9, 5, 5, 5]]},
        {"segmentation": [[0, 0, 5, 5, 5, 0, 2]]},
        {"segmentation": [0, 0, 5, 5, 5, 0]},
        {"segmentation": "0 0 5 5 5 0"},
        {"segmentation": [["0", "0", "5", "5", "5", "0"]]},
    ],
)
def test_annotations_that_cannot_be_used(pair: Path, tmp_path: Path, fault: dict) -> None:
    good = annotation(1, [0, 0, 9, 9], segmentation=[[0, 0, 9, 0, 9, 9]])
    path = write_coco(tmp_path / "a.json", [good, annotation(44, [0, 0, 9, 9]) | fault])
    with pytest.raises(DataError, match="annotation .*44 cannot be used") as caught:
        read(pair, path)
    assert "bbox" in caught.value.remedy


# ---- properties ----------------------------------------------------------------------------

number = st.floats(-1000, 1000, width=32)
some_boxes = st.lists(st.tuples(number, number, number, number), max_size=6)


@given(some_boxes, st.tuples(st.integers(1, 500), st.integers(1, 500)))
def test_boxes_are_clipped_to_the_image(xywh: list[tuple], size: tuple[int, int]) -> None:
    objects = [{"id": k, "bbox": box, "number": 0} for k, box in enumerate(xywh)]
    parts, _ = annotated([{"objects": objects}], [size], ["thing"])
    for box, k in zip(parts["boxes"][0], parts["extra"][0]["annotation_ids"]):
        (x, y, w, h), (width, height) = xywh[k], size
        corners = np.clip([x, y, x + w, y + h], 0, [width, height] * 2)
        assert box.tolist() == np.float32(corners).tolist()
        assert box[2] > box[0] and box[3] > box[1]  # none without area survives


@given(st.integers(0, 30), st.integers(0, 20), st.integers(1, 10), st.integers(1, 10))
def test_a_box_on_pixel_edges_is_its_mask(x: int, y: int, w: int, h: int) -> None:
    encoded = encode_mask(None, np.array([x, y, x + w, y + h]), (40, 30))
    assert np.array_equal(coco_mask.decode(encoded), block(x, y, x + w, y + h))


def test_real_coco(real_photographs: Path) -> None:
    path = real_photographs / "coco" / "annotations" / "instances_val2017.json"
    said = json.loads(path.read_text())
    data = read(real_photographs / "coco", path, split="val2017")
    assert len(data) == len(said["images"])
    assert sum(map(len, data.boxes)) == len(said["annotations"])
    by_id = {entry["id"]: entry for entry in said["annotations"]}
    names = {entry["id"]: entry["name"] for entry in said["categories"]}
    areas = np.zeros(2)
    for i in range(len(data)):
        entries = [by_id[number] for number in data.extra[i]["annotation_ids"]]
        for k, entry in enumerate(entries):
            x, y, w, h = entry["bbox"]
            assert data.boxes[i][k] == pytest.approx([x, y, x + w, y + h], abs=0.02)
            assert data.label_names[data.box_labels[i][k]] == names[entry["category_id"]]
            area = coco_mask.area(data.masks[i][k])
            if entry["iscrowd"]:  # their "area" is not that of their own run lengths in COCO
                assert area == sum(entry["segmentation"]["counts"][1::2])
            else:
                areas += entry["area"], area
        plain = [e["bbox"][2] * e["bbox"][3] for e in entries if not e["iscrowd"]]
        assert plain == sorted(plain, reverse=True)
    assert areas[1] == pytest.approx(areas[0], rel=0.005)


# ---- a list of labels ----------------------------------------------------------------------


def write_labels(path: Path, rows: list[dict]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_list_says_what_folders_do_not(make_image: MakeImage, tmp_path: Path) -> None:
    for file in ("a.png", "shelf/b.png", "shelf/c.png", "d.png"):
        make_image(f"shop/{file}", seed=ord(file[-5]))
    rows = [{"file": "./a.png", "label": "pear", "category": "fruit", "role": "gallery"},
            {"file": "shelf/b.png", "label": "pear", "category": "fruit", "role": "query"},
            {"file": "shelf/c.png", "label": "milk"}]  # fmt: skip
    data = read(tmp_path / "shop", labels=write_labels(tmp_path / "labels.csv", rows))
    assert data.files == ("a.png", "d.png", "shelf/b.png", "shelf/c.png")
    assert data.labels.tolist() == [1, -1, 1, 0] and data.label_names == ["milk", "pear"]
    assert data.categories.tolist() == [0, -1, 0, -1] and data.category_names == ["fruit"]
    assert data.queries.tolist() == [1, 2, 3] and data.gallery.tolist() == [0, 1, 3]
    assert data.gallery[data.relevant(2)].tolist() == [0]


@pytest.mark.parametrize("text", ["", "file,name\na.png,x\n", "file,label\na.png,\n", "\0\1"])
def test_other_lists_are_named(pair: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"labels\.csv: (not a list of labels|cannot be read)"):
        read(pair, labels=path)


def test_a_list_in_another_spelling_is_read(make_image, tmp_path: Path) -> None:
    make_image("cup/caf\u00e9.png")
    path = tmp_path / "labels.csv"
    path.write_text("file, label, role\ncup\\cafe\u0301.png, milk, query\n", encoding="utf-8-sig")
    data = read(tmp_path, labels=path)
    assert data.label_names == ["milk"] and data.labels.tolist() == [0] and not len(data.gallery)


@pytest.mark.parametrize(
    ("rows", "says"),
    [("a.png,cup,\n./a.png,dog,", "a.png is listed twice"),
     ("a.png,cup,\na.png,cup,query", "a.png is listed twice"), ("a.png,cup,Query", "role 'Query'")],
)  # fmt: skip
def test_a_list_that_contradicts_itself_is_refused(pair: Path, tmp_path, rows, says) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"file,label,role\n{rows}\n")
    with pytest.raises(DataError, match=f"labels.csv: .*{says}"):
        read(pair, labels=path)


# ---- halves: folder:PATH -------------------------------------------------------------------


@pytest.fixture
def birds(tmp_path: Path, make_image: MakeImage) -> Path:
    """Four species of two birds, and a single owl."""
    for k, name in enumerate(("crow", "heron", "owl", "robin", "tern")):
        for i in range(1 if name == "owl" else 2):
            make_image(f"{name}/{i}.png", seed=10 * k + i)
    return tmp_path


def names(data: ImageDataset) -> list[str]:
    return [data.label_names[label] for label in data.labels]


def test_the_first_half_of_the_labels_trains_and_the_second_tests(birds: Path, make_image) -> None:
    make_image("loose.png", seed=99)  # no label: in neither half
    train, tests = load_splits(f"folder:{birds}")
    assert names(train) == ["crow"] * 2 + ["heron"] * 2 + ["owl"]  # halved by labels that count
    assert names(tests["test"]) == ["robin"] * 2 + ["tern"] * 2
    assert (train.split, tests["test"].split) == ("train", "test")
    assert not any(len(boxes) for boxes in train.boxes)


def test_boxes_and_labels_are_read_where_the_folder_has_them(birds: Path) -> None:
    files = list_images(birds)
    images = [{"id": i, "file_name": f, "width": 40, "height": 30} for i, f in enumerate(files)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 3, 10, 20]}
        for i, file in enumerate(files)
        if "owl" not in file
    ]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "bird"}]}
    (birds / ANNOTATIONS).write_text(json.dumps(coco))
    with pytest.warns(UserWarning, match="1 of 9 photographs have no box"):
        train, tests = load_splits(f"folder:{birds}")
    assert names(tests["test"]) == ["robin"] * 2 + ["tern"] * 2  # by folder, not by "bird"
    assert [boxes.tolist() for boxes in train.boxes] == [[[2, 3, 12, 23]]] * 4
    (birds / ANNOTATIONS).unlink()
    rows = [{"file": f, "label": f"bird {i // 2}", "role": "gallery" if i % 2 else "query"}
            for i, f in enumerate(files)]  # fmt: skip
    write_labels(birds / LABELS, rows)
    train, tests = load_splits(f"folder:{birds}")
    assert names(tests["test"]) == ["bird 2"] * 2 + ["bird 3"] * 2 + ["bird 4"]
    assert (train.queries.tolist(), train.gallery.tolist()) == ([0, 2], [1, 3])


def test_too_few_labels_say_how_to_arrange_photographs(tmp_path: Path, make_image) -> None:
    for i in range(6):
        make_image(f"{i}.png", seed=i)
    with pytest.raises(DataError, match="0 labels") as error:
        load_splits(f"folder:{tmp_path}")
    assert "sub-folder" in error.value.remedy and ANNOTATIONS in error.value.remedy
    with pytest.raises(DataError, match="no folder is named"):
        load_splits("folder")
