"""What a cosine is worth, and how often such an answer is right."""

from __future__ import annotations

import numpy as np
import pytest

from objemb_lib.search.calibration import UNCHECKED, Calibration


def test_kinds_of_pairs_have_scales_of_their_own_and_unchecked_ones_none() -> None:
    known = Calibration({"box to box": (2.0, -0.5), "whole to box": (1.0, 0.1)})
    cosines, wholes = np.array([0.5, 0.8]), np.array([False, True])
    assert known.worth(cosines, False, wholes) == pytest.approx([0.5, 0.8])
    assert known.worth(cosines, True, wholes) == pytest.approx([0.6, 0.8])
    assert UNCHECKED.worth(cosines, True, wholes) == pytest.approx(cosines)


def test_a_chance_grows_with_the_score_and_is_unknown_where_nobody_checked() -> None:
    known = Calibration(chances={"box": ([0.2, 0.6], [0.1, 0.9])})
    chances = [known.chance(score, "box") for score in np.linspace(0, 1, 20)]
    assert chances[0] == 0.1 and chances[-1] == 0.9 and (np.diff(chances) >= 0).all()
    assert np.isnan(known.chance(0.4, "whole")) and np.isnan(UNCHECKED.chance(0.4, "box"))
