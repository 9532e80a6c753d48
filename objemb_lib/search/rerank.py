"""Ranking again: a short list by its exact vectors, or everything by who is near whom.

Query expansion, which changes vectors, is in :mod:`whitening`.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from objemb_lib.config import DataError
from objemb_lib.search.index import Found, Index, in_order


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


def k_reciprocal(
    vectors: np.ndarray,
    queries: np.ndarray,
    gallery: np.ndarray,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
) -> np.ndarray:
    """``(Q, G)`` scores: two images are alike if they have the same reciprocal neighbours.

    ``(1 - weight) d_J + weight d``, negated: d is 1 - cosine, d_J the Jaccard distance of the
    two images' sets of k-reciprocal neighbours (each among the other's k1 best), enlarged by those
    of their members, soft by ``exp(-d)``, and averaged over each image's k2 best. For
    :func:`metrics.evaluate_scores`; holds ``(N, N)`` cosines.

    Args:
        vectors: ``(N, D)``, L2-normalised. queries: ``(Q,)`` rows. gallery: ``(G,)`` rows.
        k1: neighbours, the image itself not counted. k2: that are averaged, itself counted.
        weight: of the plain distance; 1 is no re-ranking.
    Raises:
        DataError: k1 or k2 below 1, or a weight outside 0 to 1.
    Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, 2017,
    sections 3.2 to 3.5. Its authors' code divides distances by their largest; here they stay.
    """
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        problem = f"k-reciprocal re-ranking with k1={k1}, k2={k2}, weight={weight}"
        raise DataError(problem, "Use k1 and k2 of at least 1 and a weight from 0 to 1.")
    cosines = np.asarray(vectors, np.float32) @ np.asarray(vectors, np.float32).T
    np.fill_diagonal(cosines, 2)  # each is its own first neighbour, even among copies
    nearest = np.argsort(-cosines, axis=1, kind="stable")
    np.fill_diagonal(cosines, 1)
    wide, narrow = (_related(nearest[:, : k + 1]) for k in (k1, round(k1 / 2)))
    wide, narrow = (some.multiply(some.T).tocsr() for some in (wide, narrow))  # each other's
    # Members whose own sets lie to two thirds within this one bring theirs in (section 3.2).
    shared = (wide @ narrow.T).multiply(wide).tocoo()
    inside = 3 * shared.data >= 2 * narrow.sum(axis=1)[shared.col]
    invited = sparse.csr_array(
        (np.ones(inside.sum()), (shared.row[inside], shared.col[inside])), wide.shape
    )
    members = (wide + invited @ narrow).tocoo()
    near = np.exp(cosines[members.row, members.col] - 1.0)
    soft = sparse.csr_array((near, (members.row, members.col)), wide.shape)
    soft = _related(nearest[:, :k2]) @ soft / min(k2, len(cosines))
    plain = 1 - cosines[np.ix_(queries, gallery)]
    return -((1 - weight) * _jaccard(soft, queries, gallery) + weight * plain)


def _related(nearest: np.ndarray) -> sparse.csr_array:
    """``(N, N)``: 1 where the column is among the row's ``(N, k)`` nearest."""
    rows = np.repeat(np.arange(len(nearest)), nearest.shape[1])
    return sparse.csr_array((np.ones(nearest.size), (rows, nearest.ravel())), (len(nearest),) * 2)


def _jaccard(soft: sparse.csr_array, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """``1 - sum min / sum max`` of soft sets (section 3.3)."""
    sums, searched = soft.sum(axis=1), soft[gallery].tocsc()
    found = np.empty((len(queries), len(gallery)))
    for row, query in enumerate(queries):
        asked = soft[[query]]
        columns = searched[:, asked.indices]
        least = np.minimum(columns.data, np.repeat(asked.data, np.diff(columns.indptr)))
        smaller = np.bincount(columns.indices, least, len(gallery))
        found[row] = 1 - smaller / (sums[query] + sums[gallery] - smaller)
    return found
