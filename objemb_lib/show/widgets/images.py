"""Widgets whose queries are whole images: Retrieval, Compare and Attention."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from objemb_lib.attend.soft import overlays
from objemb_lib.config import DataError, device
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk
from objemb_lib.measure.metrics import Neighbours, evaluate, ranking
from objemb_lib.search.retriever import embedder
from objemb_lib.show import plots
from objemb_lib.show.widgets.front import Front, choice, match, picture


class Ranking(Front):
    """What Retrieval and Compare share: an image asks, and images are found."""

    def __init__(
        self, dataset: ImageDataset, query: int, k: int, most: int, choices: Sequence[dict] = ()
    ) -> None:
        about = {"kinds": ["whole"], "k": k, "most": most, "choices": list(choices)}
        super().__init__(dataset, about=about, start={"id": dataset.names[query]})

    def objects(self, id: str, **_: object) -> dict:
        """A query, with its main box."""
        i = self.numbers[id]
        return picture(self.dataset, i, 2 * 480) | {"boxes": self.dataset.boxes[i][:1].tolist()}

    def asked(self, id: str) -> str:
        """What asks, in words."""
        return f"{id}, {plots.object_name(self.dataset, self.dataset.labels[self.numbers[id]])}"

    def matches(self, found: Neighbours, before: np.ndarray | None = None) -> list[dict]:
        """A card for each neighbour. before: its place in another ranking, from 1."""
        cards, here = [], np.arange(1, len(found.images) + 1)
        moves = (here if before is None else before) - here
        for i, score, right, move in zip(found.images, found.scores, found.relevant, moves):
            state, _ = plots.judge_image(self.dataset, found.query, int(i), right)
            moved = f", {'▲' if move > 0 else '▼'} {abs(move)}" if move else ""
            cards.append(match(self.dataset, int(i), score, state=state,
                               note=f"cosine {score:.2f}{moved}"))  # fmt: skip
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
        self.vectors = vectors
        stages, poolings = zip(*vectors)
        choices = [choice("stage", stages, stages[-1]), choice("pooling", poolings)]
        super().__init__(dataset, query, k, 24, choices)

    def ask(self, id: str, k: int, settings: dict, **_: object) -> dict:
        """Search with one of the vectors."""
        query = self.numbers[id]
        vectors = self.vectors[settings["stage"], settings["pooling"]]
        found = ranking(vectors, self.dataset, query, k)
        known = self.dataset.labels[query] >= 0
        right = f": {found.relevant.sum()} of {len(found.images)} right" if known else ""
        rows = [{"title": "", "matches": self.matches(found)}]
        return {"says": self.asked(id) + right, "nothing": None, "rows": rows}


class Compare(Ranking):
    """A row of results for each embedding; lines show where each image went.

    The plain function is :func:`metrics.ranking`; :func:`plots.neighbours` draws its rows.
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
        super().__init__(dataset, int(dataset.queries[0]) if query is None else query, k, 12)

    def ask(self, id: str, k: int, **_: object) -> dict:
        """Ask every embedding."""
        query, data, rows, place = self.numbers[id], self.dataset, [], {}
        if query not in data.queries:
            raise DataError(f"{id} is no query of {data}", "Choose another photograph.")
        asking = data.queries.tolist().index(query)
        for name, vectors in self.vectors.items():
            every = ranking(vectors, data, query, len(data))
            place = place or {i: n for n, i in enumerate(every.images.tolist(), 1)}  # in the first
            own, mean = self.scores[name].values["mAP"][asking], self.scores[name].mean("mAP")
            best = every.images[:k], every.scores[:k], every.relevant[:k]
            before = np.array([place[i] for i in best[0].tolist()])
            rows.append({
                "title": f"{name}: mAP {own:.2f}, of all queries {mean:.2f}",
                "matches": self.matches(Neighbours(query, *best), before),
            })  # fmt: skip
        return {"says": self.asked(id), "nothing": None, "rows": rows}


class Attention(Front):
    """Choose or draw a box in the query; another image shows where it looks like that.

    Beside it: what boxes and masks of ``region``, and CroW's weights, let through. The plain
    function is :func:`soft.overlays`; :func:`plots.heat` draws each of its maps.
    """

    def __init__(
        self, dataset: ImageDataset, trunk: Trunk, region: Region, query: int = 0, size: int = 256
    ) -> None:
        self.region, self.size, self.trunk = region, size, trunk.for_inference(device())
        self._embed = functools.cache(
            lambda stage: embedder(trunk, [(stage, "spoc")], size, region.context)
        )
        maps = [name for name, stage in trunk.stages.items() if not stage.per_box]
        about = {"kinds": ["box"], "k": 0, "most": 0, "looks": True,
                 "choices": [choice("stage", maps, maps[-1])]}  # fmt: skip
        looks = dataset.names[min(1, len(dataset) - 1)]
        super().__init__(dataset, about=about, start={"id": dataset.names[query], "looks": looks})

    def objects(self, id: str, **_: object) -> dict:
        """A query, with the region's boxes."""
        i = self.numbers[id]
        return picture(self.dataset, i, 2 * 480) | {"boxes": self.region.boxes.boxes[i].tolist()}

    def ask(self, id: str, box: Sequence[float], settings: dict, looks: str, **_: object) -> dict:
        """The maps of the image that is looked at."""
        i, stage = self.numbers[looks], settings["stage"]
        asking = Boxes("query", [np.array([box], np.float32)])
        (vector,) = self._embed(stage)(self.dataset.subset([self.numbers[id]]), asking)
        found = overlays(self.dataset, i, self.trunk, stage, self.region, vector, self.size)
        maps = [match(self.dataset, i, np.nan, heat=weights) | {"file": name, "score": None}
                for name, weights in found.items()]  # fmt: skip
        says = f"{looks} at {stage}: bright is what counts"
        return {"says": says, "nothing": None, "rows": [{"title": "", "matches": maps}]}
