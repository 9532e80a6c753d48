"""Comparison of networks: what is offered, and what train chooses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_queries import dataset

from objemb_lib.data.catalogue import Splits
from objemb_lib.detect.detectors import build_detector
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.measure.comparison import (
    SOURCES,
    best_of,
    candidates,
    choose,
    few,
    few_scenes,
    fit_val_split,
    limited,
    source,
    subsample_labels,
)


@pytest.fixture(scope="module")
def trunk():
    return load_trunk("efficientnet_lite0", pretrained=False)


def test_a_detector_offers_every_source_and_a_trunk_only_its_body(trunk):
    pairs = candidates(trunk, poolings=("spoc", "mac"))
    assert pairs == [(s, p) for s in ("stage4", "stage5", "head") for p in ("spoc", "mac")]
    detector = DetectorTrunk(build_detector("fcos", trunk, ["a"]))
    offered = candidates(detector, body=["head"], poolings=["spoc"])
    assert [stage for stage, _ in offered] == ["head", "fpn3", "fpn4", "fpn5", "roi", "box_head"]
    assert tuple(dict.fromkeys(source(stage) for stage, _ in offered)) == SOURCES


def test_each_source_speaks_with_the_best_of_its_own():
    """Two objects, two images each; ``right`` separates them, ``wrong`` joins the wrong ones."""
    data = dataset([0, 0, 1, 1])
    right = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    wrong = right[[0, 2, 1, 3]]
    vectors = {
        ("stage5", "spoc"): wrong,
        ("head", "mac"): right,
        ("fpn3", "spoc"): wrong,
        ("fpn4", "spoc"): wrong,
        ("box_head", "spoc"): right * 7,  # length does not matter
    }
    found = choose(vectors, data)
    assert found["body"] == ("head", "mac") and found["box head"] == ("box_head", "spoc")
    assert found["FPN"] == ("fpn3", "spoc")  # of equals, the first
    assert "RoI features" not in found
    assert best_of(vectors, data) == ("head", "mac")


def test_few_scenes_keep_every_object_and_the_order():
    data = dataset([3, 1, 3, 3, 1, 2])
    few = few_scenes(data, 2)
    assert few.labels.tolist() == [3, 1, 3, 1, 2]
    assert list(few.files) == [data.files[i] for i in (0, 1, 2, 4, 5)]
    assert few.fingerprint != data.fingerprint


def test_a_limit_leaves_out_whole_labels_evenly():
    data = dataset(np.repeat(np.arange(10), 6))
    small = limited(data, 12)
    assert small.labels.tolist() == [0] * 4 + [4] * 4 + [9] * 4
    assert limited(data, 60) is data and limited(data, 0) is data
    assert limited(data, 1).labels.tolist() == [0, 0, 9, 9]  # else nothing can be found again
    lonely = dataset([0, 1, 1, 2, 3, 3])
    assert limited(lonely, 4).labels.tolist() == [1, 1, 3, 3]
    distracted = dataset([0, 0, 1, 1, -1, -1])
    assert limited(distracted, 4) is distracted


def test_a_limit_keeps_who_asks_and_who_is_searched():
    data = replace(dataset([0, 0, 0, 1, 1, 1, 2, 2, 2]), queries=[0, 3, 6], gallery=[1, 2, 4, 5, 7])
    small = limited(data, 6)
    assert [small.files[q] for q in small.queries] == [data.files[q] for q in (0, 6)]
    assert [small.files[g] for g in small.gallery] == [data.files[g] for g in (1, 2, 7)]


def test_few_images_of_the_splits_that_are_named():
    labels = np.repeat([0, 1], 5)
    roles = Splits(dataset(labels), {"battle": dataset(labels), "clean": dataset(labels)})
    train, tests = few(roles, {"train": 3, "clean": 2, "elsewhere": 1})
    assert (len(train), len(tests["battle"]), len(tests["clean"])) == (6, 10, 4)
    assert list(tests) == ["battle", "clean"]
    assert len(few(roles, limit=4).tests["battle"]) == 4


def test_half_of_the_labels_unless_one_would_be_left():
    assert subsample_labels(dataset([0, 1, 2, 3, 2])).labels.tolist() == [0, 2, 2]
    for whole in ([1, 2, 3], [0, 1, 2, 3, -1]):
        assert subsample_labels(dataset(whole)).labels.tolist() == whole


def test_halves_share_no_object_and_where_known_no_background():
    labels, grounds = np.repeat(np.arange(4), 6), np.tile(["a", "b"], 12)
    data = dataset(labels)
    fit, judge = fit_val_split(data)
    assert set(labels[fit]) == {0, 2} and set(labels[judge]) == {1, 3}
    known = replace(data, extra=[{"background": ground} for ground in grounds])
    fit, judge = fit_val_split(known)
    assert set(labels[fit]) == {0, 2} and set(labels[judge]) == {1, 3}
    assert set(grounds[fit]) == {"a"} and set(grounds[judge]) == {"b"}
    scarce = known.subset([0, 2, 7, 9, 8])  # no judge has a second scene on the other background
    fit, judge = fit_val_split(replace(scarce, extra=[{"background": g} for g in "aabcc"]))
    assert fit.tolist() == [0, 1] and judge.tolist() == [2, 3, 4]
    fit, judge = fit_val_split(dataset([-1, -1, 0, 1]))  # nothing to judge by
    assert fit.tolist() == judge.tolist() == [0, 1, 2, 3]
