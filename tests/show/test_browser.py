"""Widgets in JupyterLab, and the app, with a mouse, a keyboard and photographs: they are right."""

from __future__ import annotations

import base64
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, lab, needs_chromium, notebook, server
from tiny_gallery import retriever, scenes

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder
from objemb_lib.search.objects import photograph
from objemb_lib.search.retriever import side_by_side
from objemb_lib.show import app

pytestmark = needs_chromium
MAKE = """
from tiny_gallery import retriever, scenes
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.show.widgets import Attention, Compare, Map, ObjectSearch
data = scenes()
way = retriever(data, 4)
"""
SEARCH = "ObjectSearch(way, k=5)"
COMPARE = """
sides = {f"{n} cells": retriever(data, n, main_only=True).index.vectors for n in (4, 2)}
compare = Compare(data, sides, k=6)
compare.add_class("t-compare")
compare
"""
MAP = """
search = ObjectSearch(way, k=3)
map = Map(way, search)
map.add_class("t-map"), search.add_class("t-search")
display(map, search)
"""
ATTENTION = """
region = Region(true_boxes(data), masked=True)
shown = Attention(data, load_trunk("efficientnet_lite0"), region)
shown.add_class("t-attention")
shown
"""
PASTE = """
encoded => {
  const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], "pasted.jpg", { type: "image/jpeg" }));
  document.querySelector(".objemb-own").dispatchEvent(
    new ClipboardEvent("paste", { clipboardData: files, bubbles: true }));
}
"""
QUERY = "section:nth-of-type(1)"
FOUND = "section:nth-of-type(2)"


@pytest.fixture
def data() -> ImageDataset:
    return scenes()  # skips where they are not built


class Shown:
    """What an ObjectSearch shows, and what a user does to it."""

    def __init__(self, page, width: int = 0) -> None:
        self.page, self.width = page, width

    def found(self) -> list[tuple[int, float]]:
        """Images and scores of the results."""
        texts = self.page.locator(f"{FOUND} figcaption").all_inner_texts()
        numbers = [re.search(r"(-?[\d.]+)\s+image (\d+)", text) for text in texts]
        return [(int(n[2]), float(n[1])) for n in numbers]

    def box(self, number: int):
        return self.page.get_by_role("button", name=f"box {number}: search for it")

    def until(self, says: str) -> None:
        self.page.get_by_role("status").filter(has_text=says).wait_for()

    def until_first(self, image: int) -> None:
        self.page.locator(f"{FOUND} figcaption").first.filter(has_text=f"image {image}").wait_for()

    def drag(self, *places: tuple[float, float]) -> None:
        """Press at the first of some places of the picture, in its pixels, and go to the last."""
        picture, mouse = self.page.locator(f"{QUERY} svg").bounding_box(), self.page.mouse
        scale = picture["width"] / self.width
        ends = [(picture["x"] + x * scale, picture["y"] + y * scale) for x, y in places]
        mouse.move(*ends[0])
        mouse.down()
        for end in ends[1:]:
            mouse.move(*end)
        mouse.up()


def answer(way, query, chosen, k=5) -> list[tuple[int, float]]:
    """What the plain function finds, as the widget writes it."""
    return [(match.image, round(match.score, 2)) for match in way.search(query, chosen, k).matches]


def test_clicks_drags_keys_and_photographs_find_what_the_function_finds(data, tmp_path) -> None:
    notebook(tmp_path / "search.ipynb", MAKE + SEARCH)
    with lab(tmp_path) as base, chromium() as page:
        page.run_all(base, "search.ipynb")
        page.page.locator(f"{FOUND} button").first.wait_for()
        use_the_search(page, data)
        page.check()


