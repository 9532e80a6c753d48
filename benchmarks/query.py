"""The whole query: photograph -> boxes -> vectors -> search -> answer by image, step by step.

    python benchmarks/query.py [--images 400] [--most 100000] [--queries 15]

Two ways: a detector, then the trunk on its boxes; the student, in one pass. Each index holds the
way's vectors of real battle scenes (256 px), grown beyond their number to three sizes up to --most,
and is exact. Milliseconds are medians over queries; memory is what the process holds. For each
step, and for extraction and filling an index, the exponent of its growth with size is fitted: 0
does not grow, 1 grows as the size. Needs mini-battles. Writes benchmarks/results/query.json and
query.png.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import torch
from turns import RESULTS, arguments, write

from objemb_lib import config
from objemb_lib.cache import atomic_path
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.images import load_image
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import Region, cut
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.synthetic import synthetic_vectors
from objemb_lib.teach.student import load_student

PAIR, TOP, K = ("stage4", "spoc"), 10, 10
STEPS = ["decode", "detect", "embed", "detect and embed", "search", "group"]
Answer = tuple[np.ndarray, np.ndarray]  # boxes (K, 4) and their vectors (K, D)


def resident() -> float:
    """Megabytes that this process holds."""
    return round(psutil.Process().memory_info().rss / 2**20, 1)


class Clock:
    """Milliseconds of steps."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[step] += 1000 * (time.perf_counter() - start)


def decoded(path: Path, clock: Clock) -> torch.Tensor:
    """``(3, H, W)`` pixels in 0..1."""
    with clock("decode"):
        pixels = torch.from_numpy(np.asarray(load_image(path)).copy())
        return pixels.permute(2, 0, 1).to(config.device()).float() / 255


def by_two_passes() -> Callable[[Path, Clock], Answer]:
    """A detector says where to look; the trunk looks there."""
    device = config.device()
    detector, trunk = load_detector("faster_rcnn").to(device), load_trunk().for_inference(device)

    @torch.inference_mode()
    def ask(path: Path, clock: Clock) -> Answer:
        image = decoded(path, clock)
        with clock("detect"):
            boxes = detector([image])[0]["boxes"][:TOP]
        with clock("embed"):
            maps = trunk(trunk.normalise(image[None]))
            vectors = POOLINGS[PAIR[1]](cut(trunk, maps, PAIR[0], [boxes])).cpu().numpy()
        return boxes.cpu().numpy(), vectors

    return ask


def by_student() -> Callable[[Path, Clock], Answer]:
    """One pass gives both."""
    student = load_student().for_inference(config.device())

    @torch.inference_mode()
    def ask(path: Path, clock: Clock) -> Answer:
        image = decoded(path, clock)
        with clock("detect and embed"):
            (found,) = student([image])
            vectors = found["embeddings"].cpu().numpy()
        return found["boxes"][: len(vectors)].cpu().numpy(), vectors

    return ask


WAYS = {"detector, then trunk": by_two_passes, "student": by_student}


def paths_of_battle() -> list[Path]:
    """The battle scenes' files."""
    battle = mini_battles("battle")
    return [Path(battle.root) / file for file in battle.files]


def real_answers(ask: Callable[[Path, Clock], Answer], files: list[Path]) -> list[Answer]:
    """Boxes and vectors of the images in which a way finds something."""
    return [found for file in files if len((found := ask(file, Clock()))[1])]


def filled(real: list[Answer], n: int, seed: int = 0) -> tuple[ObjectIndex, float]:
    """An index of ``n`` objects grown from real ones, and the seconds to fill it.

    Images have as many objects, and boxes, as the real ones drawn for them.
    """
    rng = np.random.default_rng(seed)
    vectors = l2(np.concatenate([v for _, v in real]))
    mean = len(vectors) / len(real)
    drawn = [real[i][0] for i in rng.integers(len(real), size=int(2 * n / mean) + 9)]
    most = int(np.searchsorted(np.cumsum([len(b) for b in drawn]), n)) + 1
    where = Boxes("grown", drawn[:most])
    objects = Objects({PAIR: synthetic_vectors(vectors, len(where.owners), seed)}, where)
    index = ObjectIndex(vectors.shape[1])
    start = time.perf_counter()
    index.add(objects, PAIR, [f"{i}.jpg" for i in range(most)])
    return index, time.perf_counter() - start


