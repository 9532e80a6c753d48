"""The app, and the widgets in JupyterLab, by mouse, finger, keyboard and photographs: they are
right, and everybody can use them."""

from __future__ import annotations

import base64
import csv
import functools
import inspect
import io
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlparse

import numpy as np
from browser import (
    PATIENCE,
    Watched,
    chromium,
    lab,
    needs_chromium,
    needs_runtime,
    notebook,
    server,
)
from tiny_gallery import retriever, scenes

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder
from objemb_lib.measure.metrics import ranking
from objemb_lib.search.objects import photograph
from objemb_lib.search.retriever import Retriever
from objemb_lib.show import app

pytestmark = needs_chromium
GIVE = """
([how, name, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
  const files = new DataTransfer();
  const type = name.endsWith("jpg") ? "image/jpeg" : "text/plain";
  files.items.add(new File([bytes], name, { type }));
  const event = how === "paste" ? new ClipboardEvent(how, { clipboardData: files, bubbles: true })
    : new DragEvent(how, { dataTransfer: files, bubbles: true });
  document.querySelector(".objemb .own").dispatchEvent(event);
}
"""


class Search:
    """What a search shows, and what somebody does to it."""

    def __init__(self, page, of: str = ".objemb") -> None:
        self.page, self.it = page, page.locator(of)
        self.frame, self.status = self.it.locator(".frame"), self.it.locator(".says")

    def finds(self, files: list[str]) -> None:
        """The answers are, or will soon be, those photographs in that order."""
        answers, end = self.it.locator(".answer"), time.monotonic() + PATIENCE
        shown = "all => all.map(one => one.dataset.id)"
        while answers.evaluate_all(shown) != files and time.monotonic() < end:
            self.page.wait_for_timeout(50)
        assert answers.evaluate_all(shown) == files

    def dot(self, number: int):
        return self.it.locator(".dot").nth(number)

    def button(self, name: str):
        return self.it.get_by_role("button", name=name)

    def drag(self, *places: tuple[float, float]) -> None:
        """Press at the first of some places of the query, in shares of it, and go to the last."""
        seen, mouse = self.frame.bounding_box(), self.page.mouse
        ends = [(seen["x"] + x * seen["width"], seen["y"] + y * seen["height"]) for x, y in places]
        mouse.move(*ends[0])
        mouse.down()
        for end in ends[1:]:
            mouse.move(*end, steps=3)
        mouse.up()

    def give(self, how: str, name: str, content: bytes) -> None:
        """Choose, paste or drop a file."""
        if how == "choose":
            file = {"name": name, "mimeType": "image/jpeg", "buffer": content}
            return self.it.locator(".own input").set_input_files(file)
        self.page.evaluate(GIVE, [how, name, base64.b64encode(content).decode()])

    def after(self, does: Callable[[], object]) -> dict[str, str]:
        """What the address says once something has been done."""
        before = urlparse(self.page.url).fragment
        does()
        self.page.wait_for_function("old => location.hash !== old", arg=f"#{before}")
        return dict(parse_qsl(urlparse(self.page.url).fragment))


def found(way: Retriever, query, box, kind: str = "both", k: int = 8) -> list[str]:
    """What the plain function finds."""
    query, chosen = way.add_box(query, box)
    return [match.file for match in way.search(query, chosen, k, kind).matches]


def box_of(asked: dict[str, str]) -> list[float]:
    return [float(end) for end in asked["box"].split(",")]


# --- the app --------------------------------------------------------------------------------


