"""Index: search for the gallery vectors with the largest inner product, exact or approximate.

On L2-normalised vectors the inner product is the cosine similarity. One class stands before all
families of faiss, chosen by faiss's own *factory strings*:

- ``"Flat"``: exact, every vector in full; see :mod:`exact`;
- ``"SQ8"``: exhaustive, a byte a dimension;
- ``"IVF256,Flat"``: 256 lists, of which a search reads ``nprobe``;
- ``"OPQ16,IVF256,PQ16"``: lists of product-quantised codes of 16 bytes, after a rotation;
- ``"HNSW32"``: a graph of near neighbours.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import faiss
import numpy as np

from objemb_lib.cache import atomic_path
from objemb_lib.config import DataError
from objemb_lib.embed.trunks import Trunk
from objemb_lib.search.exact import BACKENDS, Found, exact_search, fastest_backend, in_order
from objemb_lib.search.families import LIVING, REMOVED, core_of, ids_of, new_store, reason

__all__ = ["Index", "fastest_backend", "provenance", "recall", "rerank"]

TAIL = struct.Struct("<Q8s")  # length of the JSON, magic; ends every saved file
MAGIC = b"objemb-1"
FACTORY = "factory"  # its key in that JSON
MMAP, MMAP_LISTS = faiss.IO_FLAG_MMAP_IFC, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY


def provenance(trunk: Trunk, size: int, pair: tuple[str, str], region: str = "") -> dict[str, str]:
    """What an index must know of its vectors, to refuse those of another model.

    Args:
        trunk: the network. size: side in pixels of what it saw. pair: (stage, pooling).
        region: how objects were cut out, if that matters.
    """
    return {
        "trunk": trunk.name,
        "weights": trunk.fingerprint(),
        "size": str(size),
        "stage": pair[0],
        "pooling": pair[1],
        "region": region,
    }


class Index:
    """Inner-product search over ``(N, dim)`` float32 vectors with int64 ids of 0 or more.

    An exact index has two backends with the same neighbours, and the same scores up to rounding.
    Equal scores are ordered by id.

    Args:
        dim: dimension of the vectors.
        backend: of exact search, "torch", "faiss" or "auto": the faster one on this machine.
        meta: strings to keep with the vectors, e.g. :func:`provenance`.
        factory: the family, a factory string of faiss.
    Raises:
        DataError: for an unknown backend or family.

    >>> index = Index(dim=2, meta={"trunk": "toy"})
    >>> index.add([[1, 0], [0, 1], [0.6, 0.8]], ids=[10, 11, 12])
    >>> scores, ids = index.search([[1, 0]], k=2)
    >>> ids, scores
    (array([[10, 12]]), array([[1. , 0.6]], dtype=float32))
    """

    def __init__(
        self,
        dim: int,
        backend: str = "auto",
        meta: Mapping[str, str] | None = None,
        factory: str = "Flat",
    ) -> None:
        if backend not in BACKENDS:
            raise DataError(f"no search backend {backend!r}", f"Use one of {', '.join(BACKENDS)}.")
        self.dim, self.backend, self.meta, self.factory = dim, backend, dict(meta or {}), factory
        self.read_only = False
        self._take(new_store(dim, factory))

    def _take(self, store: faiss.Index) -> None:
        """Look at what the store holds, after any change of it."""
        self._store = store
        self._ids = ids_of(store)  # (rows,), REMOVED where a graph keeps what is gone
        self._by_id: tuple[np.ndarray, np.ndarray] | None = None  # made when asked for
        self._n = int(np.count_nonzero(self._ids != REMOVED))

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        how = f"backend={self.backend!r}" if self.exact else f"factory={self.factory!r}"
        return f"Index({len(self)} vectors of {self.dim} dimensions, {how})"

    @property
    def exact(self) -> bool:
        """Whether every vector is kept in full and looked at."""
        kept = self._store.index if isinstance(self._store, faiss.IndexIDMap) else self._store
        return isinstance(faiss.downcast_index(kept), faiss.IndexFlat)

    @property
    def trained(self) -> bool:
        """Whether it can take vectors; lists and codes must be trained first."""
        return self._store.is_trained

    @property
    def n_bytes(self) -> int:
        """Bytes of vectors or codes, ids, lists and graph, in memory and as saved."""
        sizes: list[int] = []
        faiss.write_index(
            self._store, faiss.PyCallbackIOWriter(lambda part: sizes.append(len(part)))
        )
        return sum(sizes)

    def require(self, meta: Mapping[str, str]) -> None:
        """Raise DataError unless the index says the same of its vectors, see :func:`provenance`."""
        for key, value in meta.items():
            if (own := self.meta.get(key)) != value:
                raise DataError(
                    f"the index is of another model: its {key} is {own!r}, not {value!r}",
                    "Search with vectors of its own model, or build the index again.",
                )

    def train(self, vectors: np.ndarray, at_most: int = 100_000, seed: int = 0) -> None:
        """Learn lists and codes from ``(n, dim)`` vectors, of which ``at_most`` are drawn.

        Does nothing where the family has nothing to learn.

        Raises:
            DataError: too few vectors, or as for :meth:`add`; or there are vectors already.
        """
        vectors = self._checked(vectors, "training vectors")
        self._check_writable()
        if len(self):
            raise DataError(f"{self} holds vectors already", "Train a new Index, then add them.")
        rows = np.random.default_rng(seed).permutation(len(vectors))[:at_most]
        try:
            self._store.train(vectors[np.sort(rows)])
        except RuntimeError as error:
            raise DataError(
                f"{len(rows)} vectors cannot train {self.factory!r} ({reason(error)})",
                "Pass more vectors: some 40 a list, 10,000 for codes; or use fewer lists.",
            ) from error

    def tune(self, settings: str) -> Index:
        """Say how hard a search looks, in faiss's words: ``"nprobe=16"`` of the lists,
        ``"efSearch=64"`` of a graph. Is saved with the index, which is returned.

        Raises:
            DataError: the family has no such setting.
        """
        try:
            faiss.ParameterSpace().set_index_parameters(self._store, settings)
        except RuntimeError as error:
            raise DataError(
                f"{self.factory!r} has no setting {settings!r}",
                "Use nprobe= for IVF, efSearch= for HNSW; the others have none.",
            ) from error
        return self

    def add(self, vectors: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Add ``(n, dim)`` vectors under ``(n,)`` ids; by default those after the highest.

        Raises:
            DataError: not trained, read only, wrong shape, a NaN or infinity, a vector of zeros,
                or an id that is there already. Then nothing is added.
        """
        vectors = self._checked(vectors, "vectors")
        self._check_writable()
        if not self.trained:
            raise DataError(f"{self.factory!r} is not trained", "Call train(sample) first.")
        start = int(self._ids.max(initial=-1)) + 1
        new = _checked_ids(np.arange(start, start + len(vectors)) if ids is None else ids)
        if len(new) != len(vectors):
            raise DataError(
                f"{len(vectors)} vectors but {len(new)} ids", "Pass one integer id per vector."
            )
        if again := sorted(set(new[np.isin(new, self._ids)].tolist()))[:3]:
            raise DataError(f"ids given twice, e.g. {again}", "Remove the old vectors first.")
        self._store.add_with_ids(vectors, new)
        self._take(self._store)

    def remove(self, ids: np.ndarray) -> None:
        """Take vectors out by their ids; the others keep theirs.

        A graph cannot lose a node: it goes on leading searches, and is never found.

        Raises:
            DataError: read only, or an id that is not there. Then nothing is removed.
        """
        gone = _checked_ids(ids)
        self._check_writable()
        rows = self._rows(gone)
        core = core_of(self._store)
        if isinstance(core, faiss.IndexHNSW):
            self._ids[rows] = REMOVED
            faiss.copy_array_to_vector(self._ids, self._store.id_map)
        else:
            if isinstance(core, faiss.IndexIVF):
                core.set_direct_map_type(faiss.DirectMap.NoMap)  # made again when asked for
            self._store.remove_ids(faiss.IDSelectorBatch(gone))
        self._take(self._store)

    def search(self, queries: np.ndarray, k: int) -> Found:
        """The k best vectors for each query, best first.

        Args:
            queries: ``(Q, dim)``.
            k: neighbours per query, >= 1; with fewer than k vectors there are len(self) columns.
        Returns:
            scores ``(Q, min(k, N))`` float32 and ids of the same shape, int64. Where an
            approximate search saw fewer than that: score -inf, id -1.
        Raises:
            DataError: empty index, wrong shape, a NaN or infinity, zeros, or k < 1.
        """
        queries = self._checked(queries, "queries")
        if not len(self) or k < 1:
            raise DataError(f"search for {k} of {len(self)} vectors", "Add vectors; use k >= 1.")
        k = min(k, len(self))
        if not len(queries):
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        if self.exact:
            return exact_search(self._flat(), self._ids, queries, k, self.backend)
        scores, ids = self._store.search(queries, k, params=self._without_removed())
        return in_order(np.where(ids < 0, -np.inf, scores).astype(np.float32), ids)

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """``(n, dim)`` vectors of ids as the index knows them: exact, or decoded from codes.

        Raises:
            DataError: an id that is not there.
        """
        asked = _checked_ids(ids)
        rows = self._rows(asked)
        if not isinstance(core := core_of(self._store), faiss.IndexIVF):
            return self._store.index.reconstruct_batch(rows)
        if core.direct_map.no():  # from id to place, made once
            core.set_direct_map_type(faiss.DirectMap.Hashtable)
        return self._store.reconstruct_batch(asked)

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        """Where ids stand in ``_ids``. Raises DataError for one that is not there."""
        if self._by_id is None:
            order = np.argsort(self._ids, kind="stable")
            self._by_id = order, np.append(self._ids[order], REMOVED)  # so that a place past
        order, known = self._by_id  # the end holds no id either
        places = np.searchsorted(known[:-1], ids)
        if len(absent := ids[known[places] != ids]):
            raise DataError(f"no vectors of the ids {absent[:3].tolist()}", "Name ids it holds.")
        return order[places]

    def save(self, path: str | Path) -> None:
        """Write one file, atomically: faiss's own format, followed by ``meta`` as JSON.

        ``faiss.read_index`` reads it too: it ignores what follows its part.

        Raises:
            DataError: read only, or the file cannot be written; an older one stays as it was.
        """
        self._check_writable()
        meta = json.dumps(self.meta | {FACTORY: self.factory}).encode()
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
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        meta: Mapping[str, str] | None = None,
        mmap: bool = False,
    ) -> Index:
        """Read what ``save`` wrote.

        Args:
            meta: what the vectors to come are made by, see :meth:`require`.
            mmap: leave vectors and lists on the disk, where the system reads what a search needs
                and shares it between processes. Such an index can only be searched.
        Raises:
            DataError: absent, damaged, or of another model; names the file.
        """
        try:
            known = _read_meta(Path(path))
            factory = known.pop(FACTORY, "Flat")
            store = faiss.read_index(str(path), (MMAP_LISTS if "IVF" in factory else MMAP) * mmap)
            if store.metric_type != faiss.METRIC_INNER_PRODUCT:
                raise ValueError("its scores are distances, not inner products")
            index = cls(store.d, backend, known, factory)
            index._take(store)
            index.read_only = mmap
        except (OSError, RuntimeError, MemoryError, ValueError, DataError) as error:
            raise DataError(
                f"{path} is not a saved index, or it is damaged ({error})",
                "Delete it and build the index again.",
            ) from error
        index.require(meta or {})
        return index

    def _flat(self) -> np.ndarray:
        """``(N, dim)`` view of faiss's own memory, so that torch needs no second copy."""
        flat = faiss.downcast_index(self._store.index)
        return faiss.rev_swig_ptr(flat.get_xb(), len(self) * self.dim).reshape(len(self), self.dim)

    def _without_removed(self) -> faiss.SearchParameters | None:
        """What hides a graph's removed nodes, if it has any."""
        core = core_of(self._store)
        if core.ntotal == len(self) or not isinstance(core, faiss.IndexHNSW):
            return None
        return faiss.SearchParametersHNSW(sel=LIVING, efSearch=core.hnsw.efSearch)

    def _check_writable(self) -> None:
        if self.read_only:
            raise DataError(
                f"{self} lies on the disk and can only be searched", "Load it without mmap."
            )

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
        if len(zero := np.flatnonzero(~vectors.any(axis=1))):
            raise DataError(
                f"{what} of zeros, e.g. row {zero[0]}: they are like nothing",
                "Leave them out; find the image, box or mask that they come from.",
            )
        return vectors


