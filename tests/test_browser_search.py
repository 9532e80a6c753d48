"""ObjectSearch in JupyterLab, with a mouse, a keyboard and a photograph: what is found is right."""

from __future__ import annotations

import re

import numpy as np
import pytest
from browser import chromium, lab, needs_chromium, notebook
from tiny_gallery import retriever, scenes

pytestmark = needs_chromium
MAKE = """
from tiny_gallery import retriever, scenes
from objemb_lib.widgets import ObjectSearch
data = scenes()
ObjectSearch([retriever(data), retriever(data, main_only=True), retriever(data, 2)], k=5)
"""
QUERY = "section:nth-of-type(1)"
FOUND = "section:nth-of-type(2)"


@pytest.fixture
def page(tmp_path):
    """JupyterLab showing the widget; checked for errors and requests at the end."""
    scenes()  # skips without data
    notebook(tmp_path / "search.ipynb", MAKE)
    with lab(tmp_path) as base, chromium() as watched:
        watched.run_all(base, "search.ipynb")
        watched.page.locator(f"{FOUND} button").first.wait_for()
        yield watched
        watched.check()


def test_clicks_drags_keys_and_photographs_find_what_the_function_finds(page) -> None:
    data, see = scenes(), page.page
    way = retriever(data)

    def shown() -> list[tuple[int, float]]:
        """What the widget shows to have found."""
        texts = see.locator(f"{FOUND} figcaption").all_inner_texts()
        numbers = [re.search(r"(-?[\d.]+)\s+image (\d+)", text) for text in texts]
        return [(int(n[2]), float(n[1])) for n in numbers]

    def right(query, chosen, k=5, threshold=0.0, way=way) -> list[tuple[int, float]]:
        found = way.search(query, chosen, k, threshold).matches
        return [(match.image, round(match.score, 2)) for match in found]

    def until(says: str) -> None:
        see.get_by_role("status").filter(has_text=says).wait_for()

    query = way.query(0)
    assert shown() == right(query, 0)
    page.screenshot("search-lab", ".jp-OutputArea")

    see.get_by_role("button", name="box 1: search for it").click()
    until(f"{data.label_names[data.box_labels[0][1]]} of image 0")
    assert shown() == right(query, 1) != right(query, 0)

    picture = see.locator(f"{QUERY} svg").bounding_box()
    scale = picture["width"] / data.image(0).width
    ends = np.array([20.0, 30.0, 120.0, 110.0])
    x0, y0, x1, y1 = ends * scale + np.tile([picture["x"], picture["y"]], 2)
    see.mouse.move(x0, y0)
    see.mouse.down()
    see.mouse.move((x0 + x1) / 2, y1)
    see.mouse.move(x1, y1)
    see.mouse.up()
    drawn, number = way.aim(query, ends)
    until(f"box {number} of image 0")
    assert shown() == right(drawn, number)
    page.screenshot("search-drawn", ".jp-OutputArea")
