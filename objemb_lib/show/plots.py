"""Pictures: every result of the course as a figure that can be read without running anything."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image
from torch import Tensor

from objemb_lib.attend.objects import object_label
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import ObjectRegion, inside, widen
from objemb_lib.measure.metrics import Interval, Neighbours
from objemb_lib.search.objects import Answer, Match
from objemb_lib.search.retriever import Side

# Colour-blind safe (Okabe and Ito): right, wrong, and the query itself; grey where nobody knows.
RIGHT, WRONG, QUERY, UNKNOWN = "#009E73", "#D55E00", "#0072B2", "#777777"
PALETTE = (RIGHT, WRONG, QUERY, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}


def grid(
    images: Sequence[Image.Image],
    titles: Sequence[str] = (),
    columns: int = 8,
    size: float = 1.4,
) -> Figure:
    """Pictures side by side; ``size`` is a picture's side in inches."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, rows * (size + 0.2)), squeeze=False
    )
    for k, ax in enumerate(axes.flat):
        ax.axis("off")
        if k < len(images):
            ax.imshow(images[k])
            ax.set_title(titles[k] if len(titles) else "", fontsize=7)
    figure.tight_layout(pad=0.3)
    return figure


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


def label_name(dataset: ImageDataset, i: int) -> str:
    """Name of image ``i``'s label; ``unlabelled`` where it has none."""
    label = dataset.labels[i]
    return dataset.label_names[label] if 0 <= label < len(dataset.label_names) else "unlabelled"


def judged(dataset: ImageDataset, query: int, found: int, right: bool) -> tuple[str, str]:
    """Word and colour for an image that was found; without a label, neither right nor wrong."""
    if right:
        return "right", RIGHT
    known = dataset.labels[query] >= 0 and dataset.labels[found] >= 0
    return ("wrong", WRONG) if known else ("", UNKNOWN)


def scene(dataset: ImageDataset, i: int, ax: Axes | None = None) -> Axes:
    """Image ``i`` with its boxes and the outlines of its masks; the main object's in blue."""
    ax = ax or plt.gca()
    ax.imshow(dataset.image(i))
    for k, (x0, y0, x1, y1) in enumerate(dataset.boxes[i]):
        colour = WRONG if k else QUERY
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=1.5, ec=colour))
        if dataset.masks is not None:
            ax.contour(dataset.mask(i, k), [0.5], colors=[colour], linewidths=0.8)
    ax.set_title(label_name(dataset, i), fontsize=8)
    ax.axis("off")
    return ax


def heat_map(
    table: Mapping[tuple[str, str], float], title: str = "", ax: Axes | None = None
) -> Axes:
    """``{(row, column): value}`` as a grid of colours with the numbers written in."""
    rows = list(dict.fromkeys(r for r, _ in table))
    columns = list(dict.fromkeys(c for _, c in table))
    values = np.array([[table[r, c] for c in columns] for r in rows])
    ax = ax or plt.gca()
    ax.imshow(values, cmap="viridis", aspect="auto")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    middle = (values.min() + values.max()) / 2
    for r, c in np.ndindex(values.shape):
        ink = "white" if values[r, c] < middle else "black"
        ax.text(c, r, f"{values[r, c]:.2f}", ha="center", va="center", color=ink, fontsize=9)
    ax.set_title(title, fontsize=10)
    return ax


def detections(
    dataset: ImageDataset,
    i: int,
    found: Mapping[str, Tensor],
    names: Sequence[str],
    threshold: float = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """Image ``i`` with the boxes that a detector found, their category and score.

    Args:
        found: ``boxes`` ``(K, 4)``, ``labels`` ``(K,)`` from 1, ``scores`` ``(K,)``.
        names: of the categories. threshold: boxes of a lower score are left out.
    """
    ax = ax or plt.gca()
    ax.imshow(dataset.image(i))
    for box, label, score in zip(*(found[key].tolist() for key in ("boxes", "labels", "scores"))):
        if score < threshold:
            continue
        x0, y0, x1, y1 = box
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=1.5, ec=WRONG))
        ax.text(x0, y0, f"{names[label - 1]} {score:.2f}", fontsize=6, color="white",
                va="bottom", backgroundcolor=WRONG, clip_on=True)  # fmt: skip
    ax.axis("off")
    return ax


