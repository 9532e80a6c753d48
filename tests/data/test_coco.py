"""COCO and Open Images as objects to retrieve: windows, their boxes and masks, what is junk."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_server import Server, serve, status, whole
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.mask import area as mask_area

from objemb_lib.config import DataError
from objemb_lib.data import coco as module
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.coco import coco, coco_photographs, objects, open_images
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import annotated, check_boxes, encode_mask, folder

pytestmark = pytest.mark.filterwarnings("ignore:.*images of .* are here")
NAMES = ["cat", "dog", "cup", "car"]  # cat and cup train, dog and car test
Write = Callable[..., Path]


def photographs(root: Path, split: str, size: tuple, *images: list, outlines=()) -> tuple:
    """Photographs of one size, each a list of (box, category, id), and their annotations."""
    entries = [
        {"objects": [{"bbox": [x0, y0, x1 - x0, y1 - y0], "number": c, "id": n,
                      "segmentation": dict(outlines).get(n)} for (x0, y0, x1, y1), c, n in image]}
        for image in images
    ]  # fmt: skip
    parts, annotations = annotated(entries, [size] * len(images), NAMES)
    files = [f"{i}.png" for i in range(len(images))]
    for file in files:
        Image.new("L", size).save(root / file)
    return ImageDataset("made-up", split, root, files, **parts), annotations


YARD = [((50, 40, 90, 80), 0, 1), ((80, 30, 130, 90), 1, 2), ((55, 45, 65, 55), 2, 3),
        ((150, 70, 190, 105), 0, 4)]  # fmt: skip
SQUARE = {1: [[50, 40, 90, 40, 90, 80, 50, 80]]}


def test_a_window_by_hand(tmp_path: Path) -> None:
    """A cat of 40 x 40, a dog beside it, a small cup, a smaller cat far away."""
    data = objects(*photographs(tmp_path, "train", (200, 120), YARD, outlines=SQUARE))
    assert len(data) == 1  # one cat a photograph, the largest; the cup is too small
    assert data.crops == ((30, 20, 110, 100),)  # half of 40 on each side
    assert data.image(0).size == (80, 80)
    # the cat first; of the dog 30 of 50 columns are in; the cup wholly; the other cat not at all
    assert data.boxes[0].tolist() == [[20, 20, 60, 60], [50, 10, 80, 70], [25, 25, 35, 35]]
    assert data.box_labels[0].tolist() == data.box_categories[0].tolist() == [0, 1, 2]
    mask = np.zeros((80, 80), bool)
    mask[20:60, 20:60] = True
    assert np.array_equal(data.mask(0), mask)
    assert data.mask(0, 1).sum() == 30 * 60  # no outline: its box, as far as it is seen
    assert data.extra[0] == {"annotation_id": 1} and data.protocol == "categories"


def test_windows_end_with_the_photograph(tmp_path: Path) -> None:
    data = objects(*photographs(tmp_path, "test", (200, 120), YARD))
    assert data.labels.tolist() == [1] and data.crops == ((55, 0, 155, 120),)
    assert data.boxes[0][0].tolist() == [25, 30, 75, 90] and data.masks is None


def test_no_category_is_in_both_splits_and_none_has_too_many(tmp_path: Path) -> None:
    images = [[((0, 0, 50, 50), i % 4, i)] for i in range(40)]
    train, test, again = (
        objects(*photographs(tmp_path, split, (60, 60), *some), per_category=3)
        for split, some in (("train", images), ("test", images), ("train", images[::-1]))
    )
    assert train.labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert test.labels.tolist() == [1, 1, 1, 3, 3, 3]
    ids = [{one["annotation_id"] for one in data.extra} for data in (train, again)]
    assert ids[0] == ids[1]  # whatever their order


def test_junk_is_what_shows_the_category_beside_its_object(tmp_path: Path) -> None:
    """A cup beside the cat of a window: junk where a cup asks, and right where a cat asks."""
    cat, cup = (20, 20, 60, 60), (50, 50, 84, 84)
    images = [(cat, 0, 1), (cup, 2, 2)], [(cat, 0, 3)], [(cat, 2, 4)]
    data = objects(*photographs(tmp_path, "train", (100, 100), *images))
    number = {one["annotation_id"]: i for i, one in enumerate(data.extra)}
    shows = lambda i, flags: {n for n, at in number.items() if flags[at]}  # noqa: E731
    assert shows(4, data.relevant(number[4])) == {2}
    assert shows(4, data.junk(number[4])) == {4, 1}  # itself; the cat with the cup beside it
    assert shows(1, data.relevant(number[1])) == {3}


def test_nothing_large_enough(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MIN_AREA", 10_000)
    with pytest.raises(DataError, match="no object of 10000 pixels"):
        objects(*photographs(tmp_path, "train", (200, 120), YARD))


# Real COCO --------------------------------------------------------------------------------


def test_real_coco_objects(real_photographs: Path) -> None:
    root = real_photographs / "coco"
    with pytest.warns(UserWarning, match="80 of the 118,287 images of coco"):
        train = coco("train", root)
    test = coco("test", root)
    assert train.name == "coco (part)" and (len(train), len(test)) == (143, 92)
    assert not set(train.labels) & set(test.labels) and len(train.label_names) == 80
    notes = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    by_id = {one["id"]: one for one in notes["annotations"]}
    ids = {one["id"]: i for i, one in enumerate(sorted(notes["categories"], key=lambda c: c["id"]))}
    for i in range(len(test)):
        note = by_id[test.extra[i]["annotation_id"]]
        assert ids[note["category_id"]] == test.labels[i] and not note["iscrowd"]
        x, y, w, h = note["bbox"]
        left, top = test.crops[i][:2]
        np.testing.assert_allclose(
            test.boxes[i][0], [x - left, y - top, x + w - left, y + h - top], atol=0.01
        )
    for i in (0, 40, 91):  # the mask in the window is the official one, cut
        note = by_id[test.extra[i]["annotation_id"]]
        size = next(p for p in notes["images"] if p["id"] == note["image_id"])
        runs = coco_mask.frPyObjects(note["segmentation"], size["height"], size["width"])
        x0, y0, x1, y1 = test.crops[i]
        official = coco_mask.decode(coco_mask.merge(runs))[y0:y1, x0:x1]
        assert np.array_equal(test.mask(i), official) and official.any()
        assert test.image(i).size == official.shape[::-1]


def test_real_coco_photographs(real_photographs: Path) -> None:
    data = coco_photographs("test", real_photographs / "coco")
    assert len(data) == 79 and sum(map(len, data.boxes)) == 619  # 624 less 5 crowds
    assert data.image(0).size == Image.open(data.root / data.files[0]).size
    assert data.box_labels[0][0] == data.labels[0] and data.mask(0).any()


def test_other_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="annotations is not there"):
        coco("train", tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.parent.mkdir()
    file.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError, match="none of its 0 photographs"):
        coco("train", tmp_path)
    with pytest.raises(DataError, match="no split 'val'"):
        coco("val", tmp_path)


# Open Images ------------------------------------------------------------------------------

FIELDS = ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax",
          "IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"]  # fmt: skip
ACCORDION, AIRPLANE, TREE = "/m/0mkg", "/m/0cmf2", "/m/07j7r"


def box_list(file: Path, *rows: tuple) -> None:
    """``(image, class, x0, x1, y0, y1, group, depiction)`` a row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(FIELDS)
        for image, label, *ends, group, depiction in rows:
            writer.writerow([image, "x", label, 1, *ends, 0, 0, group, depiction, 0])


