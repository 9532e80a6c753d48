"""Grow: many object vectors out of few real ones, to try an index at a size nobody has data for.

Gaussian noise would not do: it has no neighbourhoods, so that lists and graphs look worse on it
than they are, and codes as well. What is grown here keeps two properties of held-out real vectors,
which the tests bound: their spectrum, and how far each is from its nearest other.
"""

from __future__ import annotations

import faiss
import numpy as np

from objemb_lib.config import DataError
from objemb_lib.embed.whitening import l2

NEIGHBOURS = 8  # more blur the vectors' clusters, fewer make copies
MIXING = 0.5  # of the Dirichlet weights: below 1, one of the neighbours mostly leads
PART = 4096  # vectors made at a time


def synthetic_vectors(vectors: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """``n`` new vectors that lie among real ones as these lie among each other.

    Each is a random convex mix of a real vector and its eight nearest neighbours (as SMOTE mixes
    two), plus a random part of their differences from their mean (a draw from the local principal
    components). Mixing takes variance away; the second part gives back as much as was taken,
    in the same directions, so that the covariance stays that of the neighbourhoods.

    Args:
        vectors: ``(N, D)``, real ones, L2-normalised.
    Returns:
        ``(n, D)`` float32, L2-normalised.
    Raises:
        DataError: fewer than nine vectors.
    Source: the mix is after Chawla et al., SMOTE: Synthetic Minority Over-sampling Technique, 2002.
    """
    vectors, k = np.ascontiguousarray(vectors, np.float32), NEIGHBOURS
    if len(vectors) <= k:
        raise DataError(f"{len(vectors)} vectors to grow from", f"Pass more than {k}.")
    rng = np.random.default_rng(seed)
    _, near = faiss.knn(vectors, vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT)  # and itself
    grown = np.empty((n, vectors.shape[1]), np.float32)
    for start in range(0, n, PART):
        made = grown[start : start + PART]
        around = vectors[near[rng.integers(len(vectors), size=len(made))]]  # (m, k + 1, D)
        weights = rng.dirichlet([MIXING] * (k + 1), len(made))
        taken = 1 - ((weights - 1 / (k + 1)) ** 2).sum(axis=1, keepdims=True)
        parts = rng.standard_normal(weights.shape) * np.sqrt(taken / (k + 1))
        parts -= parts.mean(axis=1, keepdims=True)  # so that they weigh differences from the mean
        np.einsum("mk,mkd->md", (weights + parts).astype(np.float32), around, out=made)
    return l2(grown)
