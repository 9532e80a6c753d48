"""Widgets whose queries are whole images: Retrieval, Compare and Attention."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np

from objemb_lib.attend.soft import overlays
from objemb_lib.config import device
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk
from objemb_lib.measure.metrics import Neighbours, evaluate, ranking
from objemb_lib.search.retriever import Side, embedder, side_by_side
from objemb_lib.show import plots
from objemb_lib.show.widgets import pictures
from objemb_lib.show.widgets.pictures import Panel, said


class Ranking(Panel):
    """What Retrieval and Compare share: a query, and how many images it finds, ``most`` at most."""

    def __init__(
        self, dataset: ImageDataset, query: int, k: int, most: int, *controls: ipywidgets.Widget
    ) -> None:
        self.dataset, self._random = dataset, np.random.default_rng(0)
        self.query = pictures.number("query", self.refresh, query, len(dataset) - 1)
        self.k = pictures.slider("images, k", self.refresh, value=k, min=1, max=most)
        self.random = pictures.button("another query", self.another)
        super().__init__([[self.query, self.random, self.k, *controls]], "query and what it finds")
        self.refresh()

    def another(self) -> None:
        """Ask with any query."""
        self.query.value = int(self._random.choice(self.dataset.queries))

    @said
    def act(self, what: dict, _: list) -> None:
        """A click on an image asks with it."""
        self.query.value = what["key"]

    def show(self, says: str, rows: Mapping[str, list[dict]]) -> None:
        """The query with its main box, and what it found below, by title."""
        query = self.query.value
        name = plots.object_name(self.dataset, self.dataset.labels[query])
        main = [pictures.box(ends, plots.QUERY) for ends in self.dataset.boxes[query][:1]]
        asking = pictures.card(self.dataset, query, plots.QUERY, [f"query: {name}"], main)
        below = [pictures.row(cards, title, linked=True) for title, cards in rows.items()]
        self.pictures.show(f"image {query}, {name}{says}", pictures.row([asking]), *below)

    def cards(self, found: Neighbours, before: np.ndarray | None = None) -> list[dict]:
        """A card for each neighbour. before: its place in another ranking, from 1."""
        cards, here = [], np.arange(1, len(found.images) + 1)
        moves = (here if before is None else before) - here
        for i, score, right, move in zip(found.images, found.scores, found.relevant, moves):
            word, ink = plots.judge_image(self.dataset, found.query, int(i), right)
            moved = f" {'▲' if move > 0 else '▼'} {abs(move)}" if move else ""
            caption = [f"{pictures.MARKS[word]}{score:.2f}", f"image {i}{moved}"]
            cards.append(pictures.card(self.dataset, int(i), ink, caption, side=100, press="card"))
        return cards


class Retrieval(Ranking):
    """Choose a query, k, stage and pooling; see what is found.

    The plain function is :func:`metrics.ranking`, the static twin :func:`plots.neighbours`.
    ``vectors`` are ``{(stage, pooling): (N, D)}`` of ``dataset``, L2-normalised.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        vectors: Mapping[tuple[str, str], np.ndarray],
        query: int = 0,
        k: int = 8,
    ) -> None:
        self.vectors, self.found = vectors, None
        stages, poolings = zip(*vectors)
        self.stage = pictures.menu("stage", self.refresh, stages, value=stages[-1])
        self.pooling = pictures.menu("pooling", self.refresh, poolings)
        super().__init__(dataset, query, k, 24, self.stage, self.pooling)

    @said
    def refresh(self) -> None:
        """Search with the present settings."""
        vectors = self.vectors[self.stage.value, self.pooling.value]
        self.found = ranking(vectors, self.dataset, self.query.value, self.k.value)
        known = self.dataset.labels[self.query.value] >= 0
        right = f": {self.found.relevant.sum()} of {len(self.found.images)} right" if known else ""
        self.show(right, {"": self.cards(self.found)})