def recall(ids: np.ndarray, true_ids: np.ndarray) -> float:
    """Share of the true ``(Q, k)`` neighbours that are among the ``(Q, k)`` found: recall@k.

    >>> recall(np.array([[4, 2]]), np.array([[2, 3]]))
    0.5
    """
    return float(np.mean([np.isin(true, found).mean() for found, true in zip(ids, true_ids)]))


def rerank(queries: np.ndarray, ids: np.ndarray, exact: Index, k: int) -> Found:
    """The k best of a short list, by the exact vectors.

    Args:
        queries: ``(Q, dim)``. ids: ``(Q, R)`` of a search for R > k by codes; -1 is nothing.
        exact: an exact index of the same ids, on the disk perhaps (``load(..., mmap=True)``).
    Returns:
        scores and ids, ``(Q, min(k, R))``, as of :meth:`Index.search`.
    Source: Jegou et al., Searching in One Billion Vectors: Re-rank with Source Coding, 2011.
    """
    known = np.unique(ids[ids >= 0])
    vectors, places = exact.vectors(known), np.searchsorted(known, ids)
    scores = np.full(ids.shape, -np.inf, np.float32)
    for line, query, there, place in zip(scores, np.asarray(queries), ids >= 0, places):
        line[there] = vectors[place[there]] @ query
    scores, ids = in_order(scores, ids)
    return scores[:, :k], ids[:, :k]


def _checked_ids(ids: np.ndarray) -> np.ndarray:
    """``(n,)`` int64. Raises DataError unless they are whole numbers of 0 or more, each once."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or not (ids.size == 0 or np.can_cast(ids.dtype, np.int64)):
        raise DataError(
            f"ids of shape {ids.shape}, type {ids.dtype}", "Pass one integer id per vector."
        )
    ids = ids.astype(np.int64)
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any() or (values < 0).any():
        wrong = values[(counts > 1) | (values < 0)][:3].tolist()
        raise DataError(f"ids given twice, or negative, e.g. {wrong}", "Use ids >= 0, each once.")
    return ids


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
