"""Evaluate: metrics on rankings, each data set's protocol, intervals by query object.

A metric here is a pure function of a *ranked relevance list*: 1-D booleans over the gallery,
best first, True where relevant, junk already taken out. A query without any relevant image
has no score: it is nan, is counted, and is left out of means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset

METRICS = ("R@1", "R@5", "mAP", "R-precision", "MAP@R", "P@5")


def recall_at_k(ranked: np.ndarray, k: int) -> float:
    """``1`` if any of the first k is relevant, else ``0``; nan without relevant images.

    Convention: the R@K of metric learning, a hit rate; not the share of relevant images found.
    Source: Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016.

    >>> recall_at_k([False, True, True], k=1), recall_at_k([False, True, True], k=2)
    (0.0, 1.0)
    """
    ranked = np.asarray(ranked, bool)
    return float(ranked[:k].any()) if ranked.any() else np.nan


def precision_at_k(ranked: np.ndarray, k: int) -> float:
    """``(relevant among the first k) / k``; nan without relevant images.

    Convention: divides by k also where fewer than k images, or fewer than k relevant ones,
    exist, so that a query with few relevant images cannot reach 1.

    >>> precision_at_k([True, False, True, True], k=2)
    0.5
    """
    ranked = np.asarray(ranked, bool)
    return float(ranked[:k].sum() / k) if ranked.any() else np.nan


def average_precision(ranked: np.ndarray) -> float:
    """Mean over the relevant images of the precision at their rank; nan without any.

    ``AP = 1/R sum_r P(rank of the r-th relevant image)``.
    Convention: not interpolated (as scikit-learn and trec_eval); Oxford and Paris take
    :func:`trapezoidal_ap`, which is lower: here, (1/1 + 2/3) / 2 = 0.833.

    >>> round(average_precision([True, False, True]), 3)
    0.833
    """
    ranks = np.flatnonzero(ranked) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean()) if len(ranks) else np.nan


def trapezoidal_ap(ranked: np.ndarray) -> float:
    """Area under the precision-recall curve by trapezoids; nan without relevant images.

    ``1/R sum_r (P just before the r-th relevant image + P at it) / 2``, where P before the
    first rank is 1.
    Source: Philbin et al., Object Retrieval with Large Vocabularies, 2007; kept by Radenović et
    al., Revisiting Oxford and Paris, 2018.

    >>> round(trapezoidal_ap([True, False, True]), 3)  # ((1 + 1) / 2 + (1/2 + 2/3) / 2) / 2
    0.792
    """
    before = np.flatnonzero(ranked)  # images ranked before each relevant one
    if not len(before):
        return np.nan
    found = np.arange(len(before))
    just_before = np.where(before == 0, 1.0, found / np.maximum(before, 1))
    return float(((just_before + (found + 1) / (before + 1)) / 2).mean())


def precision_until_found(ranked: np.ndarray, k: int) -> float:
    """Precision among the first k, or among those up to the last relevant image if that is
    sooner; nan without relevant images.

    Convention: mP@k of revisited Oxford and Paris: with two relevant images, both at the top,
    it is 1 for every k. Source: Radenović et al. 2018, the code published with it.

    >>> precision_until_found([True, True, False], k=3), precision_at_k([True, True, False], k=4)
    (1.0, 0.5)
    """
    ranked = np.asarray(ranked, bool)
    if not ranked.any():
        return np.nan
    return float(ranked[: min(k, np.flatnonzero(ranked)[-1] + 1)].mean())


def r_precision(ranked: np.ndarray) -> float:
    """Precision among the first R, R the number of relevant images; nan without any.

    >>> r_precision([True, False, True])
    0.5
    """
    ranked = np.asarray(ranked, bool)
    total = ranked.sum()
    return float(ranked[:total].mean()) if total else np.nan


def map_at_r(ranked: np.ndarray) -> float:
    """``1/R sum_{i=1..R} P(i) [i-th is relevant]``, R the number of relevant; nan without any.

    R-precision that also rewards order within the first R. 1 only for a perfect ranking.
    Source: Musgrave et al., A Metric Learning Reality Check, 2020, section 3.2.

    >>> map_at_r([True, False, True]), map_at_r([False, True, True])
    (0.5, 0.25)
    """
    ranked = np.asarray(ranked, bool)
    total = ranked.sum()
    if not total:
        return np.nan
    first = ranked[:total]
    return float((first.cumsum() / np.arange(1, total + 1) * first).sum() / total)


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored, by its own rules.

    Args:
        name: in :data:`PROTOCOLS`.
        convention: who asks, what is searched, what counts: one line, for under a table.
        metrics: those that the benchmark reports.
        ap, precision: what its "mAP" and "P@<k>" mean.
    """

    name: str
    convention: str
    metrics: tuple[str, ...] = METRICS
    ap: Callable[[np.ndarray], float] = average_precision
    precision: Callable[[np.ndarray, int], float] = precision_at_k

    def __str__(self) -> str:
        return f"{self.name}: {self.convention}"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "objects",
            "every image asks all others; relevant: the same object; junk: images that show it "
            "only beside another; mAP not interpolated",
        ),
        Protocol(
            "categories",
            "every object's window asks all others; relevant: the same category; junk: windows "
            "that show it only beside their own object; mAP not interpolated",
        ),
        Protocol(
            "metric learning",
            "every test image asks all others; relevant: the same class, none of them trained on; "
            "R@K is 1 if one of the first K is relevant (Oh Song et al. 2016)",
            ("R@1", "R@2", "R@4", "R@8", "R-precision", "MAP@R"),
        ),
        Protocol(
            "metric learning, products",
            "every test image asks all others; relevant: the same product, none of them trained "
            "on; R@K is 1 if one of the first K is relevant (Oh Song et al. 2016)",
            ("R@1", "R@10", "R@100", "R@1000", "R-precision", "MAP@R"),
        ),
        Protocol(
            "photoshop to original",
            "every photoshop asks all originals; relevant: the one it was made from; mAP is then "
            "the mean reciprocal rank",
            ("R@1", "R@5", "R@10", "mAP"),
        ),
        Protocol(
            "iconic",
            "every photograph asks all iconic pictures; relevant: the one of its product; mAP is "
            "then the mean reciprocal rank",
            ("R@1", "R@5", "mAP"),
        ),
        Protocol(
            "revisited",
            "the query's box asks all images; junk is taken out of the ranking; queries without "
            "relevant images are left out; trapezoidal mAP; mP@k up to the last relevant image "
            "(Radenović et al. 2018)",
            ("mAP", "P@1", "P@5", "P@10"),
            trapezoidal_ap,
            precision_until_found,
        ),
    )
}
OBJECTS = PROTOCOLS["objects"]