class Compare(Ranking):
    """A row of results for each embedding; lines show where each image went.

    The plain function is :func:`retriever.side_by_side`; :func:`plots.neighbours` draws its rows.
    ``vectors`` are ``{name: (N, D)}`` of ``dataset``, L2-normalised; the first is compared with.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        vectors: Mapping[str, np.ndarray],
        query: int | None = None,
        k: int = 8,
    ) -> None:
        self.vectors = dict(vectors)
        self.scores = {n: evaluate(x, dataset, metrics=["mAP"]) for n, x in vectors.items()}
        self.sides: dict[str, Side] = {}
        super().__init__(dataset, int(dataset.queries[0]) if query is None else query, k, 12)

    @said
    def refresh(self) -> None:
        """Ask every embedding with the present settings."""
        asked = (self.vectors, self.dataset, self.query.value, self.k.value)
        self.sides, rows = side_by_side(*asked, scores=self.scores), {}
        for name, side in self.sides.items():
            values = f"mAP {side.of_query:.2f}, of all queries {side.overall:.2f}"
            rows[f"{name}: {values}"] = self.cards(side.found, side.before)
        self.show("", rows)


class Attention(Panel):
    """Click or draw a box in the query; another image shows where it looks like that.

    Beside it: what boxes and masks of ``region``, and CroW's weights, let through. The plain
    function is :func:`soft.overlays`; :func:`plots.heat` draws each of its maps.
    """

    def __init__(
        self, dataset: ImageDataset, trunk: Trunk, region: Region, query: int = 0, size: int = 256
    ) -> None:
        self.dataset, self.region, self.size = dataset, region, size
        self.trunk, self.found = trunk.for_inference(device()), {}
        self._embed = functools.cache(
            lambda stage: embedder(trunk, [(stage, "spoc")], size, region.context)
        )
        maps = [name for name, stage in trunk.stages.items() if not stage.per_box]
        last = len(dataset) - 1
        self.stage = pictures.menu("stage", self.refresh, maps, value=maps[-1])
        self.query = pictures.number("query", lambda: self.ask(0), query, last)
        self.image = pictures.number("looked at", self.refresh, 1, last)
        super().__init__([[self.stage, self.query, self.image]], "query, and what is looked at")
        self.ask(0)

    @said
    def act(self, what: dict, _: list) -> None:
        """A box that was pressed or drawn asks."""
        self.ask(what["box"])

    @said
    def ask(self, wanted: int | Sequence[float]) -> None:
        """Ask with a box of the query, by its number or by its ends."""
        mine = self.region.boxes.boxes[self.query.value]
        self.box = mine[wanted] if isinstance(wanted, int) else np.array(wanted, np.float32)
        self.refresh()

    @said
    def refresh(self) -> None:
        """Compare the two images with the present settings."""
        stage, query, i = self.stage.value, self.query.value, self.image.value
        asking = Boxes("query", [self.box[None]])
        (vector,) = self._embed(stage)(self.dataset.subset([query]), asking)
        self.found = overlays(self.dataset, i, self.trunk, stage, self.region, vector, self.size)
        mine = self.region.boxes.boxes[query]
        if not (mine == self.box).all(axis=1).any():  # it was drawn
            mine = np.vstack([mine, self.box])
        chosen = int((mine == self.box).all(axis=1).argmax())
        boxes = pictures.numbered(mine, chosen, "look for it")
        asks = pictures.card(self.dataset, query, plots.QUERY, ["query"], boxes, 256, "boxes", True)
        maps = [
            pictures.card(self.dataset, i, plots.UNKNOWN, [name], side=200, heat=weights)
            for name, weights in self.found.items()
        ]
        self.pictures.show(f"image {i} at {stage}: bright is what counts",
                           pictures.row([asks], "Click a box, or draw one"),
                           pictures.row(maps, f"Image {i}"))  # fmt: skip
