"""What follows pooling: L2 normalisation, PCA-whitening, query expansion.

Everything here takes and gives ``(N, D)`` arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from objemb_lib.config import DataError

DEAD = 1e-10  # share of the largest variance below which float32 inputs hold only rounding
AT_ONCE = 1024  # queries, each taking about 12 bytes per gallery vector


def l2(x: np.ndarray, eps: float = 1e-12) -> np.ndarray:
    """Rows scaled to Euclidean length 1, as float32; a zero row stays zero.

    >>> l2(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(eps))


def concat_descriptors(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Vectors of several stages as one: each L2-normalised first, so that none outweighs another.

    >>> concat_descriptors([np.array([[3.0, 4.0]]), np.array([[0.1]])]).round(2)
    array([[0.42, 0.57, 0.71]], dtype=float32)
    """
    return l2(np.concatenate([l2(part) for part in parts], axis=1))


def multiscale_mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One vector an image of several: each L2-normalised, then their mean, then that.

    With the vectors of an image at several sizes this is multi-scale extraction.
    Source: Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, 2019, its
    multi-scale representation, with the plain mean (p = 1).

    >>> multiscale_mean([np.array([[5.0, 0.0]]), np.array([[0.0, 0.1]])]).round(2)
    array([[0.71, 0.71]], dtype=float32)
    """
    return l2(np.sum([l2(part) for part in parts], axis=0))


def alpha_query_expansion(
    queries: np.ndarray,
    gallery: np.ndarray,
    count: int,
    alpha: float = 3.0,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """Each query plus its ``count`` best gallery vectors, weighted by their similarity (αQE).

    ``l2(q + sum_i (q . x_i)^alpha x_i)``, over neighbours of a positive similarity; alpha = 0 is
    average query expansion.

    Args:
        queries: ``(Q, D)``. gallery: ``(N, D)``, both L2-normalised.
        own: ``(Q,)`` gallery row that is the query's own image, -1 where it is not there: an
            image does not expand itself. Default: none is there.
    Returns:
        ``(Q, D)`` float32, L2-normalised.
    Source: Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, 2019.

    >>> gallery = np.array([[0.6, 0.8], [0.0, 1.0]])
    >>> alpha_query_expansion(np.array([[1.0, 0.0]]), gallery, count=1, alpha=1).round(2)
    array([[0.94, 0.33]], dtype=float32)
    """
    queries, gallery = np.asarray(queries, np.float32), np.asarray(gallery, np.float32)
    own = np.full(len(queries), -1) if own is None else np.asarray(own)
    if count < 0 or alpha < 0:
        raise DataError(f"query expansion by {count}, alpha {alpha}", "Use at least 0.")
    found = []
    for start in range(0, len(queries), AT_ONCE):
        part, mine = queries[start : start + AT_ONCE], own[start : start + AT_ONCE]
        scores = part @ gallery.T
        here = np.flatnonzero(mine >= 0)
        scores[here, mine[here]] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        near = np.take_along_axis(scores, best, axis=1)
        weights = np.where(near > 0, np.maximum(near, 0) ** np.float32(alpha), 0)
        found.append(part + np.einsum("qk,qkd->qd", weights, gallery[best]))
    return l2(np.concatenate(found))


def database_augmentation(gallery: np.ndarray, count: int, alpha: float = 3.0) -> np.ndarray:
    """Each gallery vector plus its neighbours: query expansion on the side of the database (DBA).

    Source: Arandjelovic and Zisserman, Three Things Everyone Should Know to Improve Object
    Retrieval, 2012, "database-side feature augmentation"; weighted as in αQE.
    """
    return alpha_query_expansion(gallery, gallery, count, alpha, np.arange(len(gallery)))


class PCAWhitening:
    """Centre, project on the principal axes, scale each to variance 1, L2-normalise.

    ``y = l2(diag(v)^(-1/2) P^T (x - mean))``: co-occurring channels no longer count twice.
    Fit on the training split only. Axes that did not vary there are set to 0, not blown up. Each
    axis points where its largest component is positive: two fits give the same signs.

    Args:
        dim: axes kept, those of largest variance first; None keeps all D.
        shrink: 0 to 1, pulls variances towards their mean, ``(1 - s) v + s mean(v)``:
            steadier where there are few training vectors per dimension.
        whiten: False only rotates and cuts (PCA).
    Source: Jegou and Chum, Negative Evidences and Co-occurrences in Image Retrieval: the
    Benefit of PCA and Whitening, 2012.

    >>> x = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> PCAWhitening().fit(x)([[2.0, 1.0]]).round(3)  # axes count alike
    array([[0.707, 0.707]], dtype=float32)
    """

    def __init__(self, dim: int | None = None, shrink: float = 0.0, whiten: bool = True) -> None:
        if (dim is not None and dim < 1) or not 0 <= shrink <= 1:
            problem = f"PCA-whitening with dim={dim}, shrink={shrink}"
            raise DataError(problem, "Use dim of at least 1 and shrink from 0 to 1.")
        self.dim, self.shrink, self.whiten = dim, shrink, whiten
        self.mean: np.ndarray | None = None  # (D,)
        self.axes: np.ndarray | None = None  # (D, dim), orthonormal columns
        self.scale: np.ndarray | None = None  # (dim,), multiplies each projected axis

    def __repr__(self) -> str:
        fitted = "not fitted" if self.mean is None else f"fitted on {len(self.mean)} dimensions"
        return f"PCAWhitening(dim={self.dim}, shrink={self.shrink}, whiten={self.whiten}; {fitted})"

    def fit(self, train: np.ndarray) -> PCAWhitening:
        """Learn mean, axes and variances from ``(N, D)`` training vectors; returns itself.

        Raises:
            DataError: fewer than dim + 1 vectors (centred, N span at most N - 1 axes), dim > D, a
                NaN or infinity, or vectors that are all the same.
        """
        train = np.asarray(train, np.float64)
        if train.ndim != 2 or not np.isfinite(train).all() or (train == train[:1]).all():
            problem = f"PCA-whitening fitted on shape {train.shape}, NaN, infinite or all the same"
            raise DataError(problem, "Pass finite vectors (N, D) of varied images.")
        (n, d), dim = train.shape, self.dim or train.shape[1]
        if dim > d or n <= dim:
            raise DataError(
                f"PCA-whitening to {dim} dimensions fitted on {n} vectors of {d} dimensions",
                f"Use more than {dim} training vectors, or dim of at most {min(n - 1, d)}.",
            )
        mean = train.mean(axis=0)
        variance, axes = np.linalg.eigh(np.cov(train - mean, rowvar=False).reshape(2 * mean.shape))
        variance, axes = variance[::-1].clip(min=0), axes[:, ::-1]  # largest first
        axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], axis=0))
        shrunk = (1 - self.shrink) * variance + self.shrink * variance.mean()
        alive = variance > DEAD * variance[0]
        scale = alive / np.sqrt(np.where(alive, shrunk, 1)) if self.whiten else np.ones_like(mean)
        self.mean = mean.astype(np.float32)
        self.axes = np.ascontiguousarray(axes[:, : self.dim], np.float32)
        self.scale = scale[: self.dim].astype(np.float32)
        return self

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``(N, D)`` vectors -> ``(N, dim)`` float32, L2-normalised.

        Raises:
            DataError: before ``fit``, or for vectors of another dimension.
        """
        x = np.asarray(x, np.float32)
        if self.mean is None or x.shape[1:] != self.mean.shape:
            remedy = "Call fit(train) first, with vectors of the same trunk, stage and pooling."
            raise DataError(f"{self} applied to shape {x.shape}", remedy)
        return l2((x - self.mean) @ self.axes * self.scale)
