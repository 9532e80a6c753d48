"""Pages without a kernel answer as the plain functions do, from bytes in place of floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Watched, chromium, needs_chromium
from PIL import Image
from tiny_gallery import PAIR, coloured, made, retriever
from tiny_scenes import lively

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.whitening import l2
from objemb_lib.search.calibration import Calibration
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.retriever import Retriever
from objemb_lib.show import front, pages
from objemb_lib.show.widgets import Attention, Compare, Map, ObjectSearch, Retrieval

KNOWN = Calibration({"box": (8.0, 6.0), "both": (6.0, 4.0)}, 0.15)
MODULE = """(() => {%s
globalThis.opened = async (of, looks) => browser(await $index.packed(of), looks, link);})()"""
LOOK = """async () => ({ look: async (looks, blob, boxes) => ({ width: 40, height: 30,
  boxes: boxes ?? [[0, 0, 40, 30]], vectors: [Array(looks.dim).fill(0.3)] }) })"""


def gallery(folder: Path, count: int = 90, dim: int = 48) -> Retriever:
    """Photographs of one to three objects and their whole; the second is a copy of the first."""
    rng = np.random.default_rng(0)
    for n in range(count):
        Image.new("RGB", (60, 40), (2 * n, 0, 0)).save(folder / f"{n:02}.png")
    boxes = [[[10 * k, 2, 10 * k + 9, 30] for k in range(n % 3 + 1)] for n in range(count)]
    kinds = rng.integers(0, 20, (count, 3))
    labels = [np.where(row[: len(b)] < 18, row[: len(b)], -1) for row, b in zip(kinds, boxes)]
    truth = [
        np.array(some, np.float32) + (n % 5 == 0) * np.array([0, 18, 0, 0])
        for n, some in enumerate(boxes)
    ]
    names = [f"kind {n}" for n in range(18)]
    files = [f"{n:02}.png" for n in range(count)]
    data = ImageDataset("made", "all", folder, files, [row[0] for row in labels], names,
                        boxes=truth, box_labels=labels)  # fmt: skip
    means = rng.normal(size=(21, dim))
    seen = [np.concatenate([means[row[: len(b)]], means[20:]]) for row, b in zip(kinds, boxes)]
    vectors = [l2(some + 0.8 * rng.normal(size=some.shape)).astype(np.float32) for some in seen]
    boxes = [[*some, [0, 0, 60, 40]] for some in boxes]
    vectors[3], boxes[3] = vectors[0], boxes[0]
    index = ObjectIndex(dim)
    index.add(made([list(some) for some in vectors], boxes), PAIR, files)
    return Retriever(data, index, "made", "true boxes", lambda *_: np.zeros((1, dim)),
                     calibration=KNOWN)  # fmt: skip


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with chromium() as watched:
        yield watched


@pytest.fixture
def opened(watched) -> Callable:
    """A browser that has an index, to be asked as the front end asks it."""
    module, page = front.module("browser").replace("export { browser };", ""), watched.page

    def open_index(index: pages.Index, network: str = "null") -> Callable:
        page.goto("about:blank")
        held = {"about": index.about, "parts": pages._texts(index.parts)}
        page.evaluate(pages.script("it", held))
        page.evaluate("() => { globalThis.link = (...asked) => (globalThis.asked = asked); }")
        page.evaluate(MODULE % module)
        page.evaluate(f"async () => (globalThis.backend = await opened('it.js', {network}))")
        ask = "([question, given]) => backend[question](given).catch((e) => ({error: e.message}))"
        return lambda question, **given: page.evaluate(ask, [question, given])

    return open_index


def settings(widget) -> dict:
    return {one["name"]: one["value"] for one in widget.about["choices"]}


@needs_chromium
def test_the_browser_searches_as_the_retriever_does(opened, tmp_path) -> None:
    """By box, whole and both: the same answers, states and words, and chances that are near."""
    way = gallery(tmp_path)
    widget = ObjectSearch(way)
    ask, menus, same, every = opened(pages.index_of(widget)), settings(widget), 0, 0
    for n, kind in enumerate(["box", "whole", "both"] * 30):
        name = way.dataset.names[n]
        seen = ask("objects", id=name, settings=menus)
        assert seen["boxes"] == widget.objects(name, menus)["boxes"]
        given = {"id": name, "box": seen["boxes"][-1], "kind": kind, "k": 8, "settings": menus}
        mine, plain = ask("ask", **given), widget.ask(**given)
        theirs = plain["rows"][0]["matches"]
        found = mine["rows"][0]["matches"]
        files = [one["file"] for one in theirs]
        same += sum(one["file"] in files for one in found)
        every += len(files)
        assert mine["nothing"] == 0.15
        if [one["file"] for one in found] != files:
            continue  # two scores that are nearly the same
        assert mine["says"] == plain["says"]
        for one, other in zip(found, theirs):
            assert (one["state"], one["box"]) == (other["state"], other["box"])
            assert one["score"] == pytest.approx(other["score"], abs=0.01)
            assert (one["chance"] is None) == (kind == "whole")
            if one["chance"] is not None:
                assert one["chance"] == pytest.approx(other["chance"], abs=0.05)
    assert same / every >= 0.99
    copies = ask("ask", **given | {"id": way.dataset.names[1], "k": 24, "kind": "whole"})
    listed = {one["file"] for one in copies["rows"][0]["matches"]}
    assert not {"00.png", "03.png"} <= listed, "the same photograph twice"


@needs_chromium
def test_what_cannot_be_done_is_said(opened, tmp_path) -> None:
    widget = ObjectSearch(retriever(coloured(tmp_path)))
    ask, menus = opened(pages.index_of(widget)), settings(widget)
    assert "x.png is not here" in ask("objects", id="x.png", settings=menus)["error"]
    given = {"id": "a.png", "kind": "box", "k": 8, "settings": menus}
    assert "a dot" in ask("ask", box=[1, 1, 9, 9], **given)["error"]
    assert "rows" in ask("ask", box=[2.4, 2, 12, 12], **given), "as an address rounds it"
    assert "a dot" in ask("embed", file="a.jpg", settings=menus)["error"]
    wrong = given | {"settings": menus | {"boxes": "none"}}
    assert "Choose another pair" in ask("ask", box=None, **wrong)["error"]


@needs_chromium
def test_what_is_new_is_looked_at_by_the_network_of_the_menus(opened, watched, tmp_path) -> None:
    """A photograph, or a box drawn by hand; where no page runs that network, one is named that a
    page runs."""
    data = coloured(tmp_path)
    index = pages.index_of(ObjectSearch([retriever(data, n) for n in (1, 2, 3)]))
    ways = index.about["ways"]
    one, other, third = (way["settings"] for way in ways)
    for way in ways[1:]:
        way["looks"] = {"dim": way["dim"]}
    opened(index, LOOK)
    new = "given => backend.embed({...given, file: 'a.jpg', bytes: ''}).catch(e => e.settings)"
    assert watched.page.evaluate(new, {"settings": one}) == other
    mine = watched.page.evaluate(new, {"settings": other})
    assert (mine["id"], mine["width"], mine["boxes"]) == ("own/0/a.jpg", 40, [])
    asks = "given => backend.ask(given).catch(e => e.settings)"
    given = {"id": "own/0/a.jpg", "box": None, "kind": "whole", "k": 8}
    assert watched.page.evaluate(asks, given | {"settings": third})["rows"]
    assert watched.page.evaluate(asks, given | {"settings": one}) == other
    drawn = {"box": [1, 1, 9, 9], "kind": "box"}
    assert watched.page.evaluate(asks, given | drawn | {"settings": third})["rows"]
    drawn = given | drawn | {"id": "a.png"}
    assert watched.page.evaluate(asks, drawn | {"settings": one}) == other


@needs_chromium
def test_whole_photographs_are_compared_as_in_a_notebook(opened, tmp_path) -> None:
    data = coloured(tmp_path)
    near = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    compare = Compare(data, {"first": near, "second": near[[0, 2, 1]]})
    retrieval = Retrieval(data, {("s", "a"): near, ("t", "b"): near[::-1].copy()}, k=2)
    for widget, chosen in ((compare, {}), (retrieval, {"stage": "s", "pooling": "a"}),
                           (retrieval, {"stage": "t", "pooling": "b"})):  # fmt: skip
        ask = opened(pages.index_of(widget))
        for name in data.names:
            given = {"id": name, "k": 2, "settings": chosen}
            mine, plain = ask("ask", **given), widget.ask(**given)
            assert mine["says"] == plain["says"]
            for row, other in zip(mine["rows"], plain["rows"], strict=True):
                assert row["title"] == other["title"]
                for part in ("file", "note", "state"):
                    told = [[one[part] for one in side["matches"]] for side in (row, other)]
                    assert told[0] == told[1]


@needs_chromium
def test_a_map_shows_and_asks_as_in_a_notebook(opened, watched, tmp_path) -> None:
    data = coloured(tmp_path)
    search = ObjectSearch(retriever(data))
    widget = Map(search.ways[0], search)
    ask = opened(pages.index_of(search, widget))
    for by in ("category", "object", "first answer"):
        chosen = settings(widget) | {"colour by": by}
        plain = widget.map(**chosen)
        assert ask("map", **chosen) == {**plain, "glyphs": [list(g) for g in plain["glyphs"]]}
    mine, plain = ask("choose", rows=[0, 3]), widget.choose([0, 3])
    assert mine["says"] == plain["says"]
    assert [one["note"] for one in mine["cards"]] == [one["note"] for one in plain["cards"]]
    ask("choose", rows=[4], only="look")
    assert watched.page.evaluate("globalThis.asked") is None
    card = ask("choose", rows=[4])["cards"][0]
    assert watched.page.evaluate("globalThis.asked") == [card["id"], card["box"]]


def test_nothing_is_written_of_what_asks_a_network_each_time(tmp_path) -> None:
    data = coloured(tmp_path)
    widget = Attention(data, lively("efficientnet_lite0"), Region(true_boxes(data)), size=64)
    with pytest.raises(DataError, match="no page of a Attention"):
        pages.index_of(widget)


@needs_chromium
def test_one_file_searches_from_a_stick(watched, tmp_path) -> None:
    """Also where a photograph is called as no script may be."""
    data = coloured(tmp_path)
    (tmp_path / "<").mkdir()
    name = "</script><img src=x>&.png"
    (tmp_path / "c.png").rename(tmp_path / name)
    data = replace(data, files=["a.png", "b.png", name])
    file = tmp_path / "search.html"
    pages.write_one_file(pages.index_of(ObjectSearch(retriever(data))), file)
    page, watched.outside = watched.page, []
    page.goto(file.as_uri())
    page.locator(".dot").nth(1).click()
    page.get_by_text("blue of a.png: 1 of 1 found, at rank 1").wait_for()
    with page.expect_download() as kept:
        page.locator(".answer").first.get_by_role("button", name="save").click()
    assert Image.open(kept.value.path()).size == (40, 30)
    page.screenshot(path="/tmp/w/stick.png")
    assert not watched.errors and watched.outside == [file.as_uri()]
