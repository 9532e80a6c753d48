"""Search: ours beside what one would write or take otherwise, in one run, on object vectors.

    python benchmarks/search.py [--vectors 100000 --queries 500 --dim 128 --k 10]
    python benchmarks/search.py --million

The vectors are grown from real ones (``objemb_lib.search.synthetic``). Measured, each way in turn:

- exact search: ours, plain faiss, numpy, torch, scikit-learn; many queries at once, and one;
- every family of ``objemb_lib.search.index``: recall, queries a second, bytes, seconds to build;
- graphs at equal recall: ours, hnswlib, usearch (``make extras``), same degree and effort to build;
- memory after each step, and how times grow with the collection, as fitted exponents.

Writes ``benchmarks/results/search.json`` and a picture beside it. With ``--million`` only families
and graphs, of a million vectors, to ``search_million.json``. Ratios depend on what else the machine
is doing. Needs mini-battles.
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
import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch

from objemb_lib.cache import atomic_path, atomic_write_text
from objemb_lib.data import catalogue
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import extract
from objemb_lib.embed.regions import Region
from objemb_lib.embed.whitening import PCAWhitening, l2
from objemb_lib.search.index import Index, fastest_backend, recall, rerank
from objemb_lib.search.synthetic import synthetic_vectors
from objemb_lib.teach.student import StudentTrunk, load_student

OUT = Path(__file__).parent / "results"
BASE = "plain faiss"
PAIR = ("student", "spoc")
DEGREE, EFFORT = 32, 40  # of every graph: links a node, candidates while building
EQUAL = (0.9, 0.95)  # recall that the graphs must reach
SIZES = (1, 2, 4, 8)  # eighths of the collection, for growth
Search = Callable[[], tuple[np.ndarray, np.ndarray]]


def collection(n: int, n_queries: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` vectors grown from true objects of train, and real queries from other objects."""
    roles, network = catalogue.load_splits("mini-battles"), StudentTrunk(load_student())
    real = []
    for data in (roles.train, next(iter(roles.tests.values()))):
        real.append(l2(extract(data, network, [PAIR], Region(true_boxes(data)))[PAIR]))
    pca = PCAWhitening(dim, whiten=False).fit(real[0])
    queries = np.random.default_rng(0).permutation(pca(real[1]))[:n_queries]
    return synthetic_vectors(pca(real[0]), n), np.ascontiguousarray(queries)


def seconds_of(search: Callable, times: int = 1) -> tuple[float, object]:
    """How long it takes, the quickest of several times, and what it gives."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        given = search()
        taken.append(time.perf_counter() - start)
    return min(taken), given


# --- exact --------------------------------------------------------------------------------


def numpy_search(gallery: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What people write: a matrix product, a partition, a sort of what is left."""
    scores = queries @ gallery.T
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(scores, top, axis=1)
    order = np.argsort(-best, axis=1)
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(top, order, axis=1)


