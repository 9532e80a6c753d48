"""One query from photograph to answer, on pictures whose colours anybody can compare by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from tiny_gallery import BOXES, coloured, retriever
from tiny_scenes import lively

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import Region
from objemb_lib.embed.whitening import concat_descriptors, l2
from objemb_lib.measure.metrics import average_precision, ranking
from objemb_lib.search.objects import photograph
from objemb_lib.search.retriever import Retriever, side_by_side
from objemb_lib.show.widgets import Map, ObjectSearch


@pytest.fixture
def data(tmp_path) -> ImageDataset:
    return coloured(tmp_path)


@pytest.fixture
def way(data, store) -> Retriever:
    """The gallery in memory, and in Milvus."""
    return retriever(data, store=store)


def files(answer) -> list[str]:
    return [match.file for match in answer.matches]


def test_a_known_box_finds_the_image_that_shows_it_and_where(way) -> None:
    red, blue = (way.search(way.query(0), k, 2) for k in (0, 1))
    assert files(red)[0] == "b.png" and red.matches[0].box == BOXES["b.png"][0]
    assert files(blue)[0] == "c.png" and blue.matches[0].box == BOXES["c.png"][0]
    assert red.matches[0].score == pytest.approx(1, abs=1e-5)
    assert files(way.search(way.query(0), 0, 2, threshold=0.99)) == ["b.png"]


def test_a_box_drawn_by_hand_asks_as_a_known_one_does(way) -> None:
    query, number = way.add_box(way.query(2), (2, 20, 12, 28))  # green, which no true box holds
    assert number == len(BOXES["c.png"]) and query.boxes[number].tolist() == [2, 20, 12, 28]
    assert np.allclose(query.vectors[number], l2(np.array([-1.0, 1, -1])[None])[0], atol=0.05)
    assert len(way.query(2).boxes) == number, "the gallery keeps what it had"
    again, same = way.add_box(query, query.boxes[0] + 0.3)
    assert again is query and same == 0, "a box that is there is not added twice"
    query, number = way.add_box(way.query(0), (-5, -5, 500, 500))
    assert query.boxes[number].tolist() == [0, 0, 40, 30]
    with pytest.raises(DataError, match="holds nothing"):
        way.add_box(way.query(0), (39, 0, 60, 30))


def test_a_photograph_asks_and_only_the_gallery_leaves_out_its_own(data, way) -> None:
    own = way.query_photograph(photograph(data.root / "b.png"))
    assert own.boxes.tolist() == [[0, 0, 40, 30]], "without a detector, all of it"
    query, number = way.add_box(own, BOXES["b.png"][0])
    assert set(files(way.search(query, number, 3))[:2]) == {"a.png", "b.png"}
    assert "b.png" not in files(way.search(way.query(1), 0, 3))


def test_what_cannot_be_asked_is_refused(data, way) -> None:
    for image in (-1, 3):
        with pytest.raises(DataError, match="no image"):
            way.query(image)
    with pytest.raises(DataError, match="is not of"):
        replace(way, dataset=data.subset([1, 0, 2]))


def test_a_gallery_outlives_its_program(data, way, tmp_path) -> None:
    way.index.save(tmp_path / "x.index")
    again = replace(way, index=type(way.index).load(tmp_path / "x.index"))
    one, other = (r.search(r.query(0), 1, 2).matches for r in (way, again))
    assert one == other


def test_a_sample_is_evenly_spread_over_all_objects(way) -> None:
    image, boxes, vectors = way.sample(99)
    every = [box for boxes in BOXES.values() for box in boxes]
    assert image.tolist() == [0, 0, 1, 2, 2] and boxes.tolist() == np.float32(every).tolist()
    assert vectors.shape == (5, 3) and way.sample(2)[0].tolist() == [0, 2]


def test_the_widgets_work_on_either(data, way) -> None:
    widget = ObjectSearch(way, k=2)
    assert [m.file for m in widget.answer.matches][0] == "b.png"
    widget.draw((20, 5, 35, 25))
    assert [m.file for m in widget.answer.matches][0] == "c.png"
    file = io.BytesIO()
    data.image(1).crop(BOXES["b.png"][0]).save(file, "PNG")
    widget.photograph(file.getvalue())
    assert {m.file for m in widget.answer.matches} == {"a.png", "b.png"}
    seen = Map(way, widget)
    seen.choose([2])  # the only object of b.png
    assert widget.query.image == 1 and len(seen.image) == 5


def test_a_built_gallery_embeds_queries_as_it_embeds_itself(data) -> None:
    trunk = lively("efficientnet_lite0")
    pairs, region = [("stage4", "spoc"), ("head", "gem")], Region(true_boxes(data), context=0.1)
    way = Retriever.build(data, trunk, pairs, region, 64, progress=False)
    vectors = extract(data, trunk, pairs, region, ExtractOptions(64, cache=False))
    wanted = concat_descriptors([vectors[pair] for pair in pairs])
    assert np.allclose(way.index.vectors, wanted, atol=1e-5)
    again = way.embed(data.subset([1]), true_boxes(data.subset([1])))
    assert np.allclose(again, wanted[region.boxes.owners == 1], atol=1e-4)


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
