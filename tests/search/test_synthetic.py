"""Grow: as spread and as close to each other as real vectors that it has not seen."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from objemb_lib.config import DataError
from objemb_lib.data.catalogue import entry, load_splits
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import PCAWhitening, l2
from objemb_lib.measure.analysis import spectrum
from objemb_lib.search.synthetic import synthetic_vectors

PAIR = ("stage4", "spoc")
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of real objects: to grow from (train), and held out (other objects, battle)."""
    if not entry("mini-battles").built():
        pytest.skip("no mini-battles: make data")
    train, tests = load_splits("mini-battles")
    trunk, found = load_trunk(), []
    for data in (train.first_of_each(1), tests["battle"].first_of_each(1)):
        options = ExtractOptions(128, cache=False, progress=False)
        found.append(l2(extract(data, trunk, [PAIR], Region(true_boxes(data)), options)[PAIR]))
    short = PCAWhitening(32, whiten=False).fit(found[0])
    n = min(map(len, found))  # as many of each, since more vectors lie closer
    return short(found[0])[:n], short(found[1])[:n]


def apart(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """How far spectra and quantiles of neighbour distances differ at most."""
    distances = [np.quantile(faiss.knn(x, x, 2)[0][:, 1] ** 0.5, LEVELS) for x in (a, b)]
    shares = np.cumsum(spectrum(a) - spectrum(b))
    return np.abs(shares).max(), np.abs(np.subtract(*distances)).max()


def test_what_is_grown_is_like_what_was_held_out(real):
    train, held_out = real
    grown = synthetic_vectors(train, len(train))
    in_spectrum, in_distance = apart(grown, held_out)
    assert in_spectrum < 0.05 and in_distance < 0.12
    noise = np.random.default_rng(0).multivariate_normal(
        train.mean(axis=0), np.cov(train, rowvar=False), len(train)
    )
    assert apart(l2(noise), held_out)[1] > 2 * in_distance  # as good a spectrum is not enough


def test_it_gives_unit_vectors_the_same_for_the_same_seed():
    x = l2(np.random.default_rng(0).standard_normal((60, 8)))
    a, b, c = (synthetic_vectors(x, 5000, seed) for seed in (3, 3, 4))
    assert a.shape == (5000, 8) and a.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    with pytest.raises(DataError, match="more than 8"):
        synthetic_vectors(np.eye(8), 10)


def test_it_stays_where_its_neighbourhood_is():
    """Two far clusters, each in a plane of its own: nothing grows between or beside them."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 0.5, (2, 30))
    x = np.zeros((60, 4), np.float32)
    x[:30, :2] = np.stack([np.cos(angles[0]), np.sin(angles[0])], 1)
    x[30:, 2:] = np.stack([np.cos(angles[1]), np.sin(angles[1])], 1)
    grown = synthetic_vectors(x, 400)
    left, right = (np.abs(grown[:, part]).max(axis=1) < 1e-6 for part in (slice(0, 2), slice(2, 4)))
    assert (left ^ right).all() and 100 < left.sum() < 300
