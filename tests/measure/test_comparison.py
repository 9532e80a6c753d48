"""Comparison of networks: what is offered, and what train chooses."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_queries import dataset

from objemb_lib.detect.detectors import build_detector
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.measure.comparison import (
    SOURCES,
    best_of,
    candidates,
    choose,
    source,
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