def test_open_images_by_hand(tmp_path: Path, make_image: Write) -> None:
    box_list(tmp_path / "validation-annotations-bbox.csv",
             ("one", ACCORDION, 0.25, 0.75, 0.2, 0.8, 0, 0),
             ("one", TREE, 0, 1, 0, 1, 0, 0),
             ("two", ACCORDION, 0.1, 0.9, 0.1, 0.9, 1, 0),
             ("three", ACCORDION, 0.1, 0.9, 0.1, 0.9, 0, 1),
             ("gone", ACCORDION, 0.1, 0.9, 0.1, 0.9, 0, 0))  # fmt: skip
    box_list(tmp_path / "test-annotations-bbox.csv", ("four", AIRPLANE, 0, 1, 0, 1, 0, 0))
    for part, image in (("validation", "one"), ("validation", "two"), ("validation", "three"),
                        ("test", "four")):  # fmt: skip
        make_image(tmp_path / part / f"{image}.jpg", size=(200, 100))
    train, tests = load_splits(f"open-images:{tmp_path}")
    assert train.files == ("validation/one.jpg",)  # no groups, no drawings, no trees
    assert train.crops == ((0, 0, 200, 100),) and train.boxes[0].tolist() == [[50, 20, 150, 80]]
    assert train.label_names[0] == "Accordion" and tests["test"].labels.tolist() == [1]


