"""The front end of :mod:`objemb_lib.show.front` with Python behind it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import anywidget
import numpy as np
import traitlets

from objemb_lib.config import DataError, ObjembError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.show import front
from objemb_lib.show.pictures import LARGE, SMALL, THUMBNAIL, address, original


class Front(anywidget.AnyWidget):
    """A widget that answers the questions of ``front/protocol.js``, one method each.

    Args:
        dataset: whose photographs are shown; they are known by their names.
        view: ``search`` or ``map``. about: what the view needs to know, see there.
    """

    QUESTIONS = ("photographs", "objects", "embed", "ask", "explain", "picture", "original", "map",
                 "choose")  # fmt: skip
    _esm = front.module("widget")
    _css = front.style()
    view = traitlets.Unicode("search").tag(sync=True)
    about = traitlets.Dict().tag(sync=True)
    start = traitlets.Dict().tag(sync=True)  # what is asked first, or now: id, box

    def __init__(self, dataset: ImageDataset, **traits: object) -> None:
        super().__init__(**traits)
        self.dataset = dataset
        self.numbers = {name: i for i, name in enumerate(dataset.names)}
        self.on_msg(self._hear)

    def _hear(self, _: object, message: dict, buffers: list) -> None:
        """Answer a question, or say why not: an error would vanish."""
        reply, files = {"number": message["number"]}, []
        try:
            if message["question"] not in self.QUESTIONS:
                raise DataError(f"no question {message['question']}", "Load the page again.")
            answer = getattr(self, message["question"])(*buffers, **message["given"])
            if isinstance(answer, tuple):  # a file: its type, and what is in it
                answer, files = {"type": answer[0]}, [answer[1]]
            reply["answer"] = answer
        except Exception as error:
            known = isinstance(error, ObjembError)
            reply["error"] = str(error) if known else f"This did not work ({error})."
        self.send(reply, files)

    def photographs(self, **given: int) -> dict:
        """A page of the gallery: ``many`` thumbnails ``from`` a place."""
        first, total = given["from"], len(self.dataset)
        places = range(first, min(first + given["many"], total))
        return {"total": total, "items": [picture(self.dataset, i, SMALL) for i in places]}

    def place(self, id: str) -> tuple[ImageDataset, int]:
        """The data set that holds a photograph, and its number there."""
        if id not in self.numbers:
            raise DataError(f"{id} is not here", "Choose another photograph.")
        return self.dataset, self.numbers[id]

    def picture(self, id: str) -> dict:
        """A photograph, large."""
        return picture(*self.place(id), LARGE)

    def original(self, id: str, **_: object) -> tuple[str, bytes]:
        """The file of a photograph, see :func:`original`."""
        return original(*self.place(id))


def picture(dataset: ImageDataset, i: int, side: int = THUMBNAIL, **more: object) -> dict:
    """A photograph as the front end shows it; ``more`` of the match that it is."""
    source, (width, height) = _thumbnail(dataset, i, side)
    name = dataset.names[i]
    return {"id": name, "file": name, "src": source, "width": width, "height": height} | more


def match(
    dataset: ImageDataset,
    i: int,
    score: float,
    box: Sequence[float] | None = None,
    state: str = "",
    note: str = "",
    chance: float = np.nan,
    heat: np.ndarray | None = None,
) -> dict:
    """An answer of the protocol."""
    heat = None if heat is None else np.round(heat, 3).tolist()
    box = None if box is None else [float(end) for end in box]
    return picture(dataset, i, box=box, score=float(score), state=state, note=note,
                   chance=number(chance), heat=heat)  # fmt: skip


def number(value: float) -> float | None:
    """A number for the browser; None where nobody knows."""
    return float(value) if np.isfinite(value) else None


def choice(name: str, options: Iterable[str], value: str | None = None) -> dict:
    """A menu of the different ones among some options; ``value`` default the first."""
    options = list(dict.fromkeys(options))
    return {"name": name, "options": options, "value": value or options[0]}


@functools.lru_cache(maxsize=4096)
def _thumbnail(dataset: ImageDataset, i: int, side: int) -> tuple[str, tuple[int, int]]:
    """Image ``i`` as a data address, at most ``side`` pixels long, and its own size."""
    image = dataset.image(i)
    size = image.size
    return address(image, side), size
