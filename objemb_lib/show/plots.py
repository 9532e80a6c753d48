"""Pictures: every result of the course as a figure that can be read without running anything.

Functions that draw one picture take the ``ax`` to draw on, default the present one, and return it;
those that draw many return their figure.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import Bbox
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from objemb_lib.attend.soft import inside
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import widen
from objemb_lib.embed.regions import Region
from objemb_lib.measure.intervals import Interval
from objemb_lib.measure.leaderboard import Leaderboard
from objemb_lib.measure.metrics import Neighbours
from objemb_lib.search.objects import Answer

# Colour-blind safe (Okabe and Ito): right, wrong, and the query itself; grey where nobody knows.
RIGHT, WRONG, QUERY, UNKNOWN = "#009E73", "#D55E00", "#0072B2", "#777777"
STATES = {"right": RIGHT, "loose": "#E69F00", "wrong": WRONG, "": UNKNOWN}  # of an answer's match
SMALL = 8  # points: what is written beside a picture
LOOSE = "right photograph,\nloose box"


# --- labels as they are written ------------------------------------------------------------


def written(text: str) -> str:
    """A label for matplotlib as it is: a dollar sign opens no formula, and letters that its font
    lacks come from any installed one; those that none has are written as their code points.
    """
    own = get_font(findfont(FontProperties())).get_charmap()
    for letter in sorted({x for x in text if ord(x) not in own and not x.isspace()}):
        if (family := _family_with(letter)) is None:
            text = text.replace(letter, letter.encode("ascii", "backslashreplace").decode())
        elif family not in plt.rcParams["font.family"]:
            plt.rcParams["font.family"] += [family]
    return text.replace("$", r"\$")


@functools.cache
def _family_with(letter: str) -> str | None:
    """An installed family of fonts that has a letter; warns, once for each, where there is none."""
    for font in fontManager.ttflist:
        last_resort = "last resort" in font.name.lower()  # it has a box for every letter
        if not last_resort and ord(letter) in get_font(font.fname).get_charmap():
            return font.name
    note = f"no font here has {ascii(letter)}: install one for its language, such as Noto Sans CJK"
    warnings.warn(note, stacklevel=4)
    return None


# --- what is right, and what it is called -------------------------------------------------


def object_name(dataset: ImageDataset, label: int, otherwise: str = "unlabelled") -> str:
    """The name of a label; ``otherwise`` where it has none."""
    return dataset.label_names[label] if 0 <= label < len(dataset.label_names) else otherwise


def judge_image(dataset: ImageDataset, query: int, found: int, right: bool) -> tuple[str, str]:
    """Word and colour of an image that was found: right; wrong, if both have labels; or neither."""
    known = dataset.labels[query] >= 0 and dataset.labels[found] >= 0
    word = "right" if right else "wrong" if known else ""
    return word, STATES[word]


# --- photographs --------------------------------------------------------------------------


def show(image: Image.Image, ax: Axes, title: str = "", ink: str = "") -> Axes:
    """An image without axes; ``ink`` frames it, and colours its title."""
    ax.imshow(image)
    ax.set(xticks=[], yticks=[])
    ax.set_title(written(title), fontsize=SMALL - 1 if ink else SMALL, color=ink or "black")
    for side in ax.spines.values():
        side.set(visible=bool(ink), color=ink or "black", linewidth=3)
    return ax


def draw_box(ax: Axes, box: Sequence[float], ink: str, width: float = 1.5, word: str = "") -> None:
    """A box ``(x0, y0, x1, y1)``, with a word in its upper left corner."""
    x0, y0, x1, y1 = box
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=ink, lw=width))
    if word:
        ax.text(x0, y0, written(word), fontsize=SMALL - 1, color="white", va="top", clip_on=True,
                bbox={"facecolor": ink, "lw": 0, "pad": 0.8})  # fmt: skip


def contact_sheet(images: Sequence[Image.Image], columns: int = 26, cell: int = 44) -> Image.Image:
    """Many small pictures on white, as one image of ``columns * cell`` pixels across."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
    for k, image in enumerate(images):
        small = image.copy()
        small.thumbnail((cell - 4, cell - 4))
        at = ((k % columns) * cell + 2, (k // columns) * cell + 2)
        sheet.paste(small, at, small if small.mode == "RGBA" else None)
    return sheet


def scene(dataset: ImageDataset, i: int, ax: Axes | None = None) -> Axes:
    """Image ``i`` with its boxes and the outlines of its masks; the main object's in blue."""
    ax = show(dataset.image(i), ax or plt.gca(), object_name(dataset, dataset.labels[i]))
    for k, box in enumerate(dataset.boxes[i]):
        draw_box(ax, box, WRONG if k else QUERY)
        if dataset.masks is not None:
            ax.contour(dataset.mask(i, k), [0.5], colors=[WRONG if k else QUERY], linewidths=0.8)
    return ax


def detections(
    dataset: ImageDataset,
    i: int,
    found: Mapping[str, Tensor],
    names: Sequence[str],
    threshold: float = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """Image ``i`` with what a detector found in it, of the score ``threshold`` at least.

    ``found`` holds ``boxes`` ``(K, 4)``, ``labels`` ``(K,)``, places in ``names`` from 1, and
    ``scores`` ``(K,)``.
    """
    ax = show(dataset.image(i), ax or plt.gca())
    for box, label, score in zip(*(found[key].tolist() for key in ("boxes", "labels", "scores"))):
        if score >= threshold:
            draw_box(ax, box, WRONG, word=f"{names[label - 1]} {score:.2f}")
    return ax


def lesson(image: Tensor, seen: Tensor, meant: Tensor, words: Sequence[str]) -> Figure:
    """An image with the boxes that a student sees, and the crops that its teacher sees for them.

    Args:
        image: ``(3, H, W)`` in 0..1. seen, meant: ``(K, 4)`` in its pixels.
        words: what is said of each box; every word has its colour.
    """
    picture = to_pil_image(image)
    count = -(-len(words) // 2)
    top, low = ("".join(chr(97 + k) for k in range(n, n + count)) for n in (0, count))
    figure, axes = plt.subplot_mosaic(f"00{top};00{low}", figsize=(8, 2.8), layout="constrained")
    show(picture, axes.pop("0"))
    inks = dict(zip(dict.fromkeys(words), (WRONG, RIGHT, QUERY, UNKNOWN)))
    for k, (ax, box, part, word) in enumerate(zip(axes.values(), seen.tolist(), meant, words)):
        draw_box(figure.axes[0], box, inks[word], word=str(k))
        show(picture.crop(part.round().int().tolist()), ax, f"{k} {word}", inks[word])
    for ax in figure.axes[1 + len(words) :]:
        ax.axis("off")
    return figure


def heat(image: Image.Image, weights: np.ndarray, title: str = "", ax: Axes | None = None) -> Axes:
    """An image under an ``(h, w)`` map: bright where it counts, whatever the map's scale."""
    ax = show(image.convert("L").convert("RGB"), ax or plt.gca(), title)
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)  # as imshow lays the image
    ax.imshow(np.asarray(weights), cmap="inferno", alpha=0.6, extent=extent,
              interpolation="bilinear")  # fmt: skip
    return ax


def pooled(dataset: ImageDataset, i: int, region: Region, ax: Axes | None = None) -> Axes:
    """Image ``i`` with what a region pools of it: the rest is dark, boxes are drawn."""
    image = dataset.image(i)
    seen = inside(dataset, i, region)
    bright = (np.asarray(image) * np.where(seen > 0, 1, 0.25)[..., None]).astype(np.uint8)
    back = " (found nothing: whole)" if region.boxes.fell_back[i] else ""
    ax = show(bright, ax or plt.gca(), region.name + back)
    for box in widen(region.boxes.boxes[i], region.context, np.array(image.size)):
        draw_box(ax, box, QUERY)
    return ax


# --- what was found -----------------------------------------------------------------------


def neighbours(
    dataset: ImageDataset, found: Sequence[Neighbours], titles: Sequence[str] = ()
) -> Figure:
    """A line per query: the query, then its neighbours, framed by whether they are right.

    Where the query or a neighbour has no label, nobody knows: a grey frame and no word.
    ``titles`` stand over the queries; default their names.
    """
    rows, columns = len(found), 1 + max(len(one.images) for one in found)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.3, rows * 1.5), squeeze=False)
    for row, (line, one) in enumerate(zip(axes, found)):
        name = f"query: {object_name(dataset, dataset.labels[one.query])}"
        show(dataset.image(one.query), line[0], titles[row] if len(titles) else name, QUERY)
        for box in dataset.boxes[one.query][:1]:
            draw_box(line[0], box, QUERY)
        for ax, i, score, right in zip(line[1:], one.images, one.scores, one.relevant):
            word, ink = judge_image(dataset, one.query, i, right)
            show(dataset.image(i), ax, f"{word} {score:.2f}".strip(), ink)
        for ax in line[1 + len(one.images) :]:
            ax.axis("off")
    figure.tight_layout(pad=0.4, h_pad=0.8, w_pad=0.8)
    return figure


def object_search(answer: Answer, gallery: ImageDataset) -> Figure:
    """The static twin of a click: the query with its boxes, then the images with the box meant.

    The chosen box is drawn thick. A match is right (green) where its box is on the same object,
    loose (yellow) where that is elsewhere on the right photograph, else wrong (orange); grey where
    nobody knows.
    """
    columns = 1 + len(answer.matches)
    figure, axes = plt.subplots(1, columns, figsize=(columns * 1.3, 1.8), squeeze=False)
    first, *others = axes[0]
    name = object_name(gallery, answer.label, f"box {answer.chosen}")
    show(answer.dataset.image(answer.query), first, f"query: {name}", QUERY)
    for k, box in enumerate(answer.boxes):
        draw_box(first, box, QUERY, 2.5 if k == answer.chosen else 0.8, str(k))
    for ax, match, state in zip(others, answer.matches, answer.states(gallery)):
        word = LOOSE if state == "loose" else state
        show(gallery.image(match.image), ax, f"{word} {match.score:.2f}".strip(), STATES[state])
        draw_box(ax, match.box, STATES[state], 2)
    figure.tight_layout(pad=0.4, w_pad=0.8)
    return figure


# --- numbers ------------------------------------------------------------------------------


def intervals(
    found: Mapping[str, Interval],
    label: str,
    ax: Axes | None = None,
    zero: bool = False,
    grey: Collection[str] = (),
) -> Axes:
    """Values with their confidence intervals, one a line; those named ``grey`` step back.

    ``zero``, for differences, draws the line of no effect, and what is surely above or below it in
    colours of their own.

    Raises:
        DataError: a panel that shares the axis has other lines, and would get their names.
    """
    ax, names = ax or plt.gca(), list(found)[::-1]
    labels, sharing = [written(name) for name in names], ax.get_shared_y_axes().get_siblings(ax)
    if any(other.lines for other in sharing if other is not ax):
        if ax.yaxis.get_major_formatter().format_ticks(ax.get_yticks()) != labels:
            raise DataError("panels that share an axis have other lines", "Leave sharey out.")
    for y, name in enumerate(names):
        one = found[name]
        ink = {"higher": RIGHT, "lower": WRONG}.get(one.verdict, UNKNOWN) if zero else QUERY
        ink = UNKNOWN if name in grey else ink
        ax.plot([one.low, one.high], [y, y], color=ink, lw=2, solid_capstyle="butt")
        ax.plot(one.value, y, "o", color=ink)
        ax.annotate(f"{one.value:.2f}", (one.value, y), (0, 6), textcoords="offset points",
                    ha="center", fontsize=SMALL)  # fmt: skip
    if zero:
        ax.axvline(0, color="grey", lw=0.8, ls="--")
    ax.set_yticks(range(len(names)), labels)
    ax.set(ylim=(-0.6, len(names) - 0.3), xlabel=f"{label} (95 % interval)")
    ax.grid(axis="x", alpha=0.3)
    return ax


def board(shown: Leaderboard) -> Axes:
    """The mAP of a leaderboard's rows as :func:`intervals`; in grey those of earlier notebooks."""
    own = [number for row in shown.rows for number in row.numbers]
    before, data = shown.earlier(), own[0]["data"]
    numbers = [n for n in before + own if n["metric"] == "mAP" and n["data"] == data]
    ax = plt.subplots(figsize=(7, 0.7 + 0.32 * len(numbers)))[1]
    lines = {n["name"]: Interval(n["value"], n["low"], n["high"]) for n in numbers}
    return intervals(lines, f"mAP, {data}", ax, grey=[n["name"] for n in before])


def pareto(
    points: Mapping[str, tuple[float, Interval]], cost: str, quality: str, ax: Axes | None = None
) -> Axes:
    """Quality against cost, a name at each dot; what nothing beats in both is joined by a line.

    ``points`` are ``{name: (cost, quality)}``.
    """
    ax, front = ax or plt.subplots(figsize=(8, 4.5))[1], []
    by_cost = sorted(points.items(), key=lambda one: (one[1][0], -one[1][1].value))
    for _, (x, one) in by_cost:
        ahead = not front or one.value > front[-1][1]
        front += [(x, one.value)] if ahead else []
        ends = [[one.value - one.low], [one.high - one.value]]
        ax.errorbar(x, one.value, ends, fmt="o" if ahead else "s", lw=1,
                    color=QUERY if ahead else UNKNOWN)  # fmt: skip
    ax.plot(*zip(*front), color=QUERY, lw=1, ls="--")
    ax.set(xscale="log", xlabel=cost, ylabel=f"{quality} (95 % interval)")
    ax.xaxis.set_major_formatter(LogFormatter())  # plain numbers
    ax.xaxis.set_minor_formatter(LogFormatter())
    ax.margins(x=0.25)  # room for the names
    ax.grid(alpha=0.3)
    _name_dots(ax, {name: (x, one.value) for name, (x, one) in by_cost})
    return ax


def _name_dots(ax: Axes, dots: Mapping[str, tuple[float, float]]) -> None:
    """Write a name beside each dot, on the side where it covers the fewest dots and names, and
    stays in the frame."""
    frame = ax.get_window_extent()
    middles = ax.transData.transform([*dots.values()])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in middles]
    for name, dot in dots.items():
        sides = [
            ax.annotate(written(name), dot, (x, y), textcoords="offset points", fontsize=SMALL,
                        ha="left" if x > 0 else "right")
            for x, y in ((6, 3), (6, -10), (-6, 3), (-6, -10))
        ]  # fmt: skip
        boxes = [side.get_window_extent() for side in sides]
        outside = [box.x0 < frame.x0 or box.x1 > frame.x1 for box in boxes]
        covered = [sum(map(box.overlaps, taken)) for box in boxes]
        best = int(np.argmin(np.add(covered, np.multiply(outside, len(taken)))))
        taken.append(boxes[best])
        for side in sides[:best] + sides[best + 1 :]:
            side.remove()
