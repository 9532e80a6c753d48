"""Pooling: hand-computed cases, limits, slow second implementations, invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objemb_lib.config import DataError
from objemb_lib.embed.pooling import POOLINGS, crow, gem, mac, rmac, spoc

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 2**16)


def random_map(seed: int, height: int, width: int, channels: int = 5) -> torch.Tensor:
    """A map with negative values and, as after a ReLU, many zeros."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, channels, height, width)).astype(np.float32)
    values[rng.random(values.shape) < 0.4] = 0
    return torch.from_numpy(values)


def slow_rmac(x: np.ndarray, levels: int) -> np.ndarray:
    """The paper's text, one region at a time, for one ``(C, H, W)`` map."""
    _, height, width = x.shape
    short, long = min(height, width), max(height, width)
    m = 1
    if long > short:
        overlaps = [(abs(1 - (long - short) / ((m - 1) * short) - 0.4), m) for m in range(2, 40)]
        overlaps = [(o, m) for o, m in overlaps if m - 1 <= long - short]
        m = min(overlaps)[1]
    total = np.zeros(len(x))
    for level in range(1, levels + 1):
        side = math.floor(2 * short / (level + 1))
        if side < 1:
            continue
        n_short, n_long = level, level + m - 1
        for i in range(n_short):
            for j in range(n_long):
                a = math.floor((short - side) / (n_short - 1) * i + 1e-9) if n_short > 1 else 0
                b = math.floor((long - side) / (n_long - 1) * j + 1e-9) if n_long > 1 else 0
                y, z = (a, b) if height <= width else (b, a)
                top = x[:, y : y + side, z : z + side].max(axis=(1, 2))
                norm = math.sqrt((top**2).sum())
                total += top / norm if norm else 0
    return total


def slow_crow(x: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """The paper's equations, one cell at a time, for one ``(C, H, W)`` map."""
    x = x.clip(min=0)
    channels, height, width = x.shape
    norm = math.sqrt(sum(x[:, i, j].sum() ** 2 for i in range(height) for j in range(width)))
    share = [np.count_nonzero(x[c]) / (height * width) for c in range(channels)]
    out = np.zeros(channels)
    for c in range(channels):
        weight = math.log((channels * eps + sum(share)) / (eps + share[c]))
        for i in range(height):
            for j in range(width):
                spatial = math.sqrt(x[:, i, j].sum() / norm) if norm else 0
                out[c] += weight * spatial * x[c, i, j]
    return out


def test_by_hand():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert (spoc(x).item(), mac(x).item()) == (3, 6)
    assert gem(x, p=2).item() == pytest.approx(math.sqrt(50 / 4))
    assert gem(x).item() == pytest.approx(((1 + 8 + 27 + 216) / 4) ** (1 / 3))
    assert gem(torch.full((1, 1, 3, 3), 50.0), p=100).item() == pytest.approx(50)  # no overflow
    with pytest.raises(DataError, match="p = 0"):
        gem(x, p=0)


@settings(max_examples=60)
@given(SEEDS, SIZES, st.integers(1, 4))
def test_rmac_matches_slow(seed, size, levels):
    x = random_map(seed, *size)
    expected = [slow_rmac(one, levels) for one in x.double().numpy()]
    np.testing.assert_allclose(rmac(x, levels), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60)
@given(SEEDS, SIZES)
def test_crow_matches_slow(seed, size):
    x = random_map(seed, *size)
    expected = [slow_crow(one) for one in x.double().numpy()]
    np.testing.assert_allclose(crow(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pooled_in_float32(name, dtype):
    x = random_map(1, 20, 20).abs().to(dtype) * 1000  # sums overflow in float16
    result = POOLINGS[name](x)
    assert result.dtype == torch.float32
    assert torch.equal(result, POOLINGS[name](x.float())) and result.isfinite().all()


def test_negative_values_as_documented():
    x = -torch.ones(1, 2, 3, 3)
    assert spoc(x).tolist() == mac(x).tolist() == [[-1, -1]]
    assert crow(x).tolist() == [[0, 0]]
    np.testing.assert_allclose(gem(x), [[1e-6, 1e-6]], rtol=1e-4)
    assert (rmac(x) < 0).all()
    for pooled in POOLINGS.values():
        assert pooled(0 * x).isfinite().all() and pooled(x[:0]).shape == (0, 2)
        for shape in ((3, 4, 4), (1, 3, 0, 4)):
            with pytest.raises(DataError, match="N, C, H, W"):
                pooled(torch.zeros(shape))
