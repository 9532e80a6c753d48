"""Compare: the same query, answered by two or three embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets
import numpy as np

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.measure.metrics import evaluate
from objemb_lib.search.retriever import Side, side_by_side
from objemb_lib.show import plots
from objemb_lib.show.widgets.pictures import MARKS, Pictures, box, card, row, said


class Compare(ipywidgets.VBox):
    """A row of results for each embedding; lines show where each image went.

    A click on an image asks with that one. The plain function is
    :func:`retriever.side_by_side`, the static twin :func:`plots.side_by_side`.

    Args:
        vectors: ``{name: (N, D)}`` of ``dataset``, L2-normalised; the first is compared with.
        query: asks first; default the first of ``dataset.queries``. k: images found at first.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        vectors: Mapping[str, np.ndarray],
        query: int | None = None,
        k: int = 8,
        metric: str = "mAP",
    ) -> None:
        self.dataset, self.vectors, self.metric = dataset, dict(vectors), metric
        self.scores = {n: evaluate(x, dataset, metrics=[metric]) for n, x in vectors.items()}
        self.sides: dict[str, Side] | None = None
        first = int(dataset.queries[0]) if query is None else query
        self.query = ipywidgets.BoundedIntText(first, min=0, max=len(dataset) - 1,
                                               description="query")  # fmt: skip
        self.random = ipywidgets.Button(description="another query")
        self.k = ipywidgets.IntSlider(k, 1, 12, description="images, k")
        self._random = np.random.default_rng(0)
        self.random.on_click(lambda _: self._another())
        for control in (self.query, self.k):
            control.observe(lambda _: self.search(), "value")
        self.pictures = Pictures(self._act, label="query and the results of each embedding")
        super().__init__([ipywidgets.HBox([self.query, self.random, self.k]), self.pictures])
        self.search()

    def _another(self) -> None:
        self.query.value = int(self._random.choice(self.dataset.queries))

    @said
    def _act(self, what: dict, _: list) -> None:
        self.query.value = what["key"]

    @said
    def search(self) -> None:
        """Ask every embedding with the present settings."""
        asked = (self.vectors, self.dataset, self.query.value, self.k.value)
        self.sides = side_by_side(*asked, self.metric, self.scores)
        query, name = self.query.value, plots.label_name(self.dataset, self.query.value)
        main = [box(ends, plots.QUERY) for ends in self.dataset.boxes[query][:1]]
        rows = [row([card(self.dataset, query, plots.QUERY, [f"query: {name}"], main)])]
        for title, side in self.sides.items():
            values = f"{self.metric} {side.of_query:.2f}, of all queries {side.overall:.2f}"
            rows.append(row(self._cards(side), f"{title}: {values}", linked=True))
        with self.pictures.hold_sync():
            self.pictures.says = f"image {query}, {name}"
            self.pictures.rows = rows

    def _cards(self, side: Side) -> list[dict]:
        cards, found = [], side.found
        for place, (i, score, right) in enumerate(zip(found.images, found.scores, found.relevant)):
            word, ink = plots.judged(self.dataset, found.query, int(i), right)
            change = int(side.before[place]) - place - 1
            moved = f" {'▲' if change > 0 else '▼'} {abs(change)}" if change else ""
            caption = [f"{MARKS[word]} {score:.2f}".strip(), f"image {i}{moved}"]
            cards.append(card(self.dataset, int(i), ink, caption, side=100, press="card"))
        return cards
