"""Retrieval: whole images find whole images, by stage and pooling."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping

import ipywidgets
import numpy as np

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.measure.metrics import Neighbours, ranking
from objemb_lib.show import plots


class Retrieval(ipywidgets.VBox):
    """Choose a query, k, stage and pooling; see what is found.

    The plain function is :func:`evaluate.ranking`, the static twin :func:`plots.neighbours`.

    Args:
        dataset: images and truth.
        vectors: ``{(stage, pooling): (N, D)}``, L2-normalised.
        query: image shown first. k: neighbours shown first.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        vectors: Mapping[tuple[str, str], np.ndarray],
        query: int = 0,
        k: int = 8,
    ) -> None:
        self.dataset, self.vectors = dataset, vectors
        wide = {"description_width": "60px"}
        last = len(dataset) - 1
        self.query = ipywidgets.BoundedIntText(
            query, min=0, max=last, description="query", tooltip=f"image 0 to {last}", style=wide
        )
        self.k = ipywidgets.IntSlider(k, min=1, max=24, description="k", style=wide)
        stages = list(dict.fromkeys(stage for stage, _ in vectors))
        poolings = list(dict.fromkeys(pooling for _, pooling in vectors))
        self.stage = ipywidgets.Dropdown(options=stages, value=stages[-1], description="stage",
                                         style=wide)  # fmt: skip
        self.pooling = ipywidgets.Dropdown(options=poolings, description="pooling", style=wide)
        self.random = ipywidgets.Button(description="another query", icon="random")
        self.view = ipywidgets.HTML()
        self.found: Neighbours | None = None
        controls = (self.query, self.random, self.k, self.stage, self.pooling)
        super().__init__([ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"}), self.view])
        self._random = np.random.default_rng(0)
        self.random.on_click(lambda _: self._another())
        for control in (self.query, self.k, self.stage, self.pooling):
            control.observe(lambda _: self.search(), "value")
        self.search()

    def _another(self) -> None:
        self.query.value = int(self._random.integers(len(self.dataset)))

    def search(self) -> Neighbours | None:
        """Search with the present settings and show the result, or the error in its place."""
        try:
            chosen = self.vectors[self.stage.value, self.pooling.value]
            self.found = ranking(chosen, self.dataset, self.query.value, self.k.value)
            self.view.value = gallery_html(self.dataset, self.found)
        except Exception as error:  # a callback's error would otherwise vanish
            self.found = None
            self.view.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"
        return self.found


def gallery_html(dataset: ImageDataset, found: Neighbours, side: int = 112) -> str:
    """The query and its neighbours as HTML; right and wrong are said in words too.

    As in :func:`plots.neighbours`, images without a label are neither.
    """
    name = plots.label_name(dataset, found.query)
    cells = [_cell(dataset, found.query, plots.QUERY, f"query: {name}", side)]
    for i, score, right in zip(found.images, found.scores, found.relevant):
        word, colour = plots.judged(dataset, found.query, i, right)
        cells.append(_cell(dataset, int(i), colour, f"{word} {score:.2f}".strip(), side))
    right = int(found.relevant.sum())
    labelled = dataset.labels[found.query] >= 0
    summary = f"<p>{right} of {len(found.images)} right</p>" if labelled else ""
    return f'{summary}<div style="display:flex;flex-wrap:wrap;gap:6px">{"".join(cells)}</div>'


def _cell(dataset: ImageDataset, i: int, colour: str, caption: str, side: int) -> str:
    file = io.BytesIO()
    dataset.image(i).resize((side, side)).save(file, "JPEG", quality=80)
    source = base64.b64encode(file.getvalue()).decode()
    text = html.escape(caption)
    return (
        f'<figure style="margin:0;text-align:center"><img alt="image {i}, {text}" width="{side}" '
        f'style="border:4px solid {colour}" src="data:image/jpeg;base64,{source}">'
        f'<figcaption style="font-size:11px">{text}<br>image {i}</figcaption></figure>'
    )
