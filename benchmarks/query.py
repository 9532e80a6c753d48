"""The whole query: photograph -> boxes -> vectors -> search -> answer by image, step by step.

    python benchmarks/query.py [--images 400] [--most 100000] [--queries 15]

Two ways: a detector, then the trunk on its boxes; the student, in one pass. Each index holds the
way's vectors of real battle scenes (256 px), grown beyond their number to three
sizes up to --most, and is exact. Milliseconds are medians over queries; memory is what the process
holds (resident) once everything is loaded, and by how much it rises within each step. For each
step, and for extraction and filling an index, the exponent of its growth with size is fitted:
0 does not grow, 1 grows as the size. Needs mini-battles. Writes benchmarks/results/query.json and
query.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch

from objemb_lib import config
from objemb_lib.cache import atomic_path, atomic_write_text
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

RESULT = Path(__file__).parent / "results" / "query.json"
PAIR, TOP, K = ("stage4", "spoc"), 10, 10
STEPS = ("decode", "detect", "embed", "detect and embed", "search", "group")
Answer = tuple[np.ndarray, np.ndarray]  # boxes (K, 4) and their vectors (K, D)
MB = 1 << 20


def resident() -> float:
    """Megabytes that this process holds."""
    return psutil.Process().memory_info().rss / MB


class Clock:
    """Milliseconds of steps; with ``watch`` also by how many megabytes memory rises within them.

    To watch takes a thread, which costs milliseconds: time other queries than those watched.
    """

    def __init__(self, watch: bool = False) -> None:
        self.watch = watch
        self.ms: dict[str, float] = defaultdict(float)
        self.mb: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start, rise = time.perf_counter(), _Rise() if self.watch else None
        try:
            yield
        finally:
            self.ms[step] += 1000 * (time.perf_counter() - start)
            if rise:
                self.mb[step] = max(self.mb[step], rise.most())


class _Rise:
    """By how many megabytes memory rises from here on, looked at every millisecond."""

    def __init__(self) -> None:
        self.before, self.seen, self.over = resident(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.001):
            self.seen = max(self.seen, resident() - self.before)

    def most(self) -> float:
        self.over.set()
        self.thread.join()
        return max(self.seen, resident() - self.before)


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


def filled(real: list[Answer], n: int, seed: int = 0) -> tuple[ObjectIndex, Clock]:
    """An index of ``n`` objects grown from real ones, and what it took to fill it.

    Images have as many objects, and boxes, as the real ones drawn for them.
    """
    rng, clock = np.random.default_rng(seed), Clock()
    vectors = l2(np.concatenate([v for _, v in real]))
    mean = len(vectors) / len(real)
    drawn = [real[i][0] for i in rng.integers(len(real), size=int(2 * n / mean) + 9)]
    most = int(np.searchsorted(np.cumsum([len(b) for b in drawn]), n)) + 1
    where = Boxes("grown", drawn[:most])
    grown = synthetic_vectors(vectors, len(where.owners), seed)
    objects = Objects({PAIR: grown}, where)
    index = ObjectIndex(vectors.shape[1])
    with clock("fill"):
        index.add(objects, PAIR, [f"{i}.jpg" for i in range(most)])
    return index, clock


@contextmanager
def search_timed(index: ObjectIndex, clock: Clock) -> Iterator[None]:
    """Counts the search for vectors as ``search``, what is around it as ``group``."""
    whole, inner = index.index.search, Clock(clock.watch)

    def search(*args: object) -> tuple:
        with inner("search"):
            return whole(*args)

    index.index.search = search
    try:
        with clock("group"):
            yield
    finally:
        del index.index.search
    clock.ms["search"] += inner.ms["search"]
    clock.ms["group"] -= inner.ms["search"]
    clock.mb["search"] = max(clock.mb["search"], inner.mb["search"])
    clock.mb["group"] = max(0.0, clock.mb["group"] - inner.mb["search"])


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of a line through logarithms: values grow as size to this power.

    >>> exponent([1, 10, 100], [3, 300, 30_000])
    2.0
    """
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)


@dataclass
class Asked:
    """Queries of one way against an index of one size."""

    way: str
    objects: int
    ms: dict[str, float]
    mb: dict[str, float]
    fill_s: float
    index_mb: float
    resident_mb: float


