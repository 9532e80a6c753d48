"""Calibration: how often an answer is right, by how far its score stands above later ones.

Scores alone tell little: where all photographs are alike, a wrong one is close, too. What tells is
the *ratio test*: how much nearer an answer is than those that come later. ``benchmarks/app.py
--fit`` learns what it is worth on objects and photographs that are not tested.

Source: Lowe, Distinctive Image Features from Scale-Invariant Keypoints, 2004, section 7.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        chances: for each kind of query (``box``, ``whole``, ``both``) slope and offset of the
            logit of the chance, see :meth:`chance`.
        nothing: the chance of a first answer below which probably nothing is there.
    """

    chances: Mapping[str, Sequence[float]] = field(default_factory=dict)
    nothing: float = np.nan

    def chance(self, scores: np.ndarray, kind: str) -> np.ndarray:
        """How often answers are right, 0 to 1, by :func:`nearness`.

        Nan where that was not checked: this network or these boxes, or so few images.

        Args:
            scores: ``(..., N)`` cosines of the images that were compared, best first.
        """
        if kind not in self.chances or scores.shape[-1] < FEW:
            return np.full_like(scores, np.nan)
        slope, offset = self.chances[kind]
        return 1 / (1 + np.exp(-slope * nearness(scores) - offset))


def nearness(scores: np.ndarray) -> np.ndarray:
    """Minus the distances of cosines ``(..., N)``, best first, by the mean of :data:`LATER` ones:
    near 0 for an answer much nearer than those, near -1 for one like them."""
    later = 1 - scores[..., LATER].mean(axis=-1, keepdims=True)
    return (scores - 1) / np.maximum(later, 1e-6)


UNCHECKED = Calibration()


def made_of(
    network: Trunk, pairs: Sequence[tuple[str, str]], context: float, size: int, boxes: str
) -> dict[str, str]:
    """All that a calibration holds for."""
    told = {"pairs": ", ".join(map(" ".join, pairs)), "context": f"{context:g}", "size": str(size)}
    return {"weights": network.fingerprint(), **told, "boxes": boxes}


def shipped(made: Mapping[str, str]) -> Calibration:
    """What comes with the course, see :func:`made_of`; of anything else nothing is known."""
    for known in json.loads(SHIPPED.read_text(encoding="utf-8")):
        if known["made_of"] == made:
            return Calibration(**known["calibration"])
    return UNCHECKED