def torch_search(gallery: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in torch, all scores at once."""
    scores, rows = torch.topk(torch.from_numpy(queries) @ torch.from_numpy(gallery).T, k)
    return scores.numpy(), rows.numpy()


def exact_ways(gallery: np.ndarray, queries: np.ndarray, k: int) -> dict[str, Search]:
    """Name -> a function that searches all queries at once."""
    from sklearn.neighbors import NearestNeighbors

    plain = faiss.IndexFlatIP(gallery.shape[1])
    plain.add(gallery)
    index = Index(gallery.shape[1])
    index.add(gallery)
    fitted = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(gallery)

    def scikit() -> tuple[np.ndarray, np.ndarray]:
        distances, rows = fitted.kneighbors(queries)
        return 1 - distances, rows

    return {
        BASE: lambda: plain.search(queries, k),
        "numpy": lambda: numpy_search(gallery, queries, k),
        "torch": lambda: torch_search(gallery, queries, k),
        "scikit-learn": scikit,
        "Index": lambda: index.search(queries, k),
    }


def measure(searches: dict[str, Search], repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of each, taken in turns so that a busy machine slows all alike.

    Also the largest difference between any way's scores and those of plain faiss.
    """
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    found = {}
    for turn in range(repeats + 1):
        for name, search in searches.items():
            took, (found[name], _) = seconds_of(search)
            if turn:  # the first turn warms up
                seconds[name].append(took)
    apart = max(float(np.abs(scores - found[BASE]).max()) for scores in found.values())
    return {name: statistics.median(times) for name, times in seconds.items()}, apart


def exact(gallery: np.ndarray, queries: np.ndarray, k: int, repeats: int) -> dict:
    """Seconds, and ratios to plain faiss (above 1: faster), of many queries and of one."""
    report: dict = {"fastest_backend": fastest_backend()}
    for n in (len(queries), 1):
        seconds, apart = measure(exact_ways(gallery, queries[:n], k), repeats)
        print(f"\nexact, {n} at a time   seconds   x {BASE}")
        for name, value in seconds.items():
            print(f"{name:20} {value:9.4f} {seconds[BASE] / value:8.2f}")
        report[f"{n}_at_a_time"] = {
            "seconds": seconds,
            "x_faiss": {way: seconds[BASE] / s for way, s in seconds.items()},
            "largest_score_difference": apart,
        }
    return report


# --- families -----------------------------------------------------------------------------


def families(n: int) -> dict[str, list[str]]:
    """Factory string -> settings, from quick to thorough, for ``n`` vectors."""
    lists = 2 ** int(np.log2(4 * n**0.5))
    probes = [f"nprobe={p}" for p in (1, 4, 16, 64) if p <= lists]
    return {
        "Flat": [""],
        "SQ8": [""],
        f"IVF{lists},Flat": probes,
        f"IVF{lists},PQ16": probes,
        f"OPQ16,IVF{lists},PQ16": probes,
        f"IVF{lists},PQ32x4fsr": probes,  # r: of the residual, which faiss leaves out here unasked
        f"HNSW{DEGREE}": [f"efSearch={ef}" for ef in (16, 64, 256)],
    }


def measure_families(gallery: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> list[dict]:
    """A row for each family and setting; codes also with a list of 100 ranked again."""
    flat, rows, k = Index(gallery.shape[1]), [], truth.shape[1]
    flat.add(gallery)
    for factory, settings in families(len(gallery)).items():
        index = Index(gallery.shape[1], factory=factory)

        def build(index: Index = index) -> None:
            index.train(gallery)
            index.add(gallery)

        built, _ = seconds_of(build)
        for setting in settings:
            index = index.tune(setting) if setting else index
            searches: dict[str, Search] = {"": lambda index=index: index.search(queries, k)}
            if "PQ" in factory:
                searches[" + rerank"] = lambda index=index: rerank(
                    queries, index.search(queries, 100)[1], flat, k
                )
            for how, search in searches.items():
                took, (_, ids) = seconds_of(search, 3)
                row = {
                    "factory": factory + how,
                    "setting": setting,
                    "recall@10": recall(ids, truth),
                    "queries_per_second": len(queries) / took,
                    "bytes_a_vector": index.n_bytes / len(index),
                    "build_s": built,
                }
                rows.append(row)
                print(
                    f"{row['factory']:28} {setting:13} recall {row['recall@10']:.3f}"
                    f" {row['queries_per_second']:9.0f} queries/s"
                    f" {row['bytes_a_vector']:6.0f} bytes, built in {built:.0f} s"
                )
    return rows


# --- graphs at equal recall ---------------------------------------------------------------


def graphs(dim: int, n: int) -> dict[str, tuple[Callable, Callable]]:
    """Name -> (add vectors, search for (queries, k, effort) giving ids)."""
    import hnswlib
    from usearch.index import Index as Usearch

    ours = Index(dim, factory=f"HNSW{DEGREE}")
    theirs = hnswlib.Index(space="ip", dim=dim)
    theirs.init_index(n, M=DEGREE, ef_construction=EFFORT)
    other = Usearch(ndim=dim, metric="ip", dtype="f32", connectivity=DEGREE, expansion_add=EFFORT)

    def hnswlib_search(queries: np.ndarray, k: int, effort: int) -> np.ndarray:
        theirs.set_ef(max(effort, k))
        return theirs.knn_query(queries, k)[0].astype(np.int64)

    def usearch_search(queries: np.ndarray, k: int, effort: int) -> np.ndarray:
        other.expansion_search = max(effort, k)
        return np.atleast_2d(other.search(queries, k).keys).astype(np.int64)

    return {
        "Index": (ours.add, lambda q, k, ef: ours.tune(f"efSearch={ef}").search(q, k)[1]),
        "hnswlib": (theirs.add_items, hnswlib_search),
        "usearch": (lambda x: other.add(np.arange(len(x)), x), usearch_search),
    }


def equal_recall(gallery: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> dict:
    """Of each library the quickest setting that reaches each recall of :data:`EQUAL`."""
    efforts, k = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512), truth.shape[1]
    built, tried = {}, {}
    for name, (add, search) in graphs(gallery.shape[1], len(gallery)).items():
        built[name], _ = seconds_of(lambda add=add: add(gallery))
        for ef in efforts:
            took, ids = seconds_of(lambda ef=ef, search=search: search(queries, k, ef), 3)
            tried[name, ef] = recall(ids, truth), len(queries) / took
    report: dict = {"build_s": built}
    for goal in EQUAL:
        reached = {}
        for name in built:
            good = [(s, r, ef) for (n, ef), (r, s) in tried.items() if n == name and r >= goal]
            if good:
                reached[name] = dict(zip(("queries_per_second", "recall@10", "ef"), max(good)))
        report[f"recall {goal}"] = reached
        for name, row in reached.items():
            print(
                f"graphs, recall >= {goal}: {name:8} {row['queries_per_second']:8.0f} queries/s"
                f" (recall {row['recall@10']:.3f}, ef {row['ef']}), built in {built[name]:.0f} s"
            )
    return report


# --- growth and memory --------------------------------------------------------------------


def growth(gallery: np.ndarray, queries: np.ndarray, k: int) -> dict:
    """Seconds at growing sizes, and the exponent: 1 doubles with the collection, 0 stays."""
    report = {}
    for factory, setting in (("Flat", ""), ("IVF", "nprobe=16"), (f"HNSW{DEGREE}", "efSearch=64")):
        sizes = [len(gallery) * part // SIZES[-1] for part in SIZES]
        times: dict[str, list[float]] = {"build": [], "search": []}
        for size in sizes:
            lists = 2 ** int(np.log2(4 * size**0.5))
            index = Index(gallery.shape[1], factory=factory.replace("IVF", f"IVF{lists},Flat"))
            index.train(gallery[:size])
            times["build"].append(seconds_of(lambda i=index, n=size: i.add(gallery[:n]))[0])
            index = index.tune(setting) if setting else index
            times["search"].append(seconds_of(lambda i=index: i.search(queries, k), 3)[0])
        fitted = {w: float(np.polyfit(np.log(sizes), np.log(t), 1)[0]) for w, t in times.items()}
        report[factory] = {"sizes": sizes, "seconds": times, "exponent": fitted}
        print(f"growth of {factory:7}: " + ", ".join(f"{w} N^{e:.2f}" for w, e in fitted.items()))
    return report


def resident() -> float:
    """Megabytes that this process holds."""
    return psutil.Process().memory_info().rss / 2**20


def picture(rows: list[dict], path: Path) -> None:
    """Recall against speed, a dot's area by bytes a vector."""
    figure, ax = plt.subplots(figsize=(8, 4.5))
    for name in dict.fromkeys(row["factory"] for row in rows):
        mine = [row for row in rows if row["factory"] == name]
        x, y = ([row[key] for row in mine] for key in ("queries_per_second", "recall@10"))
        (line,) = ax.plot(x, y, "-", lw=1)
        size = mine[0]["bytes_a_vector"]
        ax.scatter(x, y, s=size / 3, color=line.get_color(), label=f"{name}, {size:.0f} bytes")
    ax.set(xscale="log", xlabel="queries a second", ylabel="recall@10")
    ax.legend(fontsize=7, markerscale=0.6)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120, bbox_inches="tight")


def machine() -> dict:
    """What the times depend on."""
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "other_load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()},
        "versions": {m.__name__: m.__version__ for m in (faiss, np, torch)},
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("vectors", 100_000), ("queries", 500), ("dim", 128), ("k", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--million", action="store_true", help="families and graphs of a million")
    args = parser.parse_args()
    n = 1_000_000 if args.million and args.vectors == 100_000 else args.vectors
    name = "search_million" if args.million else "search"
    memory = {"at the start": resident()}
    gallery, queries = collection(n, args.queries, args.dim)
    memory["with the vectors"] = resident()
    flat = Index(args.dim)
    flat.add(gallery)
    _, truth = flat.search(queries, args.k)
    print(f"{len(queries)} queries x {n} x {args.dim}, k = {args.k}")
    report = {"machine": machine(), "vectors": n, "dim": args.dim, "queries": len(queries)}
    if not args.million:
        report["exact"] = exact(gallery, queries, args.k, args.repeats)
        memory["after exact search"] = resident()
    report["families"] = measure_families(gallery, queries, truth)
    memory["after the families"] = resident()
    report["graphs"] = equal_recall(gallery, queries, truth)
    memory["after the graphs"] = resident()
    if not args.million:
        report["growth"] = growth(gallery, queries, args.k)
    report["resident_MB"] = {step: round(size) for step, size in memory.items()}
    atomic_write_text(OUT / f"{name}.json", json.dumps(report, indent=1) + "\n")
    picture(report["families"], OUT / f"{name}.png")
    print(f"resident, MB: {report['resident_MB']}\nwritten to {name}.json and {name}.png")


if __name__ == "__main__":
    main()
