"""Exact search: our two backends and "auto" beside plain faiss and plain numpy, in one run.

    python benchmarks/search.py [--gallery 100000 --queries 1000 --dim 512 --k 10]

Prints the median seconds of each, with the ratio to plain ``faiss.IndexFlatIP`` (above 1:
faster), and writes them to ``benchmarks/results/search.json``. The ratio depends on what
else the machine is doing: faiss suffers more from busy cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

from objemb_lib.atomic import atomic_write_text
from objemb_lib.index import Index, fastest_backend
from objemb_lib.postprocess import l2

OUT = Path(__file__).parent / "results" / "search.json"
BASE = "plain faiss"


def numpy_search(gallery: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What people write: a matrix product, a partition, a sort of what is left."""
    scores = queries @ gallery.T
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(scores, top, axis=1)
    order = np.argsort(-best, axis=1)
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(top, order, axis=1)


def ways(gallery: np.ndarray, queries: np.ndarray, k: int) -> dict[str, Callable]:
    """Name -> a function that searches all queries at once."""
    plain = faiss.IndexFlatIP(gallery.shape[1])
    plain.add(gallery)
    indexes = {name: Index(gallery.shape[1], name) for name in ("faiss", "torch", "auto")}
    for index in indexes.values():
        index.add(gallery)
    ours = {
        f"Index, {name}": lambda index=index: index.search(queries, k)
        for name, index in indexes.items()
    }
    return {
        BASE: lambda: plain.search(queries, k),
        "plain numpy": lambda: numpy_search(gallery, queries, k),
        **ours,
    }


def measure(searches: dict[str, Callable], repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of each, taken in turns so that a busy machine slows all alike.

    Also the largest difference between any way's scores and those of plain faiss.
    """
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    found = {}
    for turn in range(repeats + 1):
        for name, search in searches.items():
            start = time.perf_counter()
            found[name], _ = search()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    apart = max(float(np.abs(scores - found[BASE]).max()) for scores in found.values())
    return {name: statistics.median(times) for name, times in seconds.items()}, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("gallery", 100_000), ("queries", 1000), ("dim", 512), ("k", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    gallery, queries = (
        l2(rng.standard_normal((n, args.dim), np.float32)) for n in (args.gallery, args.queries)
    )
    start = time.perf_counter()
    chosen = fastest_backend()
    calibration = time.perf_counter() - start
    report: dict = {
        "setting": vars(args),
        "fastest_backend": chosen,
        "calibration_s": calibration,
        "other_load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    print(f"{args.queries} queries x {args.gallery} x {args.dim}, k = {args.k}")
    for n in (args.queries, 1):
        seconds, apart = measure(ways(gallery, queries[:n], args.k), args.repeats)
        print(f"\n{n} at a time          seconds   x {BASE}")
        for name, value in seconds.items():
            print(f"{name:20} {value:9.4f} {seconds[BASE] / value:8.2f}")
        report[f"{n}_at_a_time_s"] = seconds
        report[f"{n}_at_a_time_x_faiss"] = {w: seconds[BASE] / s for w, s in seconds.items()}
        report[f"{n}_at_a_time_largest_score_difference"] = apart
    report["machine"] = {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()},
        "versions": {m.__name__: m.__version__ for m in (faiss, np, torch)},
    }
    atomic_write_text(OUT, json.dumps(report, indent=2) + "\n")
    print(f"\nauto chose {chosen} in {calibration * 1000:.0f} ms; written to {OUT.name}")


if __name__ == "__main__":
    main()