def measure(way: str, ask: Callable, files: list[Path], queries: list[Path], sizes: list[int]):
    """What a way's queries take at each size, and how many objects it finds in an image."""
    real = real_answers(ask, files)
    rows = []
    for n in sizes:
        index, filling = filled(real, n)
        clocks = []
        for file in queries[:1] + queries:  # the first one warms up, watched
            clock = Clock(watch=not clocks)
            _, vectors = ask(file, clock)
            if len(vectors):
                with search_timed(index, clock):
                    index.search(vectors[0], K)
                clocks.append(clock)
        steps = [step for step in STEPS if step in clocks[0].ms]
        ms = {s: round(statistics.median(c.ms[s] for c in clocks[1:]), 3) for s in steps}
        mb = {s: round(clocks[0].mb[s], 1) for s in steps}
        rows.append(Asked(way, len(index), ms, mb, round(filling.ms["fill"] / 1000, 4),
                          round(index.n_bytes / MB, 3), round(resident(), 1)))  # fmt: skip
        print(f"{way:20} {len(index):>9,} objects  {sum(ms.values()):7.1f} ms  {ms}", flush=True)
    return rows, statistics.mean(len(v) for _, v in real), real[0][1].shape[1]


def growth(rows: list[Asked]) -> dict[str, float]:
    """Exponents of each step of one way, with the number of objects."""
    sizes = [row.objects for row in rows]
    found = {s: exponent(sizes, [max(row.ms[s], 1e-3) for row in rows]) for s in rows[0].ms}
    found["whole query"] = exponent(sizes, [sum(row.ms.values()) for row in rows])
    found["fill the index"] = exponent(sizes, [row.fill_s for row in rows])
    found["bytes of the index"] = exponent(sizes, [row.index_mb for row in rows])
    return found


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


def plot(rows: list[Asked], path: Path) -> None:
    """Each way's steps at the largest size; the whole query and its search by size."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    ways, most = list(dict.fromkeys(row.way for row in rows)), max(row.objects for row in rows)
    for step in STEPS:
        last = [[r for r in rows if r.way == way][-1].ms.get(step, 0) for way in ways]
        before = [
            sum([r for r in rows if r.way == way][-1].ms.get(s, 0)
                for s in STEPS[: STEPS.index(step)])
            for way in ways
        ]  # fmt: skip
        left.barh(ways, last, left=before, label=step)
    left.set(xlabel=f"ms a query, {most:,} objects")
    left.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for way in ways:
        mine = [r for r in rows if r.way == way]
        right.loglog([r.objects for r in mine], [sum(r.ms.values()) for r in mine], "o-", label=way)
        right.loglog([r.objects for r in mine], [r.ms["search"] for r in mine], "o:",
                     label=f"{way}: search alone")  # fmt: skip
    right.set(xlabel="objects in the index", ylabel="ms a query")
    right.legend(fontsize=8)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--most", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=15)
    asked = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # a busy machine misleads
    memory = {"libraries": round(resident(), 1)}
    paths = paths_of_battle()
    files, queries = paths[: asked.images], paths[-asked.queries :]
    sizes = [asked.most // 100, asked.most // 10, asked.most]
    report, every = {}, []
    for way, make in WAYS.items():
        ask = make()
        memory[f"and networks: {way}"] = round(resident(), 1)
        rows, per_image, dim = measure(way, ask, files, queries, sizes)
        every += rows
        report[way] = {"objects_an_image": round(per_image, 2), "dim": dim,
                       "rows": [vars(row) for row in rows], "growth": growth(rows)}  # fmt: skip
    counts = [asked.images // 8, asked.images // 4, asked.images // 2, asked.images]
    seconds, power = extraction_growth(mini_battles("battle"), counts)
    result = {
        "data": "mini-battles/battle", "images": asked.images, "queries": asked.queries, "k": K,
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "other_load": load,
        "machine": platform.machine(), "torch": torch.__version__,
        "device": str(config.device()), "resident_mb": memory, "ways": report,
        "extraction_s": seconds, "extraction_growth": power,
    }  # fmt: skip
    atomic_write_text(RESULT, json.dumps(result, indent=1) + "\n")
    plot(every, RESULT.with_suffix(".png"))
    for way, found in report.items():
        print(f"{way}: grows as size to the power of {found['growth']}")


if __name__ == "__main__":
    main()