@needs_runtime
def test_the_app_by_mouse_finger_and_keys(tmp_path, monkeypatch) -> None:
    """As `make app` starts it, on two photographs each of three objects."""
    data, photos = scenes(), tmp_path / "photos"
    for i in range(0, len(data), 5):
        place = photos / data.label_names[data.labels[i]]
        place.mkdir(parents=True)
        for file in data.files[i : i + 2]:
            shutil.copy(data.root / file, place)
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(app.PHOTOS, str(photos))
    start = [sys.executable, "-m", "objemb_lib.show.app", "--photos", str(photos),
             "--port", "{port}", "--no-browser"]  # fmt: skip
    with chromium() as watched:
        with server(tmp_path, start, "/") as base:
            watched.page.goto(base)
            way, students = app.ways(folder(photos, progress=False))[::2]  # from the app's cache
            search = Search(watched.page)
            objects_are_found(search, way)
            photographs_of_ones_own_ask(search, way)
            a_photograph_of_ones_own_asks_the_student(search, students)
            answers_are_enlarged_explained_and_saved(watched, search, way.dataset)
            a_folder_is_searched_and_deleted(watched, search, photos)
            watched.check()
            a_finger_scrolls_and_taps(watched, base)
        search.it.get_by_text("advanced").click()
        search.it.get_by_label("boxes").select_option("detected")
        search.it.get_by_text("The app does not answer").wait_for()  # never silence


def objects_are_found(search: Search, way: Retriever) -> None:
    page, query = search.page, way.query(0)
    boxes = np.delete(query.boxes, query.whole, axis=0)
    search.finds(found(way, query, boxes[0]))
    assert search.dot(0).get_attribute("aria-pressed") == "true"
    chosen = search.after(search.dot(len(boxes) - 1).click)
    assert np.allclose(box_of(chosen), boxes[-1], atol=0.5)
    search.finds(found(way, query, box_of(chosen)))

    width, height = query.dataset.sizes()[0]
    drawn = search.after(lambda: search.drag((0.05, 0.05), (0.3, 0.5), (0.45, 0.6)))
    ends = np.array([0.05, 0.05, 0.45, 0.6]) * [width, height, width, height]
    assert np.allclose(box_of(drawn), ends, atol=3)
    search.finds(found(way, query, box_of(drawn)))

    search.button("the box; with Shift its size").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    moved = search.after(lambda: page.keyboard.press("Enter"))
    step = 0.03 * max(width, height)
    assert np.allclose(box_of(moved), box_of(drawn) + np.array([step, 0, step, step]), atol=2)
    search.finds(found(way, query, box_of(moved)))
    corner = search.button("upper left corner").bounding_box()
    page.mouse.move(corner["x"] + 14, corner["y"] + 14)
    page.mouse.down()
    page.mouse.move(corner["x"] + 34, corner["y"] + 34, steps=3)
    sized = search.after(page.mouse.up)
    assert box_of(sized)[2:] == box_of(moved)[2:] and box_of(sized)[0] > box_of(moved)[0]

    search.after(search.it.get_by_text("whole photograph", exact=True).click)
    search.finds(found(way, query, box_of(sized), "whole"))
    whole = dict(parse_qsl(urlparse(page.url).fragment))
    page.reload()
    search.finds(found(way, query, box_of(sized), "whole"))
    assert dict(parse_qsl(urlparse(page.url).fragment)) == whole
    back = search.after(page.go_back)
    assert back == sized
    search.finds(found(way, query, box_of(sized)))
    put = search.after(lambda: search.drag((0.9, 0.95), (0.9, 0.952)))  # next to nothing: a click
    assert np.ptp(np.reshape(box_of(put), (2, 2)), axis=0).min() > 10
    assert search.it.locator(".error").inner_text() == ""


def photographs_of_ones_own_ask(search: Search, way: Retriever) -> None:
    gallery = way.dataset
    for number, how in enumerate(("drop", "paste", "choose")):
        file = gallery.root / gallery.files[number + 2]
        asked = search.after(functools.partial(search.give, how, file.name, file.read_bytes()))
        assert asked["photograph"] == f"own/{number}/{file.name}"
        first = search.it.locator(".answer").first.get_attribute("data-id")
        assert first == gallery.names[number + 2], "the photograph itself is in the gallery"
        own = way.query_photograph(photograph(file))
        assert search.it.locator(".dot").count() == len(own.boxes) - 1
    search.give("drop", "words.txt", b"words")
    search.it.get_by_text("That is no photograph").wait_for()
    search.give("drop", "words.jpg", b"words")
    search.it.get_by_text("not an image").wait_for()


