"""Widgets: thin shells over :func:`evaluate.ranking`; each has a static twin in ``plots``."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from objemb_lib import plots
from objemb_lib.datasets.base import ImageDataset
from objemb_lib.evaluate import Neighbours, ranking
from objemb_lib.extract import Objects
from objemb_lib.objects import Answer, ObjectIndex, search_object


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


class ObjectSearch(ipywidgets.VBox):
    """A button for each box of an image; a press searches for that object.

    The plain function is :func:`objects.search_object`, the static twin
    :func:`plots.object_search`.

    Args:
        dataset: holds the query; it is what ``index`` was made of, too. objects: of ``dataset``.
        index: what is searched. pair: stage and pooling. query: image index. k: images found.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        objects: Objects,
        pair: tuple[str, str],
        index: ObjectIndex,
        query: int = 0,
        k: int = 7,
    ) -> None:
        self.dataset, self.objects, self.pair, self.index, self.k = dataset, objects, pair, index, k
        last = len(dataset) - 1
        self.query = ipywidgets.BoundedIntText(
            query, min=0, max=last, description="query", tooltip=f"image 0 to {last}"
        )
        self.buttons, self.view = ipywidgets.HBox(), ipywidgets.HTML()
        self.answer: Answer | None = None
        super().__init__([self.query, self.buttons, self.view])
        self.query.observe(lambda _: self._offer(), "value")
        self._offer()

    def _offer(self) -> None:
        """A button for each box of the query; the first one is pressed."""
        count = int((self.objects.image == self.query.value).sum())
        buttons = [ipywidgets.Button(description=f"box {k}") for k in range(count)]
        for k, button in enumerate(buttons):
            button.on_click(lambda _, k=k: self.choose(k))
        self.buttons.children = buttons
        self.choose(0)

    def choose(self, box: int) -> Answer | None:
        """Search for a box of the query and show what is found, or the error in its place."""
        try:
            self.answer = search_object(
                self.dataset, self.query.value, self.objects, self.pair, box, self.index, self.k
            )
            self.view.value = figure_html(plots.object_search(self.answer, self.dataset))
        except Exception as error:  # a callback's error would otherwise vanish
            self.answer = None
            self.view.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"
        return self.answer


def figure_html(figure: Figure) -> str:
    """A figure as HTML, closed, so that no cell shows it once more."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    plt.close(figure)
    source = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="query and what was found" src="data:image/png;base64,{source}">'


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
