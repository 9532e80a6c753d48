"""Figures show what the functions under them found; what nobody knows, they do not say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib import cbook
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.regions import Region
from objemb_lib.measure.intervals import Evaluation, Interval
from objemb_lib.measure.leaderboard import Leaderboard
from objemb_lib.measure.metrics import ranking
from objemb_lib.search.objects import ObjectIndex, search_object
from objemb_lib.show import plots


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def images(folder: Path, labels: list[int], names: list[str], **more) -> ImageDataset:
    """Plain images of 40 x 30 pixels."""
    files = [f"{number}.png" for number in range(len(labels))]
    for number, file in enumerate(files):
        Image.new("RGB", (40, 30), (40 * number, 90, 10)).save(folder / file)
    return ImageDataset("plain", "all", folder, files, labels, names, **more)


def frame(ax: Axes) -> str:
    return to_hex(ax.spines["left"].get_edgecolor()).upper()


def drawn(ax: Axes) -> list[list[float]]:
    """The boxes of a picture, each as x, y, width and height."""
    return [[*box.get_xy(), box.get_width(), box.get_height()] for box in ax.patches]


def words(texts) -> list[str]:
    return [text.get_text() for text in texts]


def test_boxes_are_drawn_with_names_those_of_a_detector_above_the_threshold(tmp_path: Path) -> None:
    data = images(tmp_path, [0, 1], ["cup", "bus"], boxes=[np.array([[2.0, 3.0, 20.0, 25.0]])] * 2)
    ax = plots.scene(data, 1)
    assert drawn(ax) == [[2, 3, 18, 22]] and ax.get_title() == "bus"
    found = {"boxes": torch.tensor([[5.0, 4.0, 25.0, 34.0], [1.0, 1.0, 9.0, 9.0]]),
             "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.9, 0.2])}  # fmt: skip
    ax = plots.detections(data, 0, found, ["cat", "tool"], threshold=0.3, ax=plt.figure().gca())
    assert drawn(ax) == [[5, 4, 20, 30]] and words(ax.texts) == ["tool 0.90"]


def test_an_unlabelled_photograph_gets_no_other_one_s_name(tmp_path: Path) -> None:
    for side, file in enumerate(("bus/a.png", "owl/b.png", "c.png"), 20):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, side)).save(tmp_path / file)
    data = folder(tmp_path, progress=False)
    i = [Path(file).name for file in data.files].index("c.png")
    assert plots.scene(data, i).get_title() == "unlabelled"
    figure = plots.neighbours(data, [ranking(np.eye(3), data, i, 2)])
    assert figure.axes[0].get_title() == "query: unlabelled"


def test_pictures_stand_in_their_order_and_maps_on_them(tmp_path: Path) -> None:
    several = [Image.new("RGB", (10, 10), colour) for colour in ("red", "lime", "blue")]
    sheet = plots.contact_sheet(several, columns=2, cell=20)
    corners = [sheet.getpixel(at) for at in ((5, 5), (25, 5), (5, 25), (25, 25))]
    assert corners == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    below, above = plots.heat(Image.new("RGB", (40, 30)), np.ones((2, 3))).images
    assert above.get_extent() == list(below.get_extent()) == [-0.5, 39.5, 29.5, -0.5]


def test_neighbours_are_framed_by_truth_where_it_is_known(tmp_path: Path) -> None:
    """Images 0 and 1 show the same object, 2 another one; nobody knows what 3 and 4 show."""
    data = images(tmp_path, [0, 0, 1, -1, -1], ["cup", "jug"])
    vectors = np.tril(np.ones((5, 5), np.float32))  # image 0 finds the others in their order
    of_known, of_unknown = (ranking(vectors, data, query, 4) for query in (0, 4))
    figure = plots.neighbours(data, [of_known, of_unknown])
    known, unknown = figure.axes[1:5], figure.axes[6:10]
    colours = {"right": plots.RIGHT, "wrong": plots.WRONG, "": plots.UNKNOWN}
    said = [ax.get_title().rpartition(" ")[0] for ax in known]
    assert of_known.images.tolist() == [1, 2, 3, 4] and said == ["right", "wrong", "", ""]
    assert figure.axes[0].get_title() == "query: cup" and frame(figure.axes[0]) == plots.QUERY
    assert [frame(ax) for ax in known] == [colours[word] for word in said]
    assert {frame(ax) for ax in unknown} == {plots.UNKNOWN}
    assert all(float(ax.get_title()) > 0 for ax in unknown)  # a score, no word


SEEN = {"a": [[0, 0, 10, 10], [12, 2, 28, 18]], "b": [[1, 0, 11, 10], [12, 2, 28, 18]]}
PAIR = ("s", "p")


@pytest.fixture
def pair_of_scenes(tmp_path: Path) -> tuple[ImageDataset, Objects]:
    """Objects 0 and 1 in the first image, 0 and 2 in the second; a vector for each object."""
    for name in SEEN:
        Image.new("RGB", (30, 20), "white").save(tmp_path / f"{name}.png")
    boxes = [np.array(many, np.float32) for many in SEEN.values()]
    data = ImageDataset("two", "all", tmp_path, ["a.png", "b.png"], [0, 0], ["cup", "jug", "pot"],
                        boxes=boxes, box_labels=[np.array([0, 1]), np.array([0, 2])])  # fmt: skip
    where = Boxes("true", boxes, fell_back=[False, True])
    vectors = {PAIR: np.array([[1, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0.5, 0.8]])}
    return data, Objects(vectors, where)


def test_a_click_is_drawn_with_the_box_that_was_meant(pair_of_scenes: tuple) -> None:
    data, objects = pair_of_scenes
    index = ObjectIndex(3)
    index.add(objects, PAIR, data.files)
    for chosen, word, box in ((0, "right", SEEN["b"][0]), (1, "wrong", SEEN["b"][1])):
        answer = search_object(data, 0, objects, PAIR, chosen, index)
        query, match = plots.object_search(answer, data).axes
        widths = [patch.get_linewidth() for patch in query.patches]
        assert len(widths) == 2 and np.argmax(widths) == chosen
        assert query.get_title() == f"query: {('cup', 'jug')[chosen]}"
        assert drawn(match) == [[box[0], box[1], box[2] - box[0], box[3] - box[1]]]
        colour = plots.RIGHT if word == "right" else plots.WRONG
        assert frame(match) == colour and match.get_title().startswith(word)
    beside = replace(answer.matches[0], box=(0.0, 0.0, 3.0, 3.0))  # of the pot
    loose = replace(answer, chosen=0, matches=[beside])
    match = plots.object_search(loose, data).axes[1]
    assert frame(match) == plots.STATES["loose"] and match.get_title().startswith(plots.LOOSE)
    unknown = replace(answer, boxes=answer.boxes + 7)  # on no object
    assert frame(plots.object_search(unknown, data).axes[1]) == plots.UNKNOWN


def test_what_is_pooled_is_bright_and_the_rest_dark(pair_of_scenes: tuple) -> None:
    data, objects = pair_of_scenes
    region = Region(replace(objects.where, name="guess"))
    ax = plots.pooled(data, 0, region)
    shown = ax.images[0].get_array()
    assert (shown[5, 5] == 255).all() and (shown[19, 1] < 100).all() and len(ax.patches) == 2
    assert ax.get_title() == "guess"
    assert "found nothing" in plots.pooled(data, 1, region).get_title()


def test_intervals_are_drawn_from_end_to_end_in_the_colour_of_their_verdict() -> None:
    found = {"a": Interval(0.2, 0.1, 0.3), "b": Interval(-0.2, -0.3, -0.1), "c": Interval(0, -1, 1)}
    ax = plots.intervals(found, "difference", zero=True)
    assert list(ax.lines[-3].get_xdata()) == [0.1, 0.3] and "difference" in ax.get_xlabel()
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [plots.UNKNOWN, plots.WRONG, plots.RIGHT]


def test_panels_that_share_an_axis_must_have_the_same_lines() -> None:
    """Once, the left panel had the names of the right one, which has fewer lines."""
    axes = plt.subplots(1, 2, sharey=True)[1]
    one, many = {"b": Interval(0, -1, 1)}, {"a": Interval(0, -1, 1), "b": Interval(0, -1, 1)}
    for ax in axes:
        plots.intervals(many, "mAP", ax)
    assert words(axes[0].get_yticklabels()) == ["b", "a"]
    with pytest.raises(DataError, match="share an axis"):
        plots.intervals(one, "mAP", axes[1])


def test_what_nothing_beats_is_on_the_front() -> None:
    values = {"cheap": (1, 0.2), "bad": (3, 0.1), "good": (5, 0.6), "as dear": (5, 0.5)}
    points = {name: (x, Interval(y, y - 0.1, y + 0.1)) for name, (x, y) in values.items()}
    ax = plots.pareto(points, "ms", "mAP")
    front = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert front.get_xydata().tolist() == [[1, 0.2], [5, 0.6]]
    places = {text.get_text(): text.xy for text in ax.texts}
    assert places == values, "a name at each dot"


# --- labels as they are written -----------------------------------------------------------


@pytest.mark.parametrize("label", ["$$", "US$5 & AU$5", "$5_bill$", "a$b", r"\$5", "a_b^c", "{x}"])
def test_a_dollar_sign_is_no_formula(label: str, tmp_path: Path) -> None:
    """telperion/nine-or-null#14, matplotlib#20266: one label failed, others lost their signs."""
    assert not cbook.is_math_text(plots.written(label))
    assert plots.written(label).replace(r"\$", "$") == label
    figure, axes = plt.subplots(1, 2)
    plots.show(Image.new("RGB", (9, 9)), axes[0], label)
    plots.draw_box(axes[0], (0, 0, 5, 5), "red", word=label)
    plots.intervals({label: Interval(0.2, 0.1, 0.3)}, "mAP", axes[1])
    figure.savefig(tmp_path / "labels.pdf")