def a_photograph_of_ones_own_asks_the_student(search: Search, way: Retriever) -> None:
    """The one that was brought last."""
    search.it.get_by_text("advanced").click()
    menu = search.it.get_by_label("network")
    other = menu.input_value()
    search.after(functools.partial(menu.select_option, way.network))
    own = way.query_photograph(photograph(way.dataset.root / way.dataset.files[4]))
    search.finds(found(way, own, own.boxes[0]))
    assert search.it.locator(".error").inner_text() == ""
    search.after(functools.partial(menu.select_option, other))
    search.it.get_by_text("advanced").click()


def answers_are_enlarged_explained_and_saved(watched: Watched, search: Search, gallery) -> None:
    page, dialog = watched.page, watched.page.get_by_role("dialog")
    search.button("all photographs").click()
    taken = search.after(dialog.get_by_role("button", name=gallery.names[1]).click)
    assert taken["photograph"] == gallery.names[1]
    watched.screenshot("app")
    watched.is_accessible()
    page.emulate_media(color_scheme="dark")
    watched.screenshot("app-dark")
    watched.is_accessible()
    page.emulate_media(color_scheme="light")
    first = search.it.locator(".answer").first
    seen = first.get_attribute("data-id")

    first.get_by_role("button", name="enlarge").focus()
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Why?").click()
    dialog.get_by_text("without the object").last.wait_for()
    assert dialog.locator(".both line").count() > 0
    watched.screenshot("app-why")
    watched.is_accessible()
    page.keyboard.press("Escape")
    assert dialog.count() == 0

    with page.expect_download() as kept:
        first.get_by_role("button", name="save").click()
    assert kept.value.path().read_bytes() == (gallery.root / seen).read_bytes()
    with page.expect_popup() as opened:
        first.get_by_role("button", name="open").click()
    opened.value.wait_for_url("blob:**")
    opened.value.close()
    with page.expect_download() as kept:
        search.button("as a table").click()
    rows = list(csv.DictReader(io.StringIO(kept.value.path().read_text())))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"] and rows[0]["file"] == seen
    with page.expect_download() as kept:
        search.button("as a page").click()
    assert seen in kept.value.path().read_text() and "http" not in kept.value.path().read_text()

    next_one = search.after(first.get_by_role("button", name="search with this").click)
    assert next_one["photograph"] == seen
    assert search.after(page.go_back) == taken


def a_folder_is_searched_and_deleted(watched: Watched, search: Search, photos: Path) -> None:
    page, gallery = watched.page, dict(parse_qsl(urlparse(watched.page.url).fragment))
    mouse = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(photos)], "dragOperationsMask": 1}
    place = search.it.locator(".own").bounding_box()
    for kind in ("dragEnter", "dragOver", "drop"):
        at = {"x": place["x"] + 5, "y": place["y"] + 5}
        mouse.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})
    search.it.get_by_text("Your folder: 6 photographs").wait_for()
    own = f"{photos.name}/{gallery['photograph']}"
    search.button("all photographs").click()
    page.get_by_role("dialog").get_by_role("button", name=own).click()
    page.wait_for_function("name => decodeURIComponent(location.hash).includes(name)", arg=own)
    search.it.locator(".answer").first.wait_for()
    watched.screenshot("app-folder")
    watched.is_accessible()
    search.button("back to the gallery").click()
    page.reload()
    search.button("your folder of last time: 6 photographs").click()
    search.it.locator(".name").get_by_text(f"{photos.name}/").first.wait_for()
    search.button("delete it here").click()
    search.button("back to the gallery").wait_for(state="detached")
    page.reload()
    search.it.get_by_text("search a folder of your own").wait_for()
    assert search.button("your folder of last time").count() == 0
    search.it.locator(".answer").first.wait_for()


