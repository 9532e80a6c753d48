"""Objects by image: the same answers from memory and from Milvus, files, removal, clicks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_gallery import BOXES, PAIR, coloured, made

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.whitening import l2
from objemb_lib.search.index import Index
from objemb_lib.search.objects import Answer, Match, ObjectIndex, photograph, search_object

MANY = made([[[1, 0, 0], [0.9, 0.1, 0], [0.8, 0.3, 0]], [[0, 1, 0], [0.7, 0.7, 0]], [[0, 0, 1]]])
FILES = ["a.png", "b.png", "c.png"]


def filled(store=ObjectIndex):
    index = store(3, meta={"trunk": "toy"})
    index.add(MANY, PAIR, FILES)
    return index


def told(matches) -> list:
    return [(m.image, m.file, m.box, pytest.approx(m.score, abs=2e-6)) for m in matches]


def test_results_are_grouped_by_image_with_the_box_that_was_meant(store) -> None:
    index = filled(store)
    found = index.search(np.array([2.0, 0, 0]), k=3)
    assert [m.file for m in found] == index.files == FILES and [m.image for m in found] == [0, 1, 2]
    assert found[0].box == (0, 0, 5, 5) and found[1].box == (9, 0, 14, 5)
    assert found[0].score == pytest.approx(1) and found[1].score == pytest.approx(0.5**0.5)
    others = index.search(np.array([2.0, 0, 0]), 9, without={"a.png"})
    assert [m.file for m in others] == ["b.png", "c.png"] and len(index) == 6


def test_images_give_their_boxes_and_vectors_in_their_order(store) -> None:
    first, second = filled(store).of_images([1, 0])
    assert first[0].tolist() == [[0, 0, 5, 5], [9, 0, 14, 5]]
    assert second[0].tolist() == [[0, 0, 5, 5], [9, 0, 14, 5], [18, 0, 23, 5]]
    np.testing.assert_allclose(first[1], l2(MANY.vectors[PAIR][3:5]), atol=1e-6)
    np.testing.assert_allclose(second[1], l2(MANY.vectors[PAIR][:3]), atol=1e-6)


def test_an_image_with_hundreds_of_objects_does_not_crowd_the_others_out(store) -> None:
    index = store(3)
    crowd = [[1.0, 0.001 * k, 0] for k in range(300)]
    index.add(made([crowd, [[0, 1, 0]], [[0, 0, 1]]]), PAIR, FILES)
    assert [m.file for m in index.search(np.array([1.0, 0, 0]), 3)] == FILES


def test_a_photograph_that_is_there_twice_is_found_once(store) -> None:
    index, same = store(3), [[[1, 0, 0], [0, 1, 0]]] * 2
    two, moved = [[0, 0, 5, 5], [9, 0, 14, 5]], [[1, 1, 6, 6]]
    index.add(made([*same, [[1, 0, 0]]], boxes=[two, two, moved]), PAIR, FILES)
    # The third has the same score but another box: another photograph.
    found = [m.file for m in index.search(np.array([1.0, 0, 0]), 3)]
    assert len(found) == 2 and max(found) == "c.png"


def test_it_survives_saving_loading_and_appending(store, tmp_path: Path) -> None:
    path, query = tmp_path / "objects.index", np.array([0.2, 0.5, 0.1])
    index = filled(store)
    index.save(path)
    loaded = type(index).load(path, meta={"trunk": "toy"})
    assert told(loaded.search(query, 3)) == told(index.search(query, 3))
    loaded.add(made([[[0.2, 0.5, 0.1]], [[0, -1, 0]]]), PAIR, ["d.png", "e.png"])
    loaded.save(path)
    again = type(index).load(path)
    found = again.search(query, 5)
    assert told(found) == told(loaded.search(query, 5)) and len(again) == 8 and len(found) == 5
    assert (found[0].file, found[0].image) == ("d.png", 3)
    with pytest.raises(DataError, match="of another model: its trunk is 'toy', not 'other'"):
        type(index).load(path, meta={"trunk": "other"})
    with pytest.raises(DataError, match="absent"):
        type(index).load(tmp_path / "absent.index")


def test_a_removed_image_is_not_found_and_the_others_keep_their_numbers(store) -> None:
    index = filled(store)
    index.remove({"a.png"})
    assert index.files == ["", "b.png", "c.png"] and len(index) == 3
    found = index.search(np.array([1.0, 0, 0]), 3)
    assert [(m.file, m.image) for m in found] == [("b.png", 1), ("c.png", 2)]
    for absent in ("a.png", "", "z.png"):
        with pytest.raises(DataError, match="not in"):
            index.remove(["b.png", absent])
    for image in (-1, 0, 3):
        with pytest.raises(DataError, match=f"no image {image}"):
            index.of_images([image])[0]
    index.add(made([[[1, 0, 0]]]), PAIR, ["a.png"])  # the file may come back
    found = index.search(np.array([1.0, 0, 0]), 3)
    assert (found[0].file, found[0].image) == ("a.png", 3) and len(index) == 4


@pytest.mark.parametrize(
    "objects, files, words",
    [
        (made([[[0, 1, 1]]]), ["x.png", "y.png"], "2 files for 1 images"),
        (made([[[0, 1, 1]]] * 2), ["x.png", "x.png"], "2 files for 2 images"),
        (made([[[0, 1]]]), ["x.png"], "an index of 3"),
        (made([[[0, 1, np.nan]]]), ["x.png"], "NaN"),
        (made([[[0, 0, 0]]]), ["x.png"], "zero"),
    ],
)
def test_what_cannot_be_added_changes_nothing(store, objects, files, words) -> None:
    index = filled(store)
    with pytest.raises(DataError, match=words):
        index.add(objects, PAIR, files)
    assert len(index) == len(MANY) and index.files == FILES


def test_what_cannot_be_searched_is_said(store) -> None:
    index = filled(store)
    for vector, k in ((np.ones(3), 0), (np.ones(2), 1), (np.full(3, np.nan), 1)):
        with pytest.raises(DataError):
            index.search(vector, k)
    with pytest.raises(DataError, match="Add"):
        store(3).search(np.ones(3), 1)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), max_size=6), st.integers(0, 9))
def test_many_small_batches_are_as_one_large(batches: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [[rng.standard_normal((n, 3)).tolist() for n in batch] for batch in batches]
    joined = [vectors for part in parts for vectors in part]
    at_once, slowly = ObjectIndex(3), ObjectIndex(3)
    if joined:
        at_once.add(made(joined), PAIR, [f"{n}.png" for n in range(len(joined))])
    for part in parts:
        first = len(slowly.files)
        slowly.add(made(part), PAIR, [f"{first + n}.png" for n in range(len(part))])
    assert slowly.files == at_once.files
    for n in range(len(joined)):
        for one, other in zip(slowly.of_images([n])[0], at_once.of_images([n])[0]):
            np.testing.assert_array_equal(one, other)


def test_adding_in_small_batches_copies_a_logarithm_of_what_is_there(monkeypatch) -> None:
    """Bytes that numpy and faiss copy: with 1,024 batches it was 500 times what was added."""
    copied = []

    def counted(place, name) -> None:
        real = getattr(place, name)

        def call(*args, **options):
            given = real(*args, **options)
            copied.append(given.nbytes)
            return given

        monkeypatch.setattr(place, name, call)

    for name in ("concatenate", "argsort", "isin", "unique", "stack"):
        counted(np, name)
    counted(faiss, "vector_to_array")
    index, one = ObjectIndex(3), made([[[1, 0, 0]] * 4])
    for n in range(1024):
        index.add(one, PAIR, [f"{n}.png"])
    assert len(index) == len(index.vectors) == 4096
    added = 4096 * (8 + 8 + 16)  # id, image, box
    assert sum(copied) < 15 * added


# --- in memory alone ----------------------------------------------------------------------


def test_files_that_hold_no_objects_are_refused(tmp_path: Path) -> None:
    plain = Index(3)
    plain.add(np.eye(3))
    plain.save(tmp_path / "plain.index")
    with pytest.raises(DataError, match="no index of objects"):
        ObjectIndex.load(tmp_path / "plain.index")
    with pytest.raises(DataError, match=r"b\.png is in the index already"):
        filled().add(made([[[0, 1, 1]]]), PAIR, ["b.png"])


@pytest.mark.parametrize("factory", ["SQ8", "HNSW8", "IVF2,Flat", "IVF2,PQ2x4"])
def test_every_family_answers_by_image_also_from_the_disk(tmp_path: Path, factory: str) -> None:
    x = np.random.default_rng(0).standard_normal((120, 4))
    boxes = [[[n, 9 * k, n + 5, 9 * k + 5] for k in range(3)] for n in range(40)]
    every = made(x.reshape(40, 3, 4).tolist(), boxes)
    index, exact = ObjectIndex(4, factory=factory), ObjectIndex(4)
    index.index.train(l2(x))
    for one in (index, exact):
        one.add(every, PAIR, [f"{n}.png" for n in range(40)])
    if "IVF" in factory:
        index.index.tune("nprobe=2")
    index.save(tmp_path / "objects.index")
    mapped = ObjectIndex.load(tmp_path / "objects.index", mmap=True)
    for query in x[::7]:
        found = index.search(query, 10)
        assert found == mapped.search(query, 10)
        assert len({m.image for m in found}) == len(found) == 10
        assert exact.search(query, 1)[0].file in [m.file for m in found]


# --- clicks -------------------------------------------------------------------------------


def test_a_click_searches_for_the_box_that_was_chosen(store, tmp_path: Path) -> None:
    for file in FILES:
        Image.new("RGB", (30, 20)).save(tmp_path / file)
    data = ImageDataset("pictures", "test", tmp_path, FILES, [0, 1, 2],
                        boxes=[np.array([[0, 0, 5, 5]], np.float32)] * 3)  # fmt: skip
    index = filled(store)
    answer = search_object(data, 1, MANY, PAIR, chosen=1, index=index, k=2)
    assert [m.image for m in answer.matches] == [0, 2]  # never the query's own picture
    np.testing.assert_array_equal(answer.boxes, MANY.boxes[3:5])
    expected = l2(MANY.vectors[PAIR])[[0, 1, 2]] @ l2(MANY.vectors[PAIR])[4]
    assert answer.matches[0].score == pytest.approx(float(expected.max()))
    assert search_object(data, 1, MANY, PAIR, 0, index).label == 1 and answer.label == -1
    one = photograph(tmp_path / "a.png")
    assert len(one) == 1 and one.image(0).size == (30, 20) and one.labels.tolist() == [-1]
    answer = search_object(one, 0, made([[[0, 1, 0]]]), PAIR, 0, index, k=1)
    assert answer.matches[0].file == "b.png" and answer.label == -1


@pytest.mark.parametrize(
    "box, kind, boxes, states, found",
    [
        (0, "box", {1: BOXES["b.png"][0], 2: (5, 5, 15, 15)}, ["right", "wrong"],
         "1 of 1 found, at rank 1"),
        (0, "box", {2: (5, 5, 15, 15), 1: (0, 0, 12, 12)}, ["wrong", "loose"],
         "1 of 1 found, at rank 2"),
        (0, "whole", {1: (0, 0, 40, 30)}, ["right"], "1 of 1 found, at rank 1"),
        (1, "box", {1: BOXES["b.png"][0]}, ["wrong"], "0 of 1 found"),
        (2, "box", {1: BOXES["b.png"][0]}, [""], ""),
        (2, "both", {1: BOXES["b.png"][0]}, ["right"], "1 of 1 found, at rank 1"),
    ],
)  # fmt: skip
def test_an_answer_tells_a_loose_box_from_a_wrong_photograph(
    tmp_path: Path, box, kind, boxes, states, found
) -> None:
    data = coloured(tmp_path)
    asked = np.array([*BOXES["a.png"], (0, 0, 40, 30)], np.float32)  # red, blue, all of it
    matches = [Match(image, data.files[image], 0.5, where) for image, where in boxes.items()]
    answer = Answer(data, 0, asked, box, matches, kind)
    assert answer.states(data) == states and answer.found(data) == found


def test_an_answer_lists_ranks_and_says_what_cannot_be_found(tmp_path: Path) -> None:
    labels = [0, 0, 1, 0, 0, -1, 2]
    data = ImageDataset("labels", "test", tmp_path, list("abcdefg"), labels, list("xyz"))
    order = [1, 3, 2, 5, 6, 4]
    matches = [Match(image, data.files[image], 0.5, (0, 0, 9, 9)) for image in order]
    answer = Answer(data, 0, np.array([[0, 0, 9, 9]]), 0, matches, "box")
    assert answer.found(data) == "3 of 3 found, at ranks 1, 2 and 6"
    assert answer.states(data) == ["right", "right", "wrong", "", "wrong", "right"]
    assert replace(answer, query=6).found(data) == "no other photograph shows it"
    assert replace(answer, query=5).found(data) == ""


def test_objects_of_another_model_are_not_added(store) -> None:
    """volcengine/OpenViking#1066: of the same dimension, and nobody noticed."""
    own = {"trunk": "toy", "weights": "a", "size": "256"}
    index = store(3, meta={**own, "stage": PAIR[0], "pooling": PAIR[1], "region": ""})
    index.add(replace(MANY, made_by=own), PAIR, FILES)
    for key, value in {"trunk": "other", "weights": "b", "size": "384"}.items():
        with pytest.raises(DataError, match=f"another model: their {key} is {value!r}"):
            index.add(replace(MANY, made_by=own | {key: value}), PAIR, ["x", "y", "z"])
    other = ("head", "mac") if PAIR != ("head", "mac") else ("head", "spoc")
    with pytest.raises(DataError, match="another model"):
        wrong = replace(MANY, made_by=own, vectors={other: MANY.vectors[PAIR]})
        index.add(wrong, other, ["x", "y", "z"])
    assert index.files == FILES
    index.add(MANY, PAIR, ["x", "y", "z"])  # whose maker nobody knows
