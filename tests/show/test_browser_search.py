"""ObjectSearch in JupyterLab, with a mouse, a keyboard and a photograph: what is found is right."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, lab, needs_chromium, notebook
from tiny_gallery import retriever, scenes

from objemb_lib.search.objects import photograph

pytestmark = needs_chromium
MAKE = """
from tiny_gallery import retriever, scenes
from objemb_lib.show.widgets import ObjectSearch
data = scenes()
ObjectSearch([retriever(data), retriever(data, main_only=True), retriever(data, 2)], k=5)
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
def page(tmp_path):
    """JupyterLab showing the widget; checked for errors and requests at the end."""
    scenes()  # skips without data
    notebook(tmp_path / "search.ipynb", MAKE)
    with lab(tmp_path) as base, chromium() as watched:
        watched.run_all(base, "search.ipynb")
        watched.page.locator(f"{FOUND} button").first.wait_for()
        yield watched
        watched.check()


class Shown:
    """What the widget shows, and what a user does to it."""

    def __init__(self, page, width: int) -> None:
        self.page, self.width = page, width

    def found(self) -> list[tuple[int, float]]:
        """Images and scores of the results."""
        texts = self.page.locator(f"{FOUND} figcaption").all_inner_texts()
        numbers = [re.search(r"(-?[\d.]+)\s+image (\d+)", text) for text in texts]
        return [(int(n[2]), float(n[1])) for n in numbers]

    def until(self, says: str) -> None:
        self.page.get_by_role("status").filter(has_text=says).wait_for()

    def until_found(self, number: int) -> None:
        self.page.wait_for_function(
            f"() => document.querySelectorAll('{FOUND} button').length === {number}"
        )

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


def test_clicks_drags_keys_and_photographs_find_what_the_function_finds(page) -> None:
    data, see = scenes(), page.page
    shown = Shown(see, data.image(0).width)
    way, main = retriever(data), retriever(data, main_only=True)
    query, box = way.query(0), lambda n: see.get_by_role("button", name=f"box {n}: search for it")
    assert shown.found() == answer(way, query, 0)
    page.screenshot("search", ".jp-OutputArea")

    box(1).click()
    shown.until("box 1 of image 0")
    assert shown.found() == answer(way, query, 1) != answer(way, query, 0)

    shown.drag((20, 30), (70, 110), (120, 110))
    drawn, number = way.add_box(query, (20, 30, 120, 110))
    shown.until(f"box {number} of image 0")
    assert shown.found() == answer(way, drawn, number)
    page.screenshot("search-drawn", ".jp-OutputArea")

    see.get_by_role("button", name="back").click()
    shown.until("box 1 of image 0")
    assert shown.found() == answer(way, query, 1)

    box(0).focus()  # by keys alone: choose, then move a box and search for what is in it now
    see.keyboard.press("Enter")
    shown.until("box 0 of image 0")
    assert shown.found() == answer(way, query, 0)
    see.keyboard.press("ArrowRight")  # the focus has stayed where it was
    see.keyboard.press("Shift+ArrowDown")
    see.keyboard.press("Enter")
    step = 0.04 * data.image(0).width
    moved, number = way.add_box(query, query.boxes[0] + np.array([step, 0, step, step]))
    shown.until(f"box {number} of image 0")
    assert shown.found() == answer(way, moved, number)

    see.get_by_role("button", name="whole image").click()
    shown.until(f"box {number + 1} of image 0")
    whole, last = way.add_box(moved, (0, 0, *data.image(0).size))
    assert last == number + 1 and shown.found() == answer(way, whole, last)
    for beneath in (1, last, 1, last):  # box 1 lies upon the whole image: press again and again
        x0, _, _, y1 = query.boxes[1].tolist()
        shown.drag((x0 + 4, y1 - 4))
        shown.until(f"box {beneath} of image 0")

    match = way.search(whole, last, 5).matches[2]
    see.locator(f"{FOUND} button").nth(2).click()
    shown.until(f"of image {match.image}")
    query, number = way.add_box(way.query(match.image), match.box)
    assert shown.found() == answer(way, query, number)

    see.locator(".noUi-handle").nth(0).press("ArrowRight")
    shown.until_found(6)
    assert shown.found() == answer(way, query, number, 6)
    see.get_by_label("boxes").select_option("true main box")
    see.get_by_label("network").select_option("colours, 2 cells")  # with these boxes there is none
    see.get_by_role("alert").filter(has_text="no index of colours, 2 cells").wait_for()
    page.screenshot("search-error", ".jp-OutputArea")
    see.get_by_label("network").select_option("colours, 4 cells")
    see.get_by_role("alert").filter(has_text="no index").wait_for(state="detached")
    shown.until_found(6)
    assert shown.found() == answer(main, *main.add_box(main.query(match.image), match.box), 6)

    def best(file: Path) -> int:
        return main.search(main.query_photograph(photograph(file)), 0, 1).matches[0].image

    files = [data.root / file for file in data.files]
    own, pasted = files[7], next(file for file in files if best(file) != best(files[7]))
    see.get_by_label("Your own photograph:").set_input_files(own)
    shown.until_first(best(own))
    see.get_by_label("Your own photograph:").set_input_files(__file__)
    see.get_by_role("alert").filter(has_text="no image").wait_for()
    see.evaluate(PASTE, base64.b64encode(pasted.read_bytes()).decode())
    shown.until_first(best(pasted))
    page.screenshot("search-own-photograph", ".jp-OutputArea")