def test_open_images_are_fetched_by_class(
    server: Server, tmp_path: Path, make_image: Write, naps: list, monkeypatch
) -> None:
    boxes = tmp_path / "boxes"
    large = (0.1, 0.9, 0.1, 0.9, 0, 0)
    box_list(boxes / "validation-annotations-bbox.csv", ("a", ACCORDION, *large),
             ("b", AIRPLANE, *large), ("c", ACCORDION, 0, 0.1, 0, 0.1, 0, 0),
             ("d", ACCORDION, *large), ("e", ACCORDION, *large))  # fmt: skip
    box_list(boxes / "test-annotations-bbox.csv", ("f", AIRPLANE, *large))
    raw = make_image("p.jpg", size=(100, 80)).read_bytes()
    known = [f"open-images,{part}-annotations-bbox.csv,,,,*,\n" for part in module.PARTS.values()]
    header = "collection,file,digest,size,into,members,url\n"
    (tmp_path / "registry.csv").write_text(header + "".join(known))
    monkeypatch.setattr("objemb_lib.data.fetch.REGISTRY", tmp_path / "registry.csv")
    acts = {"validation/a": serve(raw), "validation/d": status(403),
            "validation/e": whole(raw[:300]), "test/f": serve(raw)}  # fmt: skip
    urls = [server.url(act, path=f"/{name}.jpg") for name, act in acts.items()]
    monkeypatch.setattr(module, "IMAGES", urls[0].partition("/validation")[0])
    folder = module.build(tmp_path / "data", source=boxes)
    asked = sorted({path for path, _ in server.seen})
    assert asked == ["/test/f.jpg", *(f"/validation/{i}.jpg" for i in "ade")]  # no b, no c
    made = json.loads((folder / "manifest.json").read_text())
    assert made == {"files": 2, "dead": 1, "unanswered": 1}  # e is cut: it does not decode
    assert len(load_splits(f"open-images:{folder}").train) == 1


def test_other_lists_are_named(tmp_path: Path) -> None:
    file = tmp_path / "validation-annotations-bbox.csv"
    file.write_text("<html>")
    with pytest.raises(DataError, match="cannot be read as a table"):
        open_images("train", tmp_path)
    box_list(file, ("one", ACCORDION, 0, 1, 0, 1, 0, 0))
    with pytest.raises(DataError, match="no image of the 40 classes"):
        open_images("train", tmp_path)


# ---- a COCO file is checked when it is read ------------------------------------------------

SIDES = (64, 48)
IMAGES = [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 48} for k in (1, 2)]
CATEGORIES = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]


