"""What is touched without a kernel: in Chromium, a guess is compared and a press is judged."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from browser import chromium, needs_chromium
from PIL import Image

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.measure.intervals import Interval
from objemb_lib.show import touch


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    for n in range(4):
        Image.new("RGB", (40, 30), (60 * n, 9, 9)).save(tmp_path / f"{n}.png")
    files = [f"{n}.png" for n in range(4)]
    return ImageDataset("plain", "all", tmp_path, files, np.array([0, 0, 1, 1]))


@needs_chromium
def test_a_guess_is_compared_a_press_judged_and_a_slider_shows_one_figure(data) -> None:
    figures = {f"step {n}": plt.figure(figsize=(1, 1)) for n in (0, 10)}
    parts = [touch.guess('R@1 of <b>"this"</b>?', Interval(0.42, 0.36, 0.48)),
             touch.find_it(data, 0, [2, 1, 3], network=2),
             touch.steps("learning", figures)]  # fmt: skip
    with chromium() as seen:
        page = seen.page
        page.set_content("".join(part.data for part in parts))
        assert not page.get_by_text("measured").is_visible()
        page.get_by_label("R@1").fill("0.7")
        page.get_by_role("button", name="Compare").click()
        assert page.get_by_text("You said 0.7; measured: 0.42 [0.36, 0.48].").is_visible()
        page.get_by_role("button", name="image 2").click()
        said = page.get_by_text("Right. The network took image 1, which shows another object.")
        assert said.is_visible()
        page.get_by_role("button", name="image 3").click()
        assert page.get_by_text("No, that is another object.").is_visible()
        shown = page.locator("figure:visible")
        assert shown.all_inner_texts() == ["step 0"]
        page.get_by_label("learning").fill("1")
        assert shown.all_inner_texts() == ["step 10"]
        seen.check()


def test_a_search_that_cannot_be_won_is_refused(data) -> None:
    with pytest.raises(DataError, match="none of these images"):
        touch.find_it(data, 0, [2, 3], network=2)
