"""Search: ours beside what one would write or take otherwise, in one run, on object vectors.

    python benchmarks/search.py [--vectors 100000 --queries 500 --dim 128 --k 10]
    python benchmarks/search.py --million [--exact]

The vectors are grown from real ones (``objemb_lib.search.synthetic``). Measured:

- exact search: ours, plain faiss, numpy, torch, for 1, 10 and 500 queries at once,
  among all vectors, and (without ``--million``) a thousand of them;
- lists and a graph of ``objemb_lib.search.index``: recall, queries a second, seconds to build;
- graphs at equal recall, between two settings by interpolation: ours, hnswlib, usearch
  (``make extras``), same degree and effort to build.

Writes ``benchmarks/results/search.json``; with ``--million``, of a million vectors,
``search_million.json``. ``--exact`` measures exact search alone, and keeps what is known of the
others. Needs mini-battles.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import pandas as pd
import torch
from turns import RESULTS, arguments, in_turns, write

from objemb_lib.data.catalogue import load_splits
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import extract
from objemb_lib.embed.regions import Region
from objemb_lib.embed.whitening import PCAWhitening, l2
from objemb_lib.search.index import EFFORT, Index, recall
from objemb_lib.search.synthetic import synthetic_vectors
from objemb_lib.teach.student import StudentTrunk, load_student

PAIR = ("student", "spoc")
DEGREE = 32  # links a node of every graph
EQUAL = 0.95  # recall that the graphs must reach
AT_ONCE = (1, 10, 500)  # queries of an exact search
Search = Callable[[], object]


def collection(n: int, n_queries: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` vectors grown from true objects of train, and real queries from other objects."""
    (train, tests), network = load_splits("mini-battles"), StudentTrunk(load_student())
    real = [l2(extract(data, network, [PAIR], Region(true_boxes(data)))[PAIR])
            for data in (train, next(iter(tests.values())))]  # fmt: skip
    pca = PCAWhitening(dim, whiten=False).fit(real[0])
    queries = np.random.default_rng(0).permutation(pca(real[1]))[:n_queries]
    return synthetic_vectors(pca(real[0]), n), np.ascontiguousarray(queries)


