"""Widgets about objects of a gallery: ObjectSearch finds them, Map shows where they lie."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from objemb_lib.attend.objects import first_right, object_truth
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.measure.analysis import PROJECTIONS, project
from objemb_lib.search.explain import explain
from objemb_lib.search.objects import Answer, photograph
from objemb_lib.search.retriever import Query, Retriever
from objemb_lib.show import plots
from objemb_lib.show.widgets.front import Front, choice, match, number, picture

COLOURS = ("category", "object", "first answer")
PALETTE = (plots.RIGHT, plots.WRONG, plots.QUERY,
           "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")  # fmt: skip
SHAPES = ("circle", "square", "triangle", "diamond")
GLYPHS = [(PALETTE[k % 8], SHAPES[(k + k // 8) % 4]) for k in range(32)]  # none by colour alone
MOST = 1500  # objects on a map, evenly spread
SHOWN = 24  # of the objects that are chosen on the map
KINDS = {"box": "the box", "whole": "the whole photograph", "both": "the box and the whole"}


class ObjectSearch(Front):
    """A photograph with its objects: choose one, or draw a box, to search for what is in it.

    The plain functions are :meth:`retriever.Retriever.search` and :func:`explain.explain`, the
    static twin :func:`plots.object_search`. ``ways``, all of the same images, differ by network
    and boxes; menus choose. ``kind`` is what asks at first. ``answer`` is the last one.
    """

    def __init__(
        self, ways: Retriever | Sequence[Retriever], query: int = 0, k: int = 8, kind: str = "box"
    ) -> None:
        self.ways = [ways] if isinstance(ways, Retriever) else list(ways)
        dataset = self.ways[0].dataset
        if any(way.dataset is not dataset for way in self.ways):
            raise DataError("ways that search different images", "Make them of one data set.")
        self.answer: Answer | None = None
        self.asked: tuple[Retriever, Query] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="objemb-")
        self._own: dict[str, ImageDataset] = {}  # photographs that somebody brought
        self._queries: dict[tuple, Query] = {}
        choices = [choice("network", [way.network for way in self.ways]),
                   choice("boxes", [way.boxes for way in self.ways])]  # fmt: skip
        kinds = list(dict.fromkeys([kind, *KINDS]))
        about = {"kinds": kinds, "accepts": True, "explains": True, "k": k,
                 "most": 24, "choices": choices}  # fmt: skip
        super().__init__(dataset, about=about, start={"id": dataset.names[query]})

    def way(self, network: str, boxes: str) -> Retriever:
        """What two menus say. Raises DataError where those two do not go together."""
        for way in self.ways:
            if (way.network, way.boxes) == (network, boxes):
                return way
        raise DataError(f"no index of {network} with {boxes}", "Choose another pair.")

    def show(self, image: int, box: Sequence[float] | None = None) -> None:
        """Ask with an image of the gallery, where the widget is seen."""
        ends = None if box is None else [float(end) for end in box]
        self.start = {"id": self.dataset.names[image], "box": ends}

    def place(self, id: str) -> tuple[ImageDataset, int]:
        """As :meth:`Front.place`, of somebody's own photographs, too."""
        return (self._own[id], 0) if id in self._own else super().place(id)

    def query(self, id: str, settings: dict) -> Query:
        """A photograph with its boxes and vectors."""
        key = (id, *settings.values())
        if key not in self._queries:
            way, (dataset, i) = self.way(**settings), self.place(id)
            own = dataset is not self.dataset
            self._queries[key] = way.query_photograph(dataset) if own else way.query(i)
        return self._queries[key]

    def objects(self, id: str, settings: dict, **_: object) -> dict:
        """A photograph that may ask, and the boxes of its objects."""
        query = self.query(id, settings)
        boxes = np.delete(query.boxes, query.whole, axis=0)
        seen = picture(query.dataset, query.image, 960)
        return seen | {"id": id, "boxes": boxes.tolist()}

    def embed(self, content: memoryview, file: str, settings: dict) -> dict:
        """Take a photograph that is not in the gallery, by its name and what is in its file."""
        name = Path(file).name
        path = Path(self._folder.name) / f"{len(self._own)}" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        own = photograph(path)
        own.image(0)  # or say that it is none
        id = f"own/{len(self._own)}/{name}"
        self._own[id] = own
        return self.objects(id, settings)

    def ask(
        self, id: str, box: Sequence[float] | None, kind: str, k: int, settings: dict, **_: object
    ) -> dict:
        """Search for what is in a box, for the whole photograph, or by both."""
        way, query = self.way(**settings), self.query(id, settings)
        kind = kind if box else "whole"
        query, chosen = (query, query.whole) if kind == "whole" else way.add_box(query, box)
        self.answer = answer = way.search(query, chosen, k, kind)
        self.asked = way, query
        found = [match(self.dataset, one.image, one.score, one.box, state, chance=one.chance)
                 for one, state in zip(answer.matches, answer.states(self.dataset))]  # fmt: skip
        what = plots.object_name(self.dataset, answer.label, "") or KINDS[kind]
        told = answer.found(self.dataset) or f"{len(found)} photographs"
        file = query.dataset.names[query.image]
        return {"says": f"{what} of {file}: {told}", "nothing": number(way.calibration.nothing),
                "rows": [{"title": "", "matches": found}]}  # fmt: skip

    def explain(self, rank: int) -> dict:
        """Why an answer was given."""
        way, query = self.asked
        asked = self.answer
        why = explain(way, query, asked.chosen, asked.matches[rank], asked.kind)
        return {
            "cells": np.round(why.cells, 3).tolist(), "heat": np.round(why.heat, 3).tolist(),
            "score": float(why.score), "without_background": float(why.without_background),
            "without_object": float(why.without_object),
        }  # fmt: skip


