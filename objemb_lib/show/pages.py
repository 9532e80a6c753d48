"""Widgets without a kernel: what ``front/browser.js`` reads in its place, and the pages around it.

A folder that is served, a script that a page reads from a stick as well, or all in one file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np

from objemb_lib.attend.detections import PROPOSER
from objemb_lib.cache import atomic_write_bytes, atomic_write_text
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.measure.analysis import PROJECTIONS
from objemb_lib.search.calibration import Calibration, made_of, shipped
from objemb_lib.search.retriever import Embedder, Retriever
from objemb_lib.show import front
from objemb_lib.show.engine import write_engine, write_network
from objemb_lib.show.pictures import address, picture
from objemb_lib.show.widgets import Compare, Map, ObjectSearch, Retrieval
from objemb_lib.show.widgets.front import number
from objemb_lib.show.widgets.objects import COLOURS

KEPT = 320  # pixels of the longer side of photographs that are kept beside a script, or in it
FOLDER = 384  # pixels of what a network sees of photographs of a folder that somebody drops
TITLE = "Find the same thing again"
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
$head
</head>
<body class="objemb-page">
<main><h1>$title</h1>
<div class="objemb" data-index="$index" data-app>
<p class="waiting" role="status">Starting ...</p></div>
<noscript>This page searches by JavaScript, which is switched off.</noscript></main>
$scripts
</body>
</html>
""")
ALONE = Template("""<meta http-equiv="Content-Security-Policy" content="default-src 'none';
img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>$style</style>""")


@dataclass(frozen=True, eq=False)
class Index:
    """What a page searches: ``front/index.js`` says what is in it.

    Args:
        dataset: whose photographs are shown, by their numbers.
        about: all but the vectors. parts: files of them, by name.
        engine: the folder of what looks at photographs, if ``about["network"]`` can.
    """

    dataset: ImageDataset
    about: dict
    parts: dict[str, bytes]
    engine: Path | None = None


def index_of(
    *widgets: ObjectSearch | Map | Compare | Retrieval, engine: Path | None = None
) -> Index:
    """What some widgets of one data set show: a search and maybe a map, or one that compares.

    Args:
        engine: a folder for what lets a page look at photographs by itself, see :mod:`engine`.
            Without it, or where a page cannot make such vectors, only known objects are searched.
    Raises:
        DataError: a widget that asks a network each time, or several that search.
    """
    dataset = widgets[0].dataset
    about = {"views": [], "map": None, "compares": False, "network": None, "missing": ""}
    parts = {}
    for widget in widgets:
        if isinstance(widget, Map):
            about["map"] = _map(widget)
        elif isinstance(widget, ObjectSearch | Compare | Retrieval) and not parts:
            about["compares"] = not isinstance(widget, ObjectSearch)
            about["ways"], tables = _ways(widget)
            parts = {f"{n}.bin": packed(*table) for n, table in enumerate(tables)}
            if engine and not about["compares"]:
                about |= _network(widget.ways, about["ways"], engine)
        else:
            raise DataError(f"no page of a {type(widget).__name__}", "Show it in a notebook.")
        view = {"view": widget.view, "about": widget.about, "start": widget.start}
        about["views"].append(view)
    about |= {"names": list(dataset.names), "sizes": dataset.sizes().tolist()}
    return Index(dataset, about | {"truth": _truth(dataset)}, parts, engine)


def _network(ways: Sequence[Retriever], told: Sequence[dict], folder: Path) -> dict:
    """What the page opens to look at photographs, or why it cannot. What is told of the ways then
    says how, where a page can make their vectors."""
    try:
        network, looks, missing = write_engine(folder), {}, ""
        for by in dict.fromkeys(way.embed for way in ways if isinstance(way.embed, Embedder)):
            try:
                looks[by] = write_network(folder, by)
            except DataError as error:
                missing = str(error)
        for way, said in zip(ways, told):
            said["looks"] = looks.get(way.embed)
        return {"network": network | {"folder": _folder(folder)}} if looks else {"missing": missing}
    except DataError as error:
        return {"missing": str(error)}


def _folder(folder: Path) -> dict:
    """How a folder that somebody drops is searched: as photographs, whatever the gallery is. One
    pass gives boxes and vectors."""
    by = Embedder(load_trunk(), [("head", "spoc")], FOLDER)
    made = made_of(by.trunk, by.pairs, by.context, by.size, PROPOSER)
    looks = write_network(folder, by) | {"once": True}
    return {"looks": looks, "calibration": calibrated(shipped(made))}


def _ways(widget: ObjectSearch | Compare | Retrieval) -> tuple[list[dict], list[tuple]]:
    """What is known of each way to search, and its boxes of each image and ``(M, D)`` vectors."""
    if isinstance(widget, ObjectSearch):
        every = range(len(widget.dataset))
        found = [list(zip(*way.index.of_images(every))) for way in widget.ways]
        tables = [(boxes, np.concatenate(vectors)) for boxes, vectors in found]
        told = [{"settings": {"network": way.network, "boxes": way.boxes},
                 "calibration": calibrated(way.calibration)} for way in widget.ways]  # fmt: skip
    else:
        wholes = [np.array([[0, 0, *size]], np.float32) for size in widget.dataset.sizes()]
        tables = [(wholes, vectors) for vectors in widget.vectors.values()]
        told = [_compared(widget, name) for name in widget.vectors]
    for way, (boxes, vectors) in zip(told, tables):
        counts = [len(some) for some in boxes]
        way |= {"dim": vectors.shape[1], "counts": counts, "looks": None}
    return told, tables


