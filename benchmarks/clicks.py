"""How long does a click take, from the message to the answer in the widget?

    python benchmarks/clicks.py [--images 812] [--clicks 50]

A gallery of real objects: fourteen boxes (R-MAC's grid) of each battle scene, 11,368 in all, by
the best map of notebook 03. Times of a click on a known box, of a box drawn by hand (one forward
pass), and of a photograph of one's own (detection and a forward pass), each with the pictures
that the widget sends. Needs mini-battles. Writes benchmarks/results/clicks.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from turns import arguments, write

from objemb_lib.attend.sources import grid
from objemb_lib.data.catalogue import load_splits
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.retriever import Retriever
from objemb_lib.show import app
from objemb_lib.show.widgets import ObjectSearch


def milliseconds(act: Callable, given: Sequence) -> dict[str, float]:
    """Median and 95th percentile of ``act`` on each of ``given``; the first one warms up."""
    spent = []
    for one in given:
        start = time.perf_counter()
        act(one)
        spent.append(1000 * (time.perf_counter() - start))
    return {"median": statistics.median(spent[1:]), "p95": float(np.percentile(spent[1:], 95))}


def main() -> None:
    """The command line."""
    asked = arguments(__doc__, images=812, clicks=50)
    data = load_splits("mini-battles").tests["battle"]
    data = data.subset(range(min(asked.images, len(data))))
    pairs, context = app.TEACHER
    detector = load_detector("faster_rcnn")
    region, trunk = Region(grid(data), context=context), load_trunk("efficientnet_lite0")
    way = Retriever.build(data, trunk, pairs, region,
                          find=lambda photograph: app.own_boxes(photograph, detector))  # fmt: skip
    widget, rng = ObjectSearch(way), np.random.default_rng(0)
    images = rng.integers(len(data), size=asked.clicks + 1).tolist()
    drawn = [np.array([x, y, x + 80, y + 80]) for x, y in rng.integers(0, 170, (len(images), 2))]
    files = [(data.root / data.files[i]).read_bytes() for i in images[:11]]
    times = {
        "click": milliseconds(widget.show, images),
        "drawn box": milliseconds(widget.draw, drawn),
        "photograph": milliseconds(widget.photograph, files),
    }
    write("clicks", {
        "objects": len(way.index), "images": len(data), "dimensions": way.index.index.dim,
        "k": widget.k.value, "milliseconds": times, "threads": torch.get_num_threads(),
    })  # fmt: skip
    print(pd.DataFrame(times).T.to_markdown(floatfmt=".0f"))
    print(f"{len(way.index)} objects of {len(data)} images")


if __name__ == "__main__":
    main()