def heat(image: Image.Image, weights: np.ndarray, title: str = "", ax: Axes | None = None) -> Axes:
    """An image under an ``(h, w)`` map: bright where it counts, whatever the map's scale."""
    ax = ax or plt.gca()
    extent = (0, image.width, image.height, 0)
    ax.imshow(image.convert("L"), cmap="gray", extent=extent)
    ax.imshow(np.asarray(weights), cmap="inferno", alpha=0.6, extent=extent,
              interpolation="bilinear")  # fmt: skip
    ax.set_title(title, fontsize=8)
    ax.axis("off")
    return ax


def pooled(dataset: ImageDataset, i: int, region: ObjectRegion, ax: Axes | None = None) -> Axes:
    """Image ``i`` with what a region pools of it: the rest is dark, boxes are drawn.

    An image in which the source found nothing is said to be whole.
    """
    ax, image = ax or plt.gca(), dataset.image(i)
    for x0, y0, x1, y1 in widen(region.boxes.boxes[i], region.margin, np.array(image.size)):
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=1.2, ec=QUERY))
    seen = inside(dataset, i, region.boxes, region.margin, region.masked)
    ax.imshow((np.asarray(image) * np.where(seen > 0, 1, 0.25)[..., None]).astype(np.uint8))
    back = " (found nothing: whole)" if region.boxes.fell_back[i] else ""
    ax.set_title(region.name + back, fontsize=8)
    ax.axis("off")
    return ax


def object_search(answer: Answer, gallery: ImageDataset, size: float = 1.5) -> Figure:
    """The static twin of a click: the query with its boxes, then the images with the box meant.

    The chosen box is drawn thick and numbered as the others are. A match is right (green) where
    its box is on the same object, wrong (orange) where not, grey where nobody knows.
    """
    columns = 1 + len(answer.matches)
    figure, axes = plt.subplots(1, columns, figsize=(columns * size, size + 0.3), squeeze=False)
    names = gallery.label_names
    known = names[answer.label] if 0 <= answer.label < len(names) else f"box {answer.chosen}"
    _framed(axes[0][0], answer.dataset.image(answer.query), QUERY, f"query: {known}")
    for k, box in enumerate(answer.boxes):
        _box(axes[0][0], box, QUERY, 2.5 if k == answer.chosen else 0.8, str(k))
    for ax, match in zip(axes[0][1:], answer.matches):
        word, colour = judged_match(answer, gallery, match)
        _framed(ax, gallery.image(match.image), colour, f"{word} {match.score:.2f}".strip())
        _box(ax, match.box, colour, 2)
    figure.tight_layout(pad=0.4, w_pad=0.8)
    return figure


def judged_match(answer: Answer, gallery: ImageDataset, match: Match) -> tuple[str, str]:
    """Word and colour of a match: does its box lie on the object that was asked for?"""
    if answer.label < 0 or not len(gallery.boxes[match.image]):
        return "", UNKNOWN
    right = object_label(gallery, match.image, np.array(match.box)) == answer.label
    return ("right", RIGHT) if right else ("wrong", WRONG)


def _box(ax: Axes, box: Sequence[float], colour: str, width: float, word: str = "") -> None:
    x0, y0, x1, y1 = box
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=width))
    ax.text(x0, y0, word, fontsize=7, color="white", va="top",
            bbox={"facecolor": colour, "lw": 0, "pad": 0.8} if word else None)  # fmt: skip


def pareto(
    points: Mapping[str, tuple[float, Interval]], cost: str, quality: str, ax: Axes | None = None
) -> Axes:
    """Quality against cost; what nothing beats in both is joined by a line.

    Args:
        points: ``{name: (cost, quality)}``, less cost and more quality are better. The points
            are numbered by cost, since names of neighbours would overlap; a list beside the plot
            names them.
    """
    ax, best, front = ax or plt.gca(), -np.inf, []
    by_cost = sorted(points.items(), key=lambda one: (one[1][0], -one[1][1].value))
    for n, (name, (x, value)) in enumerate(by_cost, 1):
        ends = [[value.value - value.low], [value.high - value.value]]
        ahead = value.value > best
        best = max(best, value.value)
        front += [(x, value.value)] if ahead else []
        ax.errorbar(x, value.value, ends, fmt="o", color=QUERY if ahead else UNKNOWN, lw=1)
        ax.annotate(str(n), (x, value.value), (5, 4), textcoords="offset points", fontsize=8)
        ax.plot([], [], " ", label=f"{n}  {name}")
    ax.plot(*zip(*front), color=QUERY, lw=1, ls="--")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), handlelength=0, handletextpad=0, fontsize=8)
    ax.set_xscale("log")
    ax.set_xlabel(cost)
    ax.set_ylabel(f"{quality} (95 % interval)")
    ax.grid(alpha=0.3)
    return ax


