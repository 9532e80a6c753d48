"""Widgets without a browser: what a click sends is answered as the plain function answers."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_gallery import BOXES, coloured, retriever
from tiny_scenes import lively

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.regions import Region
from objemb_lib.measure.analysis import project
from objemb_lib.measure.metrics import ranking
from objemb_lib.show import plots
from objemb_lib.show.widgets import Attention, Compare, Map, ObjectSearch, Retrieval


@pytest.fixture
def data(tmp_path) -> ImageDataset:
    return coloured(tmp_path)


def found(widget: ObjectSearch) -> list[tuple[int, str]]:
    """Images and captions of the results."""
    return [(one["key"], one["caption"][0]) for one in widget.pictures.rows[1]["cards"]]


def asked(widget: ObjectSearch) -> tuple[int, int]:
    """Image and box that ask, as they are drawn."""
    (card,) = widget.pictures.rows[0]["cards"]
    return card["key"], [one["chosen"] for one in card["boxes"]].index(True)


def test_a_press_on_a_box_searches_for_it(data) -> None:
    widget = ObjectSearch(retriever(data), k=2)
    assert asked(widget) == (0, 0) and found(widget)[0] == (1, "✓ right 0.96")
    widget.act({"kind": "box", "key": 0, "box": 1}, [])
    assert asked(widget) == (0, 1) and found(widget)[0] == (2, "✓ right 0.96")
    (best, other) = widget.pictures.rows[1]["cards"]
    assert best["boxes"][0]["box"] == [*BOXES["c.png"][0]] and best["ink"] == plots.RIGHT
    assert other["caption"][0].startswith("✗ wrong") and other["ink"] == plots.WRONG
    assert widget.pictures.says == "box 1 of image 0 (blue): 1 of 2 right"


def test_a_result_asks_next_and_back_returns(data) -> None:
    widget = ObjectSearch(retriever(data))
    assert widget.back.disabled
    widget.act({"kind": "box", "key": 0, "box": 1}, [])
    widget.act({"kind": "card", "key": 2}, [])
    assert asked(widget) == (2, 0) and widget.image.value == 2
    widget.act({"kind": "drawn", "key": 2, "box": [2, 20, 12, 28]}, [])
    assert asked(widget) == (2, 3)
    widget.act({"kind": "box", "key": 2, "box": 0}, [])
    for before in ((2, 3), (2, 0), (0, 1), (0, 0)):
        widget.back.click()
        assert asked(widget) == before
    assert widget.back.disabled and widget.image.value == 0


def test_a_photograph_of_ones_own_asks(data) -> None:
    widget = ObjectSearch(retriever(data), k=3)
    file = io.BytesIO()
    data.image(1).crop(BOXES["b.png"][0]).save(file, "JPEG")  # red alone
    widget.act({"kind": "photograph"}, [memoryview(file.getvalue())])
    assert {i for i, _ in found(widget)[:2]} == {0, 1}
    assert widget.pictures.says == "box 0 of your photograph: 3 images"
    assert {caption[0] for _, caption in found(widget)} <= set("01-"), "nobody knows its label"
    widget.act({"kind": "photograph"}, [memoryview(b"no image")])
    assert "not an image" in widget.pictures.error and len(found(widget)) == 3
    assert "Error" not in widget.pictures.error  # no names of classes: people do not know them
    widget.back.click()
    assert widget.pictures.error == "" and asked(widget) == (0, 0)


def test_menus_ask_the_same_box_of_another_gallery(data) -> None:
    ways = [retriever(data), retriever(data, main_only=True), retriever(data, 2)]
    widget = ObjectSearch(ways)
    widget.act({"kind": "box", "key": 0, "box": 1}, [])
    widget.boxes.value = "true main box"  # that box is none of its own: it is embedded
    assert asked(widget) == (0, 2) and widget.answer.matches[0].file == "c.png"
    widget.network.value = "colours, 2 cells"
    assert "no index of colours, 2 cells with true main box" in widget.pictures.error
    widget.boxes.value = "true boxes"
    assert widget.pictures.error == "" and widget.retriever is ways[2]
    with pytest.raises(DataError, match="different images"):
        ObjectSearch([ways[0], retriever(data.subset([0, 1, 2]))])


def test_sliders_change_how_much_is_found(data) -> None:
    widget = ObjectSearch(retriever(data))
    assert len(found(widget)) == 2
    widget.k.value = 1
    assert len(found(widget)) == 1


def test_a_failed_callback_says_so_and_the_next_one_takes_it_back(data) -> None:
    def mute(*_: object) -> None:
        raise DataError("no network", "Take a box that is known.")

    widget = ObjectSearch(replace(retriever(data), embed=mute))
    widget.draw((0, 0, 9, 9))
    assert "no network" in widget.pictures.error and "What to do" in widget.pictures.error
    widget.act({"kind": "box", "key": 0, "box": 7}, [])
    assert "did not work" in widget.pictures.error and asked(widget) == (0, 0)
    widget.act({"kind": "box", "key": 0, "box": 1}, [])
    assert widget.pictures.error == "" and asked(widget) == (0, 1)
    (data.root / "b.png").write_bytes(b"")
    widget.image.value = 1
    assert "b.png" in widget.pictures.error


def test_retrieval_finds_what_the_function_finds_and_says_what_fails(data) -> None:
    near = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    vectors = {("s", "a"): near, ("t", "b"): near[::-1].copy()}
    widget = Retrieval(data, vectors, k=2)  # starts with the last stage and the first pooling
    assert "did not work" in widget.pictures.error
    widget.stage.value = "s"
    assert widget.pictures.error == "" and widget.pictures.says == "image 0, red: 1 of 2 right"
    assert [card["caption"] for card in widget.pictures.rows[1]["cards"]] == [
        ["✓ right 0.80", "image 1"], ["✗ wrong 0.00", "image 2"],
    ]  # fmt: skip
    widget.stage.value, widget.pooling.value, widget.k.value = "t", "b", 1
    assert np.array_equal(widget.found.images, ranking(near[::-1], data, 0, 1).images)
    widget.act({"kind": "card", "key": 2}, [])
    assert widget.query.value == widget.found.query == 2
    widget.random.click()
    assert widget.found.query == widget.query.value
    (data.root / "b.png").write_bytes(b"")
    widget.query.value = 1
    assert "b.png" in widget.pictures.error


def test_what_has_no_label_is_not_judged(data) -> None:
    unknown = replace(data, labels=np.array([-1, 0, 1]))
    widget = Retrieval(unknown, {("s", "p"): np.eye(3, dtype=np.float32)})
    asking, found = (row["cards"] for row in widget.pictures.rows)
    assert widget.pictures.says == "image 0, unlabelled"
    assert asking[0]["caption"] == ["query: unlabelled"]
    assert {card["caption"][0] for card in found} == {"0.00"}
    assert {card["ink"] for card in found} == {plots.UNKNOWN}


def test_compare_counts_places_from_the_first_embedding(data) -> None:
    first = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    second = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    widget = Compare(data, {"first": first, "second": second})
    _, one, two = widget.pictures.rows
    assert [card["caption"][1] for card in one["cards"]] == ["image 1", "image 2"]
    assert [card["caption"][1] for card in two["cards"]] == ["image 2 ▲ 1", "image 1 ▼ 1"]
    assert one["title"].startswith("first: mAP 1.00") and two["title"].startswith(
        "second: mAP 0.50"
    )
    widget.act({"kind": "card", "key": 1}, [])
    assert widget.query.value == 1 and widget.sides["first"].found.query == 1


def test_the_map_shows_what_is_chosen_and_asks_with_it(data) -> None:
    way = retriever(data)
    search = ObjectSearch(way)
    widget = Map(way, search)
    assert np.allclose(widget.plane.points, project(way.sample(9)[2]), atol=1e-4)
    assert widget.plane.groups == [0, 1, 0, 1, 2] and widget.plane.names[:2] == ["warm", "cold"]
    widget.colour.value = "first answer"
    assert widget.plane.groups == [0, 0, 0, 0, 2], "yellow is there once only"
    widget.act({"kind": "chosen", "rows": [0, 3]}, [])
    assert [card["key"] for card in widget.pictures.rows[0]["cards"]] == [0, 3]
    widget.act({"kind": "card", "key": 3}, [])
    assert asked(search) == (2, 0)
    widget.act({"kind": "hover", "row": 4}, [])
    assert widget.plane.seen["caption"] == "yellow, image 2"
    widget.act({"kind": "chosen", "rows": [99]}, [])
    assert "did not work" in widget.pictures.error


def test_attention_follows_box_and_stage(data) -> None:
    trunk = lively("efficientnet_lite0")
    widget = Attention(data, trunk, Region(true_boxes(data)), size=64)
    before = widget.found["similarity"]
    widget.act({"kind": "box", "key": 0, "box": 1}, [])
    assert widget.pictures.error == "" and not np.array_equal(before, widget.found["similarity"])
    widget.stage.value = "stage4"
    assert widget.found["similarity"].shape == (4, 4)  # stride 16
    names = [card["caption"][0] for card in widget.pictures.rows[1]["cards"]]
    assert names == ["boxes", "CroW", "similarity"]
    widget.act({"kind": "drawn", "key": 0, "box": [1, 1, 9, 9]}, [])
    assert len(widget.pictures.rows[0]["cards"][0]["boxes"]) == 3
    (data.root / "b.png").write_bytes(b"")
    widget.refresh()
    assert "b.png" in widget.pictures.error


def test_a_thumbnail_is_small_and_boxes_stay_in_pixels_of_the_image(tmp_path) -> None:
    from objemb_lib.show.widgets.pictures import card

    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "big.png")
    data = ImageDataset("big", "all", tmp_path, ["big.png"], [-1])
    made = card(data, 0, plots.QUERY, ["query"], side=100)
    assert (made["width"], made["height"]) == (2000, 1000) and len(made["src"]) < 9000
