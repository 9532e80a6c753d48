"""What do the steps after extraction gain? Paired differences against plain vectors.

    python benchmarks/postprocess.py                   mini-battles, whole images and crops
    python benchmarks/postprocess.py --page            only the page, from the result there is

Multi-scale extraction, query expansion, database-side augmentation and k-reciprocal re-ranking,
each alone, on L2-normalised vectors of Lite0 at 256 px. Every query image is in the gallery, too,
and junk for its own query. Each step's parameters are those of the highest mAP on train's objects,
out of the grid below; the tests are only measured. Writes benchmarks/results/postprocess.json, and
its table into docs/postprocessing.md.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from billion import rewritten, table
from turns import RESULTS, arguments, write

from objemb_lib.cache import atomic_write_text
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import WHOLE, Region, crop
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.embed.whitening import (
    alpha_query_expansion,
    database_augmentation,
    l2,
    multiscale_mean,
)
from objemb_lib.measure.intervals import Evaluation, paired_difference
from objemb_lib.measure.metrics import evaluate, evaluate_scores
from objemb_lib.search.rerank import k_reciprocal

RESULT = RESULTS / "postprocess.json"
PAGE = Path(__file__).parents[1] / "docs" / "postprocessing.md"
START, END = "<!-- generated: python benchmarks/postprocess.py --page -->", "<!-- end -->"
SIZE = 256
BASES = {"whole image": (lambda _: WHOLE, ("head", "crow")), "crop": (crop, ("head", "rmac"))}

Vectors = Callable[[ImageDataset, int], np.ndarray]  # of a data set, at a size


def scales(x: np.ndarray, data: ImageDataset, at: Vectors, sizes: tuple[int, ...]) -> Evaluation:
    return evaluate(multiscale_mean([at(data, size) for size in sizes]), data, ["mAP"])


def expanded(x: np.ndarray, data: ImageDataset, _: Vectors, **how: float) -> Evaluation:
    own = np.full(len(data), -1)  # where each image is in the gallery
    own[data.gallery] = np.arange(len(data.gallery))
    asked = alpha_query_expansion(x, x[data.gallery], own=own, **how)
    return evaluate_scores(asked[data.queries] @ x[data.gallery].T, data, ["mAP"])


def augmented(x: np.ndarray, data: ImageDataset, _: Vectors, **how: float) -> Evaluation:
    searched = database_augmentation(x[data.gallery], **how)
    return evaluate_scores(x[data.queries] @ searched.T, data, ["mAP"])


def reciprocal(x: np.ndarray, data: ImageDataset, _: Vectors, **how: float) -> Evaluation:
    return evaluate_scores(k_reciprocal(x, data.queries, data.gallery, **how), data, ["mAP"])


# name: (the step, what is tried of each parameter)
SIZES, MOVED = "several sizes", {"count": (1, 2, 4, 8), "alpha": (0.0, 1.0, 3.0)}
STEPS: dict[str, tuple[Callable[..., Evaluation], dict[str, Sequence]]] = {
    # a factor of the square root of 2 apart
    SIZES: (scales, {"sizes": ((SIZE, 362), (181, SIZE), (181, SIZE, 362))}),
    "query expansion": (expanded, MOVED),
    "database augmentation": (augmented, MOVED),
    "k-reciprocal": (reciprocal, {"k1": (5, 10, 20), "k2": (1, 3, 6), "weight": (0.1, 0.3, 0.6)}),
}


def choose(try_: Callable[..., Evaluation], grid: dict[str, Sequence]) -> dict:
    """The parameters of the highest mAP; of equals the first."""
    every = [dict(zip(grid, values)) for values in product(*grid.values())]
    return max(every, key=lambda how: try_(**how).mean("mAP"))


def compared(
    trunk: Trunk,
    region: Callable[[ImageDataset], Region],
    pair: tuple[str, str],
    train: ImageDataset,
    tests: Sequence[ImageDataset],
) -> list[dict]:
    """All steps on one kind of vectors."""

    def at(data: ImageDataset, size: int) -> np.ndarray:
        return l2(extract(data, trunk, [pair], region(data), ExtractOptions(size))[pair])

    vectors, rows = {d: at(d, SIZE) for d in (train, *tests)}, []
    plain = {d: evaluate(vectors[d], d, ["mAP"]) for d in tests}
    for name, (step, grid) in STEPS.items():
        how = choose(partial(step, vectors[train], train, at), grid)
        for data in tests:
            start = time.perf_counter()
            found = step(vectors[data], data, at, **how)
            seconds = time.perf_counter() - start
            gain = paired_difference(found, plain[data], "mAP")
            row = {
                "data": f"{data.name}/{data.split}", "trunk": trunk.name, "size": SIZE,
                "stage": pair[0], "pooling": pair[1], "region": region(data).name,
                "plain mAP": round(plain[data].mean("mAP"), 4), "step": name,
                "chosen on train": how, "queries": found.n_queries,
                "mAP": round(found.mean("mAP"), 4), "mAP verdict": gain.verdict,
                "mAP gained": [round(v, 4) for v in asdict(gain).values()],
            }  # fmt: skip
            if name != SIZES:  # whose cost is in the extraction
                row["milliseconds a query"] = round(1000 * seconds / found.n_queries, 2)
            rows.append(row)
            print(row)
    return rows


def generated(report: dict) -> str:
    """The page's tables: one for each test and kind of vector, narrow enough for a phone."""
    tables: dict[str, list[dict]] = {}
    for row in report["table"]:
        about = (f"**{row['data']}, {row['queries']} queries; {row['region']}, {row['stage']}, "
                 f"{row['pooling']}: mAP {row['plain mAP']:.2f} without any step**")  # fmt: skip
        gain, low, high = row["mAP gained"]
        chosen = ", ".join(f"{name} {value}" for name, value in row["chosen on train"].items())
        tables.setdefault(about, []).append({
            "step": row["step"], "mAP": f"{row['mAP']:.2f}",
            "gained": f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]", "verdict": row["mAP verdict"],
            "chosen on train": chosen, "ms a query": str(row.get("milliseconds a query", "")),
        })  # fmt: skip
    parts = [part for about, rows in tables.items() for part in (about, table(rows))]
    row = report["table"][0]
    about = f"{row['trunk']}, {row['size']} px; {report['machine']['cores']} cores"
    return "\n\n".join(["", *parts, f"*{about}; 95 % intervals over query objects, paired.*", ""])


def write_page() -> None:
    part = generated(json.loads(RESULT.read_text()))
    page = rewritten(PAGE.read_text(encoding="utf-8"), part, START, END)
    atomic_write_text(PAGE, page)


def main() -> None:
    if arguments(__doc__, page=False).page:
        return write_page()
    train, tests = load_splits("mini-battles")
    trunk, every = load_trunk(), []
    for region, pair in BASES.values():
        every += compared(trunk, region, pair, train, list(tests.values()))
    every.sort(key=lambda row: (list(BASES).index(row["region"]), row["data"]))  # stable
    fingerprints = {d.split: d.fingerprint for d in (train, *tests.values())}
    grids = {name: grid for name, (_, grid) in STEPS.items()}
    about = {"machine": {"cores": os.cpu_count()}, "data": fingerprints, "grids": grids}
    write("postprocess", about | {"table": every})
    write_page()


if __name__ == "__main__":
    main()
