"""ObjectSearch: touch an object in an image, see where else it is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import ipywidgets
import numpy as np

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.search.objects import Answer, photograph
from objemb_lib.search.retriever import Query, Retriever
from objemb_lib.show import plots
from objemb_lib.show.widgets.pictures import MARKS, Pictures, box, card, row, said

QUERY_SIDE = 320  # pixels on the screen


class ObjectSearch(ipywidgets.VBox):
    """An image with its boxes: click one, or draw one, to search for what is in it.

    A click on a result asks with that one; *back* goes the other way. The plain function is
    :meth:`retriever.Retriever.search`, the static twin :func:`plots.object_search`.

    Args:
        ways: what can be searched, chosen from menus by network and boxes; of the same images.
        query: image shown first. k: images found at first.
    """

    def __init__(self, ways: Retriever | Sequence[Retriever], query: int = 0, k: int = 8) -> None:
        self.ways = [ways] if isinstance(ways, Retriever) else list(ways)
        if any(way.dataset is not self.ways[0].dataset for way in self.ways):
            raise DataError("ways that search different images", "Make them of one data set.")
        self.answer: Answer | None = None
        self.query: Query | None = None
        self.chosen = 0
        self._before: list[tuple[ImageDataset, int, np.ndarray]] = []
        self._photographs = tempfile.TemporaryDirectory(prefix="objemb-")
        self._random, self._following = np.random.default_rng(0), False
        self._controls(query, k)
        self.pictures = Pictures(self._act, label="query and results", accepts=True)
        rows = [ipywidgets.HBox(some, layout={"flex_flow": "row wrap"}) for some in (
            (self.network, self.boxes, self.k, self.threshold),
            (self.image, self.random, self.whole, self.back),
        )]  # fmt: skip
        super().__init__([*rows, self.pictures])
        self.show(query)

    def _controls(self, query: int, k: int) -> None:
        networks = list(dict.fromkeys(way.network for way in self.ways))
        boxes = list(dict.fromkeys(way.boxes for way in self.ways))
        last = len(self.ways[0].dataset) - 1
        self.network = ipywidgets.Dropdown(options=networks, description="network")
        self.boxes = ipywidgets.Dropdown(options=boxes, description="boxes")
        self.k = ipywidgets.IntSlider(k, 1, 24, description="images, k")
        self.threshold = ipywidgets.FloatSlider(-1, min=-1, max=1, step=0.05, description="score ≥")
        self.image = ipywidgets.BoundedIntText(query, min=0, max=last, description="image",
                                               tooltip=f"0 to {last}")  # fmt: skip
        self.random = ipywidgets.Button(description="another image")
        self.whole = ipywidgets.Button(description="whole image", tooltip="search for all of it")
        self.back = ipywidgets.Button(description="back", tooltip="to the query before")
        for menu in (self.network, self.boxes):
            menu.observe(lambda _: self._change_way(), "value")
        for slider in (self.k, self.threshold):
            slider.observe(lambda _: self.search(), "value")
        self.image.observe(lambda change: self._following or self.show(change["new"]), "value")
        self.random.on_click(lambda _: self.show(int(self._random.integers(last + 1))))
        self.whole.on_click(lambda _: self.draw((0, 0, np.inf, np.inf)))
        self.back.on_click(lambda _: self.go_back())

    @property
    def retriever(self) -> Retriever:
        """What the menus say. Raises DataError where those two do not go together."""
        chosen = (self.network.value, self.boxes.value)
        for way in self.ways:
            if (way.network, way.boxes) == chosen:
                return way
        raise DataError(f"no index of {' with '.join(chosen)}", "Choose another pair.")

    @said
    def show(self, image: int, box: Sequence[float] | None = None) -> None:
        """Ask with an image of the gallery; ``box`` None: with its first one."""
        query = self.retriever.query(image)
        self._ask(query, query.boxes[0] if box is None else box)

    @said
    def choose(self, number: int) -> None:
        """Search for a box of the image that is shown."""
        self.retriever.search(self.query, number, 1)  # raises where there is no such box
        self._ask(self.query, self.query.boxes[number])

    @said
    def draw(self, box: Sequence[float]) -> None:
        """Search for what is in a box of one's own."""
        self._ask(self.query, box)

    @said
    def photograph(self, file: bytes) -> None:
        """Search for the surest object of a photograph that is not in the gallery."""
        number = len(list(Path(self._photographs.name).iterdir()))
        path = Path(self._photographs.name, f"photograph-{number}")
        path.write_bytes(file)
        query = self.retriever.look(photograph(path))
        self._ask(query, query.boxes[0])

    @said
    def go_back(self) -> None:
        """Ask the query before once more."""
        if self._before:
            dataset, image, box = self._before.pop()
            self._ask(self._again(dataset, image), box, remember=False)

    @said
    def search(self) -> None:
        """Search with the present settings."""
        self.answer = self.retriever.search(
            self.query, self.chosen, self.k.value, self.threshold.value
        )
        self._show_answer(self.answer)

    @said
    def _change_way(self) -> None:
        """The same box of the same image, asked of another network or among other boxes."""
        query = self._again(self.query.dataset, self.query.image)
        self._ask(query, self.query.boxes[self.chosen], remember=False)

    @said
    def _act(self, what: dict, buffers: list) -> None:
        if what["kind"] == "photograph":
            self.photograph(bytes(buffers[0]))
        elif what["kind"] == "drawn":
            self.draw(what["box"])
        elif what["kind"] == "box":
            self.choose(what["box"])
        else:
            boxes = {match.image: match.box for match in self.answer.matches}
            self.show(what["key"], boxes[what["key"]])

    def _again(self, dataset: ImageDataset, image: int) -> Query:
        own = dataset is self.retriever.dataset
        return self.retriever.query(image) if own else self.retriever.look(dataset)

    def _ask(self, query: Query, box: Sequence[float], remember: bool = True) -> None:
        query, chosen = self.retriever.aim(query, box)
        if remember and self.query:
            asked = self.query
            self._before.append((asked.dataset, asked.image, asked.boxes[self.chosen]))
        self.query, self.chosen = query, chosen
        self.back.disabled = not self._before
        if query.dataset is self.retriever.dataset:
            self._following = True  # the field follows, and asks nothing by that
            self.image.value = query.image
            self._following = False
        self.search()

    def _show_answer(self, answer: Answer) -> None:
        names, gallery = self.retriever.dataset.label_names, self.retriever.dataset
        name = f" ({names[answer.label]})" if 0 <= answer.label < len(names) else ""
        image = f"image {answer.query}" if answer.dataset is gallery else "your photograph"
        asked = f"box {answer.chosen} of {image}{name}"
        boxes = [
            box(ends, plots.QUERY, str(k), f"box {k}: search for it", k == answer.chosen)
            for k, ends in enumerate(answer.boxes)
        ]
        asking = card(answer.dataset, answer.query, plots.QUERY, [f"query: {asked}"], boxes,
                      QUERY_SIDE, "boxes", draw=True)  # fmt: skip
        found, right = [], 0
        for match in answer.matches:
            word, ink = plots.judged_match(answer, gallery, match)
            right += word == "right"
            caption = [f"{MARKS[word]} {match.score:.2f}".strip(), f"image {match.image}"]
            found.append(card(gallery, match.image, ink, caption, [box(match.box, ink)],
                              press="card"))  # fmt: skip
        count = f"{right} of {len(found)} right" if answer.label >= 0 else f"{len(found)} images"
        with self.pictures.hold_sync():  # one message: never the one without the other
            self.pictures.says = f"{asked}: {count}"
            self.pictures.rows = [row([asking], "Click a box, or draw one"),
                                  row(found, "Click an image to ask with it")]  # fmt: skip