def use_the_search(page, data: ImageDataset) -> None:
    see, shown = page.page, Shown(page.page, data.image(0).width)
    way = retriever(data, 4)
    query = way.query(0)
    assert shown.found() == answer(way, query, 0)
    page.screenshot("search", ".jp-OutputArea")

    shown.box(1).click()
    shown.until("box 1 of image 0")
    assert shown.found() == answer(way, query, 1) != answer(way, query, 0)

    shown.drag((20, 30), (70, 110), (120, 110))
    drawn, number = way.add_box(query, (20, 30, 120, 110))
    shown.until(f"box {number} of image 0")
    assert shown.found() == answer(way, drawn, number)
    page.screenshot("search-drawn", ".jp-OutputArea")

    shown.box(0).focus()  # by keys alone: choose, then move a box and search for what is in it now
    see.keyboard.press("Enter")
    shown.until("box 0 of image 0")
    assert shown.found() == answer(way, query, 0)
    see.keyboard.press("ArrowRight")  # the focus has stayed where it was
    see.keyboard.press("Shift+ArrowDown")
    see.keyboard.press("Enter")
    step = 0.04 * data.image(0).width
    moved, number = way.add_box(drawn, query.boxes[0] + np.array([step, 0, step, step]))
    shown.until(f"box {number} of image 0")
    assert shown.found() == answer(way, moved, number)

    see.get_by_role("button", name="whole image").click()
    whole, last = way.add_box(moved, (0, 0, *data.image(0).size))
    shown.until(f"box {last} of image 0")
    assert shown.found() == answer(way, whole, last)
    for beneath in (1, last, 1, last):  # box 1 lies upon the whole image: press again and again
        x0, _, _, y1 = query.boxes[1].tolist()
        shown.drag((x0 + 4, y1 - 4))
        shown.until(f"box {beneath} of image 0")

    match = way.search(whole, last, 5).matches[2]
    see.locator(f"{FOUND} button").nth(2).click()
    shown.until(f"of image {match.image}")
    assert shown.found() == answer(way, *way.add_box(way.query(match.image), match.box))

    def best(file: Path) -> int:
        return way.search(way.query_photograph(photograph(file)), 0, 1).matches[0].image

    files = [data.root / file for file in data.files]
    own, pasted = files[7], next(file for file in files if best(file) != best(files[7]))
    see.get_by_label("Your own photograph:").set_input_files(own)
    shown.until_first(best(own))
    see.get_by_label("Your own photograph:").set_input_files(__file__)
    see.get_by_role("alert").filter(has_text="no image").wait_for()
    see.evaluate(PASTE, base64.b64encode(pasted.read_bytes()).decode())
    shown.until_first(best(pasted))
    page.screenshot("search-own-photograph", ".jp-OutputArea")


def test_compare_map_and_attention_answer_and_are_right(data, tmp_path) -> None:
    notebook(tmp_path / "widgets.ipynb", MAKE, COMPARE, MAP, ATTENTION)
    with lab(tmp_path) as base, chromium(height=1400) as page:
        page.run_all(base, "widgets.ipynb")
        compare_shows_where_images_went(page, data)
        map_chooses_by_mouse_and_keys(page, data)
        attention_follows_the_box(page)
        page.check()


def compare_shows_where_images_went(page, data: ImageDataset) -> None:
    widget = page.page.locator(".t-compare")
    indexes = {f"{n} cells": retriever(data, n, main_only=True).index for n in (4, 2)}
    vectors = {name: index.vectors for name, index in indexes.items()}

    def right(query: int) -> None:
        """The images and the lines are those of the plain function."""
        sides = side_by_side(vectors, data, query, 6)
        widget.get_by_role("status").filter(has_text=f"image {query},").wait_for()
        for row, side in enumerate(sides.values(), 2):
            captions = widget.locator(f"section:nth-of-type({row}) figcaption").all_inner_texts()
            assert [int(c.split("image ")[1].split()[0]) for c in captions] == [*side.found.images]
            moves = [b - place for place, b in enumerate(side.before, 1)]
            assert ["▲" in c for c in captions] == [move > 0 for move in moves]
        first, second = (set(side.found.images.tolist()) for side in sides.values())
        assert widget.locator(".objemb-links line").count() == len(first & second)

    right(0)
    page.screenshot("compare", ".t-compare")
    clicked = widget.locator("section:nth-of-type(3) button").nth(1)
    image = int(clicked.inner_text().split("image ")[1].split()[0])
    clicked.click()
    right(image)


