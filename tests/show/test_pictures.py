"""Figures and the widget show what the functions under them found."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.measure.metrics import Interval, ranking
from objemb_lib.show import plots
from objemb_lib.show.widgets import Retrieval


@pytest.fixture
def dataset(tmp_path):
    """Six plain images of three objects."""
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 100, 200)).save(tmp_path / f"{i}.png")
    files = [f"{i}.png" for i in range(6)]
    labels = [0, 0, 1, 1, 2, 2]
    box = np.array([[2.0, 3.0, 20.0, 25.0]])
    return ImageDataset(
        "six", "all", tmp_path, files, labels, ["cup", "bus", "owl"], boxes=[box] * 6
    )


@pytest.fixture
def vectors():
    """Unit vectors on an arc: neighbours on it are near."""
    angles = np.array([0.0, 0.3, 0.35, 0.9, 1.3, 1.5])
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_neighbours_are_framed_by_truth(dataset, vectors):
    found = ranking(vectors, dataset, 0, 3)
    figure = plots.neighbours(dataset, [found])
    frames = [to_hex(ax.spines["left"].get_edgecolor()) for ax in figure.axes]
    wanted = [plots.RIGHT if right else plots.WRONG for right in found.relevant]
    assert frames == [c.lower() for c in [plots.QUERY, *wanted]]
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "query: cup" and titles[1].startswith("right 0.96")
    assert [t.split()[0] for t in titles[1:]] == ["right", "wrong", "wrong"]


def test_heat_map_writes_each_number_in_its_cell():
    ax = plots.heat_map({("r1", "a"): 0.1, ("r1", "b"): 0.25, ("r2", "a"): 0.5, ("r2", "b"): 1.0})
    written = {(text.get_position()): text.get_text() for text in ax.texts}
    assert written == {(0, 0): "0.10", (1, 0): "0.25", (0, 1): "0.50", (1, 1): "1.00"}


def test_intervals_are_drawn_from_end_to_end():
    ax = plots.intervals({"one": Interval(0.5, 0.4, 0.7)}, "mAP", zero=True)
    assert list(ax.lines[0].get_xdata()) == [0.4, 0.7] and "mAP" in ax.get_xlabel()


def test_contact_sheet_puts_pictures_in_order():
    images = [Image.new("RGB", (10, 10), colour) for colour in ("red", "lime", "blue")]
    sheet = plots.contact_sheet(images, columns=2, cell=20)
    assert sheet.size == (40, 40)
    corners = [sheet.getpixel(at) for at in ((5, 5), (25, 5), (5, 25), (25, 25))]
    assert corners == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def test_scene_draws_the_box_where_it_is(dataset):
    ax = plots.scene(dataset, 2)
    (box,) = ax.patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (2, 3, 18, 22)
    assert ax.get_title() == "bus"


def test_embedding_map_draws_every_thumbnail(dataset, vectors):
    images = [dataset.image(i) for i in range(6)]
    assert len(plots.embedding_map(vectors, images, dataset.labels).artists) == 6


def test_embedding_map_names_its_colours_where_there_are_enough(dataset, vectors):
    images = [dataset.image(i) for i in range(6)]
    drawn = plots.embedding_map(vectors, images, np.array([1, 0, 1, 1, 0, 0]), names=["bus", "cat"])
    frames = {box.patch.get_edgecolor() for box in drawn.artists}
    handles, names = drawn.get_legend_handles_labels()
    assert names == ["bus", "cat"]
    assert {matplotlib.colors.to_rgba(handle.get_color()) for handle in handles} == frames
    too_many = [str(k) for k in range(21)]
    plain = plots.embedding_map(vectors, images, names=too_many, ax=plt.figure().gca())
    assert plain.get_legend() is None


def test_the_widget_finds_what_the_function_finds(dataset, vectors):
    widget = Retrieval(
        dataset, {("s", "a"): vectors, ("s", "b"): vectors[::-1].copy()}, query=3, k=2
    )
    wanted = ranking(vectors, dataset, 3, 2)
    assert np.array_equal(widget.found.images, wanted.images)
    assert f"{int(wanted.relevant.sum())} of 2 right" in widget.view.value
    assert widget.view.value.count("<img") == 3 and 'alt="image 3, query: bus"' in widget.view.value

    before = widget.view.value
    widget.k.value = 4
    assert len(widget.found.images) == 4 and widget.view.value != before
    widget.pooling.value = "b"
    assert np.array_equal(widget.found.images, ranking(vectors[::-1], dataset, 3, 4).images)
    widget.query.value = 0
    assert widget.found.query == 0
    widget.random.click()
    assert "query" in widget.view.value


def test_the_widget_shows_an_error_in_its_place(dataset, vectors):
    widget = Retrieval(dataset, {("s", "a"): vectors})
    (dataset.root / dataset.files[1]).write_bytes(b"")
    widget.query.value = 1
    assert "ImageError" in widget.view.value and "1.png" in widget.view.value
