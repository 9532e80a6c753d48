"""Widgets without a browser: what the front end asks is answered as the plain function answers."""

from __future__ import annotations

import base64
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
from objemb_lib.search.calibration import UNCHECKED, Calibration
from objemb_lib.show import front
from objemb_lib.show.widgets import Attention, Compare, Map, ObjectSearch, Retrieval
from objemb_lib.show.widgets.front import LARGE, Front


@pytest.fixture
def data(tmp_path) -> ImageDataset:
    return coloured(tmp_path)


class Asked:
    """A widget, and what a browser would be told."""

    def __init__(self, widget: Front, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widget, self.told = widget, []
        monkeypatch.setattr(type(widget), "send", lambda _, *sent: self.told.append(sent))
        self.settings = {one["name"]: one["value"] for one in widget.about["choices"]}

    def answer(self, question: str, *files: bytes, **given: object) -> dict:
        """What is answered, or ``{"error": ...}``."""
        message = {"number": "1", "question": question, "given": given}
        self.widget._handle_custom_msg(message, [memoryview(file) for file in files])
        reply, self.files = self.told.pop()
        assert reply.pop("number") == "1"
        return reply.get("answer", reply)

    def ask(self, id: str, box=None, kind: str = "box", k: int = 8, **more: object) -> dict:
        given = {"id": id, "box": box, "kind": kind, "k": k, "settings": self.settings} | more
        return self.answer("ask", **given)


@pytest.fixture
def asked(monkeypatch):
    return lambda widget: Asked(widget, monkeypatch)


def found(answer: dict, row: int = 0) -> list[tuple[str, str]]:
    return [(one["file"], one["state"]) for one in answer["rows"][row]["matches"]]


# --- the front end ------------------------------------------------------------------------


def test_the_modules_are_one_whose_names_do_not_meet() -> None:
    made = front.module("widget")
    assert "import " not in made and made.count("export default") == 1
    assert made.index("const $dom =") < made.index("const { ARROWS") < made.index("function render")
    assert "http://" not in made.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in made + front.style()


def test_photographs_come_in_pages_small_large_and_as_they_are(data, asked) -> None:
    Image.new("RGB", (4000, 2000), "red").save(data.root / "b.png")
    widget = asked(ObjectSearch(retriever(data)))
    page = widget.answer("photographs", **{"from": 1, "many": 5})
    assert page["total"] == 3 and [one["file"] for one in page["items"]] == ["b.png", "c.png"]
    big = widget.answer("picture", id="b.png")
    assert (big["width"], big["height"]) == (4000, 2000) and len(page["items"][0]["src"]) < 9000
    with Image.open(io.BytesIO(_bytes(big["src"]))) as image:
        assert image.size == (LARGE, LARGE // 2)
    assert widget.answer("original", id="b.png") == {"type": "image/png"}
    assert widget.files == [(data.root / "b.png").read_bytes()]
    assert "x.png is not here" in widget.answer("picture", id="x.png")["error"]


def _bytes(address: str) -> bytes:
    return base64.b64decode(address.split(",")[1])


def test_what_fails_is_said_without_names_of_classes(data, asked) -> None:
    def mute(*_: object) -> None:
        raise DataError("no network", "Take a box that is known.")

    widget = asked(ObjectSearch(replace(retriever(data), embed=mute)))
    assert "no network" in widget.ask("a.png", [1, 1, 9, 9])["error"]
    assert "did not work" in widget.ask("a.png", ["x"])["error"]
    assert "no question" in widget.answer("close")["error"]
    (data.root / "b.png").write_bytes(b"")
    told = widget.answer("picture", id="b.png")["error"]
    assert "b.png" in told and "Error" not in told


# --- objects ------------------------------------------------------------------------------


def test_a_box_or_the_whole_photograph_asks(data, asked) -> None:
    widget = asked(ObjectSearch(retriever(data)))
    query = widget.answer("objects", id="a.png", settings=widget.settings)
    assert query["boxes"] == [[*map(float, box)] for box in BOXES["a.png"]], "without the whole"
    red, blue = (widget.ask("a.png", box, k=2) for box in query["boxes"])
    assert found(red)[0] == ("b.png", "right") and found(blue)[0] == ("c.png", "right")
    assert blue["rows"][0]["matches"][0]["box"] == [*BOXES["c.png"][0]]
    assert blue["says"] == "blue of a.png: 1 of 1 found, at rank 1"
    way, mine = widget.widget.ways[0], widget.widget.query("a.png", widget.settings)
    for kind in ("whole", "both"):
        plain = way.search(mine, mine.whole if kind == "whole" else 0, 8, kind)
        answer = widget.ask("a.png", query["boxes"][0], kind)
        assert [one[0] for one in found(answer)] == [match.file for match in plain.matches], kind
    assert widget.ask("a.png", None, "both")["says"] == widget.ask("a.png", None, "whole")["says"]


def test_chances_and_their_limit_reach_the_browser(data, asked) -> None:
    class Known(Calibration):
        def chance(self, scores: np.ndarray, kind: str) -> np.ndarray:
            return np.full_like(scores, 0.25)

    for calibration, limit, chance in ((Known(nothing=0.5), 0.5, 0.25), (UNCHECKED, None, None)):
        widget = asked(ObjectSearch(replace(retriever(data), calibration=calibration)))
        answer = widget.ask("a.png", BOXES["a.png"][0])
        assert answer["nothing"] == limit
        assert {one["chance"] for one in answer["rows"][0]["matches"]} == {chance}


def test_a_photograph_of_ones_own_asks(data, asked) -> None:
    widget, file = asked(ObjectSearch(retriever(data))), io.BytesIO()
    data.image(1).crop(BOXES["b.png"][0]).save(file, "JPEG")  # red alone
    query = widget.answer("embed", file.getvalue(), file="../mine.jpg", settings=widget.settings)
    assert query["id"] == "own/0/mine.jpg" and query["file"] == "mine.jpg"
    answer = widget.ask(query["id"], None, "whole", 3)
    assert {file for file, _ in found(answer)[:2]} == {"a.png", "b.png"}
    assert answer["says"] == "the whole photograph of mine.jpg: 3 photographs"
    assert {state for _, state in found(answer)} == {""}, "nobody knows its label"
    assert widget.answer("original", id=query["id"]) == {"type": "image/jpeg"}
    told = widget.answer("embed", b"no image", file="words.jpg", settings=widget.settings)
    assert "not an image" in told["error"]


def test_an_answer_is_explained(data, asked) -> None:
    widget = asked(ObjectSearch(retriever(data)))
    widget.ask("a.png", BOXES["a.png"][1])
    why = widget.answer("explain", rank=0)
    assert set(why) == {"cells", "heat", "score", "without_background", "without_object"}


def test_menus_ask_the_same_box_of_another_gallery(data, asked) -> None:
    ways = [retriever(data), retriever(data, main_only=True), retriever(data, 2)]
    widget, box = asked(ObjectSearch(ways)), BOXES["a.png"][1]
    widget.settings["boxes"] = "true main box"  # that box is none of its own: it is embedded
    assert found(widget.ask("a.png", box))[0][0] == "c.png"
    widget.settings["network"] = "colours, 2 cells"
    told = widget.ask("a.png", box)["error"]
    assert "no index of colours, 2 cells with true main box" in told
    with pytest.raises(DataError, match="different images"):
        ObjectSearch([ways[0], retriever(data.subset([0, 1, 2]))])


def test_the_map_shows_what_is_chosen_and_asks_with_it(data, asked) -> None:
    way = retriever(data)
    search = ObjectSearch(way)
    widget = asked(Map(way, search))
    shown = widget.answer("map", **widget.settings)
    assert np.allclose(shown["points"], project(way.sample(9)[2]), atol=1e-4)
    assert shown["groups"] == [0, 1, 0, 1, 2] and shown["names"][:2] == ["warm", "cold"]
    shown = widget.answer("map", **widget.settings | {"colour by": "first answer"})
    assert shown["groups"] == [0, 0, 0, 0, 2], "yellow is there once only"
    seen = widget.answer("choose", rows=[4], only="look")["cards"]
    assert seen[0]["note"] == "yellow, c.png" and search.start == {"id": "a.png"}
    both = widget.answer("choose", rows=[0, 3])
    assert [card["row"] for card in both["cards"]] == [0, 3] and both["says"] == "2 objects"
    widget.answer("choose", rows=[3])
    assert search.start == {"id": "c.png", "box": [*map(float, BOXES["c.png"][0])]}
    assert "did not work" in widget.answer("choose", rows=[99])["error"]


# --- whole images -------------------------------------------------------------------------


def test_retrieval_finds_what_the_function_finds_and_says_what_fails(data, asked) -> None:
    near = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    vectors = {("s", "a"): near, ("t", "b"): near[::-1].copy()}
    widget = asked(Retrieval(data, vectors, k=2))
    assert widget.settings == {"stage": "t", "pooling": "a"}, "the last stage"
    assert "did not work" in widget.ask("a.png")["error"]
    widget.settings["stage"] = "s"
    answer = widget.ask("a.png", k=2)
    assert answer["says"] == "a.png, red: 1 of 2 right"
    assert found(answer) == [("b.png", "right"), ("c.png", "wrong")]
    assert [one["note"] for one in answer["rows"][0]["matches"]] == ["cosine 0.80", "cosine 0.00"]
    widget.settings.update(stage="t", pooling="b")
    first = data.names[ranking(near[::-1], data, 0, 1).images[0]]
    assert [file for file, _ in found(widget.ask("a.png", k=1))] == [first]


def test_what_has_no_label_is_not_judged(data, asked) -> None:
    unknown = replace(data, labels=np.array([-1, 0, 1]))
    answer = asked(Retrieval(unknown, {("s", "p"): np.eye(3, dtype=np.float32)})).ask("a.png")
    assert answer["says"] == "a.png, unlabelled"
    assert {state for _, state in found(answer)} == {""}


def test_compare_counts_places_from_the_first_embedding(data, asked) -> None:
    first = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    second = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    answer = asked(Compare(data, {"first": first, "second": second})).ask("a.png")
    one, two = answer["rows"]
    assert [(m["file"], m["note"]) for m in one["matches"]] == [
        ("b.png", "cosine 0.80"), ("c.png", "cosine 0.00")]  # fmt: skip
    assert [(m["file"], m["note"][-3:]) for m in two["matches"]] == [
        ("c.png", "▲ 1"), ("b.png", "▼ 1")]  # fmt: skip
    assert "first: mAP 1.00" in one["title"] and "second: mAP 0.50" in two["title"]
    some = Compare(replace(data, queries=np.array([0])), {"first": first})
    assert "b.png is no query" in asked(some).ask("b.png")["error"]


def test_attention_follows_box_and_stage(data, asked) -> None:
    trunk = lively("efficientnet_lite0")
    widget = asked(Attention(data, trunk, Region(true_boxes(data)), size=64))
    looks = widget.widget.start["looks"]

    def heat(box) -> np.ndarray:
        (row,) = widget.ask("a.png", box, looks=looks)["rows"]
        assert [one["file"] for one in row["matches"]] == ["boxes", "CroW", "similarity"]
        return np.array(row["matches"][2]["heat"])

    red, blue = map(heat, BOXES["a.png"])
    assert looks == "b.png" and not np.array_equal(red, blue)
    widget.settings["stage"] = "stage4"
    assert heat([1, 1, 9, 9]).shape == (4, 4)  # stride 16