def timed_search(index: ObjectIndex, vector: np.ndarray, clock: Clock) -> None:
    """Counts the search for vectors as ``search``, what is around it as ``group``."""
    whole = index.index.search

    def search(*args: object) -> tuple:
        with clock("search"):
            return whole(*args)

    index.index.search = search
    try:
        with clock("group"):
            index.search(vector, K)
    finally:
        del index.index.search
    clock.ms["group"] -= clock.ms["search"]


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of a line through logarithms: values grow as size to this power.

    >>> exponent([1, 10, 100], [3, 300, 30_000])
    2.0
    """
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)


def measure(ask: Callable, files: list[Path], queries: list[Path], sizes: list[int]) -> dict:
    """What a way's queries take at each size, and how that grows."""
    real, rows = real_answers(ask, files), []
    for n in sizes:
        index, fill_s = filled(real, n)
        clocks = []
        for file in queries[:1] + queries:  # the first one warms up
            clock = Clock()
            _, vectors = ask(file, clock)
            if len(vectors):
                timed_search(index, vectors[0], clock)
                clocks.append(clock.ms)
        ms = pd.DataFrame(clocks[1:]).median()
        rows.append({"objects": len(index), "ms": {s: round(ms[s], 3) for s in STEPS if s in ms},
                     "fill_s": round(fill_s, 4), "index_mb": round(index.n_bytes / 2**20, 3),
                     "resident_mb": resident()})  # fmt: skip
    table = pd.json_normalize(rows)
    table["whole query"] = table.filter(like="ms.").sum(axis=1)
    print(table.to_markdown(index=False), flush=True)
    values = table.drop(columns=["objects", "resident_mb"]).clip(lower=1e-3)
    return {
        "objects_an_image": round(statistics.mean(len(vectors) for _, vectors in real), 2),
        "dim": real[0][1].shape[1],
        "rows": rows,
        "growth": {name: exponent(table["objects"], values[name]) for name in values},
    }


def extraction_growth(dataset: ImageDataset, counts: list[int]) -> tuple[dict[int, float], float]:
    """Seconds of extraction (true boxes, decoded from files) by number of images; its exponent."""
    trunk, seconds = load_trunk(), {}
    for count in counts[:1] + counts:
        some = dataset.subset(range(count))
        boxes = Boxes("true boxes", [b if len(b) else [[0, 0, 9, 9]] for b in some.boxes])
        start = time.perf_counter()
        extract(some, trunk, [PAIR], Region(boxes), ExtractOptions(cache=False, progress=False))
        seconds[count] = round(time.perf_counter() - start, 3)
    return seconds, exponent(counts, [seconds[c] for c in counts])


def plot(ways: dict[str, dict], path: Path) -> None:
    """Each way's steps at the largest size; the whole query and its search by size."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    tables = {
        way: pd.DataFrame(
            [row["ms"] for row in found["rows"]], [r["objects"] for r in found["rows"]]
        )
        for way, found in ways.items()
    }
    last = pd.DataFrame({way: table.iloc[-1] for way, table in tables.items()})
    last.reindex(STEPS).T.plot.barh(stacked=True, ax=left, xlabel="ms a query, most objects")
    left.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for way, table in tables.items():
        table.sum(axis=1).plot(ax=right, loglog=True, style="o-", label=way)
        table["search"].plot(ax=right, loglog=True, style="o:", label=f"{way}: search alone")
    right.set(xlabel="objects in the index", ylabel="ms a query")
    right.legend(fontsize=8)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, print, keep."""
    asked = arguments(__doc__, images=400, most=100_000, queries=15)
    paths, memory, ways = paths_of_battle(), {"libraries": resident()}, {}
    files, queries = paths[: asked.images], paths[-asked.queries :]
    for way, make in WAYS.items():
        ask = make()
        memory[f"and networks: {way}"] = resident()
        ways[way] = measure(ask, files, queries, [asked.most // n for n in (100, 10, 1)])
        print(f"{way}: grows as size to the power of {ways[way]['growth']}\n", flush=True)
    counts = [asked.images // n for n in (8, 4, 2, 1)]
    seconds, power = extraction_growth(mini_battles("battle"), counts)
    write("query", {
        "data": "mini-battles/battle", "images": asked.images, "queries": asked.queries, "k": K,
        "threads": torch.get_num_threads(), "device": str(config.device()), "resident_mb": memory,
        "ways": ways, "extraction_s": seconds, "extraction_growth": power,
    })  # fmt: skip
    plot(ways, RESULTS / "query.png")


if __name__ == "__main__":
    main()
