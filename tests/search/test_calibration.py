"""How often an answer is right."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search import calibration
from objemb_lib.search.calibration import UNCHECKED, Calibration, made_of, nearness, shipped
from objemb_lib.show.app import PHOTOGRAPHS, SCENES
from objemb_lib.teach.student import StudentTrunk, load_student

KNOWN = Calibration({"both": (8.0, 6.0)}, 0.3)


def test_an_answer_is_as_near_as_its_distance_by_that_of_later_ones() -> None:
    """By hand: ranks 8 to 31 lie at distance 0.4, the first answers at 0.1 and 0.2."""
    scores = np.array([0.9, 0.8, *[0.7] * 6, *[0.6] * 24, *[0.1] * 9])
    assert nearness(scores)[:2] == pytest.approx([-0.25, -0.5])
    assert KNOWN.chance(scores, "both")[:2] == pytest.approx(
        [1 / (1 + np.exp(-4)), 1 / (1 + np.exp(-2))]
    )
    assert np.isfinite(KNOWN.chance(np.ones(40), "both")).all(), "copies of one photograph"


def test_a_chance_grows_with_the_score_and_is_unknown_where_nobody_checked() -> None:
    scores = np.linspace(0.9, 0.1, 40)
    chances = KNOWN.chance(scores, "both")
    assert (np.diff(chances) < 0).all() and 0 < chances.min() < chances.max() < 1
    for known, some, kind in ((KNOWN, scores, "box"), (UNCHECKED, scores, "both"),
                              (KNOWN, scores[:9], "both")):  # fmt: skip
        assert np.isnan(known.chance(some, kind)).all()


def test_of_other_boxes_and_of_another_network_nothing_is_known(tmp_path, monkeypatch) -> None:
    made = {"weights": "w", "pairs": "p", "context": "0", "size": "384", "boxes": "proposer"}
    path = tmp_path / "calibrations.json"
    path.write_text(json.dumps([{"made_of": made, "calibration": asdict(KNOWN)}]))
    monkeypatch.setattr(calibration, "SHIPPED", path)
    assert shipped(made).nothing == 0.3 and dict(shipped(made).chances) == {"both": [8, 6]}
    assert shipped(made | {"boxes": "detected"}) is shipped(made | {"weights": "v"}) is UNCHECKED


@pytest.mark.parametrize("taken, name, boxes, kinds", [
    (PHOTOGRAPHS, "", "proposer", {"box", "whole", "both"}),
    (SCENES, "student", "detected", {"box"}),
])  # fmt: skip
def test_the_app_knows_how_often_its_first_answers_are_right(taken, name, boxes, kinds) -> None:
    network = StudentTrunk(load_student(name)) if name else load_trunk()
    known = shipped(made_of(network, *taken[name], boxes))
    assert 0 < known.nothing < 0.5 and kinds <= set(known.chances)
    assert all(slope > 0 for slope, _ in known.chances.values())
