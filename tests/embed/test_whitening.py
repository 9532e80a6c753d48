"""Postprocess: geometry of whitening, stable signs, refusals, files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from objemb_lib.config import DataError
from objemb_lib.embed.whitening import (
    PCAWhitening,
    alpha_query_expansion,
    database_augmentation,
    l2,
)

SEEDS = st.integers(0, 2**16)


def correlated(seed: int = 0, n: int = 60, d: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3).astype(np.float32)


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 6))
def test_same_as_scikit_learn_up_to_signs(seed, dim):
    x = correlated(seed)
    reference = l2(PCA(dim, whiten=True, svd_solver="full").fit(x).transform(x))
    ours = PCAWhitening(dim).fit(x)(x)
    assert ours.shape == (60, dim) and ours.dtype == np.float32
    signs = np.sign((ours * reference).sum(axis=0))
    np.testing.assert_allclose(ours * signs, reference, atol=2e-3)


def test_without_whitening_it_is_a_rotation_about_the_mean():
    x = correlated()
    centred = l2(x - x.mean(axis=0))
    rotated = PCAWhitening(whiten=False).fit(x)(x)
    np.testing.assert_allclose(rotated @ rotated.T, centred @ centred.T, atol=1e-4)


def test_signs_do_not_depend_on_the_order_of_training_vectors():
    x = correlated(2)
    np.testing.assert_allclose(
        PCAWhitening(3).fit(x)(x), PCAWhitening(3).fit(x[::-1])(x), atol=1e-4
    )
    axes = PCAWhitening().fit(x).axes
    assert (axes[np.abs(axes).argmax(axis=0), range(6)] > 0).all()


def test_dead_channels_are_silenced():
    x = np.hstack([correlated(3), np.full((60, 2), 5.0, np.float32)])
    whitening = PCAWhitening().fit(x)
    probe = x + np.float32([0] * 6 + [1, 1])  # the dead channels come alive after training
    np.testing.assert_allclose(whitening(probe), whitening(x), atol=1e-3)
    np.testing.assert_allclose(whitening(x)[:, 6:], 0, atol=1e-3)


def test_shrinking_goes_from_whitening_to_rotation():
    x = correlated(4)
    full, none = PCAWhitening(shrink=1).fit(x)(x), PCAWhitening(whiten=False).fit(x)(x)
    np.testing.assert_allclose(full, none, atol=1e-4)
    spread = [PCAWhitening(shrink=s).fit(x).scale for s in (0, 0.2, 1)]
    ratios = [s.max() / s.min() for s in spread]
    assert ratios[0] > ratios[1] + 1 > ratios[2] + 1 and ratios[2] == pytest.approx(1)


def test_bad_input_is_refused():
    for n, dim, most in ((5, 5, 4), (3, 5, 2), (5, None, 4), (60, 7, 6)):
        with pytest.raises(DataError, match=f"at most {most}"):
            PCAWhitening(dim).fit(correlated(n=n))
    x = correlated()
    with pytest.raises(DataError, match="not fitted"):
        PCAWhitening()(x)
    with pytest.raises(DataError, match=r"6 dimensions\) applied to shape \(60, 5\)"):
        PCAWhitening().fit(x)(x[:, :5])
    for bad in (np.ones((9, 4)), np.where(x > 3, np.nan, x)):
        with pytest.raises(DataError, match="finite vectors"):
            PCAWhitening(2).fit(bad)
    for wrong in ({"dim": 0}, {"shrink": 1.5}):
        with pytest.raises(DataError, match="Use dim"):
            PCAWhitening(**wrong)


def slow_expansion(queries, gallery, count, alpha, own):
    found = []
    for q, mine in zip(queries, own):
        near = sorted((i for i in range(len(gallery)) if i != mine), key=lambda i: -q @ gallery[i])
        total = q.copy()
        for i in near[:count]:
            if q @ gallery[i] > 0:
                total = total + (q @ gallery[i]) ** alpha * gallery[i]
        found.append(total / np.linalg.norm(total))
    return np.array(found)


@settings(max_examples=25)
@given(SEEDS, st.integers(0, 70), st.sampled_from([0.0, 1.0, 3.0]))
def test_expansion_is_the_plain_sum(seed, count, alpha):
    x = l2(correlated(seed) - 3).astype(np.float64)
    own = np.where(np.arange(8) % 2, np.arange(8), -1)
    found = alpha_query_expansion(x[:8], x[2:], count, alpha, own)
    np.testing.assert_allclose(found, slow_expansion(x[:8], x[2:], count, alpha, own), atol=2e-5)
    others = slow_expansion(x, x, count, 3.0, range(len(x)))  # an image does not expand itself
    np.testing.assert_allclose(database_augmentation(x, count), others, atol=2e-5)
    for wrong in ((-1, 3.0), (count, -1.0)):
        with pytest.raises(DataError, match="query expansion"):
            alpha_query_expansion(x, x, *wrong)
