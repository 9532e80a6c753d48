"""The search, map and comparisons of the pages: widgets of the notebooks, without a kernel."""

from __future__ import annotations

import re
from pathlib import Path

from objemb_lib import load_detector
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect import DetectorTrunk
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import crop, roi
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.show import app, front, pages
from objemb_lib.show.widgets import Compare, Map, ObjectSearch, Retrieval

PLACES = {"ObjectSearch": "search", "Compare": "compare", "Retrieval": "retrieval"}
STAGES, POOLINGS = ("stage2", "stage4", "head"), ("spoc", "mac", "gem")
HEAD = ("head", "spoc")
TEASER, TIGER = 69, 285  # the scenes that the figures beside the widgets show


def element(widget: str, static: str, only: str = "search") -> str:
    """HTML in place of a widget, by the name of its class; "" where it asks a network each time.

    Args:
        static: the way from the page to the site's static files.
    """
    if widget not in PLACES:
        return ""
    place = f"{static}/live"
    return f"""<link rel="stylesheet" href="{place}/front.css">
<div class="objemb" data-index="{place}/{PLACES[widget]}.js" data-only="{only}"></div>
<script src="{place}/page.js"></script>"""


def replaced(output: dict, static: str) -> dict | None:
    """A notebook's output that was a widget, live, or None."""
    name = re.search(r"\.(\w+) object at", "".join(output["data"].get("text/plain", "")))
    html = element(name[1] if name else "", static)
    return {**output, "data": {"text/html": html}} if html else None


def write(folder: Path) -> None:
    """All that the pages load, from mini-battles; vectors come from the cache, or are made."""
    _, battle, _ = load_splits("mini-battles").lesson()
    plain = [way for way in app.ways(battle) if way.network == "efficientnet_lite0"]
    search = ObjectSearch(plain, query=TEASER)
    shown = {"search": (search, Map(plain[0], search)), "compare": (compare(battle),),
             "retrieval": (retrieval(battle),)}  # fmt: skip
    for name, widgets in shown.items():
        engine = folder / "engine" if name == "search" else None
        pages.write_script(pages.index_of(*widgets, engine=engine), folder / f"{name}.js")
    (folder / "page.js").write_text(pages.program(), "utf-8")
    (folder / "front.css").write_text(front.style(), "utf-8")


def compare(battle: ImageDataset) -> Compare:
    """Two of the embeddings of notebook 02: the object cut out, and the detector's name for it."""
    detector, options = load_detector("faster_rcnn"), ExtractOptions(progress=False)
    trunk, inside = load_trunk(detector.trunk.name), DetectorTrunk(detector)
    head = ("box_head", "spoc")
    cropped = extract(battle, trunk, [HEAD], crop(battle), options)[HEAD]
    named = extract(battle, inside, [head], roi(battle), options)[head]
    return Compare(battle, {"crop": l2(cropped), "detector's box head": l2(named)}, TIGER)


def retrieval(battle: ImageDataset) -> Retrieval:
    """Some stages and poolings of notebook 01."""
    pairs = [(stage, pooling) for stage in STAGES for pooling in POOLINGS]
    vectors = extract(battle, load_trunk(), pairs, options=ExtractOptions(progress=False))
    return Retrieval(battle, {pair: l2(some) for pair, some in vectors.items()}, TEASER)
