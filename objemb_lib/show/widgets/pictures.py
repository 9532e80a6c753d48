"""Pictures in the browser: images with boxes that can be clicked, drawn and reached by key."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets
from matplotlib import colormaps
from PIL import Image

from objemb_lib.config import ObjembError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.show.plots import QUERY

HERE = Path(__file__).parent
MARKS = {"right": "✓ right ", "wrong": "✗ wrong ", "": ""}  # colour alone says too little


class Acting(anywidget.AnyWidget):
    """A widget of the browser; what is done to it there calls ``act(what, buffers)``."""

    def __init__(self, act: Callable[[dict, list], None], **traits: object) -> None:
        super().__init__(**traits)
        self.on_msg(lambda _, what, buffers: act(what, buffers))


class Pictures(Acting):
    """Rows of cards (:func:`row`), and photographs by file, paste or drop if it ``accepts`` them.

    ``what`` has ``kind`` (``card``, ``box``, ``drawn`` or ``photograph``), the card's ``key``, and
    ``box``: the number of the one that was pressed, or the four ends of the one that was drawn.
    """

    _esm = HERE / "pictures.js"
    _css = HERE / "pictures.css"
    rows = traitlets.List().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)  # for screen readers
    says = traitlets.Unicode().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)
    accepts = traitlets.Bool(False).tag(sync=True)

    def show(self, says: str, *rows: dict) -> None:
        """Rows and the words above them in one message: never the one without the other."""
        with self.hold_sync():
            self.says, self.rows = says, list(rows)


def said(method: Callable) -> Callable:
    """A callback whose error is said in the widget: else it would vanish."""

    @functools.wraps(method)
    def call(self: Panel, *given: object) -> None:
        try:
            self.pictures.error = ""
            method(self, *given)
        except Exception as error:
            known = isinstance(error, ObjembError)
            self.pictures.error = str(error) if known else f"This did not work ({error})."

    return call


class Panel(ipywidgets.VBox):
    """Lines of controls above pictures, and maybe something ``beside`` them: what a widget is."""

    def __init__(
        self,
        lines: Sequence[Sequence[ipywidgets.Widget]],
        label: str,
        beside: ipywidgets.Widget | None = None,
        accepts: bool = False,
    ) -> None:
        self.pictures = Pictures(self.act, label=label, accepts=accepts)
        lines = [*lines, [beside, self.pictures]] if beside else lines
        boxes = [ipywidgets.HBox(line, layout={"flex_flow": "row wrap"}) for line in lines]
        super().__init__(boxes if beside else [*boxes, self.pictures])


def control(kind: type[ipywidgets.Widget], name: str, change: Callable, **how: object) -> Any:
    """A control called ``name``; ``change()`` is called with its new value."""
    made = kind(description=name, **how)
    made.observe(lambda event: change(), "value")
    return made


slider = functools.partial(control, ipywidgets.IntSlider)


def menu(name: str, change: Callable, options: Iterable[str], **how: object) -> ipywidgets.Dropdown:
    """A menu of the different ones among some options."""
    return control(ipywidgets.Dropdown, name, change, options=list(dict.fromkeys(options)), **how)


def number(name: str, change: Callable, value: int, most: int) -> ipywidgets.BoundedIntText:
    """A field for the number of an image, from 0."""
    limits = {"max": most, "tooltip": f"0 to {most}"}
    return control(ipywidgets.BoundedIntText, name, change, value=value, **limits)


def button(name: str, press: Callable, tooltip: str = "") -> ipywidgets.Button:
    """A button."""
    made = ipywidgets.Button(description=name, tooltip=tooltip)
    made.on_click(lambda _: press())
    return made


def row(cards: Sequence[dict], title: str = "", linked: bool = False) -> dict:
    """Cards side by side; ``linked`` draws lines from the same keys of the row above."""
    return {"title": title, "linked": linked, "cards": list(cards)}


def card(
    dataset: ImageDataset,
    i: int,
    ink: str,
    caption: Sequence[str],
    boxes: Sequence[dict] = (),
    side: int = 120,
    press: str = "",
    draw: bool = False,
    heat: np.ndarray | None = None,
) -> dict:
    """An image as :class:`Pictures` shows it, ``side`` pixels wide, framed in ``ink``.

    Args:
        caption: lines. boxes: of :func:`box`. heat: ``(h, w)`` in 0..1, laid over the image.
        press: what is a button: ``card``, ``boxes``, or nothing. draw: boxes by mouse or keys.
    """
    source, (width, height) = thumbnail(dataset, i, side)
    return {
        "key": i, "src": source, "width": width, "height": height, "side": side, "ink": ink,
        "caption": list(caption), "alt": f"image {i}, " + ", ".join(filter(None, caption)),
        "boxes": list(boxes), "press": press, "draw": draw,
        "heat": "" if heat is None else heat_source(heat),
    }  # fmt: skip


def box(
    ends: Sequence[float], ink: str, word: str = "", label: str = "", chosen: bool = False
) -> dict:
    """A box on a card. word: written in it. label: for screen readers."""
    ends = [float(end) for end in ends]
    return {"box": ends, "ink": ink, "word": word, "label": label or word, "chosen": bool(chosen)}


def numbered(boxes: Sequence[Sequence[float]], chosen: int, use: str) -> list[dict]:
    """The boxes of a query, with their numbers; ``use`` says what a press does."""
    return [box(e, QUERY, str(k), f"box {k}: {use}", k == chosen) for k, e in enumerate(boxes)]


@functools.lru_cache(maxsize=4096)
def thumbnail(dataset: ImageDataset, i: int, side: int) -> tuple[str, tuple[int, int]]:
    """Image ``i`` as a data address, sharp at ``side`` pixels across, and its own size."""
    image = dataset.image(i)
    size = image.size
    image.thumbnail((2 * side, 8 * side))
    return source(image, "JPEG"), size


def source(image: Image.Image, kind: str) -> str:
    """An image as a data address. kind: ``JPEG`` or ``PNG``."""
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def heat_source(heat: np.ndarray) -> str:
    """An ``(h, w)`` map in 0..1 as a data address, in the colours of :func:`plots.heat`."""
    colours = colormaps["inferno"](np.clip(heat, 0, 1), bytes=True)[..., :3]
    return source(Image.fromarray(colours).resize((128, 128), Image.Resampling.BILINEAR), "PNG")
