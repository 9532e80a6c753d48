"""What a cosine is worth, and how often such an answer is right."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from objemb_lib.search import calibration
from objemb_lib.search.calibration import UNCHECKED, Calibration, made_of, shipped
from objemb_lib.show.app import PHOTOGRAPHS, SCENES
from objemb_lib.teach.student import StudentTrunk, load_student

KNOWN = Calibration({"box to box": (2.0, -0.5), "whole to box": (1.0, 0.1)}, 8.0,
                    {"both": (20.0, -2.0)}, 0.3)  # fmt: skip


def test_kinds_of_pairs_have_scales_of_their_own_and_unchecked_ones_none() -> None:
    cosines, wholes = np.array([0.5, 0.8]), np.array([False, True])
    assert KNOWN.scaled(cosines, False, wholes) == pytest.approx([0.5, 0.8])
    assert KNOWN.scaled(cosines, True, wholes) == pytest.approx([0.6, 0.8])
    assert UNCHECKED.scaled(cosines, True, wholes) == pytest.approx(cosines)


def test_one_that_is_sure_outweighs_one_that_is_not_and_alone_its_cosine_stays() -> None:
    alone = KNOWN.fused(np.array([[0.3, 0.9]]))
    assert alone == pytest.approx([0.3, 0.9])
    sure, sure_too, neither = KNOWN.fused(np.array([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]]))
    assert sure == pytest.approx(sure_too) and 0.9 > sure > 0.8 > neither == pytest.approx(0.5)


def test_a_chance_grows_with_the_score_and_is_unknown_where_nobody_checked() -> None:
    scores = np.linspace(0.9, 0.1, 40)
    chances = KNOWN.chance(scores, "both")
    assert (np.diff(chances) < 0).all() and 0 < chances.min() < chances.max() < 1
    assert KNOWN.chance(scores - 0.1, "both") == pytest.approx(chances), "it is how far one stands"
    for known, some, kind in ((KNOWN, scores, "box"), (UNCHECKED, scores, "both"),
                              (KNOWN, scores[:9], "both")):  # fmt: skip
        assert np.isnan(known.chance(some, kind)).all()


def test_of_other_boxes_scales_hold_and_of_another_network_nothing(tmp_path, monkeypatch) -> None:
    made = {"weights": "w", "pairs": "p", "context": "0", "size": "384", "boxes": "proposer"}
    path = tmp_path / "calibrations.json"
    path.write_text(json.dumps([{"made_of": made, "calibration": asdict(KNOWN)}]))
    monkeypatch.setattr(calibration, "SHIPPED", path)
    own, other = shipped(made), shipped(made | {"boxes": "detected"})
    assert own.nothing == 0.3 and own.chance(np.ones(40), "both")[0] == pytest.approx(
        0.119, abs=1e-3
    )
    assert other.scales == own.scales and np.isnan(other.chance(np.ones(40), "both")).all()
    assert np.isnan(other.nothing)
    assert shipped(made | {"weights": "v"}) is UNCHECKED


@pytest.mark.parametrize("taken, boxes", [(PHOTOGRAPHS, "proposer"), (SCENES, "detected")])
def test_the_app_knows_how_often_its_own_answers_are_right(taken, boxes) -> None:
    (name, how), _ = taken.items()
    known = shipped(made_of(StudentTrunk(load_student(name)), *how, boxes))
    assert known.sharp > 0 and not known.nothing >= 0.5 and {"box", "both"} <= set(known.chances)
    assert all(slope >= 0 for slope, _ in known.scales.values()) and len(known.scales) == 4
    assert all(slope > 0 for slope, _ in known.chances.values())
