"""Pooling: a feature map becomes one vector, ``(N, C, H, W)`` -> ``(N, C)``.

Every function takes a ``(N, C, H, W)`` map of any floating dtype, also 1x1 or oblong, and returns
``(N, C)`` float32 descriptors; none normalises them (see :mod:`objemb_lib.embed.whitening`).
Features may be negative (linear last layers): each docstring says what happens to them. All raise
DataError when the input is no such map, or an empty one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import torch.nn.functional as F
from torch import Tensor

from objemb_lib.config import DataError


def _as_float32(features: Tensor) -> Tensor:
    """The map in float32: half precision would overflow in sums and powers."""
    if features.ndim != 4 or 0 in features.shape[1:]:
        shape = tuple(features.shape)
        raise DataError(f"cannot pool a map of shape {shape}", "Pass (N, C, H, W), none empty.")
    return features.float()


def spoc(features: Tensor) -> Tensor:
    """Average of each channel over space; negative values count as they are.

    Source: Babenko and Lempitsky, Aggregating Deep Convolutional Features for Image
    Retrieval, 2015, section 4 (sum pooling).

    >>> import torch
    >>> spoc(torch.tensor([[[[1.0, 3.0]], [[0.0, -4.0]]]])).tolist()
    [[2.0, -2.0]]
    """
    return _as_float32(features).mean(dim=(2, 3))


def mac(features: Tensor) -> Tensor:
    """Maximum of each channel over space; negative where the whole channel is negative.

    Source: Tolias et al., Particular Object Retrieval with Integral Max-Pooling of CNN
    Activations, 2016, ``f_Omega``.

    >>> import torch
    >>> mac(torch.tensor([[[[1.0, 3.0]], [[-1.0, -4.0]]]])).tolist()
    [[3.0, -1.0]]
    """
    return _as_float32(features).amax(dim=(2, 3))


def gem(features: Tensor, p: float = 3.0, eps: float = 1e-6) -> Tensor:
    """Generalised mean of each channel over space; values below ``eps`` are raised to it.

    ``(mean_xy max(f, eps)^p)^(1/p)``, p > 0: p = 1 is average (SPoC), p -> infinity is max (MAC),
    both on the clamped map: the power of a negative number is not defined.

    Source: Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, 2018,
    eq. 3.

    >>> import torch
    >>> [round(v, 3) for v in gem(torch.tensor([[[[1.0, 3.0]], [[-1.0, -4.0]]]]))[0].tolist()]
    [2.41, 0.0]
    """
    if not p > 0:
        raise DataError(f"GeM needs a positive exponent, got p = {p}", "Use p = 3.")
    features = _as_float32(features).clamp(min=eps)
    top = features.amax(dim=(2, 3), keepdim=True)  # factored out: f^p overflows for large p
    return top[..., 0, 0] * (features / top).pow(p).mean(dim=(2, 3)).pow(1 / p)


def rmac_grid(height: int, width: int, levels: int) -> list[tuple[int, list[int], list[int]]]:
    """R-MAC's squares, level by level: their side, and the rows and columns where they begin.

    Level l has squares of side ``2 min(H, W) / (l + 1)``: l along the short side and
    l + m - 1 along the long one, where m squares at level 1 overlap by about 40 %.

    >>> rmac_grid(2, 3, 1), rmac_grid(8, 8, 3)[1:]
    ([(2, [0], [0, 1])], [(5, [0, 3], [0, 3]), (4, [0, 2, 4], [0, 2, 4])])
    """
    short, long = min(height, width), max(height, width)
    rest = long - short
    overlaps = {n: 1 - rest / (n * short) for n in range(1, rest + 1)}  # n steps: n + 1 squares
    more = min(overlaps, key=lambda n: abs(overlaps[n] - 0.4), default=0)
    grid = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side == 0:  # the map is smaller than this level's squares
            break
        rows = level + (more if height > width else 0)
        columns = level + (more if width > height else 0)
        tops = [(height - side) * i // max(rows - 1, 1) for i in range(rows)]
        lefts = [(width - side) * j // max(columns - 1, 1) for j in range(columns)]
        grid.append((side, tops, lefts))
    return grid


def rmac(features: Tensor, levels: int = 3) -> Tensor:
    """Sum over a grid of squares of each square's L2-normalised maxima.

    ``sum_R mac(f_R) / |mac(f_R)|``. The paper also whitens each region's vector before the
    sum; here every pooling is whitened once, afterwards.
    Negative values count as they are.

    Args:
        levels: scales of the grid, >= 1; the paper uses 3. Scales whose squares would be
            smaller than one cell are left out.
    Source: Tolias et al., Particular Object Retrieval with Integral Max-Pooling of CNN
    Activations, 2016, "Region feature vector" and "R-MAC".

    >>> import torch
    >>> rmac(torch.tensor([[[[3.0]], [[4.0]]]]))  # 1x1: one square
    tensor([[0.6000, 0.8000]])
    """
    features = _as_float32(features)
    total = 0.0
    for side, tops, lefts in rmac_grid(*features.shape[2:], levels):
        # One pooling a level: its stride is the largest that meets every square.
        steps = [gcd(*starts) or 1 for starts in (tops, lefts)]
        squares = F.max_pool2d(features, side, steps)
        if squares.shape[2:] != (len(tops), len(lefts)):  # others beside them
            rows, columns = ([at // step for at in ats] for ats, step in zip((tops, lefts), steps))
            squares = squares[:, :, rows][..., columns]
        total = total + F.normalize(squares, dim=1).sum(dim=(2, 3))
    return total


def crow(features: Tensor, eps: float = 1e-6) -> Tensor:
    """Sum over space, weighted by where the map is active and by how rare a channel is.

    ``F_k = I_k sum_xy S_xy f_kxy`` with spatial weights ``S = (S' / |S'|_2)^(1/2)``,
    ``S'`` the sum over channels (a = b = 2 in the paper), and channel weights
    ``I_k = log((C eps + sum_h Q_h) / (eps + Q_k))``, Q_k the share of cells where channel k
    is positive. Negative values are set to 0. A map of one channel gives 0: no channel is
    rarer than another.

    Source: Kalantidis et al., Cross-dimensional Weighting for Aggregated Deep Convolutional
    Features, 2016, section 3.

    >>> import torch  # both channels active in the left cell, the first in the right one too
    >>> [round(v, 3) for v in crow(torch.tensor([[[[3.0, 3.0]], [[1.0, 0.0]]]]))[0].tolist()]
    [2.03, 0.983]
    """
    features = _as_float32(features).clamp(min=0)
    activity = features.sum(dim=1, keepdim=True)  # (N, 1, H, W)
    norm = activity.square().sum(dim=(2, 3), keepdim=True).sqrt()
    spatial = (activity / norm.clamp(min=eps)).sqrt()
    share = (features > 0).float().mean(dim=(2, 3))  # (N, C)
    total = share.sum(dim=1, keepdim=True) + features.shape[1] * eps
    return (features * spatial).sum(dim=(2, 3)) * (total / (share + eps)).log()


POOLINGS: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (spoc, mac, gem, rmac, crow)}