def a_finger_scrolls_and_taps(desktop: Watched, base: str) -> None:
    address = desktop.page.url
    with desktop.phone() as watched:
        page, search = watched.page, Search(watched.page)
        page.goto(f"{base}/#{urlparse(address).fragment}")
        search.it.locator(".answer").first.wait_for()
        assert page.url.split("#")[1] == urlparse(address).fragment  # shared, it is the same
        seen = search.frame.bounding_box()
        assert seen["y"] + seen["height"] < 844, "the query is seen without scrolling"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        watched.swipe(195, seen["y"] + seen["height"] / 2, -200)
        page.wait_for_function(
            "y => document.querySelector('.frame').getBoundingClientRect().y < y - 100",
            arg=seen["y"],
        )
        assert page.url.split("#")[1] == urlparse(address).fragment, "a swipe asks nothing"
        last = search.dot(search.it.locator(".dot").count() - 1)
        last.tap()
        search.it.locator(".dot[aria-pressed=true]").wait_for()
        assert last.get_attribute("aria-pressed") == "true"
        watched.screenshot("app-phone")
        watched.is_accessible()
        page.goto("about:blank")
        page.goto(f"{base}/#photograph=own/7/gone.jpg")  # a photograph that was not kept
        search.it.get_by_text("own/7/gone.jpg is not here").wait_for()
        search.it.locator(".answer").first.wait_for()
        watched.check()


# --- widgets in JupyterLab ------------------------------------------------------------------

MAKE = """
from tiny_gallery import retriever, scenes
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.show.widgets import Attention, Compare, Map, ObjectSearch, Retrieval
from objemb_lib.data.dataset import ImageDataset
import numpy as np
data = scenes()
way = retriever(data, 4)

def shown(widget, name):
    widget.add_class(name)
    return widget
"""
WIDGETS = [
    "shown(search := ObjectSearch(way, k=5), 't-search')",
    "shown(Map(way, search), 't-map')",
    "shown(Compare(data, vectors(data), k=6), 't-compare')",
    "sides = {('head', name): x for name, x in vectors(data).items()}\n"
    "shown(Retrieval(data, sides), 't-retrieval')",
    "region = Region(true_boxes(data), masked=True)\n"
    "shown(Attention(data, load_trunk('efficientnet_lite0'), region), 't-attention')",
]


def vectors(data: ImageDataset) -> dict[str, np.ndarray]:
    """Of the main objects, by two networks."""
    ways = {f"{n} cells": retriever(data, n, main_only=True) for n in (4, 2)}
    return {name: np.array([way.query(i).vectors[0] for i in range(len(data))])
            for name, way in ways.items()}  # fmt: skip


def test_widgets_in_jupyterlab(tmp_path) -> None:
    data = scenes()
    notebook(tmp_path / "widgets.ipynb", MAKE, inspect.getsource(vectors), *WIDGETS)
    with lab(tmp_path) as base, chromium(height=1400) as watched:
        page = watched.page
        watched.run_all(base, "widgets.ipynb")
        page.locator(".t-attention .answer").nth(3).wait_for()  # until then things move
        search = Search(page, ".t-search")
        search_goes_back_by_its_own_button(search, data)
        map_chooses_by_mouse_and_keys(watched, search)
        compare_shows_where_images_went(watched, data)
        retrieval_asks_another_embedding(watched, data)
        attention_follows_the_box(watched)
        for name in ("search", "map", "compare", "retrieval", "attention"):
            watched.screenshot(name, f".t-{name}")
        watched.is_accessible(".objemb")
        theme = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
        page.evaluate(theme, "JupyterLab Dark")
        page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
        watched.screenshot("search-dark", ".t-search")
        watched.is_accessible(".objemb")
        watched.check()
        page.evaluate(
            "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.shutdown()"
        )
        search.dot(0).click()
        search.it.get_by_text("its kernel is gone").wait_for()