def intervals(
    found: Mapping[str, Interval], label: str, ax: Axes | None = None, zero: bool = False
) -> Axes:
    """Values with their confidence intervals, one a line.

    ``zero`` is for differences: it draws the line of no effect, and those that are surely above
    or below it in their own colours.
    """
    ax = ax or plt.gca()
    names = list(found)[::-1]
    for y, name in enumerate(names):
        one = found[name]
        ink = {"higher": RIGHT, "lower": WRONG}.get(one.verdict, UNKNOWN) if zero else QUERY
        ax.plot([one.low, one.high], [y, y], color=ink, lw=2, solid_capstyle="butt")
        ax.plot(one.value, y, "o", color=ink)
        ax.annotate(f"{one.value:.2f}", (one.value, y), (0, 6), textcoords="offset points",
                    ha="center", fontsize=8)  # fmt: skip
    if zero:
        ax.axvline(0, color="grey", lw=0.8, ls="--")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.3)
    ax.set_xlabel(f"{label} (95 % interval)")
    ax.grid(axis="x", alpha=0.3)
    return ax


def neighbours(
    dataset: ImageDataset,
    found: Sequence[Neighbours],
    titles: Sequence[str] = (),
    size: float = 1.3,
) -> Figure:
    """A line per query: the query, then its neighbours, framed by whether they are right.

    Where the query or a neighbour has no label, nobody knows: a grey frame and no word.
    ``titles`` stand over the queries; default their names.
    """
    columns = 1 + max(len(one.images) for one in found)
    figure, axes = plt.subplots(
        len(found), columns, figsize=(columns * size, len(found) * (size + 0.2)), squeeze=False
    )
    for row, (line, one) in enumerate(zip(axes, found)):
        title = titles[row] if len(titles) else f"query: {label_name(dataset, one.query)}"
        _framed(line[0], dataset.image(one.query), QUERY, title)
        for x0, y0, x1, y1 in dataset.boxes[one.query][:1]:
            line[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=QUERY, lw=1.5))
        for ax, i, score, right in zip(line[1:], one.images, one.scores, one.relevant):
            word, colour = judged(dataset, one.query, i, right)
            _framed(ax, dataset.image(i), colour, f"{word} {score:.2f}".strip())
        for ax in line[1 + len(one.images) :]:
            ax.axis("off")
    figure.tight_layout(pad=0.4, h_pad=0.8, w_pad=0.8)
    return figure


def side_by_side(dataset: ImageDataset, sides: Mapping[str, Side], metric: str = "mAP") -> Figure:
    """A line per embedding: what it finds for the same query; lines join the same images."""
    titles = [f"{name}\n{metric} {one.of_query:.2f}, all {one.overall:.2f}"
              for name, one in sides.items()]  # fmt: skip
    found = [one.found for one in sides.values()]
    figure = neighbours(dataset, found, titles)
    figure.set_figheight(figure.get_figheight() + 0.4 * len(found))
    figure.tight_layout(pad=0.4, h_pad=2.5, w_pad=0.8)  # room for the lines
    rows = np.array(figure.axes).reshape(len(found), -1)[:, 1:]
    for (upper, above), (lower, below) in itertools.pairwise(zip(rows, found)):
        place = {int(i): ax for i, ax in zip(above.images, upper)}
        for ax, i, right in zip(lower, below.images, below.relevant):
            if int(i) in place:
                ink = judged(dataset, below.query, int(i), right)[1]
                ends = ((0.5, -0.04), (0.5, 1.22), "axes fraction")
                line = ConnectionPatch(*ends, axesA=place[int(i)], axesB=ax, color=ink, lw=1.5)
                figure.add_artist(line)
    return figure


