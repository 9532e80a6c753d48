"""Attention: what is pooled of an image, and where it looks like the query."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import ipywidgets
import numpy as np

from objemb_lib.attend.attention import overlays
from objemb_lib.config import device
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import ObjectBoxes, ObjectRegion
from objemb_lib.embed.trunks import Trunk
from objemb_lib.search.retriever import embedder
from objemb_lib.show import plots
from objemb_lib.show.widgets.pictures import Pictures, box, card, row, said


class Attention(ipywidgets.VBox):
    """Click or draw a box in the query; another image shows where it looks like that.

    Beside it: what its boxes, masks and CroW's weights let through. The plain function is
    :func:`attention.overlays`, the static twin :func:`plots.overlays`.

    Args:
        region: boxes of ``dataset``, with or without masks. stages: to choose from; default all
            that are maps. query, image: who asks, and what is looked at, at first.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        trunk: Trunk,
        region: ObjectRegion,
        stages: Sequence[str] = (),
        query: int = 0,
        image: int = 1,
        size: int = 256,
    ) -> None:
        self.dataset, self.region, self.size = dataset, region, size
        self.trunk = trunk.for_inference(device())
        self._embed = functools.cache(
            lambda stage: embedder(trunk, [(stage, "spoc")], size, region.margin)
        )
        offered = list(stages) or [s for s, stage in trunk.stages.items() if not stage.per_box]
        numbers = {"min": 0, "max": len(dataset) - 1}
        self.stage = ipywidgets.Dropdown(options=offered, value=offered[-1], description="stage")
        self.query = ipywidgets.BoundedIntText(query, description="query", **numbers)
        self.image = ipywidgets.BoundedIntText(image, description="looked at", **numbers)
        self.found: dict[str, np.ndarray] | None = None
        self.pictures = Pictures(self._act, label="query, and what is looked at")
        controls = ipywidgets.HBox([self.stage, self.query, self.image])
        super().__init__([controls, self.pictures])
        self.query.observe(lambda _: self.ask(0), "value")
        for control in (self.stage, self.image):
            control.observe(lambda _: self.look(), "value")
        self.ask(0)

    @said
    def _act(self, what: dict, _: list) -> None:
        self.ask(what["box"])

    @said
    def ask(self, wanted: int | Sequence[float]) -> None:
        """Ask with a box of the query, by its number or by its ends."""
        mine = self.region.boxes.boxes[self.query.value]
        self.box = mine[wanted] if isinstance(wanted, int) else np.array(wanted, np.float32)
        self.look()

    @said
    def look(self) -> None:
        """Look with the present settings."""
        stage, query, i = self.stage.value, self.query.value, self.image.value
        (vector,) = self._embed(stage)(
            self.dataset.subset([query]), ObjectBoxes("query", [self.box[None]])
        )
        self.found = overlays(self.dataset, i, self.trunk, stage, self.region, vector, self.size)
        mine = [*self.region.boxes.boxes[query]]
        if not any(np.array_equal(self.box, ends) for ends in mine):
            mine.append(self.box)
        boxes = [
            box(ends, plots.QUERY, str(k), f"box {k}: look for it", np.array_equal(ends, self.box))
            for k, ends in enumerate(mine)
        ]
        asking = card(self.dataset, query, plots.QUERY, ["query"], boxes, 256, "boxes", draw=True)
        cards = [
            card(self.dataset, i, plots.UNKNOWN, [name], side=200, heat=weights)
            for name, weights in self.found.items()
        ]
        with self.pictures.hold_sync():
            self.pictures.says = f"image {i} at {stage}: bright is what counts"
            self.pictures.rows = [row([asking], "Click a box, or draw one"),
                                  row(cards, f"Image {i}")]  # fmt: skip
