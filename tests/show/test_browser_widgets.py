"""Compare, Map and Attention in JupyterLab, clicked, drawn on and keyed: they are right."""

from __future__ import annotations

import base64
import io

import numpy as np
from browser import chromium, lab, needs_chromium, notebook
from PIL import Image
from tiny_gallery import retriever, scenes

from objemb_lib.attend.soft import overlays
from objemb_lib.embed.boxes import Boxes, true_boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.retriever import embedder, side_by_side
from objemb_lib.show.widgets.pictures import heat_source

pytestmark = needs_chromium
MAKE = """
from tiny_gallery import retriever, scenes
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.show.widgets import Attention, Compare, Map, ObjectSearch
data = scenes()
way = retriever(data)
sides = {f"{n} cells": retriever(data, n, main_only=True).index.vectors for n in (4, 2)}
"""
SHOW = """
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
SHOWN = """
region = Region(true_boxes(data), masked=True)
shown = Attention(data, load_trunk("efficientnet_lite0"), region)
shown.add_class("t-attention")
shown
"""


def test_each_widget_answers_and_is_right(tmp_path) -> None:
    scenes()  # skips without data
    notebook(tmp_path / "widgets.ipynb", MAKE, SHOW, MAP, SHOWN)
    with lab(tmp_path) as base, chromium(height=1400) as page:
        page.run_all(base, "widgets.ipynb")
        compare_shows_where_images_went(page)
        map_chooses_by_mouse_and_keys(page)
        attention_follows_the_box(page)
        page.check()


def compare_shows_where_images_went(page) -> None:
    data, widget = scenes(), page.page.locator(".t-compare")
    vectors = {f"{n} cells": retriever(data, n, main_only=True).index for n in (4, 2)}
    vectors = {name: index.vectors for name, index in vectors.items()}

    def right(query: int) -> None:
        """The titles, the images and the lines are those of the plain function."""
        sides = side_by_side(vectors, data, query, 6)
        widget.get_by_role("status").filter(has_text=f"image {query},").wait_for()
        titles = widget.locator("h4").all_inner_texts()
        for title, (name, side) in zip(titles, sides.items()):
            values = f"mAP {side.of_query:.2f}, of all queries {side.overall:.2f}"
            assert title == f"{name}: {values}"
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


def map_chooses_by_mouse_and_keys(page) -> None:
    see, widget, data = page.page, page.page.locator(".t-map"), scenes()
    canvas, objects = widget.locator("canvas").first, len(retriever(data).index)
    canvas.scroll_into_view_if_needed()
    place = canvas.bounding_box()
    corners = [(x * place["width"], y * place["height"]) for x, y in
               ((0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99))]  # fmt: skip
    see.mouse.move(place["x"] + corners[0][0], place["y"] + corners[0][1])
    see.mouse.down()
    for x, y in corners[1:]:
        see.mouse.move(place["x"] + x, place["y"] + y)
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
    see, widget = page.page, page.page.locator(".t-attention")
    heat = widget.locator("section:nth-of-type(2) figure").nth(3).locator("image").nth(1)
    heat.wait_for()
    names = widget.locator("section:nth-of-type(2) figcaption").all_inner_texts()
    assert [name.strip() for name in names] == ["boxes", "masks", "CroW", "similarity"]
    before = heat.get_attribute("href")
    widget.get_by_role("button", name="box 1: look for it").click()
    see.wait_for_function(
        "old => document.querySelectorAll('.t-attention section:nth-of-type(2) figure')[3]"
        ".querySelectorAll('image')[1].getAttribute('href') !== old",
        arg=before,
    )
    data, trunk = scenes(), load_trunk("efficientnet_lite0")
    region = Region(true_boxes(data), masked=True)
    asking = Boxes("asking", [region.boxes.boxes[0][1:2]])
    (vector,) = embedder(trunk, [("head", "spoc")])(data.subset([0]), asking)
    alike = overlays(data, 1, trunk.eval(), "head", region, vector)["similarity"]
    assert np.allclose(pixels(heat.get_attribute("href")), pixels(heat_source(alike)), atol=9)
    assert not np.allclose(pixels(before), pixels(heat_source(alike)), atol=9)
    page.screenshot("attention", ".t-attention")


def pixels(address: str) -> np.ndarray:
    """The picture in a data address."""
    file = io.BytesIO(base64.b64decode(address.partition(",")[2]))
    return np.asarray(Image.open(file), int)
