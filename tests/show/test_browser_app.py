"""The app, as `make app` starts it on a folder of photographs: no code, no outside host."""

from __future__ import annotations

import re
import shutil
import sys

import pytest
from browser import chromium, needs_chromium, server
from tiny_gallery import scenes

from objemb_lib.data.folder import folder
from objemb_lib.search.objects import photograph
from objemb_lib.show import app

pytestmark = needs_chromium


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of two photographs each of three objects, and a cache that nobody else uses."""
    data = scenes(6)
    for file, label in zip(data.files, data.labels):
        place = tmp_path / "photos" / data.label_names[label]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.root / file, place)
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(app.PHOTOS, str(tmp_path / "photos"))  # as the app is started
    return tmp_path / "photos"


def test_a_click_and_a_photograph_of_ones_own_find_what_the_function_finds(
    photos, tmp_path
) -> None:
    start = [sys.executable, "-m", "objemb_lib.show.app", "--photos", str(photos), "--port",
             "{port}",
             "--no-browser"]  # fmt: skip
    with server(tmp_path, start, "/voila/static/") as base, chromium() as watched:
        page = watched.page
        page.goto(base)
        page.locator("section:nth-of-type(2) button").first.wait_for()
        data = folder(photos, progress=False)
        student = app.ways(data)[0]  # by the proposer's boxes; from the cache of the app
        captions = page.locator("section:nth-of-type(2) figcaption")

        def found() -> list[int]:
            return [int(re.search(r"image (\d+)", t)[1]) for t in captions.all_inner_texts()]

        def right(query, number) -> list[int]:
            return [match.image for match in student.search(query, number, 8).matches]

        query = student.query(0)
        assert found() == right(query, 0) and len(found()) == 5
        watched.screenshot("app")
        last = len(query.boxes) - 1
        page.get_by_role("button", name=f"box {last}: search for it").focus()
        page.keyboard.press("Enter")  # another box may lie upon it
        page.get_by_role("status").filter(has_text=f"box {last} of image 0").wait_for()
        assert found() == right(query, last)

        own = data.root / data.files[3]
        page.get_by_label("Your own photograph:").set_input_files(own)
        page.get_by_role("status").filter(has_text="box 0 of your photograph").wait_for()
        assert found()[0] == 3, "the photograph itself is in the gallery"
        assert set(found()) == set(right(student.query_photograph(photograph(own)), 0))
        watched.screenshot("app-own-photograph")
        watched.check()