def overlays(image: Image.Image, found: Mapping[str, np.ndarray], size: float = 2.2) -> Figure:
    """An image under each of its maps of :func:`attention.overlays`, side by side."""
    figure, axes = plt.subplots(1, len(found), figsize=(len(found) * size, size + 0.3),
                                squeeze=False)  # fmt: skip
    for ax, (name, weights) in zip(axes[0], found.items()):
        heat(image, weights, name, ax)
    figure.tight_layout(pad=0.4)
    return figure


def object_map(
    points: np.ndarray, groups: np.ndarray, names: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Objects as ``(N, 2)`` points, a colour and a shape for each group, in the order of the names.

    Args:
        groups: ``(N,)`` which name; -1: unknown.
    """
    ax = ax or plt.gca()
    for group in np.unique(groups):
        mine = points[groups == group]
        ink, shape = glyph(int(group))
        name = names[group] if group >= 0 else "unknown"
        ax.scatter(*mine.T, s=18, c=ink, marker=MARKERS[shape], label=name, lw=0)
    if len(names) <= 12:
        ax.legend(fontsize=7)
    ax.axis("off")
    return ax


def glyph(group: int) -> tuple[str, str]:
    """Colour and shape of a group: 32 pairs, so that no group needs its colour alone.

    >>> glyph(0), glyph(1), glyph(-1)
    (('#009E73', 'circle'), ('#D55E00', 'square'), ('#777777', 'circle'))
    """
    shapes = list(MARKERS)
    if group < 0:
        return UNKNOWN, shapes[0]
    return PALETTE[group % 8], shapes[(group + group // 8) % 4]


def _framed(ax: Axes, image: Image.Image, colour: str, title: str) -> None:
    ax.imshow(image)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set(color=colour, linewidth=3)
    ax.set_title(title, fontsize=7, color=colour)


def embedding_map(
    points: np.ndarray,
    images: Sequence[Image.Image],
    colours: np.ndarray | None = None,
    zoom: float = 0.12,
    ax: Axes | None = None,
    names: Sequence[str] = (),
) -> Axes:
    """Thumbnails at ``(N, 2)`` points, framed by their colour's number if ``colours`` is given.

    Args:
        names: of the numbers, for a legend below; at most twenty, which have a colour each.
    """
    ax = ax or plt.gca()
    palette = plt.get_cmap("tab20")
    for k, (point, image) in enumerate(zip(points, images)):
        frame = (
            {"edgecolor": palette(int(colours[k]) % 20), "lw": 1.5} if colours is not None else {}
        )
        box = OffsetImage(np.asarray(image), zoom=zoom)
        ax.add_artist(AnnotationBbox(box, point, pad=0.08, bboxprops=frame))
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.06 * (high - low)  # thumbnails reach beyond their points
    ax.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
    ax.axis("off")
    if 0 < len(names) <= palette.N:
        for k, name in enumerate(names):
            ax.plot([], [], "s", color=palette(k), label=name)
        ax.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0))
    return ax


class LiveCurves:
    """Losses (left) and scores (right) while something learns, redrawn in place in a notebook.

    Args:
        steps: the last step. label: of the scores.
    """

    def __init__(self, steps: int, label: str) -> None:
        self.figure, self.axes = plt.subplots(1, 2, figsize=(10, 3))
        self.curves: tuple[dict, dict] = {}, {}  # name -> [(step, value), ...]
        self.steps, self.labels, self.shown = steps, ("loss", label), None
        plt.close(self.figure)  # shown here, not once more at the end of the cell

    def add(self, step: int, losses: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Draw the values of a step beside those before it."""
        for ax, curves, new, label in zip(self.axes, self.curves, (losses, scores), self.labels):
            for name, value in new.items():
                curves.setdefault(name, []).append((step, value))
            ax.clear()
            for name, points in curves.items():
                ax.plot(*zip(*points), "o-", ms=3, label=name)
            ax.set(xlim=(0, self.steps), xlabel="step", ylabel=label)
            if curves:
                ax.legend(fontsize=7)
        self._show()

    def _show(self) -> None:
        from IPython.display import display  # only notebooks come here

        if self.shown is None:
            self.shown = display(self.figure, display_id=True)
        else:
            self.shown.update(self.figure)
