"""The drawn figures are what their script draws."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

IMAGES = Path(__file__).resolve().parents[2] / "notebooks" / "images"
DRAWN = runpy.run_path(str(IMAGES / "detector.py"))


@pytest.mark.parametrize("name", DRAWN["ASIDES"])
def test_the_detector_s_figures_are_what_its_script_draws(name: str) -> None:
    assert DRAWN["figure"](name) == (IMAGES / f"{name}.svg").read_text(encoding="utf-8")
