"""The data-set interface: what is relevant, what is junk, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from objemb_lib.config import DataError, ImageError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import ObjectRegion, image_sizes, true_boxes
from objemb_lib.embed.extract import _one_each

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
        "fingerprint": "hand-made",
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


def test_nothing_is_relevant_or_junk_for_an_unknown_label() -> None:
    data = hand_made(box_labels=[[0], [0], [1], [1, -1], [-1], [-1, 1]])
    assert where(data.relevant(4)) == []  # image 5 is unknown too: not the same thing
    assert where(data.junk(4)) == [4]  # nor is the unknown object in image 3


def test_positions_are_those_of_the_gallery() -> None:
    data = hand_made(queries=[0], gallery=[3, 1, 4, 0])
    assert data.relevant(0).tolist() == [False, True, False, False]
    assert data.junk(0).tolist() == [True, False, False, True]
    apart = hand_made(queries=[0], gallery=[1, 2])  # a query that is not searched
    assert apart.junk(0).tolist() == [False, False]
    assert apart.relevant(0).tolist() == [True, False]


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


def test_subset_has_a_fingerprint_of_its_own() -> None:
    data = hand_made()
    prints = {data.fingerprint, data.subset([0, 1]).fingerprint, data.subset([1, 0]).fingerprint}
    assert len(prints) == 3
    assert data.subset([0, 1]).fingerprint == data.subset(np.array([0, 1])).fingerprint


def test_subset_by_true_and_false() -> None:
    data = hand_made()
    assert data.subset(data.labels == 1).files == ("2.jpg", "3.jpg")
    with pytest.raises(DataError, match="no images"):
        data.subset(data.labels == 99)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": [0, 1]},
        {"categories": [0]},
        {"boxes": [BOX]},
        {"box_labels": [[0]]},
        {"box_labels": [[0], [0], [1], [1], [-1], [-1, 1]]},  # image 3: two boxes, one label
        {"masks": [[]]},
        {"masks": [[], [], [], [], [], []]},
        {"extra": [{}]},
        {"queries": [6]},
        {"gallery": [-1]},
        {"files": []},
        {"crops": [None]},
    ],
)
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


def test_data_sets_can_be_compared_and_hashed() -> None:
    data = hand_made()
    assert data == data
    assert data != hand_made()
    assert len({data, data.subset([0])}) == 2


def test_mask_is_the_stored_one(tmp_path: Path) -> None:
    full = np.zeros((5, 7), np.uint8)
    full[1:3, 2:6] = 1
    rle = coco_mask.encode(np.asfortranarray(full))
    data = hand_made(files=["a"], labels=[0], boxes=[BOX], box_labels=[[0]], masks=[[rle]])
    assert data.mask(0).dtype == bool
    assert np.array_equal(data.mask(0), full)
    with pytest.raises(DataError, match="no masks"):
        hand_made().mask(0)


def test_the_fingerprint_follows_the_files(make_image, tmp_path: Path) -> None:
    make_image("a.png")

    def read() -> str:
        return ImageDataset("one", "all", tmp_path, ["a.png"], [0]).fingerprint

    first = read()
    assert read() == first
    make_image("a.png", size=(50, 20), seed=1)
    assert read() != first
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        read()


def test_image_is_upright_rgb_or_names_the_file(make_image, tmp_path: Path) -> None:
    make_image("grey.png", mode="L")
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:60])
    data = ImageDataset("two", "all", tmp_path, ["grey.png", "cut.png"], [0, 0])
    assert (data.image(0).mode, data.image(0).size) == ("RGB", (40, 30))
    with pytest.raises(ImageError, match=r"cut\.png"):
        data.image(1)


def test_a_crop_is_the_image(make_image, tmp_path: Path) -> None:
    make_image("a.png")
    parts = {"root": tmp_path, "files": ["a.png", "a.png"], "labels": [0, 0]}
    data = ImageDataset("one", "all", crops=[None, (5, 2, 25, 12)], **parts)
    assert (data.image(0).size, data.image(1).size) == ((40, 30), (20, 10))
    assert np.array_equal(data.image(1), np.asarray(data.image(0))[2:12, 5:25])
    assert image_sizes(data).tolist() == [[40, 30], [20, 10]]
    assert data.subset([1]).image(0).size == (20, 10)
    assert data.names == ("a.png", "a.png#5,2,25,12")
    others = [ImageDataset("one", "all", crops=c, **parts) for c in ((), [None, (5, 2, 25, 13)])]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_crops_of_objects_are_cut_from_the_part(make_image, tmp_path: Path) -> None:
    make_image("a.png")
    box = [np.array([[1, 2, 9, 8]], np.float32)]
    data = ImageDataset("one", "all", tmp_path, ["a.png"], [0], boxes=box, crops=[(5, 2, 25, 12)])
    each = _one_each(data, ObjectRegion(true_boxes(data)))
    whole = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(each.image(0).crop((1, 2, 9, 8)), whole[4:10, 6:14])


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


def test_a_subset_keeps_judgements_in_its_own_numbers() -> None:
    judged = {0: (np.array([2, 3]), np.array([1, 4]))}
    part = hand_made(judged=judged, protocol="revisited").subset([4, 3, 0])
    assert where(part.relevant(2)) == [1] and where(part.junk(2)) == [0, 2]
    assert part.protocol == "revisited" and set(part.judged) == {2}
