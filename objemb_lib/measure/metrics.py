"""Metrics on rankings, and each data set's protocol.

A metric here is a pure function of a *ranked relevance list*: ``(G,)`` booleans over the gallery,
best first, True where relevant, junk already taken out. A query without any relevant image has no
score: :func:`metric_function` makes it nan, and it is counted and left out of means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.measure.intervals import Evaluation

CHUNK = 1024  # queries ranked at a time, each taking about 16 bytes per gallery image
METRICS = ("R@1", "R@5", "mAP", "R-precision", "MAP@R", "P@5")


def recall_at_k(ranked: np.ndarray, k: int) -> float:
    """``1`` if any of the first k is relevant, else ``0``.

    Convention: the R@K of metric learning, a hit rate; not the share of relevant images found.
    Source: Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016.

    >>> recall_at_k([False, True, True], k=1), recall_at_k([False, True, True], k=2)
    (0.0, 1.0)
    """
    return float(np.any(ranked[:k]))


def precision_at_k(ranked: np.ndarray, k: int) -> float:
    """``(relevant among the first k) / k``.

    Convention: divides by k even where fewer than k are relevant: such a query cannot reach 1.

    >>> precision_at_k([True, False, True, True], k=2)
    0.5
    """
    return float(np.sum(ranked[:k]) / k)


def average_precision(ranked: np.ndarray) -> float:
    """Mean over the relevant images of the precision at their rank.

    ``AP = 1/R sum_r P(rank of the r-th relevant image)``.
    Convention: not interpolated (as scikit-learn and trec_eval); Oxford and Paris take
    :func:`trapezoidal_ap`, which is lower: here, (1/1 + 2/3) / 2 = 0.833.

    >>> round(average_precision([True, False, True]), 3)
    0.833
    """
    ranks = np.flatnonzero(ranked) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())


def trapezoidal_ap(ranked: np.ndarray) -> float:
    """Area under the precision-recall curve by trapezoids.

    ``1/R sum_r (P just before the r-th relevant image + P at it) / 2``, where P before the
    first rank is 1.
    Source: Philbin et al., Object Retrieval with Large Vocabularies, 2007; kept by Radenović et
    al., Revisiting Oxford and Paris, 2018.

    >>> round(trapezoidal_ap([True, False, True]), 3)  # ((1 + 1) / 2 + (1/2 + 2/3) / 2) / 2
    0.792
    """
    before = np.flatnonzero(ranked)  # images ranked before each relevant one
    found = np.arange(len(before))
    just_before = np.where(before == 0, 1.0, found / np.maximum(before, 1))
    return float(((just_before + (found + 1) / (before + 1)) / 2).mean())


def precision_until_found(ranked: np.ndarray, k: int) -> float:
    """Precision among the first k, or up to the last relevant image if that is sooner.

    Convention: mP@k of revisited Oxford and Paris: with two relevant images, both at the top,
    it is 1 for every k. Source: Radenović et al. 2018, the code published with it.

    >>> precision_until_found([True, True, False], k=3), precision_at_k([True, True, False], k=4)
    (1.0, 0.5)
    """
    return precision_at_k(ranked, min(k, np.flatnonzero(ranked)[-1] + 1))


def r_precision(ranked: np.ndarray) -> float:
    """Precision among the first R, R the number of relevant images.

    >>> r_precision([True, False, True])
    0.5
    """
    return precision_at_k(ranked, np.sum(ranked))


def map_at_r(ranked: np.ndarray) -> float:
    """``1/R sum_{i=1..R} P(i) [i-th is relevant]``, R the number of relevant images.

    R-precision that also rewards order within the first R. 1 only for a perfect ranking.
    Source: Musgrave et al., A Metric Learning Reality Check, 2020, section 3.2.

    >>> map_at_r([True, False, True]), map_at_r([False, True, True])
    (0.5, 0.25)
    """
    total = np.sum(ranked)
    first = np.asarray(ranked[:total])
    return float((first.cumsum() / np.arange(1, total + 1) * first).sum() / total)


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored, by its own rules.

    Args:
        convention: who asks, what is searched, what counts, in one line.
        metrics: those that the benchmark reports. ap, precision: its "mAP" and "P@<k>".
    """

    convention: str
    metrics: tuple[str, ...] = METRICS
    ap: Callable[[np.ndarray], float] = average_precision
    precision: Callable[[np.ndarray, int], float] = precision_at_k


