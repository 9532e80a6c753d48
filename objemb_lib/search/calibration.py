"""Calibration: what a cosine is worth, and how often such an answer is right.

Whole photographs are a little like each other in any case, boxes are not: each kind of pair has a
scale of its own, by a logistic curve of whether a pair shows the same. How often an answer is right
says how far its score stands above those of the images that come later: scores alone differ from
one kind of photograph to the next. ``benchmarks/app.py --fit`` learns both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from objemb_lib.embed.trunks import Trunk

SHIPPED = Path(__file__).parent / "calibrations.json"
LATER = slice(8, 32)  # the ranks that the first answers are compared with
FEW = 16  # images below which there are no such ranks


@dataclass(frozen=True)
class Calibration:
    """What was learned of a network and of who says where to look.

    Args:
        scales: slope and offset for the cosines of each kind of pair, such as ``box to whole``;
            scaled, all are as sure as cosines of two boxes.
        sharp: how much surer a pair is with its scaled cosine, in logits.
        chances: for each kind of query (``box``, ``whole``, ``both``) slope and offset of the
            logit of the chance, see :meth:`chance`.
        nothing: the chance of a first answer below which probably nothing is there.
    """

    scales: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sharp: float = 10.0
    chances: Mapping[str, Sequence[float]] = field(default_factory=dict)
    nothing: float = np.nan

    def scaled(self, cosines: np.ndarray, from_whole: bool, to_whole: np.ndarray) -> np.ndarray:
        """Comparable cosines ``(..., K)`` of a box or a whole photograph with ``K`` objects.

        Args:
            from_whole: whether the whole photograph asks. to_whole: ``(K,)`` boolean.
        """
        asks = "whole to " if from_whole else "box to "
        (a, b), (c, d) = (self.scales.get(asks + kind, (1.0, 0.0)) for kind in ("whole", "box"))
        return np.where(to_whole, a * cosines + b, c * cosines + d)

    def fused(self, best: np.ndarray) -> np.ndarray:
        """The score of images: the mean of the odds of all that asks, as a cosine.

        Args:
            best: ``(A, ...)`` scaled cosines of the best pairs of each of ``A`` that ask.
        """
        return (np.logaddexp.reduce(self.sharp * best, axis=0) - np.log(len(best))) / self.sharp

    def chance(self, scores: np.ndarray, kind: str) -> np.ndarray:
        """How often answers are right, 0 to 1, by how far each stands above :data:`LATER` ones.

        Nan where that was not checked: this network or these boxes, or so few images.

        Args:
            scores: ``(..., N)`` of the images that were compared, best first.
        """
        if kind not in self.chances or scores.shape[-1] < FEW:
            return np.full_like(scores, np.nan)
        slope, offset = self.chances[kind]
        return 1 / (1 + np.exp(-slope * standing(scores) - offset))


def standing(scores: np.ndarray) -> np.ndarray:
    """How far scores ``(..., N)``, best first, stand above the mean of :data:`LATER` ones."""
    return scores - scores[..., LATER].mean(axis=-1, keepdims=True)


UNCHECKED = Calibration()


def made_of(
    network: Trunk, pairs: Sequence[tuple[str, str]], context: float, size: int, boxes: str
) -> dict[str, str]:
    """All that a calibration holds for."""
    told = {"pairs": ", ".join(map(" ".join, pairs)), "context": f"{context:g}", "size": str(size)}
    return {"weights": network.fingerprint(), **told, "boxes": boxes}


def shipped(made: Mapping[str, str]) -> Calibration:
    """What comes with the course, see :func:`made_of`; of other boxes no chances, of another
    network nothing."""
    found = UNCHECKED
    for known in json.loads(SHIPPED.read_text(encoding="utf-8")):
        own = Calibration(**known["calibration"])
        if known["made_of"] == made:
            return own
        if {**known["made_of"], "boxes": ""} == {**made, "boxes": ""}:
            found = replace(own, chances={}, nothing=np.nan)
    return found