class Map(Front):
    """Objects as points: point at one, choose it, or draw around many to see them.

    *Search with this* asks with an object in ``search``. The plain functions are
    :func:`analysis.project`, :func:`objects.object_truth` (category, object) and
    :func:`objects.first_right` (is an object's first answer right).
    """

    def __init__(self, retriever: Retriever, search: ObjectSearch | None = None) -> None:
        self.linked, self.all = search, len(retriever.index)
        self.image, self.ends, self.vectors = retriever.sample(MOST)
        self.labels, self.categories = object_truth(retriever.dataset, self.image, self.ends)
        self.right = first_right(self.vectors, self.image, self.labels)
        self._project = functools.cache(lambda how: project(self.vectors, how))
        choices = [choice("map", PROJECTIONS), choice("colour by", COLOURS)]
        super().__init__(retriever.dataset, view="map", about={"choices": choices})

    def map(self, **settings: str) -> dict:
        """Points in 0..1, the group of each, and name, colour and shape of each group."""
        numbers, names = self.groups(settings["colour by"])
        glyphs = [GLYPHS[k % len(GLYPHS)] for k in range(len(names))]
        return {
            "points": self._project(settings["map"]).round(4).tolist(),
            "groups": np.where(numbers < 0, len(names), numbers).tolist(),
            "names": [*names, "unknown"], "glyphs": [*glyphs, (plots.UNKNOWN, SHAPES[0])],
            "says": f"{len(self.image)} of {self.all} objects",
        }  # fmt: skip

    def groups(self, colour: str) -> tuple[np.ndarray, list[str]]:
        """``(N,)`` the colour's group of each object, -1 where nobody knows, and their names."""
        if colour == "first answer":
            return np.where(self.right < 0, -1, 1 - self.right), ["right", "wrong"]
        by_object = colour == "object"
        numbers = self.labels if by_object else self.categories
        names = self.dataset.label_names if by_object else self.dataset.category_names
        there = np.unique(numbers[numbers >= 0])
        places = np.where(numbers < 0, -1, np.searchsorted(there, numbers))
        return places, [names[k] if k < len(names) else str(k) for k in there.tolist()]

    def choose(self, rows: list[int], only: str = "") -> dict:
        """Objects by their places among the points; one alone asks in the search, or ``only``
        is looked at."""
        cards = [self._card(place) for place in rows[:SHOWN]]
        if len(rows) == 1 and self.linked is not None and not only:
            self.linked.show(int(self.image[rows[0]]), self.ends[rows[0]])
        more = f", the first {SHOWN} of them here" if len(rows) > SHOWN else ""
        return {"says": f"{len(rows)} objects{more}", "cards": cards}

    def name(self, place: int) -> str:
        """What an object is called."""
        return plots.object_name(self.dataset, self.labels[place], "unknown")

    def _card(self, place: int) -> dict:
        i = int(self.image[place])
        note = f"{self.name(place)}, {self.dataset.names[i]}"
        return match(self.dataset, i, 0.0, self.ends[place], note=note) | {"row": place}