def seconds_of(search: Search, times: int = 1) -> tuple[float, object]:
    """How long it takes, the quickest of several times, and what it gives."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        given = search()
        taken.append(time.perf_counter() - start)
    return min(taken), given


def filled(gallery: np.ndarray, factory: str = "Flat") -> Index:
    """An index of the vectors."""
    index = Index(gallery.shape[1], factory=factory)
    index.train(gallery)
    index.add(gallery)
    return index


# --- exact --------------------------------------------------------------------------------


def measure_exact(gallery: np.ndarray, queries: np.ndarray, k: int, rounds: int) -> dict:
    """Seconds of each way."""
    found = {}
    for n in (1000, len(gallery)) if len(gallery) <= 100_000 else (len(gallery),):
        for many in AT_ONCE:
            more = max(1, min(20, 1_000_000 // (n * many)))  # what takes microseconds
            times = in_turns(exact_ways(gallery[:n], queries[:many], k), rounds * more)
            seconds = {way: statistics.median(some) for way, some in times.items()}
            found[f"{many} of {n:,}"] = {"seconds": seconds}
    return found


def exact_ways(gallery: np.ndarray, queries: np.ndarray, k: int) -> dict[str, Search]:
    """Name -> a function that searches all queries at once."""
    plain, index = faiss.IndexFlatIP(gallery.shape[1]), filled(gallery)
    plain.add(gallery)
    known, asked = torch.from_numpy(gallery).T, torch.from_numpy(queries)

    def by_numpy() -> np.ndarray:
        """What people write: a matrix product, a partition, a sort of what is left."""
        scores = queries @ gallery.T
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        return -np.sort(-np.take_along_axis(scores, top, axis=1), axis=1)

    return {
        "plain faiss": lambda: plain.search(queries, k),
        "numpy": by_numpy,
        "torch": lambda: torch.topk(asked @ known, k),
        "Index": lambda: index.search(queries, k),
    }


# --- families -----------------------------------------------------------------------------


def measure_families(gallery: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> list[dict]:
    """A row for each family and setting, from quick to thorough."""
    lists, rows, k = 2 ** int(np.log2(4 * len(gallery) ** 0.5)), [], truth.shape[1]
    families = {f"IVF{lists},Flat": [f"nprobe={p}" for p in (1, 4, 16, 64) if p <= lists],
                f"HNSW{DEGREE}": [f"efSearch={ef}" for ef in (16, 64, 256)]}  # fmt: skip
    for factory, settings in families.items():
        built, index = seconds_of(lambda factory=factory: filled(gallery, factory))
        for setting in settings:
            tuned = index.tune(setting)
            took, (_, ids) = seconds_of(lambda tuned=tuned: tuned.search(queries, k), 3)
            rows.append({
                "factory": factory, "setting": setting, "recall@10": recall(ids, truth),
                "queries_per_second": len(queries) / took, "build_s": built,
            })  # fmt: skip
    return rows


# --- graphs at equal recall ---------------------------------------------------------------


def graphs(dim: int, n: int) -> dict[str, tuple[Callable, Callable]]:
    """Name -> (add vectors, search for (queries, k, effort) giving ids)."""
    import hnswlib
    from usearch.index import Index as Usearch

    graph = Index(dim, factory=f"HNSW{DEGREE}")
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
        "Index": (graph.add, lambda q, k, ef: graph.tune(f"efSearch={ef}").search(q, k)[1]),
        "hnswlib": (theirs.add_items, hnswlib_search),
        "usearch": (lambda x: other.add(np.arange(len(x)), x), usearch_search),
    }


def equal_recall(gallery: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> dict:
    """Queries a second at the recall :data:`EQUAL` of each library that reaches it."""
    efforts, k = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512), truth.shape[1]
    every, rows, speeds = graphs(gallery.shape[1], len(gallery)), [], {}
    for add, _ in every.values():
        add(gallery)
    for ef in efforts:
        ways = {n: lambda find=find, ef=ef: find(queries, k, ef) for n, (_, find) in every.items()}
        for name, times in in_turns(ways, 3).items():
            rate = len(queries) / statistics.median(times)
            rows.append((name, recall(ways[name](), truth), rate))
    for name in every:
        known, speed = zip(*sorted(row[1:] for row in rows if row[0] == name))
        if known[0] <= EQUAL <= known[-1]:
            speeds[name] = round(float(np.exp(np.interp(EQUAL, known, np.log(speed)))), 1)
    return {f"recall {EQUAL}": speeds}


def main() -> None:
    asked = arguments(__doc__, vectors=100_000, queries=500, dim=128, k=10, repeats=5,
                      million=False, exact=False)  # fmt: skip
    n, name = (1_000_000, "search_million") if asked.million else (asked.vectors, "search")
    gallery, queries = collection(n, asked.queries, asked.dim)
    report = {"vectors": n, "dim": asked.dim, "queries": len(queries)}
    report["exact"] = measure_exact(gallery, queries, asked.k, asked.repeats)
    if asked.exact:
        known = json.loads((RESULTS / f"{name}.json").read_text())
        report |= {part: known[part] for part in ("families", "graphs")}
    else:
        _, truth = filled(gallery).search(queries, asked.k)
        report["families"] = measure_families(gallery, queries, truth)
        report["graphs"] = equal_recall(gallery, queries, truth)
    write(name, report)
    print(pd.DataFrame(report["families"]).to_markdown(floatfmt=".3f"))
    print(pd.DataFrame({m: x["seconds"] for m, x in report["exact"].items()}).to_markdown())
    print(pd.DataFrame(report["graphs"]).to_markdown(floatfmt=".1f"))


if __name__ == "__main__":
    main()
