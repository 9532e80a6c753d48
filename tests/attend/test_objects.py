"""Images as sets of objects: scores by hand and by slow loops, an index that lasts, clicks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from objemb_lib.attend.objects import (
    choose_weight,
    fuse,
    image_scores,
    listed_scores,
    meets_main,
    object_label,
    oracle_query,
    query_strata,
    retrieval_scores,
    top1_query,
)
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.metrics import evaluate_scores
from objemb_lib.search.index import Index
from objemb_lib.search.objects import ObjectIndex, photograph, search_object

PAIR = ("head", "spoc")


def made(vectors: list[list], boxes: list[list] | None = None, scores=()) -> Objects:
    """Objects with the given vectors, a list for each image."""
    where = Boxes(
        "made", boxes or [[[9 * k, 0, 9 * k + 5, 5] for k in range(len(v))] for v in vectors],
        scores,
    )  # fmt: skip
    flat = np.array([v for many in vectors for v in many], np.float32)
    return Objects({PAIR: flat}, where)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 99))
def test_image_scores_are_those_of_a_slow_loop(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(len(counts)), counts)
    vectors, queries = rng.standard_normal((len(image), 3)), rng.standard_normal((4, 3))
    best, total = (image_scores(queries, vectors, image, how) for how in ("best", "sum"))
    for q, query in enumerate(queries):
        for i in range(len(counts)):
            some = [float(v @ query) for v, owner in zip(vectors, image) if owner == i]
            assert best[q, i] == pytest.approx(max(some))
            assert total[q, i] == pytest.approx(sum(some))


@pytest.mark.parametrize("image", [[0, 1, 0], [0, 2, 2], [1, 1, 2], [0, 1]])
def test_objects_out_of_order_are_refused(image: list) -> None:
    with pytest.raises(DataError, match="image by image"):
        image_scores(np.eye(3), np.eye(3), np.array(image))


def test_unknown_ways_to_score_are_refused() -> None:
    with pytest.raises(DataError, match="'median'"):
        image_scores(np.eye(3), np.eye(3), np.arange(3), "median")


def test_the_surest_object_asks_or_the_one_that_was_clicked(tmp_path: Path) -> None:
    objects = made([[[1, 0], [0, 2]], [[3, 4], [0, 1]], [[1, 1], [2, 1]]],
                   scores=[[0.1, 0.7], [0.5, 0.5], [0.2, 0.3]])  # fmt: skip
    assert top1_query(objects).tolist() == [1, 2, 5]
    # The boxes of each image lie at x = 0 and 9; the main objects at 1, 8, and nobody knows where.
    data = pictures(tmp_path / "p", [0, 0, 0], [[[1, 0, 6, 5]], [[8, 0, 13, 5], [0, 0, 5, 5]], []])
    assert oracle_query(objects, data).tolist() == [0, 3, 5]


def test_scores_are_those_of_the_asking_objects(tmp_path: Path) -> None:
    data = pictures(tmp_path / "p", [0, 0, 1], queries=[2, 0], gallery=[1, 2])
    objects = made([[[1, 0], [0, 1]], [[0.6, 0.8]], [[0, 1], [0.8, 0.6]]])
    vectors = objects.vectors[PAIR]
    found = retrieval_scores(vectors, objects, np.array([0, 2, 4]), data, "best")
    np.testing.assert_allclose(found, [[0.96, 1.0], [0.6, 0.8]], rtol=1e-6)


def pictures(folder: Path, labels: list[int], boxes: list | None = None, **parts) -> ImageDataset:
    folder.mkdir(exist_ok=True)
    files = [f"{i}.png" for i in range(len(labels))]
    for i, file in enumerate(files):
        Image.new("RGB", (30, 20), (20 * i, 90, 10)).save(folder / file)
    boxes = [np.array(b, np.float32).reshape(-1, 4) for b in boxes] if boxes else ()
    return ImageDataset("pictures", "test", folder, files, labels, boxes=boxes, **parts)


def test_the_weight_of_the_whole_image_is_the_one_that_ranks_best(tmp_path: Path) -> None:
    data = pictures(tmp_path / "p", [0, 0, 1, 1])
    right = (data.labels[:, None] == data.labels).astype(float)
    noise = np.random.default_rng(0).random((4, 4))
    assert choose_weight(right, 1 - right, data) == 0.0
    assert choose_weight(1 - right, right, data) == 0.6  # the least that turns the ranking round
    assert choose_weight(noise, noise, data) == 0.0  # of equals the smallest
    np.testing.assert_allclose(fuse(right, noise, 0.25), 0.75 * right + 0.25 * noise)


# --- the index ----------------------------------------------------------------------------

MANY = made(
    [[[1, 0, 0], [0.9, 0.1, 0], [0.8, 0.3, 0]], [[0, 1, 0], [0.7, 0.7, 0]], [[0, 0, 1]]]
)  # fmt: skip
FILES = ["a.png", "b.png", "c.png"]


def filled() -> ObjectIndex:
    index = ObjectIndex(3, meta={"trunk": "toy"})
    index.add(MANY, PAIR, FILES)
    return index


def test_results_are_grouped_by_image_with_the_box_that_was_meant() -> None:
    found = filled().search(np.array([2.0, 0, 0]), k=3)
    assert [m.file for m in found] == FILES and [m.image for m in found] == [0, 1, 2]
    assert found[0].box == (0, 0, 5, 5) and found[1].box == (9, 0, 14, 5)
    assert found[0].score == pytest.approx(1) and found[1].score == pytest.approx(0.5**0.5)
    assert [m.file for m in filled().search(np.array([2.0, 0, 0]), 9, without={"a.png"})] == [
        "b.png", "c.png",
    ]  # fmt: skip


def test_an_image_with_hundreds_of_objects_does_not_crowd_the_others_out() -> None:
    crowd = [[1.0, 0.001 * k, 0] for k in range(300)]
    index = ObjectIndex(3)
    index.add(made([crowd, [[0, 1, 0]], [[0, 0, 1]]]), PAIR, FILES)
    assert [m.file for m in index.search(np.array([1.0, 0, 0]), 3)] == FILES


def test_a_photograph_that_is_there_twice_is_found_once() -> None:
    index = ObjectIndex(3)
    same = [[[1, 0, 0], [0, 1, 0]]] * 2
    index.add(made([*same, [[1, 0, 0]]], boxes=[
        [[0, 0, 5, 5], [9, 0, 14, 5]], [[0, 0, 5, 5], [9, 0, 14, 5]], [[1, 1, 6, 6]]]),
        PAIR, FILES)  # fmt: skip
    # The third has the same score but another box: another photograph.
    assert [m.file for m in index.search(np.array([1.0, 0, 0]), 3)] == ["a.png", "c.png"]


def test_it_survives_saving_loading_and_appending(tmp_path: Path) -> None:
    filled().save(tmp_path / "objects.index")
    loaded = ObjectIndex.load(tmp_path / "objects.index")
    query = np.array([0.2, 0.5, 0.1])
    assert loaded.search(query, 3) == filled().search(query, 3)
    assert loaded.index.meta == {"trunk": "toy"} and repr(loaded) == repr(filled())
    loaded.add(made([[[0.2, 0.5, 0.1]], [[0, -1, 0]]]), PAIR, ["d.png", "e.png"])
    assert len(loaded) == len(MANY) + 2
    loaded.save(tmp_path / "objects.index")
    again = ObjectIndex.load(tmp_path / "objects.index")
    found = again.search(query, 5)
    assert found == loaded.search(query, 5) and len(found) == 5
    assert (found[0].file, found[0].image) == ("d.png", 3)


def test_what_cannot_be_added_changes_nothing() -> None:
    index = filled()
    one = made([[[0, 1, 1]]])
    for objects, files, words in (
        (one, ["b.png"], "b.png is in the index already"),
        (one, ["x.png", "y.png"], "2 files for 1 images"),
        (made([[[0, 1]]]), ["x.png"], "2"),
        (made([[[0, 1, np.nan]]]), ["x.png"], "NaN"),
    ):
        with pytest.raises(DataError, match=words):
            index.add(objects, PAIR, files)
        assert (len(index), index.files) == (len(MANY), FILES) and len(index.image) == len(MANY)


def test_files_that_hold_no_objects_are_refused(tmp_path: Path) -> None:
    plain = Index(3)
    plain.add(np.eye(3))
    plain.save(tmp_path / "plain.index")
    with pytest.raises(DataError, match="no index of objects"):
        ObjectIndex.load(tmp_path / "plain.index")
    filled().save(tmp_path / "objects.index")
    raw = (tmp_path / "objects.index").read_bytes()
    (tmp_path / "objects.index").write_bytes(raw[:-20])
    with pytest.raises(DataError, match="damaged"):
        ObjectIndex.load(tmp_path / "objects.index")
    with pytest.raises(DataError, match="absent"):
        ObjectIndex.load(tmp_path / "absent.index")


def test_a_removed_image_is_not_found_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    index = filled()
    index.remove({"a.png"})
    assert repr(index) == "ObjectIndex(3 objects of 2 images)"
    index.save(tmp_path / "objects.index")
    for one in (index, ObjectIndex.load(tmp_path / "objects.index")):
        found = one.search(np.array([1.0, 0, 0]), 3)
        assert [(m.file, m.image) for m in found] == [("b.png", 1), ("c.png", 2)]
        for absent in ("a.png", "", "z.png"):
            with pytest.raises(DataError, match="not in the index"):
                one.remove(["b.png", absent])
        one.add(made([[[1, 0, 0]]]), PAIR, ["a.png"])  # the file may come back
        found = one.search(np.array([1.0, 0, 0]), 3)
        assert [(m.file, m.image) for m in found][0] == ("a.png", 3) and len(one) == 4


@pytest.mark.parametrize("factory", ["SQ8", "HNSW8", "IVF2,Flat", "IVF2,PQ2x4"])
def test_every_family_answers_by_image(tmp_path: Path, factory: str) -> None:
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


def test_copies_are_told_from_codes_as_well() -> None:
    x = np.random.default_rng(0).standard_normal((40, 4))
    index = ObjectIndex(4, factory="IVF2,PQ2x4")
    index.index.train(l2(x))
    index.add(made([[x[0]], [x[0]], [x[1]]], [[[0, 0, 5, 5]]] * 3), PAIR, FILES)
    index.index.tune("nprobe=2")
    found = [m.file for m in index.search(x[0], 3)]
    assert sorted(found) in (["a.png", "c.png"], ["a.png"])


def test_lists_that_hold_everything_score_as_a_table_of_all_scores_does(tmp_path: Path) -> None:
    data = pictures(tmp_path / "p", [0, 0, 1, 1], [[[0, 0, 5, 5]]] * 4)
    objects = made([[[1, 0, 0], [0.9, 0.1, 0]], [[0.7, 0.7, 0]], [[0, 1, 0.4]], [[0, 0.2, 1]]])
    x, asking = l2(objects.vectors[PAIR]), np.array([0, 2, 3, 4])
    index = Index(3)
    index.add(x)
    lists = listed_scores(*index.search(x[asking], len(x)), objects.image, data)
    every = retrieval_scores(x, objects, asking, data, "best")
    np.testing.assert_allclose(lists[:, :4], every, atol=1e-6)
    for metric in ("mAP", "R@1"):
        expected = evaluate_scores(every, data, [metric]).values[metric]
        np.testing.assert_array_equal(
            evaluate_scores(lists, data, [metric]).values[metric], expected
        )


def test_distractors_push_images_down(tmp_path: Path) -> None:
    """By hand: the one right image is third, behind two distractors; or not in the list."""
    data = pictures(tmp_path / "p", [0, 0], [[[0, 0, 5, 5]]] * 2)
    image, scores = np.array([0, 1]), np.array([[0.9, 0.8, 0.7, 0.6]] * 2)
    ids = np.array([[0, 5, 6, 1], [1, 5, 6, -1]])  # the query itself comes first, and is junk
    found = evaluate_scores(listed_scores(scores, ids, image, data), data, ["mAP", "R@1"])
    assert found.values["mAP"].tolist() == [1 / 3, 1 / 3] and found.mean("R@1") == 0
    ids[0, 1] = -1
    found = evaluate_scores(listed_scores(scores, ids, image, data), data, ["mAP"])
    assert found.values["mAP"].tolist() == [1 / 2, 1 / 3]


# --- clicks -------------------------------------------------------------------------------


def test_the_label_of_a_box_is_that_of_the_true_box_it_meets(tmp_path: Path) -> None:
    data = pictures(tmp_path / "p", [4, 5], [[[0, 0, 10, 10], [12, 0, 28, 20]], []],
                    box_labels=[np.array([4, 7]), np.array([], int)])  # fmt: skip
    assert object_label(data, 0, np.array([1, 1, 10, 10])) == 4
    assert object_label(data, 0, np.array([12, 2, 30, 20])) == 7
    assert object_label(data, 0, np.array([6, 0, 16, 10])) == -1  # a part of each
    assert object_label(data, 1, np.array([0, 0, 30, 20])) == -1  # nobody knows


def test_a_click_searches_for_the_box_that_was_chosen(tmp_path: Path) -> None:
    data = pictures(tmp_path / "p", [0, 1, 2], [[[0, 0, 5, 5]]] * 3)
    index = ObjectIndex(3)
    index.add(MANY, PAIR, data.files)
    answer = search_object(data, 1, MANY, PAIR, chosen=1, index=index, k=2)
    assert [m.image for m in answer.matches] == [0, 2]  # never the query's own picture
    np.testing.assert_array_equal(answer.boxes, MANY.boxes[3:5])
    expected = l2(MANY.vectors[PAIR])[[0, 1, 2]] @ l2(MANY.vectors[PAIR])[4]
    assert answer.matches[0].score == pytest.approx(float(expected.max()))
    assert search_object(data, 1, MANY, PAIR, 0, index).label == 1 and answer.label == -1
    for chosen in (2, -1):
        with pytest.raises(DataError, match="image 1 has 2 boxes"):
            search_object(data, 1, MANY, PAIR, chosen, index)
    with pytest.raises(DataError, match="image 9 has 0 boxes"):
        search_object(data, 9, MANY, PAIR, 0, index)


def test_a_file_can_ask(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "mine.png")
    one = photograph(tmp_path / "mine.png")
    assert len(one) == 1 and one.image(0).size == (30, 20) and one.labels.tolist() == [-1]
    index = filled()
    answer = search_object(one, 0, made([[[0, 1, 0]]]), PAIR, 0, index, k=1)
    assert answer.matches[0].file == "b.png" and answer.label == -1


# --- what may be hard ---------------------------------------------------------------------


def with_boxes(boxes: list, labels: list[int], root: Path) -> ImageDataset:
    """Images, one a label and list of boxes; their files are empty, for nobody opens them."""
    files = [f"{i}.png" for i in range(len(labels))]
    for file in files:
        (root / file).touch()
    many = [np.float32(b).reshape(-1, 4) for b in boxes]
    return ImageDataset("made", "test", root, files, np.array(labels), boxes=many,
                        box_labels=[np.where(np.arange(len(b)) == 0, lab, -1)
                                    for b, lab in zip(many, labels)])  # fmt: skip


def test_the_main_object_is_met_by_half_an_overlap_and_no_other_object(tmp_path: Path) -> None:
    data = with_boxes([[[0, 0, 10, 10], [20, 20, 30, 30]]] * 3, [4, 4, 4], tmp_path)
    looked = [[[0, 0, 10, 6]], [[0, 0, 10, 4]], [[20, 20, 30, 30]]]
    assert meets_main(data, Boxes("ours", looked)).tolist() == [True, False, False]


def test_suspects_are_told_by_what_the_data_set_knows(tmp_path: Path) -> None:
    boxes = [[[0, 0, s, s], [0, 0, 5, 5]] for s in (10, 20, 30, 40, 50, 60)]
    data = with_boxes(boxes, list(range(6)), tmp_path)
    found = np.array([True, True, False, True, True, True])
    kinds = {
        name: np.flatnonzero(which).tolist() for name, which in query_strata(data, found).items()
    }
    assert kinds == {"found": [0, 1, 3, 4, 5], "missed": [2], "small": [0, 1], "middle": [2, 3],
                     "large": [4, 5]}  # fmt: skip
    some = replace(data, queries=np.array([2, 5]))
    assert query_strata(some, found)["missed"].tolist() == [True, False], "a row for each query"
    covered = [{"layers": [{"visible": v}]} for v in (1, 1, 0.5, 1, 0.95, 1)]
    kinds = query_strata(replace(data, extra=covered), found)
    assert np.flatnonzero(kinds["partly covered"]).tolist() == [2]
    assert kinds["wholly visible"].sum() == 4
    assert query_strata(with_boxes([[]] * 6, list(range(6)), tmp_path), found) == {}
