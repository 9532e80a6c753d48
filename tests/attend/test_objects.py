"""Images as sets of objects: scores by hand and by slow loops, who asks, what may be hard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_gallery import PAIR, coloured, made

from objemb_lib.attend.objects import (
    evaluate_objects,
    first_right,
    image_scores,
    listed_scores,
    meets_main,
    object_truth,
    oracle_query,
    query_strata,
    retrieval_scores,
)
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, true_boxes
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.metrics import evaluate_scores
from objemb_lib.search.index import Index


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 99))
def test_image_scores_are_those_of_a_slow_loop(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(len(counts)), counts)
    vectors, queries = rng.standard_normal((len(image), 3)), rng.standard_normal((4, 3))
    best = image_scores(queries, vectors, image)
    for q, query in enumerate(queries):
        for i in range(len(counts)):
            some = [float(v @ query) for v, owner in zip(vectors, image) if owner == i]
            assert best[q, i] == pytest.approx(max(some))


def test_the_object_that_was_clicked_asks_or_the_surest(tmp_path: Path) -> None:
    objects = made([[[1, 0], [0, 2]], [[3, 4], [0, 1]], [[1, 1], [2, 1]]],
                   scores=[[0.1, 0.7], [0.5, 0.5], [0.2, 0.3]])  # fmt: skip
    # The boxes of each image lie at x = 0 and 9; the main objects at 1, 8, and nobody knows where.
    data = pictures(tmp_path / "p", [0, 0, 0], [[[1, 0, 6, 5]], [[8, 0, 13, 5], [0, 0, 5, 5]], []])
    assert oracle_query(objects, data).tolist() == [0, 3, 5]


def test_scores_are_those_of_the_asking_objects(tmp_path: Path) -> None:
    data = pictures(tmp_path / "p", [0, 0, 1], queries=[2, 0], gallery=[1, 2])
    objects = made([[[1, 0], [0, 1]], [[0.6, 0.8]], [[0, 1], [0.8, 0.6]]])
    vectors = objects.vectors[PAIR]
    found = retrieval_scores(vectors, objects, np.array([0, 2, 4]), data)
    np.testing.assert_allclose(found, [[0.96, 1.0], [0.6, 0.8]], rtol=1e-6)


def test_a_click_asks_and_an_image_counts_by_its_best_object(tmp_path: Path) -> None:
    """By hand: the second box asks; equal images keep their order."""
    data = pictures(tmp_path / "p", [0, 1, 0, 1], [[[9, 0, 14, 5]]] * 4)
    objects = made([[[0, 1], [1, 0]], [[0, 1], [0, 1]], [[3, 0], [0, 1]], [[0, 2], [0, 1]]])
    found = evaluate_objects(objects, data, PAIR)
    assert found["mAP"].tolist() == [1, 1 / 3, 1, 1 / 2] and found.mean("R@1") == 1 / 2


def pictures(folder: Path, labels: list[int], boxes: list | None = None, **parts) -> ImageDataset:
    folder.mkdir(exist_ok=True)
    files = [f"{i}.png" for i in range(len(labels))]
    for i, file in enumerate(files):
        Image.new("RGB", (30, 20), (20 * i, 90, 10)).save(folder / file)
    boxes = [np.array(b, np.float32).reshape(-1, 4) for b in boxes] if boxes else ()
    return ImageDataset("pictures", "test", folder, files, labels, boxes=boxes, **parts)


def test_lists_that_hold_everything_score_as_a_table_of_all_scores_does(tmp_path: Path) -> None:
    data = pictures(tmp_path / "p", [0, 0, 1, 1], [[[0, 0, 5, 5]]] * 4)
    objects = made([[[1, 0, 0], [0.9, 0.1, 0]], [[0.7, 0.7, 0]], [[0, 1, 0.4]], [[0, 0.2, 1]]])
    x, asking = l2(objects.vectors[PAIR]), np.array([0, 2, 3, 4])
    index = Index(3)
    index.add(x)
    lists = listed_scores(*index.search(x[asking], len(x)), objects.image, data)
    every = retrieval_scores(x, objects, asking, data)
    np.testing.assert_allclose(lists[:, :4], every, atol=1e-6)


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


def test_truth_of_objects_is_that_of_the_boxes_they_meet(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    found = true_boxes(data)
    labels, categories = object_truth(data, found.owners, np.concatenate(found.boxes))
    assert labels.tolist() == [0, 1, 0, 1, 2] and categories.tolist() == [0, 1, 0, 1, -1]
    nowhere = object_truth(data, np.array([0]), np.array([[30.0, 0, 39, 4]]))
    assert [part.tolist() for part in nowhere] == [[-1], [-1]]


def test_a_first_answer_is_right_in_another_image_only() -> None:
    vectors = l2(np.array([[1, 0], [1, 0.1], [0.9, 0.1], [0, 1], [0.2, 1]]))
    image, labels = np.array([0, 0, 1, 1, 2]), np.array([5, 5, 5, 6, -1])
    # rows 0 and 1 lie in one image; 3 has no other 6; nobody knows 4
    assert first_right(vectors, image, labels).tolist() == [1, 1, 1, -1, -1]
    assert first_right(vectors[[0, 3, 4]], np.arange(3), np.array([5, 5, 6])).tolist() == [0, 0, -1]


def test_the_main_object_is_met_by_half_an_overlap_and_no_other_object(tmp_path: Path) -> None:
    data = pictures(tmp_path, [4, 4, 4], [[[0, 0, 10, 10], [20, 20, 30, 30]]] * 3,
                    box_labels=[np.array([4, -1])] * 3)  # fmt: skip
    looked = [[[0, 0, 10, 6]], [[0, 0, 10, 4]], [[20, 20, 30, 30]]]
    assert meets_main(data, Boxes("ours", looked)).tolist() == [True, False, False]


def test_suspects_are_told_by_what_the_data_set_knows(tmp_path: Path) -> None:
    boxes = [[[0, 0, s, s], [0, 0, 5, 5]] for s in (10, 20, 30, 40, 50, 60)]
    data = pictures(tmp_path, list(range(6)), boxes)
    found = Boxes("all but one", [[[0, 0, s, s]] for s in (10, 20, 1, 40, 50, 60)])
    strata = query_strata(data, found)
    kinds = {name: np.flatnonzero(which).tolist() for name, which in strata.items()}
    assert kinds == {"found": [0, 1, 3, 4, 5], "missed": [2], "small": [0, 1], "middle": [2, 3],
                     "large": [4, 5]}  # fmt: skip
    some = replace(data, queries=np.array([2, 5]))
    assert query_strata(some, found)["missed"].tolist() == [True, False], "a row for each query"
    covered = [{"layers": [{"visible": v}]} for v in (1, 1, 0.5, 1, 0.95, 1)]
    kinds = query_strata(replace(data, extra=covered), found)
    assert np.flatnonzero(kinds["partly covered"]).tolist() == [2]
    assert kinds["wholly visible"].sum() == 4
    assert query_strata(pictures(tmp_path, list(range(6))), found) == {}


def test_objects_out_of_order_are_refused() -> None:
    for image in ([0, 1, 0], [0, 2, 2], [1, 1, 2], [0, 1]):
        with pytest.raises(DataError, match="image by image"):
            image_scores(np.eye(3), np.eye(3), np.array(image))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.float16])
def test_scores_of_other_kinds_of_numbers_do_not_overflow(kind) -> None:
    vectors = np.array([[127, 0], [100, 90], [0, 127]]).astype(kind)
    found = image_scores(vectors[:1] * kind(1), vectors, np.arange(3))
    assert found.tolist() == [[127 * 127, 12700, 0]]
