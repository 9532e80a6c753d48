"""Pictures of a user's own photographs: names of what is known, none of what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from objemb_lib import plots
from objemb_lib.datasets.base import ImageDataset
from objemb_lib.datasets.folder import folder
from objemb_lib.evaluate import ranking
from objemb_lib.widgets import Retrieval

VECTORS = np.eye(3, dtype=np.float32)


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.fixture(params=[["bus/a.png", "owl/b.png", "c.png"], ["a.png", "b.png", "c.png"]],
                ids=["one beside the sub-folders", "no sub-folders"])  # fmt: skip
def photographs(request: pytest.FixtureRequest, tmp_path: Path) -> ImageDataset:
    """A folder whose c.png has no label."""
    for number, file in enumerate(request.param):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), (80 * number, 90, 10)).save(tmp_path / file)
    return folder(tmp_path, progress=False)


def test_an_unlabelled_photograph_gets_no_other_one_s_name(photographs: ImageDataset) -> None:
    i = [Path(file).name for file in photographs.files].index("c.png")
    assert photographs.labels[i] == -1
    assert plots.scene(photographs, i).get_title() == "unlabelled"
    figure = plots.neighbours(photographs, [ranking(VECTORS, photographs, i, 2)])
    assert figure.axes[0].get_title() == "query: unlabelled"
    view = Retrieval(photographs, {("s", "p"): VECTORS}, query=i, k=2).view.value
    assert "query: unlabelled" in view and "owl" not in view


def test_a_name_cannot_become_markup(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{number}.png")
    files = [f"{number}.png" for number in range(3)]
    names = ['<script>alert("1")</script>']
    data = ImageDataset("odd", "all", tmp_path, files, [0, 0, 0], names)
    view = Retrieval(data, {("s", "p"): VECTORS}).view.value
    assert "<script" not in view and "&lt;script&gt;alert(&quot;1&quot;)" in view


def test_a_pair_without_vectors_is_said_in_the_view(photographs: ImageDataset) -> None:
    widget = Retrieval(photographs, {("s", "p"): VECTORS, ("t", "q"): VECTORS})
    assert widget.search() is None  # starts with the last stage and the first pooling
    assert "KeyError" in widget.view.value and "t" in widget.view.value
    widget.pooling.value = "q"
    assert widget.found is not None and "<img" in widget.view.value
