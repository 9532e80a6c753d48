"""Ranking again: a short list by its exact vectors, or everything by who is near whom.

:func:`k_reciprocal` and :func:`diffusion` give ``(Q, G)`` scores for
:func:`metrics.evaluate_scores`, higher is better. The images are those of one data set: ``vectors``
hold them all, ``queries`` and ``gallery`` say by their rows which ask and which are searched; an
image may do both. Query expansion, which changes vectors, is in :mod:`whitening`.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from objemb_lib.config import DataError
from objemb_lib.search.index import Found, Index, in_order

PAIRS = 1 << 14  # of vectors that are compared at once

Sparse = sparse.csr_array


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
    """Two images are alike if they have the same reciprocal neighbours.

    ``(1 - weight) d_J + weight d``, negated: d is 1 - cosine, d_J the Jaccard distance of the
    two images' sets of k-reciprocal neighbours (each among the other's k1 best), enlarged by those
    of their members, soft by ``exp(-d)``, and averaged over each image's k2 best.

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
        raise DataError(
            f"k-reciprocal re-ranking with k1={k1}, k2={k2}, weight={weight}",
            "Use k1 and k2 of at least 1 and a weight from 0 to 1.",
        )
    vectors = np.asarray(vectors, np.float32)
    nearest = neighbours(vectors, max(k1, k2 - 1))
    wide, narrow = (_reciprocal(_relation(nearest[:, : k + 1])) for k in (k1, round(k1 / 2)))
    # Members whose own sets lie to two thirds within this one bring theirs in (section 3.2).
    shared = (wide @ narrow.T).multiply(wide).tocoo()
    sizes = narrow.sum(axis=1)
    inside = 3 * shared.data >= 2 * sizes[shared.col]
    invited = sparse.csr_array(
        (np.ones(inside.sum()), (shared.row[inside], shared.col[inside])), wide.shape
    )
    members = (wide + invited @ narrow).tocoo()
    near = np.exp(_cosines(vectors, members.row, members.col) - 1)
    soft = sparse.csr_array((near, (members.row, members.col)), wide.shape)
    soft = _relation(nearest[:, :k2]) @ soft / min(k2, len(vectors))
    plain = 1 - vectors[queries] @ vectors[gallery].T
    return -((1 - weight) * _jaccard(soft, queries, gallery) + weight * plain)


def diffusion(
    vectors: np.ndarray,
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int = 20,
    start: int = 5,
    alpha: float = 0.99,
    gamma: float = 3.0,
) -> np.ndarray:
    """Where a random walk on the gallery's graph of neighbours goes that starts at the query.

    Solves ``(I - alpha S) f = y`` by conjugate gradients; S is the normalised graph of mutual
    k nearest neighbours, weighted ``cos^gamma``, and y the query's weights to its ``start`` best
    gallery images, among them itself if it is there. Images that no walk reaches follow by
    plain similarity.

    Args:
        vectors: ``(N, D)``, L2-normalised. queries: ``(Q,)`` rows. gallery: ``(G,)`` rows.
        alpha: how far the walk goes, below 1.
    Raises:
        DataError: k or ``start`` below 1, or alpha outside 0 to 1.
    Source: Iscen et al., Efficient Diffusion on Region Manifolds, 2017, sections 3 and 4, on whole
    images. Yang et al., Efficient Image Retrieval via Decoupling Diffusion into Online and Offline
    Processing, 2019, solve the same system for each gallery image before anybody asks.
    """
    if k < 1 or start < 1 or not 0 <= alpha < 1:
        raise DataError(
            f"diffusion with k={k}, start={start}, alpha={alpha}",
            "Use k and start of at least 1 and alpha from 0 to below 1.",
        )
    vectors = np.asarray(vectors, np.float32)
    searched = vectors[gallery]
    system = sparse.eye_array(len(searched)) - alpha * _walk(searched, k, gamma)
    plain = vectors[queries] @ searched.T
    best = np.argsort(-plain, axis=1, kind="stable")[:, :start]
    scores = np.empty_like(plain, np.float64)
    for row, (cosines, first) in enumerate(zip(plain, best)):
        y = np.zeros(len(searched))
        y[first] = np.maximum(cosines[first], 0) ** gamma
        reached, _ = cg(system, y, rtol=1e-6)
        scores[row] = np.where(reached != 0, reached, cosines - 2)  # CG keeps to what it can reach
    return scores


def neighbours(vectors: np.ndarray, k: int) -> np.ndarray:
    """``(N, k + 1)`` rows of the nearest vectors, each itself first; fewer if there are fewer."""
    index = Index(vectors.shape[1])
    index.add(vectors)
    _, found = index.search(vectors, k + 1)
    # A copy of an image may come before it: put it first, in place of what would be too many.
    at = found == np.arange(len(vectors))[:, None]
    at[~at.any(axis=1), -1] = True
    order = np.argsort(~at, axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    found[:, 0] = np.arange(len(vectors))
    return found


def _relation(nearest: np.ndarray) -> Sparse:
    """``(N, N)``: 1 where the column is among the row's nearest."""
    rows = np.repeat(np.arange(len(nearest)), nearest.shape[1])
    return sparse.csr_array((np.ones(nearest.size), (rows, nearest.ravel())), (len(nearest),) * 2)


def _reciprocal(relation: Sparse) -> Sparse:
    """1 where each is among the other's nearest."""
    return relation.multiply(relation.T).tocsr()


def _cosines(vectors: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosine of each pair, some at a time."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS):
        part = slice(start, start + PAIRS)
        found[part] = np.einsum("nd,nd->n", vectors[rows[part]], vectors[columns[part]])
    return found


def _jaccard(soft: Sparse, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
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


def _walk(vectors: np.ndarray, k: int, gamma: float) -> Sparse:
    """``D^-1/2 A D^-1/2`` of the mutual nearest neighbours' weights ``max(cos, 0)^gamma``."""
    mutual = _reciprocal(_relation(neighbours(vectors, k))).tocoo()
    apart = mutual.row != mutual.col
    rows, columns = mutual.row[apart], mutual.col[apart]
    weights = np.maximum(_cosines(vectors, rows, columns), 0) ** gamma
    degree = np.bincount(rows, weights, len(vectors)).astype(float)  # of no pairs: integers
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    return sparse.csr_array(
        (weights * scale[rows] * scale[columns], (rows, columns)), (len(vectors),) * 2
    )
