"""Exact search, two ways: torch (a matrix product and top-k) and faiss.

Which is faster depends on the BLAS that each was built with; see ``benchmarks/search.py``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache

import faiss
import numpy as np
import torch

BACKENDS = ("auto", "torch", "faiss")
CHUNK_BYTES = 64 << 20  # of scores held at a time
WORTH_MEASURING = 1 << 33  # multiply-adds, some 0.5 s: below it measuring costs what it gains
MANY = 256  # queries: fewer than that are faster in torch wherever we looked

Found = tuple[np.ndarray, np.ndarray]


def _search_torch(vectors: np.ndarray, queries: np.ndarray, k: int) -> Found:
    """Scores and rows of the top k by matrix product, a chunk of queries at a time."""
    gallery, asked = torch.from_numpy(vectors).T, torch.from_numpy(queries)
    chunk = max(1, CHUNK_BYTES // (4 * len(vectors)))
    found = [torch.topk(part @ gallery, k) for part in asked.split(chunk)]
    scores, rows = (torch.cat(parts).numpy() for parts in zip(*found))
    return scores, rows


def _search_faiss(vectors: np.ndarray, queries: np.ndarray, k: int) -> Found:
    """The same by faiss."""
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


WAYS: dict[str, Callable[[np.ndarray, np.ndarray, int], Found]] = {
    "torch": _search_torch,
    "faiss": _search_faiss,
}


@cache
def fastest_backend() -> str:
    """Backend that searches many queries faster here, "torch" or "faiss"; measured once a process.

    In 0.1 to 0.3 s, with the threads and under the load that the search itself will meet.
    """
    vectors = np.random.default_rng(0).standard_normal((2048, 512), np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(4):
        for name, way in WAYS.items():
            start = time.perf_counter()
            way(vectors, vectors[:MANY], 10)
            if turn:  # the first turn warms up threads and buffers
                seconds[name].append(time.perf_counter() - start)
    return min(seconds, key=lambda name: statistics.median(seconds[name]))


def backend_for(chosen: str, n_queries: int, vectors: np.ndarray) -> str:
    """What ``chosen`` means for this many queries: itself, or the faster one if it is "auto"."""
    if chosen != "auto":
        return chosen
    worth = n_queries >= MANY and n_queries * vectors.size >= WORTH_MEASURING
    return fastest_backend() if worth else "torch"


def exact_search(
    vectors: np.ndarray, ids: np.ndarray, queries: np.ndarray, k: int, backend: str = "auto"
) -> Found:
    """The k largest inner products; equal scores in order of id, also where k cuts through them.

    Args:
        vectors: ``(N, dim)`` float32, contiguous. ids: ``(N,)``. queries: ``(Q, dim)`` alike.
        k: 1 to N. backend: one of :data:`BACKENDS`.
    Returns:
        scores and ids, both ``(Q, k)``.
    """
    way = WAYS[backend_for(backend, len(queries), vectors)]
    # One more than asked shows whether k cuts through equal scores.
    scores, rows = way(vectors, queries, min(k + 1, len(vectors)))
    scores, found = in_order(scores, ids[rows])
    if k < len(vectors):
        for cut in np.flatnonzero(scores[:, k - 1] == scores[:, k]):
            every = vectors @ queries[cut]
            best = np.lexsort((ids, -every))[:k]
            scores[cut, :k], found[cut, :k] = every[best], ids[best]
    return scores[:, :k], found[:, :k]


def in_order(scores: np.ndarray, ids: np.ndarray) -> Found:
    """``(Q, k)`` scores and ids, each line by falling score, equal ones by id."""
    order = np.lexsort((ids, -scores))
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