PROTOCOLS = {
    "objects": Protocol(
        "every image asks all others; relevant: the same object; junk: images that show it only "
        "beside another; mAP not interpolated",
    ),
    "categories": Protocol(
        "every object's window asks all others; relevant: the same category; junk: windows that "
        "show it only beside their own object; mAP not interpolated",
    ),
    "metric learning": Protocol(
        "every test image asks all others; relevant: the same class, none of them trained on; "
        "R@K is 1 if one of the first K is relevant (Oh Song et al. 2016)",
        ("R@1", "R@2", "R@4", "R@8", "R-precision", "MAP@R"),
    ),
    "metric learning, products": Protocol(
        "every test image asks all others; relevant: the same product, none of them trained on; "
        "R@K is 1 if one of the first K is relevant (Oh Song et al. 2016)",
        ("R@1", "R@10", "R@100", "R@1000", "R-precision", "MAP@R"),
    ),
    "photoshop to original": Protocol(
        "every photoshop asks all originals; relevant: the one it was made from; mAP is then the "
        "mean reciprocal rank",
        ("R@1", "R@5", "R@10", "mAP"),
    ),
    "iconic": Protocol(
        "every photograph asks all iconic pictures; relevant: the one of its product; mAP is then "
        "the mean reciprocal rank",
        ("R@1", "R@5", "mAP"),
    ),
    "revisited": Protocol(
        "the query's box asks all images; junk is taken out of the ranking; queries without "
        "relevant images are left out; trapezoidal mAP; mP@k up to the last relevant image "
        "(Radenović et al. 2018)",
        ("mAP", "P@1", "P@5", "P@10"),
        trapezoidal_ap,
        precision_until_found,
    ),
}


def metric_function(name: str, protocol: str = "objects") -> Callable[[np.ndarray], float]:
    """The function of a metric's name, nan for a ranking without relevant images.

    Args:
        name: "mAP", "R-precision", "MAP@R", "R@<k>" or "P@<k>".
        protocol: a key of :data:`PROTOCOLS`; says what "mAP" and "P@<k>" mean.
    Raises:
        DataError: no such metric.

    >>> metric_function("R@2")([False, True]), metric_function("R@2")([False, False])
    (1.0, nan)
    """
    rules = PROTOCOLS[protocol]
    whole = {"mAP": rules.ap, "R-precision": r_precision, "MAP@R": map_at_r}
    head, _, k = name.partition("@")
    at_k = {"R": recall_at_k, "P": rules.precision}.get(head)
    if name in whole:
        metric = whole[name]
    elif at_k and k.isdecimal() and int(k) > 0:
        metric = partial(at_k, k=int(k))
    else:
        raise DataError(f"no metric {name!r}", f"Use {', '.join(whole)}, R@<k> or P@<k>.")
    return lambda ranked: metric(ranked) if np.any(ranked) else np.nan


def evaluate(
    vectors: np.ndarray, dataset: ImageDataset, metrics: Sequence[str] | None = None
) -> Evaluation:
    """Rank the whole gallery for each query by inner product, and score the rankings.

    By the data set's protocol (:data:`PROTOCOLS`), which says who asks, what is searched, what is
    relevant and what is junk: left out of each ranking. Equal scores keep the gallery's order.

    Args:
        vectors: ``(N, D)``, one per image of ``dataset`` in its order, L2-normalised.
        metrics: names as in :func:`metric_function`; default the protocol's and :data:`METRICS`.
    Raises:
        DataError: not one finite vector per image, unknown metric, no query that has a relevant
            image, or none that has another: then every ranking is right.
    """
    vectors = checked_vectors(vectors, dataset)
    queries, searched = np.asarray(dataset.queries), vectors[dataset.gallery].T
    starts = range(0, len(queries), CHUNK)
    with np.errstate(over="ignore", invalid="ignore"):  # is said once, below
        parts = (vectors[queries[i : i + CHUNK]] @ searched for i in starts)
        return _evaluate(parts, dataset, metrics)


def evaluate_scores(
    scores: np.ndarray, dataset: ImageDataset, metrics: Sequence[str] | None = None
) -> Evaluation:
    """:func:`evaluate` for scores that are no inner product of two vectors.

    Args:
        scores: ``(Q, G)``, a line for each of ``dataset.queries``, a column for each of
            ``dataset.gallery``; higher is better. Further columns are distractors, never relevant.
    Raises:
        DataError: another shape, a NaN or infinity, else as for :func:`evaluate`.
    """
    scores, (q, g) = as_floats(scores), (len(dataset.queries), len(dataset.gallery))
    if scores.ndim != 2 or len(scores) != q or scores.shape[1] < g:
        problem = f"scores of shape {scores.shape} for {q} queries and {g} images"
        raise DataError(problem, "Pass one score per query and gallery image.")
    return _evaluate([scores], dataset, metrics)