def metric_function(name: str, protocol: Protocol = OBJECTS) -> Callable[[np.ndarray], float]:
    """The function of a metric's name: "mAP", "R-precision", "MAP@R", "R@<k>" or "P@<k>".

    >>> metric_function("R@2")([False, True])
    1.0
    """
    whole = {"mAP": protocol.ap, "R-precision": r_precision, "MAP@R": map_at_r}
    if name in whole:
        return whole[name]
    head, _, k = name.partition("@")
    at_k = {"R": recall_at_k, "P": protocol.precision}.get(head)
    if at_k is None or not k.isdecimal() or int(k) < 1:
        raise DataError(f"no metric {name!r}", f"Use {', '.join(whole)}, R@<k> or P@<k>.")
    return lambda ranked: at_k(ranked, int(k))


def protocol_of(dataset: ImageDataset) -> Protocol:
    """The protocol that a data set names. Raises DataError if there is none of that name."""
    if dataset.protocol not in PROTOCOLS:
        raise DataError(
            f"{dataset.name} asks for the protocol {dataset.protocol!r}",
            f"There are: {', '.join(PROTOCOLS)}.",
        )
    return PROTOCOLS[dataset.protocol]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its confidence interval; nan ends where there is none.

    >>> print(Interval(0.581, 0.55, 0.612), Interval(0.1, 0.02, 0.2).verdict)
    0.58 [0.55, 0.61] higher
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def verdict(self) -> str:
        """Of a difference: "higher" or "lower" if the interval excludes 0, else "inconclusive"."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "inconclusive"


@dataclass(frozen=True)
class Evaluation:
    """Scores of Q queries.

    Args:
        values: metric -> ``(Q,)`` scores, nan for a query without relevant images.
        groups: ``(Q,)`` label (object) of each query.
        queries: ``(Q,)`` image index of each query.
        dataset: name and content hash of what was evaluated.
        protocol: how.
    """

    values: dict[str, np.ndarray]
    groups: np.ndarray
    queries: np.ndarray
    dataset: str = ""
    protocol: Protocol = OBJECTS

    @property
    def n_queries(self) -> int:
        """All queries, those without relevant images too."""
        return len(self.queries)

    @property
    def n_skipped(self) -> int:
        """Queries without relevant images, left out of every mean."""
        return int(np.isnan(next(iter(self.values.values()))).sum())

    def mean(self, metric: str) -> float:
        """Mean over the queries that have a score; nan if none has."""
        scores = self._scores(metric)
        scored = scores[~np.isnan(scores)]
        return float(scored.mean()) if len(scored) else np.nan

    def interval(
        self, metric: str, level: float = 0.95, resamples: int = 2000, seed: int = config.SEED
    ) -> Interval:
        """Mean with its bootstrap confidence interval; see :func:`cluster_interval`."""
        return cluster_interval(self._scores(metric), self.groups, level, resamples, seed)

    def _scores(self, metric: str) -> np.ndarray:
        if metric not in self.values:
            raise DataError(f"{metric!r} was not evaluated", f"There are {', '.join(self.values)}.")
        return self.values[metric]


def cluster_interval(
    scores: np.ndarray,
    groups: np.ndarray,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = config.SEED,
) -> Interval:
    """Mean of scores with a percentile bootstrap interval that resamples whole objects.

    Queries of one object succeed and fail together, so resampling queries one by one would
    make the interval too narrow: all queries of a drawn object are drawn (a cluster bootstrap).

    Args:
        scores: ``(Q,)``; nan are left out.
        groups: ``(Q,)`` object of each query.
        level: share of intervals that hold the true mean.
        resamples: bootstrap samples.
        seed: of the resampling.
    Returns:
        the mean and its interval; nan ends with fewer than two objects.
    Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    scored = ~np.isnan(scores)
    if not scored.any():
        return Interval(np.nan, np.nan, np.nan)
    objects = np.unique(np.asarray(groups)[scored], return_inverse=True)[1]
    sums, counts = np.bincount(objects, scores[scored]), np.bincount(objects)
    value = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Interval(value, np.nan, np.nan)
    ends = bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=200,  # bounds memory for benchmarks of ten thousand objects
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(ends.low), float(ends.high))