def map_chooses_by_mouse_and_keys(page, data: ImageDataset) -> None:
    see, widget = page.page, page.page.locator(".t-map")
    canvas, objects = widget.locator("canvas").first, len(retriever(data).index)
    canvas.scroll_into_view_if_needed()
    place = canvas.bounding_box()
    corners = [(place["x"] + x * place["width"], place["y"] + y * place["height"]) for x, y in
               ((0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99))]  # fmt: skip
    see.mouse.move(*corners[0])
    see.mouse.down()
    for corner in corners[1:]:
        see.mouse.move(*corner)
    see.mouse.up()
    cards = widget.locator(".objemb-card")
    cards.nth(min(objects, 24) - 1).wait_for()
    assert cards.count() == min(objects, 24)

    see.mouse.move(0, 0)  # or the pointer would go on pointing
    canvas.focus()
    see.keyboard.press("ArrowRight")  # the first object right of the middle
    widget.locator(".objemb-plane figure img").wait_for()
    caption = widget.locator(".objemb-plane figcaption").inner_text()
    see.keyboard.press("Enter")
    widget.get_by_text("1 objects", exact=True).wait_for()
    page.screenshot("map", ".t-map")
    image = int(caption.split("image ")[1])
    see.locator(".t-search").get_by_role("status").filter(has_text=f"of image {image}").wait_for()

    widget.get_by_label("colour by").select_option("first answer")
    widget.locator("li").filter(has_text="right").wait_for()
    before = canvas.evaluate("canvas => canvas.toDataURL()")
    widget.get_by_label("map", exact=True).select_option("t-SNE")
    see.wait_for_function(
        "old => document.querySelector('.t-map canvas').toDataURL() !== old", arg=before
    )
    page.screenshot("map-tsne", ".t-map")


def attention_follows_the_box(page) -> None:
    widget = page.page.locator(".t-attention")
    heat = widget.locator("section:nth-of-type(2) figure").nth(3).locator("image").nth(1)
    heat.wait_for()
    names = widget.locator("section:nth-of-type(2) figcaption").all_inner_texts()
    assert [name.strip() for name in names] == ["boxes", "masks", "CroW", "similarity"]
    before = heat.get_attribute("href")
    widget.get_by_role("button", name="box 1: look for it").click()
    page.page.wait_for_function(
        "old => document.querySelectorAll('.t-attention section:nth-of-type(2) figure')[3]"
        ".querySelectorAll('image')[1].getAttribute('href') !== old",
        arg=before,
    )
    page.screenshot("attention", ".t-attention")


def test_the_app_finds_what_the_function_finds(data, tmp_path, monkeypatch) -> None:
    """As `make app` starts it, on two photographs each of three objects."""
    photos = tmp_path / "photos"
    for i in range(0, len(data), 5):
        place = photos / data.label_names[data.labels[i]]
        place.mkdir(parents=True)
        for file in data.files[i : i + 2]:
            shutil.copy(data.root / file, place)
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(app.PHOTOS, str(photos))
    start = [sys.executable, "-m", "objemb_lib.show.app", "--photos", str(photos),
             "--port", "{port}", "--no-browser"]  # fmt: skip
    with server(tmp_path, start, "/voila/static/") as base, chromium() as watched:
        page, shown = watched.page, Shown(watched.page)
        page.goto(base)
        page.locator(f"{FOUND} button").first.wait_for()
        gallery = folder(photos, progress=False)
        student = app.ways(gallery)[0]  # by the proposer's boxes; from the cache of the app

        def found() -> list[int]:
            return [image for image, _ in shown.found()]

        def right(query, number) -> list[int]:
            return [match.image for match in student.search(query, number, 8).matches]

        query = student.query(0)
        assert found() == right(query, 0) and len(found()) == 5
        watched.screenshot("app")
        last = len(query.boxes) - 1
        shown.box(last).focus()
        page.keyboard.press("Enter")  # another box may lie upon it
        shown.until(f"box {last} of image 0")
        assert found() == right(query, last)

        own = gallery.root / gallery.files[3]
        page.get_by_label("Your own photograph:").set_input_files(own)
        shown.until("box 0 of your photograph")
        assert found()[0] == 3, "the photograph itself is in the gallery"
        assert set(found()) == set(right(student.query_photograph(photograph(own)), 0))
        watched.screenshot("app-own-photograph")
        watched.check()
