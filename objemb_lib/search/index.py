"""Index: search for the gallery vectors with the largest inner product, exact or approximate.

On L2-normalised vectors the inner product is the cosine similarity. One class stands before all
families of faiss, chosen by faiss's own *factory strings*:

- ``"Flat"``: exact, every vector in full;
- ``"SQ8"``: exhaustive, a byte a dimension;
- ``"IVF256,Flat"``: 256 lists, of which a search reads ``nprobe``;
- ``"OPQ16,IVF256,PQ16"``: lists of product-quantised codes of 16 bytes, after a rotation;
- ``"HNSW32"``: a graph of near neighbours.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import faiss
import numpy as np
import pandas as pd
import torch
from numpy.lib.npyio import NpzFile

from objemb_lib.cache import atomic_path
from objemb_lib.config import DataError
from objemb_lib.embed.trunks import Trunk
from objemb_lib.measure.metrics import as_floats

MMAP, MMAP_LISTS = faiss.IO_FLAG_MMAP_IFC, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
EFFORT = 100  # candidates while a graph is built: faiss's own 40 save a third of the time to build,
# and make a search of recall 0.95 take three times as long (100,000 grown vectors)
faiss.cvar.product_quantizer_compute_codes_bs = 10_000  # vectors, of 8 KB each while coded as PQ8
SCORES = 1 << 24  # that are held at a time
AT_ONCE = 1024  # queries

Found = tuple[np.ndarray, np.ndarray]  # scores and ids, both (Q, k), best first


def provenance(trunk: Trunk, size: int, pair: tuple[str, str], region: str = "") -> dict[str, str]:
    """What an index must know of its vectors, to refuse those of another model.

    Args:
        trunk: the network. size: side in pixels of what it saw. pair: (stage, pooling).
        region: how objects were cut out, if that matters.
    """
    return {"trunk": trunk.name, "weights": trunk.fingerprint(), "size": str(size),
            "stage": pair[0], "pooling": pair[1], "region": region}  # fmt: skip


class Index:
    """Inner-product search over ``(N, dim)`` float32 vectors with int64 ids of 0 or more.

    Equal scores are ordered by id, of an exact index also where k cuts through them.

    Args:
        dim: dimension of the vectors.
        meta: strings to keep with the vectors, e.g. :func:`provenance`.
        factory: the family, a factory string of faiss.
    Raises:
        RuntimeError: faiss knows no such family.

    >>> index = Index(dim=2, meta={"trunk": "toy"})
    >>> index.add([[1, 0], [0, 1], [0.6, 0.8]], ids=[10, 11, 12])
    >>> scores, ids = index.search([[1, 0]], k=2)
    >>> ids, scores
    (array([[10, 12]]), array([[1. , 0.6]], dtype=float32))
    """

    def __init__(
        self, dim: int, meta: Mapping[str, str] | None = None, factory: str = "Flat"
    ) -> None:
        self.dim, self.meta, self.factory = dim, dict(meta or {}), factory
        self.read_only = False
        # "np": no polysemous codes, a minute of training for a search that nobody asks for here.
        known = re.sub(r"\bPQ\d+(x\d+)?\b", r"\g<0>np", factory)
        store = faiss.index_factory(dim, known, faiss.METRIC_INNER_PRODUCT)
        if factory.startswith("HNSW"):
            faiss.ParameterSpace().set_index_parameter(store, "efConstruction", EFFORT)
        lists = faiss.try_extract_index_ivf(store)  # they keep ids by themselves, others in a table
        self._take(store if lists else faiss.IndexIDMap(store))

    def _take(self, store: faiss.Index) -> None:
        """Look at all that a store holds."""
        self._store, self._lists = store, faiss.try_extract_index_ivf(store)
        self._highest = int(self._ids().max(initial=-1))
        self._known: pd.Index | None = None  # row by row, once somebody asks for an id

    def __len__(self) -> int:
        return self._store.ntotal

    def __repr__(self) -> str:
        return f"Index({len(self)} vectors of {self.dim} dimensions, factory={self.factory!r})"

    @property
    def n_bytes(self) -> int:
        """Bytes of vectors or codes, ids, lists and graph, in memory and as saved."""
        return faiss.serialize_index(self._store).nbytes

    def train(self, vectors: np.ndarray, at_most: int = 100_000, seed: int = 0) -> None:
        """Learn lists and codes from ``(n, dim)`` vectors, of which ``at_most`` are drawn.

        Does nothing where the family has nothing to learn.

        Raises:
            DataError: as for :meth:`add`; or there are vectors already. RuntimeError: too few.
        """
        vectors = checked(vectors, self.dim)
        self._check_writable()
        if len(self):
            raise DataError(f"{self} holds vectors already", "Train a new Index, then add them.")
        rows = np.random.default_rng(seed).permutation(len(vectors))[:at_most]
        self._store.train(vectors[np.sort(rows)])

    def tune(self, settings: str) -> Index:
        """Say how hard a search looks, in faiss's words: ``"nprobe=16"`` of the lists,
        ``"efSearch=64"`` of a graph. Is saved with the index, which is returned.

        Raises:
            RuntimeError: the family has no such setting.
        """
        faiss.ParameterSpace().set_index_parameters(self._store, settings)
        return self

    def add(self, vectors: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Add ``(n, dim)`` vectors under ``(n,)`` ids; by default those after the highest.

        Costs what is added; with ids below the highest, a pass over those that are there, too.

        Raises:
            DataError: not trained, read only, wrong shape, a NaN or infinity, a vector of zeros,
                or an id that is there already. Then nothing is added.
        """
        vectors = checked(vectors, self.dim)
        self._check_writable()
        if not self._store.is_trained:
            raise DataError(f"{self.factory!r} is not trained", "Call train(sample) first.")
        first = self._highest + 1
        new = _checked_ids(np.arange(first, first + len(vectors)) if ids is None else ids)
        if len(new) != len(vectors):
            raise DataError(f"{len(vectors)} vectors but {len(new)} ids", "Pass one id a vector.")
        if (new < first).any() and len(again := new[self._rows(new) >= 0]):
            raise DataError(f"ids given twice, e.g. {again[:3]}", "Remove the old vectors first.")
        self._store.add_with_ids(vectors, new)
        self._highest, self._known = max(self._highest, new.max(initial=-1)), None

    def remove(self, ids: np.ndarray) -> None:
        """Take vectors out by their ids; the others keep theirs. Costs a pass over all there are.

        Raises:
            DataError: read only, a graph, which cannot lose a node, or an id that is not there.
                Then nothing is removed.
        """
        gone = _checked_ids(ids)
        self._check_writable()
        self._rows(gone, all_there=True)
        if self._lists:
            self._lists.set_direct_map_type(faiss.DirectMap.NoMap)  # made again when asked for
        try:
            self._store.remove_ids(faiss.IDSelectorBatch(gone))
        except RuntimeError as error:
            remedy = "Make a new one without them, or use lists."
            raise DataError(f"{self.factory} cannot lose vectors", remedy) from error
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
        queries = checked(queries, self.dim)
        if not len(self) or k < 1:
            raise DataError(f"search for {k} of {len(self)} vectors", "Add vectors; use k >= 1.")
        k = min(k, len(self))
        if self.factory == "Flat" and len(queries):
            return self._exact(queries, k)
        scores, ids = self._store.search(queries, k)
        return in_order(np.where(ids < 0, -np.inf, scores).astype(np.float32), ids)

    def _exact(self, queries: np.ndarray, k: int) -> Found:
        """All products; equal scores in order of id, also where k cuts through them."""
        wanted = min(k + 1, len(self))  # one more than asked shows whether it does
        gallery, ids = self._flat(), self._ids()
        parts = [queries[i : i + AT_ONCE] for i in range(0, len(queries), AT_ONCE)]
        scores, rows = _joined([_best(gallery, some, wanted) for some in parts], axis=0)
        equal, found = scores[:, 1:] == scores[:, :-1], ids[rows]
        if not equal.any():
            return scores[:, :k], found[:, :k]
        scores, found = in_order(scores, found)
        for line in np.flatnonzero(equal[:, k - 1 :].any(axis=1)):
            every = gallery @ queries[line]
            order = np.lexsort((ids, -every))[:k]
            scores[line, :k], found[line, :k] = every[order], ids[order]
        return scores[:, :k], found[:, :k]

    def _flat(self) -> np.ndarray:
        """``(N, dim)``: the store's own memory."""
        flat = faiss.downcast_index(self._store.index)
        return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(-1, flat.d)

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """``(n, dim)`` vectors of ids as the index knows them: exact, or decoded from codes.

        Raises:
            DataError: an id that is not there.
        """
        asked = _checked_ids(ids)
        rows = self._rows(asked, all_there=True)
        if not self._lists:
            return self._store.index.reconstruct_batch(rows)
        if self._lists.direct_map.no():  # from id to place, made once
            self._lists.set_direct_map_type(faiss.DirectMap.Hashtable)
        return self._store.reconstruct_batch(asked)

    def _ids(self) -> np.ndarray:
        """``(N,)`` ids, row by row, or list by list."""
        if not self._lists:
            return faiss.rev_swig_ptr(self._store.id_map.data(), len(self))
        lists = self._lists.invlists
        sizes = [(n, lists.list_size(n)) for n in range(lists.nlist)]
        parts = [faiss.rev_swig_ptr(lists.get_ids(n), size).copy() for n, size in sizes if size]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _rows(self, ids: np.ndarray, all_there: bool = False) -> np.ndarray:
        """The place of each id in :meth:`_ids`, -1 where there is none (DataError if all must)."""
        self._known = pd.Index(self._ids()) if self._known is None else self._known
        rows = self._known.get_indexer(ids)
        if all_there and len(absent := ids[rows < 0]):
            raise DataError(f"no vectors of the ids {absent[:3].tolist()}", "Name ids it holds.")
        return rows

    def save(self, path: str | Path, **tables: np.ndarray) -> None:
        """Write one file, atomically: faiss's own format, followed by ``meta``, a checksum of
        what is before, and tables as npz (which has checksums of its own).

        ``faiss.read_index`` reads it too: it ignores what follows its part.

        Args:
            tables: further arrays for the same file, see :func:`read_tables`.
        Raises:
            DataError: read only. ObjembError: the disk is full; an older file stays as it was.
        """
        self._check_writable()
        known = {"meta": self.meta, "factory": self.factory}
        with atomic_path(path) as part:
            faiss.write_index(self._store, str(part))
            with open(part, "r+b") as file:
                known |= {"bytes": file.seek(0, 2), "crc32": _checksum(file, file.tell())}
                np.savez_compressed(file, meta=np.array(json.dumps(known)), **tables)

    @classmethod
    def load(
        cls, path: str | Path, meta: Mapping[str, str] | None = None, mmap: bool = False
    ) -> Index:
        """Read what ``save`` wrote.

        Args:
            meta: what the vectors to come are made by, see :func:`provenance`.
            mmap: leave vectors and lists on the disk, where the system reads what a search needs
                and shares it between processes. Such an index can only be searched, and its
                checksum is not looked at: that would read it whole.
        Raises:
            DataError: absent, damaged, or of another model; names the file.
        """
        try:
            known = json.loads(str(read_tables(path)["meta"]))
            stated, size = known.pop("crc32", None), known.pop("bytes", 0)  # of older ones: none
            with open(path, "rb") as file:
                if stated is not None and not mmap and stated != _checksum(file, size):
                    raise ValueError("its checksum is another")
            lists = "IVF" in known["factory"]
            store = faiss.read_index(str(path), (MMAP_LISTS if lists else MMAP) * mmap)
            if store.metric_type != faiss.METRIC_INNER_PRODUCT:
                raise ValueError("its scores are distances, not inner products")
            index = cls(store.d, **known)
            index._take(store)
            if (index._ids() < 0).any():  # made by an earlier version
                raise ValueError("its graph hides vectors that were removed")
        except (OSError, RuntimeError, MemoryError, ValueError, KeyError) as error:
            problem = f"{path} is not a saved index, or it is damaged ({error})"
            raise DataError(problem, "Delete it and build the index again.") from error
        index.read_only = mmap
        require(path, index.meta, meta or {})
        return index

    def _check_writable(self) -> None:
        if self.read_only:
            problem = f"{self} lies on the disk and can only be searched"
            raise DataError(problem, "Load it without mmap.")


