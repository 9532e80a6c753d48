"""Pictures of a user's own photographs: names of what is known, none of what is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import ConnectionPatch
from PIL import Image
from tiny_colours import coloured

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder
from objemb_lib.embed.boxes import ObjectBoxes, ObjectRegion
from objemb_lib.embed.extract import Objects
from objemb_lib.measure.metrics import Interval, ranking
from objemb_lib.search.objects import ObjectIndex, search_object
from objemb_lib.search.retriever import side_by_side
from objemb_lib.show import plots
from objemb_lib.show.widgets import Retrieval

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


def frame(ax: Axes) -> str:
    return to_hex(ax.spines["left"].get_edgecolor()).upper()


def test_only_what_has_labels_is_judged(tmp_path: Path) -> None:
    """Images 0 and 1 show the same object, 2 another one; nobody knows what 3 and 4 show."""
    files = [f"{number}.png" for number in range(5)]
    for file in files:
        Image.new("RGB", (30, 20)).save(tmp_path / file)
    data = ImageDataset("mixed", "all", tmp_path, files, [0, 0, 1, -1, -1], ["cup", "jug"])
    vectors = np.tril(np.ones((5, 5), np.float32))  # image 0 finds the others in their order
    of_known = ranking(vectors, data, 0, 4)
    of_unknown = ranking(vectors, data, 4, 4)
    figure = plots.neighbours(data, [of_known, of_unknown])
    known, unknown = figure.axes[1:5], figure.axes[6:10]
    colours = {"right": plots.RIGHT, "wrong": plots.WRONG, "": plots.UNKNOWN}
    words = [ax.get_title().rpartition(" ")[0] for ax in known]
    assert of_known.images.tolist() == [1, 2, 3, 4] and words == ["right", "wrong", "", ""]
    assert [frame(ax) for ax in known] == [colours[word] for word in words]
    assert {frame(ax) for ax in unknown} == {plots.UNKNOWN}
    assert all(float(ax.get_title()) > 0 for ax in unknown)  # a score, no word
    view = Retrieval(data, {("s", "p"): vectors}, query=4, k=4).view.value
    assert "right" not in view and "wrong" not in view and plots.WRONG not in view
    view = Retrieval(data, {("s", "p"): vectors}, query=0, k=4).view.value
    assert "1 of 4 right" in view and view.count("wrong 1.00") == 2  # its title and its caption


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


def test_detections_above_the_threshold_are_drawn_with_their_names(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    data = folder(tmp_path, progress=False)
    found = {
        "boxes": torch.tensor([[5.0, 4.0, 25.0, 34.0], [1.0, 1.0, 9.0, 9.0]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.9, 0.2]),
    }
    ax = plots.detections(data, 0, found, ["bird", "tool"], threshold=0.3)
    (box,), (word,) = ax.patches, ax.texts
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((5, 4), 20, 30)
    assert word.get_text() == "tool 0.90"


def test_differences_are_coloured_by_their_verdict() -> None:
    lines = {"a": Interval(0.2, 0.1, 0.3), "b": Interval(-0.2, -0.3, -0.1), "c": Interval(0, -1, 1)}
    ax = plots.intervals(lines, "difference", zero=True)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [plots.UNKNOWN, plots.WRONG, plots.RIGHT]


# --- objects ------------------------------------------------------------------------------

SEEN = {"a": [[0, 0, 10, 10], [12, 2, 28, 18]], "b": [[1, 0, 11, 10], [12, 2, 28, 18]]}


@pytest.fixture
def pair_of_scenes(tmp_path: Path) -> tuple[ImageDataset, Objects]:
    """Objects 0 and 1 in the first image, 0 and 2 in the second; a vector for each object."""
    for name in SEEN:
        Image.new("RGB", (30, 20), "white").save(tmp_path / f"{name}.png")
    boxes = [np.array(many, np.float32) for many in SEEN.values()]
    data = ImageDataset("two", "all", tmp_path, ["a.png", "b.png"], [0, 0], ["cup", "jug", "pot"],
                        boxes=boxes, box_labels=[np.array([0, 1]), np.array([0, 2])])  # fmt: skip
    where = ObjectBoxes("true", boxes, fell_back=[False, True])
    vectors = {("s", "p"): np.array([[1, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0.5, 0.8]])}
    image = np.array([0, 0, 1, 1])
    return data, Objects(vectors, image, np.concatenate(boxes), np.ones(4), where)


def searched(data: ImageDataset, objects: Objects) -> ObjectIndex:
    index = ObjectIndex(3)
    index.add(objects, ("s", "p"), data.files)
    return index


def test_a_click_is_drawn_with_the_box_that_was_meant(pair_of_scenes: tuple) -> None:
    data, objects = pair_of_scenes
    index = searched(data, objects)
    for chosen, word, box in ((0, "right", SEEN["b"][0]), (1, "wrong", SEEN["b"][1])):
        answer = search_object(data, 0, objects, ("s", "p"), chosen, index)
        figure = plots.object_search(answer, data)
        query, match = figure.axes
        widths = [patch.get_linewidth() for patch in query.patches]
        assert len(widths) == 2 and np.argmax(widths) == chosen
        assert query.get_title() == f"query: {('cup', 'jug')[chosen]}"
        (drawn,) = match.patches
        assert [*drawn.get_xy(), drawn.get_width()] == [box[0], box[1], box[2] - box[0]]
        colour = plots.RIGHT if word == "right" else plots.WRONG
        assert frame(match) == colour and match.get_title().startswith(word)


def test_matches_of_unknown_objects_are_not_judged(pair_of_scenes: tuple) -> None:
    data, objects = pair_of_scenes
    answer = search_object(data, 0, objects, ("s", "p"), 0, searched(data, objects))
    unknown = replace(answer, boxes=answer.boxes + 7)  # on no object
    assert plots.judged_match(unknown, data, answer.matches[0]) == ("", plots.UNKNOWN)
    bare = replace(data, boxes=(), box_labels=(), box_categories=())
    assert plots.judged_match(answer, bare, answer.matches[0]) == ("", plots.UNKNOWN)


def test_what_is_pooled_is_bright_and_the_rest_dark(pair_of_scenes: tuple) -> None:
    data, objects = pair_of_scenes
    region = ObjectRegion(replace(objects.where, name="guess"))
    ax = plots.pooled(data, 0, region)
    shown = ax.images[0].get_array()
    assert (shown[5, 5] == 255).all() and (shown[19, 1] < 100).all() and len(ax.patches) == 2
    assert ax.get_title() == "guess"
    assert "found nothing" in plots.pooled(data, 1, region).get_title()


def test_lines_join_the_same_images_of_two_embeddings(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    near = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    far = np.array([[1, 0], [0.6, 0.8], [0.8, 0.6]], np.float32)  # finds 2 first, then 1
    sides = side_by_side({"near": near, "far": far}, data, 0, 2)
    figure = plots.side_by_side(data, sides)
    lines = [one for one in figure.artists if isinstance(one, ConnectionPatch)]
    ends = {(figure.axes.index(one.axesA), figure.axes.index(one.axesB)) for one in lines}
    assert ends == {(1, 5), (2, 4)}, "a cell of the query, then two results a line"


def test_a_group_is_told_by_its_shape_where_its_colour_comes_again() -> None:
    assert len({plots.glyph(k) for k in range(32)}) == 32
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    ax = plots.object_map(points, np.array([1, -1, 0]), ["right", "wrong"], plt.figure().gca())
    drawn = {part.get_label(): part.get_offsets().tolist() for part in ax.collections}
    assert drawn == {"wrong": [[0, 0]], "unknown": [[1, 0]], "right": [[0, 1]]}


def test_each_map_lies_over_the_image() -> None:
    found = {"boxes": np.ones((20, 30)), "similarity": np.zeros((2, 3))}
    figure = plots.overlays(Image.new("RGB", (30, 20)), found)
    assert [ax.get_title() for ax in figure.axes] == ["boxes", "similarity"]
    assert {tuple(image.get_extent()) for ax in figure.axes for image in ax.images} == {
        (0, 30, 20, 0)
    }


def test_what_nothing_beats_is_on_the_front() -> None:
    around = lambda value: Interval(value, value - 0.1, value + 0.1)  # noqa: E731
    points = {"cheap": (1, around(0.2)), "bad": (3, around(0.1)), "good": (5, around(0.6))}
    points["as dear"] = (5, around(0.5))
    ax = plots.pareto(points, "ms", "mAP", plt.figure().gca())
    front = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert front.get_xydata().tolist() == [[1, 0.2], [5, 0.6]]
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3", "4"]
    listed = [text.get_text() for text in ax.get_legend().get_texts()]
    assert listed == ["1  cheap", "2  bad", "3  good", "4  as dear"]


def test_live_curves_grow_in_place(monkeypatch) -> None:
    calls = []

    class Handle:
        def update(self, figure) -> None:
            calls.append("update")

    def display(figure, display_id) -> Handle:
        calls.append("display")
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    live = plots.LiveCurves(20, "mAP")
    live.add(0, {}, {"student": 0.5})
    live.add(10, {"cosine": 2.0}, {"student": 0.6})
    live.add(20, {"cosine": 1.0}, {"student": 0.7})
    assert calls == ["display", "update", "update"]
    losses, scores = live.axes
    assert losses.lines[0].get_xydata().tolist() == [[10, 2.0], [20, 1.0]]
    assert scores.lines[0].get_xydata().tolist() == [[0, 0.5], [10, 0.6], [20, 0.7]]
    assert not plt.fignum_exists(live.figure.number), "no second picture at the end of the cell"
