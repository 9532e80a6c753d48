"""Families of faiss that :mod:`index` can use: each keeps ids and can lose vectors."""

from __future__ import annotations

import faiss
import numpy as np

from objemb_lib.config import DataError

SUPPORTED = (faiss.IndexFlatCodes, faiss.IndexIVF, faiss.IndexHNSW)
REMOVED = -1  # the id of what a graph cannot take out
LIVING = faiss.IDSelectorRange(0, np.iinfo(np.int64).max)


def new_store(dim: int, factory: str) -> faiss.Index:
    """An empty index of faiss that keeps ids: lists do by themselves, the others in a table."""
    try:
        store = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not isinstance(core_of(store), faiss.IndexIVF):
            store = faiss.index_factory(dim, f"IDMap,{factory}", faiss.METRIC_INNER_PRODUCT)
        core = core_of(store)
        if hasattr(core, "do_polysemous_training"):  # a minute for a search nobody asks for here
            core.do_polysemous_training = False
        if "IDMap" not in factory and isinstance(core, SUPPORTED):
            return store
        why = "it cannot keep ids and remove vectors"
    except RuntimeError as error:
        why = reason(error)
    raise DataError(
        f"no index {factory!r} of {dim} dimensions ({why})",
        "Use e.g. Flat, SQ8, HNSW32, IVF256,Flat or OPQ16,IVF256,PQ16 (16 divides dim).",
    )


def core_of(store: faiss.Index) -> faiss.Index:
    """What does the work, below the table of ids and any rotation of the vectors."""
    store = faiss.downcast_index(store)
    if isinstance(store, (faiss.IndexIDMap, faiss.IndexPreTransform)):
        return core_of(store.index)
    return store


def ids_of(store: faiss.Index) -> np.ndarray:
    """Ids of an index of faiss, row by row, or list by list."""
    core = core_of(store)
    if not isinstance(core, faiss.IndexIVF):
        return faiss.vector_to_array(store.id_map)
    lists = core.invlists
    sizes = [(n, lists.list_size(n)) for n in range(lists.nlist)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(n), size).copy() for n, size in sizes if size]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def reason(error: RuntimeError) -> str:
    """What faiss says, without its C++ signature."""
    return str(error).rpartition("Error: ")[2].strip() or str(error)
