"""The data-set interface: what is relevant, what is junk, what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_queries import dataset

from objemb_lib import config
from objemb_lib.config import DataError, ImageError
from objemb_lib.data import dataset as module
from objemb_lib.data.catalogue import Splits
from objemb_lib.data.dataset import ImageDataset

BOX = np.array([[0, 0, 4, 3]], np.float32)


def hand_made(**changes) -> ImageDataset:
    """Six images: two cats (0), two dogs (1) of which image 3 has a cat behind it, two unknown.

    ==== ===== ===========
    file label box labels
    ==== ===== ===========
    0    cat   cat
    1    cat   cat
    2    dog   dog
    3    dog   dog, cat
    4    -1    -1
    5    -1    -1, dog
    ==== ===== ===========
    """
    parts = {
        "files": [f"{i}.jpg" for i in range(6)],
        "labels": [0, 0, 1, 1, -1, -1],
        "label_names": ["cat", "dog"],
        "boxes": [BOX, BOX, BOX, np.repeat(BOX, 2, 0), BOX, np.repeat(BOX, 2, 0)],
        "box_labels": [[0], [0], [1], [1, 0], [-1], [-1, 1]],
        "content": "hand-made",
    } | changes
    return ImageDataset("pets", "test", Path("nowhere"), **parts)


def where(flags: np.ndarray) -> list[int]:
    return np.flatnonzero(flags).tolist()


def test_relevant_and_junk_by_hand() -> None:
    data = hand_made()
    assert where(data.relevant(0)) == [1]  # the other cat, not the query itself
    assert where(data.junk(0)) == [0, 3]  # itself, and the dog with a cat behind it
    assert where(data.relevant(2)) == [3]  # a cat behind does not make it less of a dog
    assert where(data.junk(2)) == [2, 5]
    assert where(data.relevant(3)) == [2]
    assert where(data.junk(3)) == [3, 5]


def test_relevant_and_junk_never_meet_and_agree_with_a_slow_reading() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        n = 12
        labels = rng.integers(-1, 3, n)
        beside = [rng.integers(-1, 3, rng.integers(0, 3)) for _ in range(n)]
        data = hand_made(
            files=[str(i) for i in range(n)],
            labels=labels,
            boxes=[np.zeros((1 + len(b), 4)) for b in beside],
            box_labels=[[own, *b] for own, b in zip(labels, beside)],
            gallery=rng.permutation(n)[:8],
        )
        for query in range(n):
            for at, image in enumerate(data.gallery):
                shown = labels[query] >= 0 and labels[query] in beside[image]
                junk = image == query or (shown and labels[image] != labels[query])
                right = labels[image] == labels[query] >= 0 and image != query
                assert (data.junk(query)[at], data.relevant(query)[at]) == (junk, right)


def test_copies_are_counted_and_told_once(make_image, tmp_path: Path) -> None:
    files = ("cup/a.jpg", "cup/a (1).jpg", "cup/b.jpg", "dog/a.jpg", "x.jpg", "y.jpg")
    for file, seed in zip(files, (0, 0, 1, 0, 2, 2)):
        make_image(file, seed=seed)
    data = ImageDataset("own", "all", tmp_path, files, [0, 0, 0, 1, -1, -1])
    with pytest.warns(UserWarning, match=r"2 of 6 .*copies, as cup/a \(1\).jpg") as told:
        assert data.copies.tolist() == [0, 0, 2, 0, 4, 4]
    assert len(told) == len(data.copies[:1])  # once
    for known in ({"content": "x"}, {"protocol": "metric learning"}):  # a benchmark's own rules
        assert replace(data, **known).copies.tolist() == list(range(6))
    parts = replace(data, crops=[(0, 0, k + 1, 9) for k in range(6)])  # other parts are no copies
    assert parts.copies.tolist() == list(range(6))
    absent = replace(data, files=[*files[:-1], "absent.jpg"])
    assert absent.copies.tolist() == list(range(6))


def test_subset_keeps_the_truth() -> None:
    data = hand_made(categories=[7, 7, 8, 8, -1, -1], extra=[{"id": i} for i in range(6)])
    part = data.subset([3, 1, 0])
    assert part.files == ("3.jpg", "1.jpg", "0.jpg")
    assert part.labels.tolist() == [1, 0, 0]
    assert part.categories.tolist() == [8, 7, 7]
    assert part.extra == ({"id": 3}, {"id": 1}, {"id": 0})
    assert [len(b) for b in part.boxes] == [2, 1, 1]
    assert part.label_names == ["cat", "dog"]
    assert where(part.relevant(1)) == [2]
    assert where(part.junk(1)) == [0, 1]
    assert part.gallery.tolist() == part.queries.tolist() == [0, 1, 2]
    kept = hand_made(queries=[0, 3], gallery=[1, 2, 3]).subset([3, 2, 5], keep_roles=True)
    assert (kept.queries.tolist(), kept.gallery.tolist()) == ([0], [0, 1])
    assert data.subset(data.labels == 1).files == ("2.jpg", "3.jpg")
    with pytest.raises(DataError, match="no images"):
        data.subset(data.labels == 99)


@pytest.mark.parametrize("changes", [
    {"labels": [0, 1]}, {"categories": [0]}, {"boxes": [BOX]}, {"box_labels": [[0]]},
    {"box_labels": [[0], [0], [1], [1], [-1], [-1, 1]]},  # image 3: two boxes, one label
    {"masks": [[]]}, {"masks": [[], [], [], [], [], []]}, {"extra": [{}]}, {"crops": [None]},
    {"queries": [6]}, {"gallery": [-1]}, {"files": []},
])  # fmt: skip
def test_lengths_that_do_not_agree_are_refused(changes: dict) -> None:
    with pytest.raises(DataError, match="pets"):
        hand_made(**changes)


def test_what_is_left_out_is_filled_in() -> None:
    data = hand_made(boxes=(), box_labels=())
    assert [b.shape for b in data.boxes] == [(0, 4)] * 6
    assert data.categories.tolist() == [-1] * 6
    assert data.queries.tolist() == data.gallery.tolist() == list(range(6))
    boxed = hand_made(box_labels=())
    assert boxed.box_labels[3].tolist() == [1, 1]  # every box shows the image's own object
    assert repr(boxed) == "ImageDataset(pets/test: 6 images, 2 labels, 8 boxes)"


def test_mask_is_the_stored_one(tmp_path: Path) -> None:
    full = np.zeros((5, 7), np.uint8)
    full[1:3, 2:6] = 1
    rle = coco_mask.encode(np.asfortranarray(full))
    data = hand_made(files=["a"], labels=[0], boxes=[BOX], box_labels=[[0]], masks=[[rle]])
    assert data.mask(0).dtype == bool
    assert np.array_equal(data.mask(0), full)
    with pytest.raises(DataError, match="no masks"):
        hand_made().mask(0)


def test_a_crop_is_the_image(make_image, tmp_path: Path) -> None:
    make_image("a.png")
    parts = {"root": tmp_path, "files": ["a.png", "a.png"], "labels": [0, 0]}
    data = ImageDataset("one", "all", crops=[None, (5, 2, 25, 12)], **parts)
    assert (data.image(0).size, data.image(1).size) == ((40, 30), (20, 10))
    assert np.array_equal(data.image(1), np.asarray(data.image(0))[2:12, 5:25])
    assert data.sizes().tolist() == [[40, 30], [20, 10]]
    assert data.subset([1]).image(0).size == (20, 10)
    assert data.names == ("a.png", "a.png#5,2,25,12")


def test_judged_queries_go_by_their_judgement() -> None:
    """As in revisited Oxford: per query, images that are relevant and images that are junk."""
    judged = {0: (np.array([2, 3]), np.array([1, 4])), 5: (np.array([], int), np.array([0]))}
    data = hand_made(judged=judged, queries=[0, 5], gallery=[1, 2, 3, 4])
    assert data.gallery[data.relevant(0)].tolist() == [2, 3]
    assert data.gallery[data.junk(0)].tolist() == [1, 4]
    assert not data.relevant(5).any()
    assert data.gallery[data.relevant(1)].tolist() == []  # not judged: by labels, 0 is not there
    both = hand_made(judged={0: (np.array([0, 1, 2]), np.array([2]))})
    assert where(both.relevant(0)) == [1]  # neither itself nor what is junk
    assert where(both.junk(0)) == [0, 2]
    part = hand_made(judged=judged, protocol="revisited").subset([4, 3, 0])  # in its own numbers
    assert where(part.relevant(2)) == [1] and where(part.junk(2)) == [0, 2]
    assert part.protocol == "revisited" and set(part.judged) == {2}


# ---- parts ---------------------------------------------------------------------------------


def test_the_first_of_each_label_keep_every_object_and_the_order() -> None:
    data = dataset([3, 1, 3, 3, 1, 2])
    few = data.first_of_each(2)
    assert few.labels.tolist() == [3, 1, 3, 1, 2]
    assert list(few.files) == [data.files[i] for i in (0, 1, 2, 4, 5)]


def test_a_limit_leaves_out_whole_labels_evenly() -> None:
    data = dataset(np.repeat(np.arange(10), 6))
    assert data.limit(12).labels.tolist() == [0] * 4 + [4] * 4 + [9] * 4
    assert data.limit(60) is data and data.limit(0) is data
    assert data.limit(1).labels.tolist() == [0, 0, 9, 9]  # else nothing can be found again
    assert dataset([0, 1, 1, 2, 3, 3]).limit(4).labels.tolist() == [1, 1, 3, 3]
    distracted = dataset([0, 0, 1, 1, -1, -1])
    assert distracted.limit(4) is distracted
    roles = replace(data, queries=[0, 6, 24], gallery=[1, 2, 25])
    small = roles.limit(12)
    assert [small.files[q] for q in small.queries] == [data.files[q] for q in (0, 24)]
    assert [small.files[g] for g in small.gallery] == [data.files[g] for g in (1, 2, 25)]


def test_a_lesson_is_short() -> None:
    labels = np.repeat([0, 1], 5)
    splits = Splits(*(dataset(labels), {name: dataset(labels) for name in ("hard", "mid", "easy")}))
    train, hard, easy = splits.lesson(2)
    assert (len(train), len(hard), len(easy)) == (10, 4, 4)
    assert [len(data) for data in splits.lesson(0, images=4)] == [4, 4, 4]


def test_half_of_the_labels_unless_one_would_be_left() -> None:
    assert dataset([0, 1, 2, 3, 2]).subsample_labels().labels.tolist() == [0, 2, 2]
    for whole in ([1, 2, 3], [0, 1, 2, 3, -1]):
        assert dataset(whole).subsample_labels().labels.tolist() == whole


# ---- fingerprints --------------------------------------------------------------------------


@pytest.fixture
def photographs(make_image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    """a.bmp and b.bmp, 40 x 30 pixels, and a cache of their own."""
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SETTLED", 0)  # ns: tests do not wait
    for name in "ab":
        make_image(f"photos/{name}.bmp", seed=ord(name))
    return ImageDataset("two", "all", tmp_path / "photos", ["a.bmp", "b.bmp"], [0, 0],
                        boxes=[BOX, BOX])  # fmt: skip


def test_a_photograph_that_is_turned_in_place_is_another_though_its_date_stays(photographs):
    path, first = photographs.root / "a.bmp", photographs.fingerprint
    before, raw = path.stat(), path.read_bytes()
    Image.open(path).rotate(180).save(path)
    turned = path.read_bytes()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the file system's clock ticks
        path.write_bytes(turned)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and len(raw) == len(turned)
    assert replace(photographs).fingerprint != first


def test_what_decides_vectors_is_in_the_fingerprint_and_nothing_else(photographs):
    mask = coco_mask.encode(np.ones((30, 40), np.uint8, order="F"))
    text = mask | {"counts": mask["counts"].decode()}
    one = photographs
    others = [
        replace(one, boxes=[BOX, BOX + 1]),
        replace(one, crops=[None, (0, 0, 9, 9)]),
        replace(one, masks=[[mask], [mask]]),
        replace(one, masks=[[mask], [coco_mask.encode(np.eye(30, 40, dtype=np.uint8, order="F"))]]),
        one.subset([0]), one.subset([1]), one.subset([1, 0]),
        replace(one, content="stated"), replace(one, content="stated").subset([0]),
    ]  # fmt: skip
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)
    same = [replace(one, labels=[0, 1], name="x"), replace(one, boxes=[np.array(BOX)] * 2),
            one.subset([1, 0]).subset([1, 0])]  # fmt: skip
    assert {one.fingerprint} == {other.fingerprint for other in same}
    assert others[2].fingerprint == replace(one, masks=[[text], [text]]).fingerprint


def test_a_file_is_read_once_also_by_another_process(photographs, monkeypatch):
    first = photographs.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", None)
        assert replace(photographs).fingerprint == first
        assert photographs.subset([1]).fingerprint != first
    (kept,) = (config.cache_root() / "content").iterdir()
    kept.write_text("{ cut off")
    assert replace(photographs).fingerprint == first
    assert set(json.loads(kept.read_text())) == {"a.bmp", "b.bmp"}


def test_a_cache_that_cannot_be_written_costs_only_time(photographs, monkeypatch, tmp_path):
    first = photographs.fingerprint
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "file"))
    assert replace(photographs).fingerprint == first
    (photographs.root / "b.bmp").unlink()
    with pytest.raises(DataError, match=r"b\.bmp"):
        replace(photographs).fingerprint  # noqa: B018


def test_sizes_are_read_from_headers(photographs, make_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image("photos/a.bmp", size=(8192, 64), format="PNG", exif=exif)  # on its side, too large
    file = photographs.root / "b.bmp"
    file.write_bytes(file.read_bytes()[:100])  # no pixel is there
    data = replace(photographs, files=["a.bmp", "b.bmp"])
    assert data.sizes().tolist() == [[32, 4096], [40, 30]]
    assert data.image(0).size == (32, 4096)
    file.write_text("no picture")
    with pytest.raises(ImageError, match=r"b\.bmp"):
        replace(data).sizes()
