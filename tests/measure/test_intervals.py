"""Intervals: as wide as theory says, by whole objects, and paired."""

from dataclasses import replace

import numpy as np
import pytest

from objemb_lib.config import DataError
from objemb_lib.measure.intervals import Evaluation, paired_difference


def scored(values, groups, **parts) -> Evaluation:
    values = np.asarray(values, float)
    return Evaluation({"R@1": values}, np.asarray(groups), np.arange(len(values)), **parts)


def test_interval_of_independent_queries_is_the_binomial_one():
    """400 objects of one query, half right: 0.5 +- 1.96 sqrt(0.25 / 400) = 0.5 +- 0.049."""
    found = scored(np.arange(400) % 2, np.arange(400)).interval("R@1")
    assert found.value == 0.5
    assert found.low == pytest.approx(0.451, abs=0.006)
    assert found.high == pytest.approx(0.549, abs=0.006)


def test_repeated_queries_of_an_object_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    values, groups = rng.random(30), np.arange(30)
    once, often = scored(values, groups), scored(np.repeat(values, 9), np.repeat(groups, 9))
    a, b, naive = once.interval("R@1"), often.interval("R@1"), scored(
        np.repeat(values, 9), np.arange(270)
    ).interval("R@1")  # fmt: skip
    assert (a.low, a.high) == pytest.approx((b.low, b.high))
    assert naive.high - naive.low < 0.5 * (b.high - b.low)


def test_objects_weigh_by_their_queries():
    """100 objects found by their one query, 100 missed by all nine: 0.1 of the queries."""
    groups = np.concatenate([np.arange(100), np.repeat(np.arange(100, 200), 9)])
    found = scored(groups < 100, groups).interval("R@1")
    assert found.value == 0.1 and 0.07 < found.low < 0.1 < found.high < 0.14


def test_interval_leaves_out_queries_without_relevant_images():
    full = scored([1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 2, 2])
    holes = scored([1, 0, 1, 0, 1, 1, np.nan, np.nan], [0, 0, 1, 1, 2, 2, 2, 3])
    assert full.interval("R@1") == holes.interval("R@1")
    assert (holes.n_queries, holes.n_skipped, holes.mean("R@1")) == (8, 2, 4 / 6)
    empty = scored([np.nan, np.nan], [0, 1])
    assert np.isnan([empty.mean("R@1"), empty.interval("R@1").value]).all()
    one = scored([1, 0], [4, 4]).interval("R@1")  # one object has a value but no interval
    assert one.value == 0.5 and np.isnan([one.low, one.high]).all()
    assert one.verdict == "inconclusive"


def test_paired_difference_sees_what_two_intervals_hide():
    rng = np.random.default_rng(0)
    hard, groups = rng.random(60), np.arange(60) // 2
    b, a = scored(hard, groups), scored(hard + 0.05 + 0.01 * rng.standard_normal(60), groups)
    assert a.interval("R@1").low < b.interval("R@1").high  # side by side they overlap
    difference = paired_difference(a, b, "R@1")
    assert difference.verdict == "higher" and difference.value == pytest.approx(0.05, abs=0.005)
    assert paired_difference(b, a, "R@1").verdict == "lower"
    assert paired_difference(a, a, "R@1").verdict == "inconclusive"


def test_difference_needs_the_same_queries_scored_alike():
    a = scored([1, 0, 1], [0, 1, 1], dataset="one")
    others = (
        scored([1, 0], [0, 1], dataset="one"),
        replace(a, queries=np.array([0, 1, 5])),
        replace(a, groups=np.array([0, 0, 1])),
        replace(a, dataset="two"),
        replace(a, protocol="revisited"),
    )
    for other in others:
        with pytest.raises(DataError, match="query by query"):
            paired_difference(a, other, "R@1")
