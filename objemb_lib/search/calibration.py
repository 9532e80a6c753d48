"""Calibration: what a cosine is worth, and how often such an answer is right.

The whole of a photograph is always a little like the whole of any other; a box is not. So that
cosines of wholes and of boxes can be compared, each kind of pair has a logistic curve of its own,
and a chance says how often answers of a score were right, both learned on objects of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).parent / "calibrations.json"
PAIRS = ("box to box", "box to whole", "whole to box", "whole to whole")  # of query and answer


@dataclass(frozen=True)
class Calibration:
    """What was learned of a network and of who says where to look.

    Args:
        worth: of each of :data:`PAIRS` slope and offset that a cosine gets, so that equal scores
            are equally sure, and a score is the cosine that two wholes would need.
        chances: of each kind of query (``box``, ``whole``, ``both``) scores in ascending order and
            how often answers of that score are right; straight lines between them.
        nothing: the chance of a first answer below which probably nothing is there.
    """

    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    chances: Mapping[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    nothing: float = np.nan

    def worth(self, cosines: np.ndarray, from_whole: bool, to_whole: np.ndarray) -> np.ndarray:
        """Comparable scores ``(K,)`` of the cosines of a box or a whole with ``K`` objects.

        Args:
            from_whole: whether the whole of a photograph asks. to_whole: ``(K,)`` boolean.
        """
        asks = "whole to " if from_whole else "box to "
        (a, b), (c, d) = (self.scales.get(asks + kind, (1.0, 0.0)) for kind in ("whole", "box"))
        return np.where(to_whole, a * cosines + b, c * cosines + d)

    def chance(self, score: float, kind: str) -> float:
        """How often answers of this score are right, 0 to 1; nan where that was not checked."""
        return float(np.interp(score, *self.chances[kind])) if kind in self.chances else np.nan


UNCHECKED = Calibration()


def shipped(key: str) -> Calibration:
    """That of a network, by :func:`key`; :data:`UNCHECKED` where nobody checked it."""
    known = json.loads(SHIPPED.read_text(encoding="utf-8")).get(key)
    return Calibration(known["scales"], known["chances"], known["nothing"]) if known else UNCHECKED
