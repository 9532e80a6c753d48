"""Analysis: what a table of vectors knows, besides its retrieval score.

Features are ``(N, D)``, one row per image; sums are taken in float64. Those that do not vary, or
hold NaN or infinite values, raise DataError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset, backgrounds
from objemb_lib.embed.extract import Vectors
from objemb_lib.embed.trunks import Trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.metrics import checked_vectors, evaluate, truth

Pair = tuple[str, str]  # stage, pooling


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Likeness of two networks' features of the same images, 0 to 1.

    ``CKA = |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)``, columns centred. 1 if one is the other turned,
    mirrored or scaled as a whole. With few images per dimension, unrelated features are alike too:
    independent normal ones give about D / (D + N). Compare with
    ``linear_cka(x, y[rng.permutation(N)])``.

    Args:
        x, y: ``(N, D1)`` and ``(N, D2)`` features of the same images.
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
    shares = np.square(_singular_values(x))
    return shares / shares.sum()


def effective_rank(x: np.ndarray) -> float:
    """How many directions the features use, 1 to min(N - 1, D); need not be whole.

    ``exp(-sum_i p_i log p_i)``, ``p_i = s_i / sum_j s_j``, s the *singular values* of the
    centred features, as published; not the variances s^2 of :func:`spectrum`, which give less.
    Source: Roy and Vetterli, The Effective Rank: a Measure of Effective Dimensionality, 2007.

    >>> two = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    >>> round(effective_rank(two), 3)
    2.0
    """
    values = _singular_values(x)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


class Spread(NamedTuple):
    """Mean cosine distances: of two images of one object, and of two different objects."""

    within: float
    between: float

    @property
    def ratio(self) -> float:
        """``within / between``: 0 if every object is a point, 1 if objects make no difference."""
        return self.within / self.between if self.between else np.nan


def spread(x: np.ndarray, labels: np.ndarray) -> Spread:
    """How close images of one object lie, and how far those of different objects.

    Mean of ``1 - <x_i, x_j>`` over all pairs i < j of one label, and over all of two labels, by
    ``sum_{i != j} <x_i, x_j> = |sum x_i|^2 - sum |x_i|^2``: no pair is ever formed.

    Args:
        x: ``(N, D)``, L2-normalised. labels: ``(N,)``; images of label -1 are left out.
    Raises:
        DataError: rows not of length 1, no two images of one object, or a single object.

    >>> x = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.0, 1.0]])
    >>> found = spread(x, [7, 7, 9, -1])  # within: 1 - 0.6; between: 1 - 0 and 1 - 0.8
    >>> round(found.within, 3), round(found.between, 3), round(found.ratio, 3)
    (0.4, 0.6, 0.667)
    """
    known = np.asarray(labels) >= 0
    x, labels = np.asarray(x, np.float64)[known], np.asarray(labels)[known]
    squares = np.square(x).sum(axis=1)
    if not np.allclose(squares, 1, atol=1e-3):
        raise DataError("vectors are not of length 1", "Pass them through l2.")
    objects, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    same_pairs = (counts * (counts - 1)).sum()  # ordered, as are the sums below
    other_pairs = len(x) ** 2 - (counts**2).sum()
    if not same_pairs or not other_pairs:
        raise DataError(
            f"no distances within and between: {len(x)} labelled images of {len(counts)} objects",
            "Pass at least two objects, one of them with two images.",
        )
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, objects, x)
    of_objects, of_all = np.square(sums).sum(), np.square(sums.sum(axis=0)).sum()
    within = 1 - (of_objects - squares.sum()) / same_pairs
    between = 1 - (of_all - of_objects) / other_pairs
    return Spread(max(float(within), 0.0), max(float(between), 0.0))  # rounding may leave -1e-17


def area_ratio(dataset: ImageDataset, i: int) -> float:
    """Share of image ``i`` that its main object covers: its mask, or its box without masks."""
    if dataset.masks is not None:
        return float(dataset.mask(i).mean())
    x0, y0, x1, y1 = map(float, dataset.boxes[i][0])
    width, height = dataset.image(i).size
    return (x1 - x0) * (y1 - y0) / (width * height)


def has_kinds(dataset: ImageDataset) -> bool:
    """Whether categories gather labels: some category is known to have two of them."""
    known = (dataset.labels >= 0) & (dataset.categories >= 0)
    labels = pd.Series(dataset.labels[known]).groupby(dataset.categories[known])
    return bool((labels.nunique() > 1).any())


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


def first_shares(found: Mapping[str, np.ndarray], dataset: ImageDataset) -> pd.DataFrame:
    """Shares of the queries whose first answer has their background, where a data set recorded it,
    and their object; the first line says what a random other image would have.

    Args:
        found: name -> vectors, as for :func:`nearest`; a line each.
    """
    asked = dataset.queries[:, None]
    answers = {"by chance": dataset.gallery[None]}
    answers |= {name: nearest(vectors, dataset)[:, None] for name, vectors in found.items()}
    known = {"same background": backgrounds(dataset), "same object": dataset.labels}
    shares: dict[str, dict[str, float]] = {}
    for name, images in answers.items():
        others = (images != asked) & (images >= 0)
        shares[name] = {what: ((of[images] == of[asked]) & (of[asked] >= 0) & others).sum()
                        / others.sum() for what, of in known.items() if of is not None}  # fmt: skip
    return pd.DataFrame(shares).T


@dataclass(frozen=True)
class Confusions:
    """What first answers show, as shares of the queries that count; they add up to 1.

    Args:
        right: the query's object. inside: another object of its category. across: of another one.
        chance: what ``inside_of_wrong`` would be if wrong answers were drawn at random, junk too;
            nan if none is wrong.
    """

    right: float
    inside: float
    across: float
    chance: float

    @property
    def inside_of_wrong(self) -> float:
        """Share of the wrong answers that stay in the category; nan if none is wrong."""
        wrong = self.inside + self.across
        return self.inside / wrong if wrong else np.nan


def confusion_kinds(dataset: ImageDataset, answers: np.ndarray) -> Confusions:
    """Sort first answers into right object, right category only, and wrong category.

    Convention: as with R@1, which ``right`` equals, queries without a relevant image are left
    out; so are those of label or category -1, or without answer. An answer of label -1 is
    another object, one of category -1 is of another category.

    Args:
        answers: ``(Q,)`` image index of each query's first answer, as of :func:`nearest`.
    Raises:
        DataError: no query counts.
    """
    labels, categories, gallery = dataset.labels, dataset.categories, dataset.gallery
    asked, answers = np.asarray(dataset.queries), np.asarray(answers)
    counts = (labels[asked] >= 0) & (categories[asked] >= 0) & (answers >= 0)
    counts &= [dataset.relevant(query).any() for query in asked]
    if not counts.any():
        raise DataError(
            f"none of {len(asked)} queries has a label, a category, an answer and a relevant image",
            "Use a data set with objects and categories.",
        )
    asked, answers = asked[counts], answers[counts]
    right = labels[asked] == labels[answers]
    inside = ~right & (categories[asked] == categories[answers])
    others = labels[asked][:, None] != labels[gallery]  # (Q, G)
    alike = others & (categories[asked][:, None] == categories[gallery])
    shares = alike.sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    chance = float(shares[~right].mean()) if not right.all() else np.nan
    kinds = (float(kind.mean()) for kind in (right, inside, ~right & ~inside))
    return Confusions(*kinds, chance)


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
        raise DataError(
            f"features of shape {x.shape} that do not vary, or with NaN or infinite values",
            "Pass finite features (N, D) of different images.",
        )
    return x - x.mean(axis=0)


def _singular_values(x: np.ndarray) -> np.ndarray:
    """``(min(N - 1, D),)`` of the centred features, largest first."""
    # Not by the covariance's eigenvalues: squaring first loses half of the digits.
    return np.linalg.svd(_centred(x), compute_uv=False)[: len(x) - 1]
