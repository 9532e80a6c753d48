"""One query from photograph to answer, on pictures whose colours anybody can compare by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from tiny_gallery import BOXES, PAIR, coloured, made, retriever
from tiny_scenes import lively, objects_of

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, true_boxes, whole_image, with_whole
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import Region
from objemb_lib.embed.whitening import concat_descriptors, l2
from objemb_lib.search.objects import photograph
from objemb_lib.search.retriever import Retriever
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
    red, blue = (way.search(way.query(0), k, 2, "box") for k in (0, 1))
    assert files(red)[0] == "b.png" and red.matches[0].box == BOXES["b.png"][0]
    assert files(blue)[0] == "c.png" and blue.matches[0].box == BOXES["c.png"][0]
    assert red.matches[0].score == pytest.approx(1, abs=1e-5)


def test_a_box_drawn_by_hand_asks_as_a_known_one_does(way) -> None:
    query, number = way.add_box(way.query(2), (2, 20, 12, 28))  # green, which no true box holds
    assert number == len(BOXES["c.png"]) + 1 and query.boxes[number].tolist() == [2, 20, 12, 28]
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


class Fixed:
    """Vectors that a test writes down, two boxes an image and its whole."""

    def __init__(self, data, store, vectors) -> None:
        self.where = with_whole(Boxes("halves", [[[0, 0, 20, 30], [20, 0, 40, 30]]] * 3), data)
        self.index = store(len(vectors[0][0]))
        self.index.add(made(vectors, self.where.boxes), PAIR, data.names)
        self.way = Retriever(data, self.index, "fixed", "halves", lambda *_: np.ones((1, 4)))


@pytest.mark.parametrize("whole, winner", [((0.95, 0.1), 1), ((0.1, 0.95), 2)])
def test_the_whole_photograph_may_win_over_parts_and_lose(data, store, whole, winner) -> None:
    """b.png shares the query's whole in the first case, c.png in the second."""
    part, away, least = [0, 0.6, 0.8, 0], [0, 0, 0, 1.0], [0, 0.55, 0.83, 0]
    asks, sees = [1.0, 0, 0, 0], [[c, 0, 0, (1 - c * c) ** 0.5] for c in whole]
    vectors = [[[0, 1.0, 0, 0], away, asks], [part, away, sees[0]], [least, away, sees[1]]]
    way = Fixed(data, store, vectors).way
    best = way.search(way.query(0), 0, kind="both").matches[0]
    assert best.image == winner and best.box == (0, 0, 40, 30)
    by_part = way.search(way.query(0), 0, kind="box").matches[0]
    assert by_part.image == 1 and by_part.box == (0, 0, 20, 30)
    by_whole = way.search(way.query(0), 0, kind="whole")
    assert by_whole.matches[0].image == winner and by_whole.kind == "whole"
    assert way.search(way.query(0), 2, kind="both").kind == "whole", "the whole was chosen"


def test_boxes_that_show_the_same_are_one_and_nearly_all_of_it_is_the_whole(data) -> None:
    many = [[0, 0, 20, 20], [0, 0, 20, 21], [1, 1, 40, 30], [10, 5, 30, 25]]
    way = Retriever.build(data, lively("efficientnet_lite0"), [("stage4", "spoc")],
                          Region(Boxes("many", [many] * 3, [[0.5, 0.9, 0.8, 0.1]] * 3)), 64,
                          progress=False)  # fmt: skip
    assert way.query(0).boxes.tolist() == [many[1], many[3], [0, 0, 40, 30]]
    assert way.query(0).whole == 2


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
    widget, settings = ObjectSearch(way), {"network": way.network, "boxes": way.boxes}
    asked = {"kind": "box", "k": 2, "settings": settings}
    for box, first in zip(BOXES["a.png"], ("b.png", "c.png")):
        widget.ask("a.png", box, **asked)
        assert files(widget.answer)[0] == first
    file = io.BytesIO()
    data.image(1).crop(BOXES["b.png"][0]).save(file, "PNG")
    own = widget.embed(file.getvalue(), "own.png", settings)
    widget.ask(own["id"], None, **asked)
    assert {*files(widget.answer)} == {"a.png", "b.png"}
    seen = Map(way, widget)
    seen.choose([2])  # the only object of b.png
    assert widget.start["id"] == "b.png" and len(seen.image) == 5


def test_a_built_gallery_embeds_queries_as_it_embeds_itself(data) -> None:
    trunk, pairs = lively("efficientnet_lite0"), [("stage4", "spoc"), ("head", "gem")]
    for context in (0.1, -0.2):
        region = Region(true_boxes(data), context=context)
        way = Retriever.build(data, trunk, pairs, region, 64, progress=False)
        parts, wholes = (
            concat_descriptors([vectors[pair] for pair in pairs])
            for vectors in (extract(data, trunk, pairs, where, ExtractOptions(64, cache=False))
                            for where in (region, Region(whole_image(data))))
        )  # fmt: skip
        whole = np.isin(np.arange(8), [2, 4, 7])  # the last of each image, whatever the context
        assert np.allclose(way.index.vectors[~whole], parts, atol=1e-5)
        assert np.allclose(way.index.vectors[whole], wholes, atol=1e-5)
        one = data.subset([1])
        again = way.embed(one, with_whole(true_boxes(one), one))
        assert np.allclose(l2(again), way.index.of_images([1])[0][1], atol=1e-4)


def test_objects_of_another_network_are_not_added_to_a_built_gallery(data) -> None:
    """volcengine/OpenViking#1066, in what the app makes."""
    trunk, pair, region = lively(), ("head", "spoc"), Region(true_boxes(data))
    index = Retriever.build(data, trunk, [pair], region, 64, progress=False).index
    more = [f"more/{name}" for name in data.names]
    index.add(objects_of(data, region, trunk), pair, more)
    trunk.mean += 0.1  # of the same name
    with pytest.raises(DataError, match="another model: their weights"):
        index.add(objects_of(data, region, trunk), pair, [f"even/{name}" for name in more])
    assert len(index.files) == 2 * len(data)