def paired_difference(
    a: Evaluation,
    b: Evaluation,
    metric: str,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = config.SEED,
) -> Interval:
    """Mean of ``a - b`` over the same queries, with its interval; ``.verdict`` says which wins.

    Pairing cancels what makes a query hard for both, so that the interval is narrower than
    two intervals side by side suggest.

    Raises:
        DataError: when the two did not answer the same queries of the same data set, or were not
            scored by the same protocol.
    """
    same = (a.dataset, a.protocol) == (b.dataset, b.protocol)
    if not (same and np.array_equal(a.queries, b.queries) and np.array_equal(a.groups, b.groups)):
        raise DataError(
            f"cannot compare query by query: {a.n_queries} queries of {a.dataset or '?'}, "
            f"{b.n_queries} of {b.dataset or '?'}",
            "Evaluate both on the same data set.",
        )
    return cluster_interval(a._scores(metric) - b._scores(metric), a.groups, level, resamples, seed)


def evaluate(
    vectors: np.ndarray,
    dataset: ImageDataset,
    gallery_vectors: np.ndarray | None = None,
    metrics: Sequence[str] | None = None,
    chunk: int = 1024,
) -> Evaluation:
    """Rank the whole gallery for each query by inner product, and score the rankings.

    By the data set's protocol (:func:`protocol_of`); in all of them junk is taken out of each
    ranking, and equal scores keep the gallery's order.

    Args:
        vectors: ``(N, D)``, one per image of ``dataset`` in its order, L2-normalised.
        dataset: says who asks, what is searched, what is relevant and what is junk.
        gallery_vectors: ``(N, D)``, in the same order, where gallery images are embedded in
            another way than queries (e.g. the query cropped to its box); default ``vectors``.
        metrics: names as in :func:`metric_function`; default those that the protocol reports,
            and the course's :data:`METRICS`.
        chunk: queries ranked at a time, each taking about 16 bytes per gallery image.
    Raises:
        DataError: not one finite vector per image, unknown metric, no metric, or no query that
            has a relevant image.
    """
    asked, searched = _checked(vectors, dataset, gallery_vectors)
    queries, searched = np.asarray(dataset.queries), searched[dataset.gallery].T
    starts = range(0, len(queries), chunk)
    return _evaluate((asked[queries[i : i + chunk]] @ searched for i in starts), dataset, metrics)


