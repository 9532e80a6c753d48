"""Map: where the objects of a gallery lie, by what an embedding makes of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import traitlets

from objemb_lib.attend.objects import first_right, object_truth
from objemb_lib.measure.analysis import PROJECTIONS, project
from objemb_lib.search.retriever import Retriever
from objemb_lib.show import plots
from objemb_lib.show.widgets.pictures import Pictures, box, card, row, said, source
from objemb_lib.show.widgets.search import ObjectSearch

HERE = Path(__file__).parent
COLOURS = ("category", "object", "first answer")
SHOWN = 24  # of the objects that are chosen


class Plane(anywidget.AnyWidget):
    """Points that can be looked at and chosen; ``act(what, buffers)`` is called for both.

    ``what`` has ``kind`` ``hover`` and ``row``, or ``chosen`` and ``rows``.
    """

    _esm = HERE / "map.js"
    _css = HERE / "map.css"
    side = traitlets.Int(460).tag(sync=True)  # pixels
    points = traitlets.List().tag(sync=True)  # (x, y) in 0..1
    groups = traitlets.List().tag(sync=True)  # of each point, a place in the next two
    names = traitlets.List().tag(sync=True)
    glyphs = traitlets.List().tag(sync=True)  # colour, shape
    selected = traitlets.List().tag(sync=True)
    seen = traitlets.Dict().tag(sync=True)  # row, src, caption
    says = traitlets.Unicode().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)

    def __init__(self, act: Callable[[dict, list], None], **traits: object) -> None:
        super().__init__(**traits)
        self.on_msg(lambda _, what, buffers: act(what, buffers))


class Map(ipywidgets.VBox):
    """Objects as points: point at one, click it, or draw around many to see them.

    A click on a picture below asks with that object in ``search``. The plain functions are
    :func:`analysis.project`, :func:`objects.object_truth` (category, object) and
    :func:`objects.first_right` (is an object's first answer right), the static twin
    :func:`plots.object_map`.

    Args:
        retriever: whose objects; at most ``most`` of them, evenly spread.
        search: a widget that follows, if any.
    """

    def __init__(
        self, retriever: Retriever, search: ObjectSearch | None = None, most: int = 1500
    ) -> None:
        self.retriever, self.linked = retriever, search
        every = len(retriever.index)
        self.rows = np.unique(np.linspace(0, every - 1, min(most, every)).astype(int))
        index = retriever.index
        self.image, self.boxes = index.image[self.rows], index.boxes[self.rows]
        self.vectors = index.vectors[self.rows]
        self.labels, self.categories = object_truth(retriever.dataset, self.image, self.boxes)
        self.right = first_right(self.vectors, self.image, self.labels)
        self._project = functools.cache(lambda how: project(self.vectors, how))
        self.how = ipywidgets.Dropdown(options=PROJECTIONS, description="map")
        self.colour = ipywidgets.Dropdown(options=COLOURS, description="colour by")
        self.plane = self.pictures = Plane(self._act)  # where errors are said
        self.chosen = Pictures(self._ask, label="objects that are chosen")
        beside = ipywidgets.HBox([self.plane, self.chosen], layout={"flex_flow": "row wrap"})
        super().__init__([ipywidgets.HBox([self.how, self.colour]), beside])
        for menu in (self.how, self.colour):
            menu.observe(lambda _: self.draw(), "value")
        self.draw()

    @said
    def draw(self) -> None:
        """Draw with the present settings."""
        self.plane.says = f"computing {self.how.value} ..."
        numbers, names = self.groups()
        glyphs = [plots.glyph(k) for k in range(len(names))] + [plots.glyph(-1)]
        with self.plane.hold_sync():
            self.plane.points = self._project(self.how.value).round(4).tolist()
            self.plane.glyphs, self.plane.names = glyphs, [*names, "unknown"]
            self.plane.groups = [k if k >= 0 else len(names) for k in numbers.tolist()]
            self.plane.says = f"{len(self.rows)} of {len(self.retriever.index)} objects"

    def groups(self) -> tuple[np.ndarray, list[str]]:
        """``(N,)`` the colour's group of each object, -1 where nobody knows, and their names."""
        data = self.retriever.dataset
        if self.colour.value == "first answer":
            return np.where(self.right < 0, -1, 1 - self.right), ["right", "wrong"]
        numbers, names = {
            "category": (self.categories, data.category_names),
            "object": (self.labels, data.label_names),
        }[self.colour.value]
        there = np.unique(numbers[numbers >= 0])
        places = np.where(numbers < 0, -1, np.searchsorted(there, numbers))
        return places, [names[k] if k < len(names) else str(k) for k in there.tolist()]

    @said
    def choose(self, rows: list[int]) -> None:
        """Show objects, by their places in ``self.rows``; one alone also asks in the search."""
        self.plane.selected = rows
        data = self.retriever.dataset
        cards = []
        for place in rows[:SHOWN]:
            i, ends = int(self.image[place]), self.boxes[place]
            drawn = [box(ends, plots.QUERY)]
            one = card(data, i, plots.QUERY, [f"image {i}"], drawn, side=100, press="card")
            cards.append(one | {"key": place})
        more = f", the first {SHOWN} of them here" if len(rows) > SHOWN else ""
        with self.chosen.hold_sync():
            self.chosen.says = f"{len(rows)} objects{more}"
            self.chosen.rows = [row(cards)]
        if len(rows) == 1:
            self._search(rows[0])

    @said
    def _act(self, what: dict, _: list) -> None:
        if what["kind"] == "chosen":
            self.choose(what["rows"])
            return
        place = what["row"]
        i, data = int(self.image[place]), self.retriever.dataset
        crop = data.image(i).crop(np.round(self.boxes[place]).astype(int).tolist())
        crop.thumbnail((112, 112))
        name = data.label_names[self.labels[place]] if self.labels[place] >= 0 else "unknown"
        caption = f"{name}, image {i}"
        self.plane.seen = {"row": place, "src": source(crop, "JPEG"), "caption": caption}

    @said
    def _ask(self, what: dict, _: list) -> None:
        self._search(what["key"])

    def _search(self, place: int) -> None:
        if self.linked is not None:
            self.linked.show(int(self.image[place]), self.boxes[place])
