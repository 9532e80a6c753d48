"""One query from photograph to answer, on pictures whose colours anybody can compare by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_colours import BOXES, by_colour, coloured
from tiny_scenes import lively

from objemb_lib.attend.objects import first_right, object_truth
from objemb_lib.attend.soft import overlays
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import Region
from objemb_lib.embed.whitening import concat_descriptors, l2
from objemb_lib.measure.metrics import average_precision, ranking
from objemb_lib.search.objects import ObjectIndex, photograph
from objemb_lib.search.retriever import Retriever, side_by_side


@pytest.fixture
def data(tmp_path) -> ImageDataset:
    return coloured(tmp_path)


def files(answer) -> list[str]:
    return [match.file for match in answer.matches]


def test_a_known_box_finds_the_image_that_shows_it_and_where(data) -> None:
    way = by_colour(data)
    red, blue = (way.search(way.query(0), k, 2) for k in (0, 1))
    assert files(red)[0] == "b.png" and red.matches[0].box == BOXES["b.png"][0]
    assert files(blue)[0] == "c.png" and blue.matches[0].box == BOXES["c.png"][0]
    assert red.matches[0].score == pytest.approx(1, abs=1e-5)


def test_a_threshold_leaves_out_what_is_less_alike(data) -> None:
    way = by_colour(data)
    assert files(way.search(way.query(0), 0, 2, threshold=0.99)) == ["b.png"]


def test_a_box_drawn_by_hand_asks_as_a_known_one_does(data) -> None:
    way = by_colour(data)
    query, number = way.add_box(way.query(2), (2, 20, 12, 28))  # green, which no true box holds
    assert number == len(BOXES["c.png"]) and query.boxes[number].tolist() == [2, 20, 12, 28]
    assert np.allclose(query.vectors[number], l2(np.array([-1.0, 1, -1])[None])[0], atol=0.05)
    assert len(way.query(2).boxes) == number, "the gallery keeps what it had"
    again, same = way.add_box(query, query.boxes[0] + 0.3)
    assert again is query and same == 0, "a box that is there is not added twice"


def test_a_drawn_box_is_clipped_and_must_hold_something(data) -> None:
    way = by_colour(data)
    query, number = way.add_box(way.query(0), (-5, -5, 500, 500))
    assert query.boxes[number].tolist() == [0, 0, 40, 30]
    with pytest.raises(DataError, match="holds nothing"):
        way.add_box(way.query(0), (39, 0, 60, 30))


def test_a_photograph_asks_and_only_the_gallery_leaves_out_its_own(data) -> None:
    way = by_colour(data)
    own = way.query_photograph(photograph(data.root / "b.png"))
    assert own.boxes.tolist() == [[0, 0, 40, 30]], "without a detector, all of it"
    query, number = way.add_box(own, BOXES["b.png"][0])
    found = way.search(query, number, 3)
    assert set(files(found)[:2]) == {"a.png", "b.png"}
    assert "b.png" not in files(way.search(way.query(1), 0, 3))


def test_what_cannot_be_asked_is_refused(data) -> None:
    way = by_colour(data)
    for image in (-1, 3):
        with pytest.raises(DataError, match="no image"):
            way.query(image)
    with pytest.raises(DataError, match="no box 2"):
        way.search(way.query(0), 2)
    mute = Retriever(data, way.index)
    assert files(mute.search(mute.query(0), 0, 1)) == ["b.png"]
    with pytest.raises(DataError, match="no network"):
        mute.add_box(mute.query(0), (0, 0, 9, 9))
    with pytest.raises(DataError, match="is not of"):
        Retriever(data.subset([1, 0, 2]), way.index)


def test_a_built_gallery_embeds_queries_as_it_embeds_itself(data) -> None:
    trunk = lively("efficientnet_lite0")
    pairs, region = [("stage4", "spoc"), ("head", "gem")], Region(true_boxes(data), context=0.1)
    way = Retriever.build(data, trunk, pairs, region, 64, progress=False)
    vectors = extract(data, trunk, pairs, region, ExtractOptions(64, cache=False))
    wanted = concat_descriptors([vectors[pair] for pair in pairs])
    assert np.allclose(way.index.vectors, wanted, atol=1e-5)
    again = way.embed(data.subset([1]), true_boxes(data.subset([1])))
    assert np.allclose(again, wanted[region.boxes.owners == 1], atol=1e-4)


def test_an_index_outlives_a_kill_of_its_program(data, tmp_path) -> None:
    way = by_colour(data)
    way.index.save(tmp_path / "x.index")
    again = Retriever(data, ObjectIndex.load(tmp_path / "x.index"), embed=way.embed)
    one, other = (r.search(r.query(0), 1, 2).matches for r in (way, again))
    assert one == other


# --- several embeddings -------------------------------------------------------------------


def test_sides_say_where_an_image_was_and_what_the_metric_is(data) -> None:
    near = l2(np.array([[1.0, 0], [0.9, 0.1], [0, 1]]))
    far = l2(np.array([[1.0, 0], [0, 1], [0.9, 0.1]]))
    sides = side_by_side({"near": near, "far": far}, data, 0, 2)
    assert sides["near"].found.images.tolist() == [1, 2]
    assert sides["near"].before.tolist() == [1, 2] and sides["far"].before.tolist() == [2, 1]
    for x, side in zip((near, far), sides.values()):
        ranked = {q: ranking(x, data, q, 3).relevant for q in range(3)}
        assert side.of_query == average_precision(ranked[0])
        every = [average_precision(r) for r in ranked.values() if r.any()]
        assert side.overall == pytest.approx(np.mean(every))
    with pytest.raises(DataError, match="no query"):
        side_by_side({"near": near}, data, 7)


# --- what the map and the overlays show ---------------------------------------------------


def test_truth_of_objects_is_that_of_the_boxes_they_meet(data) -> None:
    way = by_colour(data)
    labels, categories = object_truth(data, way.index.image, way.index.boxes)
    assert labels.tolist() == [0, 1, 0, 1, 2] and categories.tolist() == [0, 1, 0, 1, -1]
    nowhere = object_truth(data, np.array([0]), np.array([[30.0, 0, 39, 4]]))
    assert [part.tolist() for part in nowhere] == [[-1], [-1]]


def test_a_first_answer_is_right_in_another_image_only() -> None:
    vectors = l2(np.array([[1, 0], [1, 0.1], [0.9, 0.1], [0, 1], [0.2, 1]]))
    image, labels = np.array([0, 0, 1, 1, 2]), np.array([5, 5, 5, 6, -1])
    # rows 0 and 1 lie in one image; 3 has no other 6; nobody knows 4
    assert first_right(vectors, image, labels).tolist() == [1, 1, 1, -1, -1]
    assert first_right(vectors[[0, 3, 4]], np.arange(3), np.array([5, 5, 6])).tolist() == [0, 0, -1]


def test_overlays_are_bright_where_something_is_pooled(data) -> None:
    trunk = lively("efficientnet_lite0")
    region = Region(true_boxes(data))
    vector = np.ones(trunk.stages["stage4"].channels, np.float32)
    found = overlays(data, 0, trunk, "stage4", region, vector, 64)
    inside = np.zeros((30, 40))
    for x0, y0, x1, y1 in BOXES["a.png"]:
        inside[y0:y1, x0:x1] = 1
    assert np.array_equal(found["boxes"], inside) and "masks" not in found
    pixels = torch.from_numpy(np.array(data.image(0).resize((64, 64), 3, reducing_gap=2.0)))
    with torch.inference_mode():
        seen = trunk(trunk.normalise(pixels.permute(2, 0, 1)[None]))["stage4"][0]
    total = seen.clamp(min=0).sum(dim=0).sqrt()
    assert np.allclose(found["CroW"], total / total.max(), atol=1e-3)
    alike = torch.nn.functional.cosine_similarity(seen, torch.ones_like(seen), dim=0)
    assert np.allclose(found["similarity"], alike.clamp(min=0), atol=1e-4)
    with pytest.raises(DataError, match="same stage"):
        overlays(data, 0, trunk, "stage4", region, vector[:5], 64)
