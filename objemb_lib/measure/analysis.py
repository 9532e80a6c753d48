"""Analysis: what a table of vectors knows, besides its retrieval score.

Features are ``(N, D)``, one row per image; sums are taken in float64. Those that do not vary, or
hold NaN or infinite values, raise DataError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset, backgrounds
from objemb_lib.embed.extract import Pair, Vectors
from objemb_lib.embed.trunks import Trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.metrics import checked_vectors, evaluate, truth


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Likeness of two networks' features of the same images, ``(N, D1)`` and ``(N, D2)``: 0 to 1.

    ``CKA = |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)``, columns centred. 1 if one is the other turned,
    mirrored or scaled as a whole. With few images per dimension, unrelated features are alike too:
    independent normal ones give about D / (D + N). Compare with
    ``linear_cka(x, y[rng.permutation(N)])``.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, 2019,
    section 3.

    >>> x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(linear_cka(x, 5 * x[:, ::-1]), 3), round(linear_cka(x, x[:, :1]), 3)
    (1.0, 0.707)
    """
    x, y = _centred(x), _centred(y)
    cross = np.linalg.norm(y.T @ x) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def spectrum(x: np.ndarray) -> np.ndarray:
    """Share of the variance along each principal axis, largest first; sums to 1.

    ``v_i / sum_j v_j``, v the eigenvalues of the covariance: ``(min(N - 1, D),)``, since N centred
    vectors span at most N - 1 axes. A steep fall: few directions do all the work.

    >>> spectrum(np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).round(3)
    array([0.8, 0.2])
    """
    # Not by the covariance's eigenvalues: squaring first loses half of the digits.
    shares = np.linalg.svd(_centred(x), compute_uv=False)[: len(x) - 1] ** 2
    return shares / shares.sum()


def area_ratio(dataset: ImageDataset, i: int) -> float:
    """Share of image ``i`` that its main object covers: its mask, or its box without masks."""
    if dataset.masks is not None:
        return float(dataset.mask(i).mean())
    x0, y0, x1, y1 = map(float, dataset.boxes[i][0])
    width, height = dataset.image(i).size
    return (x1 - x0) * (y1 - y0) / (width * height)


def nearest(vectors: np.ndarray, dataset: ImageDataset) -> np.ndarray:
    """``(Q,)`` image index of the first answer to each query, -1 where all is junk.

    Rank 1 of :func:`metrics.evaluate`, arguments as there.
    """
    vectors = checked_vectors(vectors, dataset)
    scores = vectors[dataset.queries] @ vectors[dataset.gallery].T  # (Q, G)
    for row, query in zip(scores, dataset.queries):
        row[truth(dataset, query)[1]] = -np.inf
    answered = np.isfinite(scores.max(axis=1))
    return np.where(answered, dataset.gallery[scores.argmax(axis=1)], -1)


def first_shares(
    found: Mapping[str, np.ndarray],
    dataset: ImageDataset,
    kinds: Sequence[str] = ("background", "object"),
) -> pd.DataFrame:
    """Shares of the queries whose first answer is of the same kind, where a data set recorded it;
    the first line says what a random other image would have.

    Args:
        found: name -> vectors, as for :func:`nearest`; a line each.
        kinds: of ``background``, ``category`` and ``object``; a column each.
    """
    asked = dataset.queries[:, None]
    answers = {"by chance": dataset.gallery[None]}
    answers |= {name: nearest(vectors, dataset)[:, None] for name, vectors in found.items()}
    known = {"background": backgrounds(dataset), "category": dataset.categories}
    known |= {"object": dataset.labels}
    shares: dict[str, dict[str, float]] = {}
    for name, images in answers.items():
        others = (images != asked) & (images >= 0)
        shares[name] = {
            f"same {kind}": ((of[images] == of[asked]) & (of[asked] >= 0) & others).sum()
            / others.sum()
            for kind in kinds
            if (of := known[kind]) is not None
        }
    return pd.DataFrame(shares).T


PROJECTIONS = ("PCA", "t-SNE")


def project(x: np.ndarray, how: str = "PCA") -> np.ndarray:
    """Vectors as points of a plane, so that near ones stay near: ``(N, 2)`` in 0..1.

    Args:
        how: ``PCA``, the two axes of largest variance, or ``t-SNE`` on the first fifty, by cosine.
    Raises:
        DataError: fewer than three vectors.
    Source: van der Maaten and Hinton, Visualizing Data using t-SNE, 2008.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(x) < 3:
        raise DataError(f"a map of {len(x)} vectors", "Use three or more.")
    points = PCA(min(50, *x.shape), random_state=config.SEED).fit_transform(x)
    if how == "t-SNE":
        near = min(30.0, (len(x) - 1) / 3)
        maps = TSNE(perplexity=near, metric="cosine", init="pca", random_state=config.SEED)
        points = maps.fit_transform(points)
    points = points[:, :2] - points[:, :2].min(axis=0)
    return points / np.maximum(points.max(axis=0), 1e-12)


BODY = ("stage4", "stage5", "head")  # earlier ones know textures, not objects (notebook 01)


def source(stage: str) -> str:
    """Which source of vectors a stage of a network belongs to.

    >>> source("head"), source("fpn4"), source("roi"), source("box_head")
    ('body', 'FPN', 'RoI features', 'box head')
    """
    if stage.startswith("fpn"):
        return "FPN"
    return {"roi": "RoI features", "box_head": "box head"}.get(stage, "body")


def candidates(trunk: Trunk, poolings: Sequence[str]) -> list[Pair]:
    """Every (stage, pooling) that a network offers; of its body, only the stages in ``BODY``."""
    stages = [s for s in trunk.stages if s in BODY or source(s) != "body"]
    return [(stage, pooling) for stage in stages for pooling in poolings]


def best_of(vectors: Vectors, train: ImageDataset) -> Pair:
    """The (stage, pooling) of the best mAP on training images: nothing is chosen on a test."""
    return max(vectors, key=lambda pair: evaluate(l2(vectors[pair]), train, ["mAP"]).mean("mAP"))


def choose(vectors: Vectors, train: ImageDataset) -> dict[str, Pair]:
    """The best (stage, pooling) of each source, so that no network loses by a poor choice."""
    groups: dict[str, Vectors] = {}
    for pair, x in vectors.items():
        groups.setdefault(source(pair[0]), {})[pair] = x
    return {name: best_of(some, train) for name, some in groups.items()}


def _centred(x: np.ndarray) -> np.ndarray:
    """``(N, D)`` without their mean row."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all() or (x == x[0]).all():
        problem = f"features of shape {x.shape} that do not vary, or with NaN or infinite values"
        raise DataError(problem, "Pass finite features (N, D) of different images.")
    return x - x.mean(axis=0)