def _evaluate(
    parts: Iterable[np.ndarray], dataset: ImageDataset, metrics: Sequence[str] | None
) -> Evaluation:
    """Rank and score, some queries at a time: each part has a line a query, in their order."""
    reported = PROTOCOLS[dataset.protocol].metrics
    names = (*reported, *METRICS) if metrics is None else metrics
    functions = {name: metric_function(name, dataset.protocol) for name in names}
    queries, found, wrong = np.asarray(dataset.queries), [], False
    for part in parts:
        if not np.isfinite(part).all():
            problem = "scores that are NaN or infinite"
            raise DataError(problem, "L2-normalise the vectors, or leave such images out.")
        for order in np.argsort(-part, axis=1, kind="stable"):
            known = np.array(truth(dataset, queries[len(found)]))
            relevant, junk = np.pad(known, ((0, 0), (0, len(order) - known.shape[1])))
            ranked = relevant[order[~junk[order]]]
            wrong |= ranked.any() and not ranked.all()
            found.append([function(ranked) for function in functions.values()])
    scores = np.array(found).reshape(len(queries), len(functions)).T
    name, values = f"{dataset.name}/{dataset.split}", dict(zip(functions, scores))
    if np.isnan(scores).all():
        problem = f"nothing to score: no query of {name} has a relevant image"
        remedy = "Give labels: one folder per object, two images of an object at least."
        raise DataError(problem, remedy)
    if not wrong:
        raise DataError(
            f"nothing to tell apart: every image of {name} is right for every query",
            "Give two labels at least: name the folder whose sub-folders are one for each object.",
        )
    which = f"{name} {dataset.fingerprint}"
    return Evaluation(values, dataset.labels[queries], queries, which, dataset.protocol)


@dataclass(frozen=True)
class Neighbours:
    """The best gallery images for one query, best first, junk left out.

    Args:
        images: ``(k,)`` image indices (into the data set, not into its gallery), as ``query`` is.
        scores: ``(k,)`` inner products. relevant: ``(k,)`` booleans.
    """

    query: int
    images: np.ndarray
    scores: np.ndarray
    relevant: np.ndarray


def ranking(vectors: np.ndarray, dataset: ImageDataset, query: int, k: int) -> Neighbours:
    """What :func:`evaluate` sees for one query, any image: the top k, or all there are if fewer.

    Raises:
        DataError: not one finite vector per image. IndexError: no such image.
    """
    vectors, gallery = checked_vectors(vectors, dataset), dataset.gallery
    scores = vectors[gallery] @ vectors[query]
    order = np.argsort(-scores, kind="stable")
    relevant, junk = truth(dataset, query)
    best = order[~junk[order]][:k]
    return Neighbours(query, gallery[best], scores[best], relevant[best])


def truth(dataset: ImageDataset, query: int) -> tuple[np.ndarray, np.ndarray]:
    """:meth:`ImageDataset.truth`, where copies of the query's photograph are junk as it is."""
    relevant, junk = dataset.truth(query)
    junk = junk | (dataset.copies[dataset.gallery] == dataset.copies[query])
    return relevant & ~junk, junk


def checked_vectors(vectors: np.ndarray, dataset: ImageDataset) -> np.ndarray:
    """``(N, D)`` :func:`as_floats`. Raises DataError unless each image has a finite vector."""
    vectors = as_floats(vectors)
    if vectors.ndim != 2 or len(vectors) != len(dataset):
        problem = f"vectors of shape {vectors.shape} for {len(dataset)} images"
        raise DataError(problem, "Pass one vector per image of the data set, in its order.")
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        problem = f"vectors hold NaN or infinite values, first for {dataset.files[bad[0]]}"
        raise DataError(problem, "Embed that image again, or leave it out.")
    return vectors


def as_floats(values: np.ndarray) -> np.ndarray:
    """Real numbers as float32 or more: products of bytes and of half precision overflow, and
    unsigned numbers cannot be negated.

    Raises:
        DataError: no real numbers.

    >>> (as_floats(np.array([[127, -128]], np.int8)) @ as_floats([127, -128])).tolist()
    [32513.0]
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has none
    try:
        values = np.asarray(values)
    except ValueError as error:  # lists of several lengths
        problem = f"values that cannot be ranked ({error})"
        raise DataError(problem, "Pass an array of real numbers.") from error
    if values.dtype.kind not in "biuf":
        raise DataError(f"{values.dtype} numbers cannot be ranked", "Pass real numbers.")
    return values.astype(np.promote_types(values.dtype, np.float32), copy=False)