def search_goes_back_by_its_own_button(search: Search, data: ImageDataset) -> None:
    way = retriever(data, 4)
    query = way.query(0)
    search.finds(found(way, query, query.boxes[0], k=5))
    for _ in range(5):  # quick clicks end right
        search.dot(1).click()
        search.dot(0).click()
    search.dot(1).click()
    search.finds(found(way, query, query.boxes[1].round(), k=5))
    search.dot(1).press("d")
    search.dot(1).press("d")  # would delete a cell of the notebook
    search.button("back").click()
    search.finds(found(way, query, query.boxes[0].round(), k=5))


def map_chooses_by_mouse_and_keys(watched: Watched, search: Search) -> None:
    page, widget = watched.page, watched.page.locator(".t-map")
    canvas, cards = widget.locator("canvas").first, widget.locator(".answer")
    canvas.scroll_into_view_if_needed()
    place = canvas.bounding_box()
    corners = [(place["x"] + x * place["width"], place["y"] + y * place["height"]) for x, y in
               ((0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99))]  # fmt: skip
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner)
    page.mouse.up()
    widget.get_by_text("the first 24 of them here").wait_for()
    assert cards.count() == 24

    page.mouse.move(0, 0)  # or the pointer would go on pointing
    canvas.focus()
    page.keyboard.press("ArrowRight")  # the first object right of the middle
    caption = widget.locator(".plane figcaption").inner_text()
    page.keyboard.press("Enter")
    widget.get_by_text("1 objects", exact=True).wait_for()
    search.status.get_by_text(caption.split(", ")[1]).wait_for()

    before = canvas.evaluate("canvas => canvas.toDataURL()")
    widget.get_by_role("combobox", name="map").select_option("t-SNE")
    widget.get_by_label("colour by").select_option("first answer")
    widget.locator("li").filter(has_text="wrong").wait_for()
    assert canvas.evaluate("canvas => canvas.toDataURL()") != before


def compare_shows_where_images_went(watched: Watched, data: ImageDataset) -> None:
    widget, sides = watched.page.locator(".t-compare"), vectors(data)

    def right(query: int) -> list[str]:
        """The images and the lines are those of the plain function."""
        rows = [ranking(x, data, query, len(data)).images.tolist() for x in sides.values()]
        widget.get_by_role("status").filter(has_text=data.names[query]).wait_for()
        files = [data.names[i] for row in rows for i in row[:6]]
        answers = widget.locator(".answer")
        assert answers.evaluate_all("all => all.map(one => one.dataset.id)") == files
        moves = [rows[0].index(i) - n for row in rows for n, i in enumerate(row[:6])]
        assert ["▲" in text for text in answers.all_inner_texts()] == [m > 0 for m in moves]
        shared = set(files[:6]) & set(files[6:])
        assert widget.locator(".links line").count() == len(shared)
        return files

    files = right(0)
    widget.locator(".answer").nth(7).get_by_role("button", name="search with this").click()
    right(data.names.index(files[7]))


def retrieval_asks_another_embedding(watched: Watched, data: ImageDataset) -> None:
    widget = watched.page.locator(".t-retrieval")
    first = widget.locator(".answer").first.inner_text()
    widget.get_by_label("pooling").select_option("2 cells")
    widget.get_by_label("answers").select_option("4")
    watched.page.wait_for_function("document.querySelectorAll('.t-retrieval .answer').length === 4")
    assert widget.locator(".answer").first.inner_text() != first


def attention_follows_the_box(watched: Watched) -> None:
    widget = watched.page.locator(".t-attention")
    names = widget.locator(".answer .name")
    names.nth(3).wait_for()
    assert names.all_inner_texts() == ["1. boxes", "2. masks", "3. CroW", "4. similarity"]
    heat = widget.locator(".answer").nth(3).locator("image").nth(1)
    before = heat.get_attribute("href")
    widget.locator(".dot").nth(1).click()
    watched.page.wait_for_function(
        "old => document.querySelectorAll('.t-attention .answer')[3]?.querySelectorAll('image')[1]"
        ".getAttribute('href') !== old",
        arg=before,
    )