def one(box: list, image: int = 1, category: int = 1, **more) -> dict:
    return {"id": 10 * image + category, "image_id": image, "category_id": category} | {
        "bbox": box} | more  # fmt: skip


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., ImageDataset]:
    """``told(annotations, images=, categories=, turn=)``: 1.png and 2.png, of ``SIDES`` or
    ``size`` and turned by EXIF, read with such a file."""

    def read(annotations=(), images=IMAGES, categories=CATEGORIES, turn=1, size=SIDES):
        exif = Image.Exif()
        exif[0x0112] = turn
        (tmp_path / "p").mkdir()
        for k in (1, 2):
            Image.new("RGB", size).save(tmp_path / f"p/{k}.png", exif=exif)
        content = {"images": images, "annotations": list(annotations), "categories": categories}
        (tmp_path / "a.json").write_text(json.dumps(content))
        return folder(tmp_path / "p", tmp_path / "a.json", progress=False)

    return read


BOX = [1, 1, 30, 30]


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        # ethology#40, cvat#4185, cvat#7523, sahi#98: all boxes went to the last
        ("id 1.*1.png.*2.png", {"images": [IMAGES[0], IMAGES[1] | {"id": 1}]}),
        ("id 1.*64, 48.*640, 48", {"images": [IMAGES[0], IMAGES[0] | {"width": 640}]}),
        ("1.png.*ids 1 and 2", {"images": [IMAGES[0], IMAGES[0] | {"id": 2}]}),
        ("1.png.*ids 1 and 2", {"images": [IMAGES[0], {"id": 2, "file_name": "./1.png"}]}),
        ("category 1.*cup and dog", {"categories": [CATEGORIES[0], {"id": 1, "name": "dog"}]}),
        ("category 1.*None", {"categories": [{"id": 1, "name": None}]}),
        ("category 1", {"categories": [{"id": 1, "name": "  "}]}),
        ("width '64'", {"images": [IMAGES[0] | {"width": "64"}, IMAGES[1]]}),
        ("1.png: annotation 11.*'1'", {"annotations": [one(["1", "1", "9", "9"])]}),
        ("annotation 11", {"annotations": [one([1, 1, 9, True])]}),
        ("annotation 11", {"annotations": [one(None)]}),
        ("annotation 11", {"annotations": [one([1, 1, 10**400, 9])]}),
        ("annotation 11", {"annotations": [one([0, 0, float("inf"), 9])]}),
        ("annotation 11.*iscrowd '0'", {"annotations": [one(BOX, iscrowd="0")]}),
        ("annotation 11.*image '1'", {"annotations": [one(BOX) | {"image_id": "1"}]}),
        # detectron2#3749, automlForImages#27: parts of the sides
        ("annotation 11.*0 to 1", {"annotations": [one([0.25, 0.25, 0.5, 0.5]), one(BOX, 2)]}),
        ("annotation 11.*0 to 1", {"annotations": [one([0, 0, 1, 1])]}),
        ("annotation 21.*0 to 1", {"annotations": [one([0.7, 0.8, 1.001, 1.0], 2)]}),
        ("2.png: annotation 21.*corners", {"annotations": [one(BOX), one([30, 20, 60, 40], 2)]}),
        ("annotation 11.*0 to 1", {
            "annotations": [one(BOX, segmentation=[[0.1, 0.1, 0.6, 0.1, 0.6, 0.6]])]}),
    ],
)  # fmt: skip
def test_nonsense_is_named_with_its_remedy(told, words: str, told_of: dict) -> None:
    with pytest.raises(DataError, match=words) as caught:
        told(**{"annotations": [one(BOX)]} | told_of)
    assert caught.value.remedy


RUNS = {"size": [48, 64], "counts": [3072]}