def test_letters_without_a_font_are_written_as_code_points_and_told_once(monkeypatch) -> None:
    """matplotlib#14269: they were boxes, all alike."""
    monkeypatch.setattr(plots, "fontManager", SimpleNamespace(ttflist=[]))
    plots._family_with.cache_clear()
    with pytest.warns(UserWarning, match="install one") as told:
        assert plots.written("\u732b é") == plots.written("\u732b é") == r"\u732b é"
    assert len(told) == 1
    plots._family_with.cache_clear()


def test_letters_come_from_a_font_that_has_them(monkeypatch) -> None:
    own = SimpleNamespace(get_charmap=lambda: dict.fromkeys(map(ord, "a b")))
    many = SimpleNamespace(get_charmap=lambda: dict.fromkeys(map(ord, "\u732b")))
    monkeypatch.setattr(plots, "get_font", lambda name: many if name in "cjk last" else own)
    fonts = [
        SimpleNamespace(name=n, fname=f) for n, f in (("Last Resort HE", "last"), ("X", "cjk"))
    ]
    monkeypatch.setattr(plots, "fontManager", SimpleNamespace(ttflist=fonts))
    plots._family_with.cache_clear()
    with plt.rc_context():
        assert plots.written("a \u732b") == "a \u732b"
        assert plt.rcParams["font.family"][-1] == "X"
    plots._family_with.cache_clear()


def test_a_board_is_drawn_with_earlier_rows_in_grey(tmp_path: Path) -> None:
    scores = Evaluation({"mAP": np.array([0.2, 0.4])}, np.arange(2), np.arange(2), "toy/test 0a")
    for notebook, name in (("01", "crop"), ("02", "box head")):
        board = Leaderboard(notebook, tmp_path)
        board.add(name, scores, ["mAP"])
    ax = plots.board(board)
    assert words(ax.get_yticklabels()) == ["box head", "crop"]  # from below
    assert [line.get_color() for line in ax.lines[::2]] == [plots.QUERY, plots.UNKNOWN]
