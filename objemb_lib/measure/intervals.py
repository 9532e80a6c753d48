"""Intervals: the scores of queries, their mean, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from objemb_lib import config
from objemb_lib.config import DataError


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
        groups, queries: ``(Q,)`` label (object) and image index of each query.
        dataset: name and content hash of what was evaluated.
        protocol: how, a key of :data:`metrics.PROTOCOLS`.
    """

    values: dict[str, np.ndarray]
    groups: np.ndarray
    queries: np.ndarray
    dataset: str = ""
    protocol: str = "objects"

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
        scored = self[metric][~np.isnan(self[metric])]
        return float(scored.mean()) if len(scored) else np.nan

    def interval(self, metric: str, which: np.ndarray | slice = slice(None)) -> Interval:
        """Mean with its confidence interval, see :func:`cluster_interval`; ``which``: of some
        queries, as ``(Q,)`` booleans."""
        return cluster_interval(self[metric][which], self.groups[which])

    def __getitem__(self, metric: str) -> np.ndarray:
        """``(Q,)`` scores. Raises DataError if the metric was not evaluated."""
        if metric not in self.values:
            raise DataError(f"{metric!r} was not evaluated", f"There are {', '.join(self.values)}.")
        return self.values[metric]


def cluster_interval(scores: np.ndarray, groups: np.ndarray) -> Interval:
    """Mean of scores with a 95 % percentile bootstrap interval that resamples whole objects.

    Queries of one object succeed and fail together: drawn one by one, they would make the interval
    too narrow. The same scores give the same interval; fewer than two objects give nan ends.

    Args:
        scores: ``(Q,)``; nan are left out. groups: ``(Q,)`` object of each query.
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
        n_resamples=2000,
        batch=200,  # bounds memory for benchmarks of ten thousand objects
        method="percentile",
        random_state=np.random.default_rng(config.SEED),
    ).confidence_interval
    return Interval(value, float(ends.low), float(ends.high))


def paired_difference(a: Evaluation, b: Evaluation, metric: str) -> Interval:
    """Mean of ``a - b`` over the same queries, with its interval; ``.verdict`` says which wins.

    Pairing cancels what makes a query hard for both: two intervals side by side are wider.

    Raises:
        DataError: other queries or data on one side than on the other, or another protocol.
    """
    same = (a.dataset, a.protocol) == (b.dataset, b.protocol)
    if not (same and np.array_equal(a.queries, b.queries) and np.array_equal(a.groups, b.groups)):
        raise DataError(
            f"cannot compare query by query: {a.n_queries} queries of {a.dataset or '?'}, "
            f"{b.n_queries} of {b.dataset or '?'}",
            "Evaluate both on the same data set.",
        )
    return cluster_interval(a[metric] - b[metric], a.groups)