@pytest.mark.parametrize(
    "outline",
    [[[70, 50, 90, 50, 90, 60, 70, 60]], RUNS, [[50, 40, 60, 40, 60, 46, 50, 46]],
     [[6, 5, 6, 5, 6, 5]]],
)  # fmt: skip
def test_the_box_stands_in_for_a_mask_of_nothing(told, outline) -> None:
    """cocoapi#175, BlenderProc#34: outside, empty, beside its box, a point: vectors of zeros."""
    with pytest.warns(UserWarning, match=r"1\.png: annotation 11: .*no pixel"):
        data = told([one([6, 5, 20, 20], segmentation=outline)])
    assert data.mask(0).sum() == 400 and data.mask(0)[5:25, 6:26].all()


def test_an_object_of_less_than_a_pixel_has_a_mask(told) -> None:
    outline = [[20, 20, 40, 20, 40, 40, 20, 40]]
    data = told([one([30.6, 20.6, 0.1, 0.2]), one([20, 20, 20, 20], 2, segmentation=outline)])
    assert data.mask(0).sum() == 1 and data.mask(0)[20, 30]
    for box in ([5, 5, 5, 9], [63.9, 47.9, 64, 48], [64, 48, 64, 48]):  # of detectors
        assert mask_area(encode_mask(None, np.array(box), SIDES))


@pytest.mark.parametrize("names", [("cup", "cup"), ("Cup ", "cup"), ("caf\u00e9", "cafe\u0301")])
def test_categories_of_one_name_are_one(told, names: tuple) -> None:
    """make-sense#136, mmdetection#3019: two files merged, the same class twice."""
    categories = [{"id": k, "name": name} for k, name in zip((1, 7), names)]
    with pytest.warns(UserWarning, match="share the name") as caught:
        data = told([one(BOX, 1), one(BOX, 2, 7)], categories=categories)
    assert len(caught) == 1 and len(data.label_names) == 1
    assert data.relevant(0)[1]


@pytest.mark.parametrize(("turn", "size", "sides"), [
    (3, SIDES, True), (2, SIDES, True), (4, SIDES, False), (6, (64, 64), True), (8, SIDES, False),
])  # fmt: skip
def test_boxes_on_turned_photographs_are_doubtful(told, turn, size, sides) -> None:
    """coralnet#107, labelImg#395: by 180 degrees, on a square, or with no sizes to tell it."""
    stated = {"width": size[0], "height": size[1]} if sides else {"width": None, "height": None}
    with pytest.warns(UserWarning, match="2 annotated images are turned.*1.png"):
        told([one(BOX), one(BOX, 2)], [image | stated for image in IMAGES], turn=turn, size=size)


def test_what_is_only_doubtful_is_a_warning(told) -> None:
    out = [one([2, 2, 30 + k, 30], category=1, id=k) for k in range(5)]
    with pytest.warns(UserWarning, match="annotation 9 reaches out"):
        told([*out, one([20, 2, 50, 40], id=9)])


def test_annotations_of_one_id(told) -> None:
    with pytest.warns(UserWarning, match="annotations share the id 11"):
        assert len(told([one(BOX), one(BOX, category=2, id=11)]).boxes[0]) == 2


edge = st.integers(0, 40)


@given(st.lists(st.tuples(edge, edge, edge, edge), max_size=5))
def test_boxes_inside_their_images_are_quiet(xyxy: list[tuple]) -> None:
    objects = [{"id": 1, "bbox": [x, y, w + 2, h + 2]} for x, y, w, h in xyxy]
    inside = [o for o in objects if o["bbox"][0] + o["bbox"][2] <= 64
              and o["bbox"][1] + o["bbox"][3] <= 48]  # fmt: skip
    check_boxes([{"objects": inside}], [SIDES])


def test_sound_files_are_quiet(told) -> None:
    """Sizes as floats or none, an image twice in the same words, a turned one stated upright."""
    images = [IMAGES[0] | {"width": 48.0, "height": 64}, IMAGES[1] | {"width": None, "height": 0}]
    images[1]["file_name"] = "none.png"
    images = [images[0], images[0]]
    data = told([one(BOX), one(BOX, category=2)], images, turn=6)
    assert len(data.boxes[0]) == 2