def checked(vectors: np.ndarray, dim: int) -> np.ndarray:
    """``(n, dim)`` float32. Raises DataError for another shape, a NaN or infinity, zeros, or no
    numbers."""
    with np.errstate(over="ignore"):  # is said below
        vectors = np.require(as_floats(vectors), np.float32, ["C", "W"])  # torch wants both
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        problem = f"vectors of shape {vectors.shape} for an index of {dim} dimensions"
        raise DataError(problem, f"Pass shape (n, {dim}), from the same model and pooling.")
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)  # overflows nowhere
    wrong = np.flatnonzero(~((squares > 0) & np.isfinite(squares)))
    if len(wrong):
        problem = f"vectors {wrong[:3].tolist()} are zero, or hold NaN or infinite values"
        remedy = "Leave them out; find the images, boxes or masks that they come from."
        raise DataError(problem, remedy)
    return vectors


def require(index: object, own: Mapping[str, str], meta: Mapping[str, str]) -> None:
    """Raise DataError unless an index says (``own``) of its vectors all that ``meta`` says."""
    for key, value in meta.items():
        if own.get(key) != value:
            problem = f"{index} is of another model: its {key} is {own.get(key)!r}, not {value!r}"
            remedy = "Search with vectors of its own model, or build the index again."
            raise DataError(problem, remedy)


