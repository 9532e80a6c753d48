"""Re-ranking by neighbours: cases by hand, and slow second implementations from the papers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objemb_lib.config import DataError
from objemb_lib.embed.whitening import l2
from objemb_lib.search.index import Index
from objemb_lib.search.rerank import k_reciprocal, rerank

SEEDS = st.integers(0, 2**16)


def clusters(seed: int, n: int = 40, d: int = 5, groups: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, d))
    return l2(centres[rng.integers(0, groups, n)] + 0.5 * rng.standard_normal((n, d)))


def on_circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


# --- a short list by exact vectors ---------------------------------------------------------


def test_reranking_puts_a_short_list_in_exact_order():
    exact, queries = Index(5), clusters(9, 4)
    exact.add(clusters(0))
    _, ids = exact.search(queries, 12)
    shuffled = np.random.default_rng(0).permuted(ids, axis=1)
    for a, b in zip(rerank(queries, shuffled, exact, 5), exact.search(queries, 5)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    shuffled[:, :8] = -1  # nothing was found there
    scores, found = rerank(queries, shuffled, exact, 6)
    assert (found[:, 4:] == -1).all() and (scores[:, 4:] == -np.inf).all()
    with pytest.raises(DataError, match="no vectors of the ids"):
        rerank(queries, np.full((4, 2), 77), exact, 1)


# --- k-reciprocal -------------------------------------------------------------------------


def slow_k_reciprocal(x, queries, gallery, k1, k2, weight):
    """Sets and loops, as the paper writes it."""
    d = 1 - x @ x.T
    order = [sorted(range(len(x)), key=lambda j: (j != i, d[i, j])) for i in range(len(x))]
    near = lambda i, k: set(order[i][: k + 1])  # noqa: E731
    mutual = lambda i, k: {j for j in near(i, k) if i in near(j, k)}  # noqa: E731
    soft = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        mine = mutual(i, k1)
        members = set(mine)
        for j in mine:
            theirs = mutual(j, round(k1 / 2))
            if len(mine & theirs) >= 2 / 3 * len(theirs) - 1e-9:
                members |= theirs
        for j in members:
            soft[i, j] = np.exp(-d[i, j])
    soft = np.stack([soft[order[i][:k2]].mean(axis=0) for i in range(len(x))])
    scores = np.empty((len(queries), len(gallery)))
    for row, q in enumerate(queries):
        for column, g in enumerate(gallery):
            least = np.minimum(soft[q], soft[g]).sum()
            most = np.maximum(soft[q], soft[g]).sum()
            scores[row, column] = -((1 - weight) * (1 - least / most) + weight * d[q, g])
    return scores


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(1, 12), st.integers(1, 7), st.floats(0, 1))
def test_k_reciprocal_is_the_papers(seed, k1, k2, weight):
    x = clusters(seed)
    rng = np.random.default_rng(seed)
    queries, gallery = rng.permutation(40)[:6], np.sort(rng.permutation(40)[:25])
    found = k_reciprocal(x, queries, gallery, k1, k2, weight)
    slow = slow_k_reciprocal(x.astype(np.float64), queries, gallery, k1, k2, weight)
    np.testing.assert_allclose(found, slow, atol=1e-5)


def test_k_reciprocal_by_hand():
    """Two pairs, each other's neighbours: one set within a pair, nothing shared between them."""
    x = on_circle(0, 10, 90, 100)
    (scores,) = k_reciprocal(x, [0], [0, 1, 2, 3], k1=1, k2=1, weight=0)
    e = np.exp(-(1 - np.cos(np.deg2rad(10))))  # own cell 1, the other's e: least 2e, most 2
    np.testing.assert_allclose(scores, [0, -(1 - e), -1, -1], atol=1e-6)
    (plain,) = k_reciprocal(x, [0], [1, 2], k1=1, k2=1, weight=1)
    np.testing.assert_allclose(plain, [np.cos(np.deg2rad(10)) - 1, -1], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"k1": 0}, {"k2": 0}, {"weight": 1.5}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(DataError, match="Use k"):
        k_reciprocal(clusters(0), [0], [1, 2], **wrong)


def test_copies_and_more_neighbours_than_images():
    (scores,) = k_reciprocal(on_circle(0, 0, 0, 90, 80), [0], [0, 1, 2, 3, 4], k1=1, k2=1)
    assert scores[0] == scores.max() and scores[3:].max() < scores[:2].min()
    assert np.isfinite(k_reciprocal(on_circle(0, 30, 60), [0], [1, 2])).all()
    assert k_reciprocal(on_circle(0), [0], [0]).tolist() == [[0]]
