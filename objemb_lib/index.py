"""Index: exact search for the gallery vectors with the largest inner product.

On L2-normalised vectors the inner product is the cosine similarity. One ``search``, two
ways behind it: torch (a matrix product and top-k) and faiss. Which is faster depends on the
BLAS that each was built with; see ``benchmarks/search.py``.
"""

from __future__ import annotations

import json
import statistics
import struct
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import torch

from objemb_lib.atomic import atomic_path
from objemb_lib.errors import DataError

BACKENDS = ("auto", "torch", "faiss")
CHUNK_BYTES = 64 << 20  # of scores held at a time
WORTH_MEASURING = 1 << 33  # multiply-adds, some 0.5 s: below it measuring costs what it gains
MANY = 256  # queries: fewer than that are faster in torch wherever we looked
TAIL = struct.Struct("<Q8s")  # length of the JSON, magic; ends every saved file
MAGIC = b"objemb-1"

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


class Index:
    """Exact inner-product search over ``(N, dim)`` float32 vectors with int64 ids.

    Both backends give the same neighbours, and the same scores up to rounding. Equal scores
    are ordered by id, also where k cuts through them.

    Args:
        dim: dimension of the vectors.
        backend: "torch", "faiss" or "auto": the faster one on this machine.
        meta: strings to keep with the vectors, e.g. the model's name and fingerprint.
    Raises:
        DataError: for an unknown backend.

    >>> index = Index(dim=2, meta={"trunk": "toy"})
    >>> index.add([[1, 0], [0, 1], [0.6, 0.8]], ids=[10, 11, 12])
    >>> scores, ids = index.search([[1, 0]], k=2)
    >>> ids, scores
    (array([[10, 12]]), array([[1. , 0.6]], dtype=float32))
    """

    def __init__(self, dim: int, backend: str = "auto", meta: dict[str, str] | None = None) -> None:
        if backend not in BACKENDS:
            raise DataError(f"no search backend {backend!r}", f"Use one of {', '.join(BACKENDS)}.")
        self.dim, self.backend, self.meta = dim, backend, dict(meta or {})
        self._store = faiss.IndexIDMap(faiss.IndexFlatIP(dim))
        self._ids = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"Index({len(self)} vectors of {self.dim} dimensions, backend={self.backend!r})"

    def add(self, vectors: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Add ``(n, dim)`` vectors under ``(n,)`` ids; by default the next numbers from len(self).

        Raises:
            DataError: wrong shape, a NaN or infinity, or an id that is there already. Then
                nothing is added.
        """
        vectors = self._checked(vectors, "vectors")
        start = len(self)
        new = np.arange(start, start + len(vectors)) if ids is None else np.asarray(ids)
        if new.shape != (len(vectors),) or not (new.size == 0 or np.can_cast(new.dtype, np.int64)):
            raise DataError(
                f"{len(vectors)} vectors but ids of shape {new.shape}, type {new.dtype}",
                "Pass one integer id per vector.",
            )
        every = np.concatenate([self._ids, new.astype(np.int64)])
        values, counts = np.unique(every, return_counts=True)
        if (counts > 1).any():
            raise DataError(
                f"ids given twice, e.g. {values[counts > 1][:3].tolist()}",
                "Use an id once; make a new Index to replace vectors.",
            )
        self._store.add_with_ids(vectors, every[start:])
        self._ids = every

    def search(self, queries: np.ndarray, k: int) -> Found:
        """The k best vectors for each query, best first.

        Args:
            queries: ``(Q, dim)``.
            k: neighbours per query, >= 1; with fewer than k vectors there are len(self) columns.
        Returns:
            scores ``(Q, min(k, N))`` float32 and ids of the same shape, int64.
        Raises:
            DataError: empty index, wrong shape, a NaN or infinity, or k < 1.
        """
        queries = self._checked(queries, "queries")
        if not len(self) or k < 1:
            raise DataError(f"search for {k} of {len(self)} vectors", "Add vectors; use k >= 1.")
        k = min(k, len(self))
        if not len(queries):
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        vectors = self._vectors()
        # One more than asked shows whether k cuts through equal scores.
        scores, rows = WAYS[self._way(len(queries))](vectors, queries, min(k + 1, len(self)))
        ids = self._ids[rows]
        order = np.lexsort((ids, -scores))
        scores, ids = (np.take_along_axis(part, order, axis=1) for part in (scores, ids))
        if k < len(self):
            for cut in np.flatnonzero(scores[:, k - 1] == scores[:, k]):
                every = vectors @ queries[cut]
                best = np.lexsort((self._ids, -every))[:k]
                scores[cut, :k], ids[cut, :k] = every[best], self._ids[best]
        return scores[:, :k], ids[:, :k]

    def save(self, path: str | Path) -> None:
        """Write one file, atomically: faiss's own format, followed by ``meta`` as JSON.

        ``faiss.read_index`` reads it too: it ignores what follows its part.

        Raises:
            DataError: when the file cannot be written; an older one stays as it was.
        """
        meta = json.dumps(self.meta).encode()
        try:
            with atomic_path(path) as part:
                faiss.write_index(self._store, str(part))
                with open(part, "ab") as file:
                    file.write(meta + TAIL.pack(len(meta), MAGIC))
        except (OSError, RuntimeError) as error:  # faiss reports a full disk as RuntimeError
            raise DataError(
                f"cannot write the index {path} ({error})", "Check the folder and its free space."
            ) from error

    @classmethod
    def load(cls, path: str | Path, backend: str = "auto") -> Index:
        """Read what ``save`` wrote. Raises DataError, naming the file, if absent or damaged."""
        try:
            meta = _read_meta(Path(path))
            store = faiss.read_index(str(path))
            flat = faiss.downcast_index(store.index) if hasattr(store, "id_map") else None
            if not isinstance(flat, faiss.IndexFlatIP):
                raise ValueError("not an exact inner-product index with ids")
        except (OSError, RuntimeError, MemoryError, ValueError) as error:
            raise DataError(
                f"{path} is not a saved index, or it is damaged ({error})",
                "Delete it and build the index again.",
            ) from error
        index = cls(store.d, backend, meta)
        index._store, index._ids = store, faiss.vector_to_array(store.id_map)
        return index

    def _vectors(self) -> np.ndarray:
        """``(N, dim)`` view of faiss's own memory, so that torch needs no second copy."""
        flat = faiss.downcast_index(self._store.index)
        return faiss.rev_swig_ptr(flat.get_xb(), len(self) * self.dim).reshape(len(self), self.dim)

    def _way(self, n_queries: int) -> str:
        """The backend for this many queries."""
        if self.backend != "auto":
            return self.backend
        worth = n_queries >= MANY and n_queries * len(self) * self.dim >= WORTH_MEASURING
        return fastest_backend() if worth else "torch"

    def _checked(self, vectors: np.ndarray, what: str) -> np.ndarray:
        vectors = np.require(vectors, np.float32, ["C", "W"])  # torch wants both
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise DataError(
                f"{what} of shape {vectors.shape} for an index of {self.dim} dimensions",
                f"Pass shape (n, {self.dim}), from the same model and pooling.",
            )
        if not np.isfinite(vectors).all():
            raise DataError(
                f"{what} hold NaN or infinite values", "Find the image that they come from."
            )
        return vectors


def _read_meta(path: Path) -> dict[str, str]:
    """The JSON at the end of a saved index. ValueError when the file does not end as it should."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL.size))
        tail = file.read()
        length, magic = TAIL.unpack(tail) if len(tail) == TAIL.size else (0, b"")
        if magic != MAGIC or length > size - TAIL.size:
            raise ValueError("its end is missing")
        file.seek(size - TAIL.size - length)
        return json.loads(file.read(length))