def _checksum(file: BinaryIO, size: int) -> int:
    """CRC-32 of the first ``size`` bytes; the file then stands after them."""
    found, left = file.seek(0), size
    while left and (some := file.read(min(left, 1 << 24))):
        found, left = zlib.crc32(some, found), left - len(some)
    return found


def read_tables(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays in a file of :meth:`Index.save`. Raises ValueError where their end is missing."""
    try:
        with NpzFile(path) as tables:  # a zip is found from its end, whatever comes before
            return dict(tables)
    except (BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise ValueError(str(error)) from error


def _best(vectors: np.ndarray, queries: np.ndarray, k: int) -> Found:
    """Scores and rows ``(Q, k)`` of the largest products, best first, equal ones in any order.

    Args:
        vectors: ``(N, dim)`` float32, contiguous. queries: ``(Q, dim)`` alike. k: 1 to N.
    """
    rows, found = max(k, SCORES // max(1, len(queries))), []
    for start in range(0, len(vectors), rows):
        # numpy multiplies and torch selects: together faster than either alone, or
        # faiss, but for a few queries of a few thousand vectors (benchmarks/search.py)
        scores = torch.from_numpy(queries @ vectors[start : start + rows].T)
        best, places = torch.topk(scores, min(k, scores.shape[1]))
        found.append((best.numpy(), places.numpy() + start if start else places.numpy()))
    if len(found) == 1:
        return found[0]
    scores, places = _joined(found, axis=1)
    best, order = torch.topk(torch.from_numpy(scores), k)
    return best.numpy(), np.take_along_axis(places, order.numpy(), axis=1)


def _joined(parts: list[Found], axis: int) -> Found:
    """Parts of what was found, as one."""
    if len(parts) == 1:
        return parts[0]
    scores, rows = (np.concatenate(some, axis=axis) for some in zip(*parts))
    return scores, rows


def in_order(scores: np.ndarray, ids: np.ndarray) -> Found:
    """``(Q, k)`` scores and ids, each line by falling score, equal ones by id."""
    order = np.lexsort((ids, -scores))
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def recall(ids: np.ndarray, true_ids: np.ndarray) -> float:
    """Share of the true ``(Q, k)`` neighbours that are among the ``(Q, k)`` found: recall@k.

    >>> recall(np.array([[4, 2]]), np.array([[2, 3]]))
    0.5
    """
    return float(np.mean([np.isin(true, found).mean() for found, true in zip(ids, true_ids)]))


def _checked_ids(ids: np.ndarray) -> np.ndarray:
    """``(n,)`` int64. Raises DataError unless they are whole numbers of 0 or more, each once."""
    ids = np.asarray(ids)
    whole = ids.astype(np.int64)
    if ids.ndim != 1 or (whole != ids).any() or (ids < 0).any() or len(np.unique(ids)) < len(ids):
        raise DataError("ids that are no integers, negative, or given twice", "Use one a vector.")
    return whole
