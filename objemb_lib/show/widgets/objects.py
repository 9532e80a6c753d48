"""Widgets about objects of a gallery: ObjectSearch finds them, Map shows where they lie."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import traitlets

from objemb_lib.attend.objects import first_right, object_truth
from objemb_lib.config import DataError
from objemb_lib.measure.analysis import PROJECTIONS, project
from objemb_lib.search.objects import Answer, photograph
from objemb_lib.search.retriever import Query, Retriever
from objemb_lib.show import plots
from objemb_lib.show.widgets import pictures
from objemb_lib.show.widgets.pictures import HERE, Acting, Panel, said

COLOURS = ("category", "object", "first answer")
PALETTE = (plots.RIGHT, plots.WRONG, plots.QUERY,
           "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")  # fmt: skip
SHAPES = ("circle", "square", "triangle", "diamond")
GLYPHS = [(PALETTE[k % 8], SHAPES[(k + k // 8) % 4]) for k in range(32)]  # none by colour alone
MOST = 1500  # objects on a map, evenly spread
SHOWN = 24  # of the objects that are chosen on the map


class ObjectSearch(Panel):
    """An image with its boxes: click one, or draw one, to search for what is in it.

    A click on a result asks with that one; *back* goes the other way. The plain function is
    :meth:`retriever.Retriever.search`, the static twin :func:`plots.object_search`. Menus choose
    by network and boxes which of the ``ways``, all of the same images, is searched.
    """

    def __init__(self, ways: Retriever | Sequence[Retriever], query: int = 0, k: int = 8) -> None:
        self.ways = [ways] if isinstance(ways, Retriever) else list(ways)
        if any(way.dataset is not self.ways[0].dataset for way in self.ways):
            raise DataError("ways that search different images", "Make them of one data set.")
        self.answer: Answer | None = None
        self.query: Query | None = None
        self.chosen, self._random = 0, np.random.default_rng(0)
        self._before: list[tuple[Query, np.ndarray]] = []
        self._photographs = tempfile.TemporaryDirectory(prefix="objemb-")
        last = len(self.ways[0].dataset) - 1
        menu, button = pictures.menu, pictures.button
        self.network = menu("network", self.change_way, [way.network for way in self.ways])
        self.boxes = menu("boxes", self.change_way, [way.boxes for way in self.ways])
        self.k = pictures.slider("images, k", self.refresh, value=k, min=1, max=24)
        self.image = pictures.number("image", self._change_image, query, last)
        self.random = button("another image", lambda: self.show(self._random.integers(last + 1)))
        self.whole = button("whole image", lambda: self.draw((0, 0, np.inf, np.inf)))
        self.back = button("back", self.go_back, "to the query before")
        lines = [[self.network, self.boxes, self.k],
                 [self.image, self.random, self.whole, self.back]]  # fmt: skip
        super().__init__(lines, "query and results", accepts=True)
        self.show(query)

    @property
    def retriever(self) -> Retriever:
        """What the menus say. Raises DataError where those two do not go together."""
        chosen = (self.network.value, self.boxes.value)
        for way in self.ways:
            if (way.network, way.boxes) == chosen:
                return way
        raise DataError(f"no index of {' with '.join(chosen)}", "Choose another pair.")

    @said
    def act(self, what: dict, buffers: list) -> None:
        """A box was pressed or drawn, a result pressed, a photograph given: ask with that."""
        if what["kind"] == "photograph":
            self.photograph(bytes(buffers[0]))
        elif what["kind"] == "drawn":
            self.draw(what["box"])
        elif what["kind"] == "box":
            self.draw(self.query.boxes[what["box"]])
        else:
            boxes = {match.image: match.box for match in self.answer.matches}
            self.show(what["key"], boxes[what["key"]])

    @said
    def show(self, image: int, box: Sequence[float] | None = None) -> None:
        """Ask with an image of the gallery; ``box`` None: with its first one."""
        query = self.retriever.query(int(image))
        self._ask(query, query.boxes[0] if box is None else box)

    @said
    def draw(self, box: Sequence[float]) -> None:
        """Search for what is in a box of the image that is shown."""
        self._ask(self.query, box)

    @said
    def photograph(self, file: bytes) -> None:
        """Search for the surest object of a photograph that is not in the gallery."""
        with tempfile.NamedTemporaryFile(dir=self._photographs.name, delete=False) as kept:
            kept.write(file)
        query = self.retriever.query_photograph(photograph(Path(kept.name)))
        self._ask(query, query.boxes[0])

    @said
    def go_back(self) -> None:
        """Ask the query before once more."""
        if self._before:
            self._ask_again(*self._before.pop())

    @said
    def change_way(self) -> None:
        """The same box of the same image, asked of another network or among other boxes."""
        self._ask_again(self.query, self.query.boxes[self.chosen])

    @said
    def _change_image(self) -> None:
        own = self.query.dataset is self.retriever.dataset
        if not own or self.query.image != self.image.value:  # else the field only follows
            self.show(self.image.value)

    def _ask_again(self, query: Query, box: np.ndarray) -> None:
        if query.dataset is self.retriever.dataset:
            anew = self.retriever.query(query.image)
        else:
            anew = self.retriever.query_photograph(query.dataset)
        self._ask(anew, box, remember=False)

    def _ask(self, query: Query, box: Sequence[float], remember: bool = True) -> None:
        query, chosen = self.retriever.add_box(query, box)
        if remember and self.query:
            self._before.append((self.query, self.query.boxes[self.chosen]))
        self.query, self.chosen = query, chosen
        self.back.disabled = not self._before
        if query.dataset is self.retriever.dataset:
            self.image.value = query.image
        self.refresh()

    @said
    def refresh(self) -> None:
        """Search with the present settings, and show what is found."""
        gallery, k = self.retriever.dataset, self.k.value
        self.answer = answer = self.retriever.search(self.query, self.chosen, k)
        name = plots.object_name(gallery, answer.label, "")
        image = f"image {answer.query}" if answer.dataset is gallery else "your photograph"
        asked = f"box {answer.chosen} of {image}" + (f" ({name})" if name else "")
        boxes = pictures.numbered(answer.boxes, answer.chosen, "search for it")
        asking = pictures.card(answer.dataset, answer.query, plots.QUERY, [f"query: {asked}"],
                               boxes, 320, "boxes", draw=True)  # fmt: skip
        found, right = [], 0
        for match in answer.matches:
            word, ink = plots.judge_match(answer, gallery, match)
            right += word == "right"
            caption = [f"{pictures.MARKS[word]}{match.score:.2f}", f"image {match.image}"]
            box = pictures.box(match.box, ink)
            found.append(pictures.card(gallery, match.image, ink, caption, [box], press="card"))
        count = f"{right} of {len(found)} right" if answer.label >= 0 else f"{len(found)} images"
        self.pictures.show(f"{asked}: {count}",
                           pictures.row([asking], "Click a box, or draw one"),
                           pictures.row(found, "Click an image to ask with it"))  # fmt: skip


class Plane(Acting):
    """Points: ``what`` has ``kind`` ``hover`` and ``row``, or ``chosen`` and ``rows``."""

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


class Map(Panel):
    """Objects as points: point at one, click it, or draw around many to see them.

    A click on a picture beside it asks with that object in ``search``. The plain functions are
    :func:`analysis.project`, :func:`objects.object_truth` (category, object) and
    :func:`objects.first_right` (is an object's first answer right).
    """

    def __init__(self, retriever: Retriever, search: ObjectSearch | None = None) -> None:
        self.dataset, self.linked = retriever.dataset, search
        self.image, self.ends, self.vectors = retriever.sample(MOST)
        self.labels, self.categories = object_truth(self.dataset, self.image, self.ends)
        self.right = first_right(self.vectors, self.image, self.labels)
        self._project = functools.cache(lambda how: project(self.vectors, how))
        self.how = pictures.menu("map", self.refresh, PROJECTIONS)
        self.colour = pictures.menu("colour by", self.refresh, COLOURS)
        self.plane = Plane(self.act)
        super().__init__([[self.how, self.colour]], "objects that are chosen", beside=self.plane)
        self.count = f"{len(self.image)} of {len(retriever.index)} objects"
        self.refresh()

    @said
    def refresh(self) -> None:
        """Draw with the present settings."""
        self.plane.says = f"computing {self.how.value} ..."
        numbers, names = self.groups()
        with self.plane.hold_sync():
            self.plane.points = self._project(self.how.value).round(4).tolist()
            glyphs = [GLYPHS[k % len(GLYPHS)] for k in range(len(names))]
            self.plane.glyphs = [*glyphs, (plots.UNKNOWN, SHAPES[0])]
            self.plane.names = [*names, "unknown"]
            self.plane.groups = np.where(numbers < 0, len(names), numbers).tolist()
            self.plane.says = self.count

    def groups(self) -> tuple[np.ndarray, list[str]]:
        """``(N,)`` the colour's group of each object, -1 where nobody knows, and their names."""
        if self.colour.value == "first answer":
            return np.where(self.right < 0, -1, 1 - self.right), ["right", "wrong"]
        by_object = self.colour.value == "object"
        numbers = self.labels if by_object else self.categories
        names = self.dataset.label_names if by_object else self.dataset.category_names
        there = np.unique(numbers[numbers >= 0])
        places = np.where(numbers < 0, -1, np.searchsorted(there, numbers))
        return places, [names[k] if k < len(names) else str(k) for k in there.tolist()]

    @said
    def act(self, what: dict, _: list) -> None:
        """Points were chosen, one is pointed at, or a picture was pressed."""
        if what["kind"] == "chosen":
            self.choose(what["rows"])
        elif what["kind"] == "hover":
            self.point_at(what["row"])
        else:
            self.ask(what["key"])

    def choose(self, rows: list[int]) -> None:
        """Show objects, by their places among the points; one alone also asks in the search."""
        self.plane.selected, cards = rows, []
        for place in rows[:SHOWN]:
            i, drawn = int(self.image[place]), [pictures.box(self.ends[place], plots.QUERY)]
            card = pictures.card(self.dataset, i, plots.QUERY, [f"image {i}"], drawn, 100, "card")
            cards.append(card | {"key": place})
        more = f", the first {SHOWN} of them here" if len(rows) > SHOWN else ""
        self.pictures.show(f"{len(rows)} objects{more}", pictures.row(cards))
        if len(rows) == 1:
            self.ask(rows[0])

    def point_at(self, place: int) -> None:
        """Show the object at a point, with its name."""
        i, ends = int(self.image[place]), np.round(self.ends[place]).astype(int).tolist()
        crop = self.dataset.image(i).crop(ends)
        crop.thumbnail((112, 112))
        name = plots.object_name(self.dataset, self.labels[place], "unknown")
        self.plane.seen = {"row": place, "src": pictures.source(crop, "JPEG"),
                           "caption": f"{name}, image {i}"}  # fmt: skip

    def ask(self, place: int) -> None:
        """Ask in the search with the object at a point."""
        if self.linked is not None:
            self.linked.show(int(self.image[place]), self.ends[place])