def evaluate_scores(
    scores: np.ndarray, dataset: ImageDataset, metrics: Sequence[str] | None = None
) -> Evaluation:
    """:func:`evaluate` for scores that are no inner product of two vectors.

    Args:
        scores: ``(Q, G)``, one line for each of ``dataset.queries``, one column for each of
            ``dataset.gallery``; higher is better. Further columns are distractors: images
            outside the data set, relevant to none of its queries.
    Raises:
        DataError: another shape, a NaN or infinity, else as for :func:`evaluate`.
    """
    return _evaluate([_checked_scores(scores, dataset)], dataset, metrics)


def _checked_scores(scores: np.ndarray, dataset: ImageDataset) -> np.ndarray:
    scores, expected = np.asarray(scores), (len(dataset.queries), len(dataset.gallery))
    fits = scores.ndim == 2 and len(scores) == expected[0] and scores.shape[1] >= expected[1]
    if not fits or not np.isfinite(scores).all():
        raise DataError(
            f"scores of shape {scores.shape} for {expected[0]} queries and {expected[1]} images, "
            "or NaN or infinite ones",
            "Pass one finite score per query and gallery image.",
        )
    return scores


def _evaluate(
    parts: Iterable[np.ndarray], dataset: ImageDataset, metrics: Sequence[str] | None
) -> Evaluation:
    """Rank and score, some queries at a time: each part has a line a query, in their order."""
    protocol = protocol_of(dataset)
    names = (*protocol.metrics, *METRICS) if metrics is None else metrics
    functions = {name: metric_function(name, protocol) for name in names}
    if not functions:
        raise DataError("no metric to evaluate", f"Choose among {', '.join(METRICS)}.")
    queries, found = np.asarray(dataset.queries), []
    for part in parts:
        for order in np.argsort(-part, axis=1, kind="stable"):
            truth = np.array(dataset.truth(queries[len(found)]))
            relevant, junk = np.pad(truth, ((0, 0), (0, len(order) - truth.shape[1])))
            ranked = relevant[order[~junk[order]]]
            found.append([function(ranked) for function in functions.values()])
    values = dict(zip(functions, np.array(found).reshape(len(queries), len(functions)).T))
    if all(np.isnan(scores).all() for scores in values.values()):
        raise DataError(
            f"nothing to score: no query of {dataset.name}/{dataset.split} has a relevant image",
            "Give labels (one folder per object), two images of an object at least; rankings "
            "can be seen without (ranking, plots.neighbours).",
        )
    which = f"{dataset.name}/{dataset.split} {dataset.fingerprint}"
    return Evaluation(values, dataset.labels[queries], queries, which, protocol)


@dataclass(frozen=True)
class Neighbours:
    """The best gallery images for one query, best first, junk left out.

    Args:
        query: image index of the query.
        images: ``(k,)`` image indices (into the data set, not into its gallery).
        scores: ``(k,)`` inner products.
        relevant: ``(k,)`` booleans.
    """

    query: int
    images: np.ndarray
    scores: np.ndarray
    relevant: np.ndarray


def ranking(
    vectors: np.ndarray,
    dataset: ImageDataset,
    query: int,
    k: int,
    gallery_vectors: np.ndarray | None = None,
) -> Neighbours:
    """What :func:`evaluate` sees for one query: the top k, or all there are if fewer.

    Args:
        query: image index; need not be among ``dataset.queries``.
    Raises:
        DataError: not one finite vector per image, or no such image.
    """
    asked, searched = _checked(vectors, dataset, gallery_vectors)
    if not 0 <= query < len(dataset):
        raise DataError(f"no image {query} in {dataset}", f"Use 0 to {len(dataset) - 1}.")
    gallery = np.asarray(dataset.gallery)
    scores = searched[gallery] @ asked[query]
    order = np.argsort(-scores, kind="stable")
    best = order[~dataset.junk(query)[order]][:k]
    return Neighbours(query, gallery[best], scores[best], dataset.relevant(query)[best])


def _checked(
    vectors: np.ndarray, dataset: ImageDataset, gallery_vectors: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Query and gallery vectors, both ``(N, D)``."""
    asked = np.asarray(vectors)
    searched = asked if gallery_vectors is None else np.asarray(gallery_vectors)
    if asked.ndim != 2 or asked.shape != searched.shape or len(asked) != len(dataset):
        raise DataError(
            f"vectors of shape {asked.shape} and {searched.shape} for {len(dataset)} images",
            "Pass one vector per image of the data set, in its order.",
        )
    for part in (asked, searched):
        if not np.isfinite(part).all():
            rows = np.flatnonzero(~np.isfinite(part).all(axis=1))
            raise DataError(
                f"vectors hold NaN or infinite values, first for {dataset.files[rows[0]]}",
                "Embed that image again, or leave it out.",
            )
    return asked, searched