def _compared(widget: Compare | Retrieval, name: str | tuple[str, str]) -> dict:
    """Of one embedding: its menus, its title and the metric of each image that asks."""
    if isinstance(widget, Retrieval):
        return {"settings": dict(zip(("stage", "pooling"), name)), "title": ""}
    scores = widget.scores[name]
    values = dict(zip(widget.dataset.queries.tolist(), scores.values["mAP"].round(2).tolist()))
    each = [f"{values.get(i, np.nan):.2f}" for i in range(len(widget.dataset))]
    title = f"{name}: mAP {{}}, of all queries {scores.mean('mAP'):.2f}"
    return {"settings": {}, "title": title, "of": each}


def packed(boxes: Sequence[np.ndarray], vectors: np.ndarray) -> bytes:
    """Boxes as float32, then vectors as bytes: each by its own largest value."""
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)
    codes = np.round(127 * vectors / largest).astype(np.int8)
    return np.concatenate(boxes).astype("<f4").tobytes() + codes.tobytes()


def calibrated(calibration: Calibration) -> dict:
    """A calibration for the browser."""
    return {"chances": dict(calibration.chances), "nothing": number(calibration.nothing)}


def _truth(dataset: ImageDataset) -> dict | None:
    """Labels of photographs and boxes; None where nobody knows any."""
    boxes = [[[*box, label] for box, label in zip(many.round(1).tolist(), labels.tolist())]
             for many, labels in zip(dataset.boxes, dataset.box_labels)]  # fmt: skip
    if not any(boxes) and (dataset.labels < 0).all():
        return None
    return {"labels": dataset.labels.tolist(), "names": list(dataset.label_names), "boxes": boxes}


def _map(widget: Map) -> dict:
    """All that the menus of a map can show."""
    start = {one["name"]: one["value"] for one in widget.about["choices"]}
    maps = {how: widget.map(**start | {"map": how}) for how in PROJECTIONS}
    groups = {by: widget.map(**start | {"colour by": by}) for by in COLOURS}
    kept = ("groups", "names", "glyphs")
    return {
        "points": {how: one["points"] for how, one in maps.items()},
        "groups": {by: {part: one[part] for part in kept} for by, one in groups.items()},
        "objects": [[*place, widget.name(n)] for n, place in
                    enumerate(zip(widget.image.tolist(), widget.ends.round(1).tolist()))],
        "says": maps[start["map"]]["says"],
    }  # fmt: skip


# --- files ----------------------------------------------------------------------------------


def write_folder(index: Index, folder: str | Path) -> None:
    """For a page that is served: all that :mod:`serve` needs, which makes the pictures itself."""
    folder, data = Path(folder), index.dataset
    for name, part in index.parts.items():
        atomic_write_bytes(folder / name, part)
    engine = str(index.engine) if index.about["network"] else None
    shown = {"root": str(Path(data.root).resolve()), "files": data.files, "crops": data.crops}
    head = '<link rel="stylesheet" href="front.css">'
    scripts = '<script src="page.js"></script>'
    page = PAGE.substitute(title=TITLE, index=f"{folder.name}/", head=head, scripts=scripts)
    texts = {
        "index.html": page,
        "page.js": program(),
        "front.css": front.style(),
        "index.json": json.dumps(index.about),
        "served.json": json.dumps(shown | {"parts": list(index.parts), "engine": engine}),
    }
    for name, text in texts.items():
        atomic_write_text(folder / name, text)


def write_script(index: Index, path: str | Path) -> None:
    """For pages that may be read from a stick: a script, and small pictures beside it."""
    path = Path(path)
    for n in range(len(index.dataset)):
        picture(index.dataset, n, KEPT, path.parent / "pictures")
    atomic_write_text(path, script(path.stem, {"about": index.about, "parts": _texts(index.parts)}))


def write_one_file(index: Index, path: str | Path) -> None:
    """A page that holds all: the search, and small pictures."""
    every = map(index.dataset.image, range(len(index.dataset)))
    pictures = [address(image, KEPT, 80) for image in every]
    held = {"about": index.about, "parts": _texts(index.parts), "pictures": pictures}
    head = ALONE.substitute(style=front.style())
    scripts = "\n".join(f"<script>{one}</script>" for one in (script("page", held), program()))
    page = PAGE.substitute(title=TITLE, index="page.js", head=head, scripts=scripts)
    atomic_write_text(path, page)


def script(name: str, held: dict) -> str:
    """What a page learns an index from."""
    told = json.dumps(held).replace("</", "<\\/")  # or a name could end the script
    return f"(globalThis.objembIndexes ??= {{}})[{json.dumps(name)}] = {told};"


def program() -> str:
    """All modules of a page as one script, which a page may read from a stick as well."""
    return f"(() => {{\n{front.module('page')}}})();\n"


def _texts(parts: dict[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(part).decode() for name, part in parts.items()}
