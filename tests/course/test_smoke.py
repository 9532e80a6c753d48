"""Every notebook runs under the smoke profile: on the course's data, and on bare photographs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

from objemb_lib import config
from objemb_lib.course import profiles, reproduce
from objemb_lib.data import catalogue
from objemb_lib.measure.leaderboard import read

NUMBERS = ("00", "01", "02", "03", "04", "05")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(number, data="")`` -> what the executed notebook printed; its own cache and runs/."""
    monkeypatch.setenv("OBJEMB_DATA", str(config.data_root()))
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "PROJECT", tmp_path)

    def execute(number: str, data: str = "") -> str:
        assert reproduce.reproduce("smoke", [number], data=data) == []
        (executed,) = (tmp_path / "runs" / "smoke").rglob(f"{number}_*.ipynb")
        outputs = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
        return "".join(o["text"] for o in outputs if "text" in o)

    return execute


@pytest.mark.parametrize("number", NUMBERS)
def test_a_notebook_runs_on_the_courses_data(run, number, tmp_path):
    if not catalogue.entry(profiles.USUAL).built():
        pytest.skip(f"{profiles.USUAL} is not built: make data")
    said = run(number)
    if number != "00":
        profile = profiles.profile("smoke")
        own = [given for stem, given in profile.notebooks.items() if stem.startswith(number)]
        limit = own[0].get("LIMIT", profile.parameters["LIMIT"])
        (written,) = (tmp_path / "runs" / "smoke" / "leaderboard").iterdir()
        both = {"mini-battles/battle", "mini-battles/clean"}
        clean, rows = {"mini-battles/clean"}, read(written).rows
        seen = {row.setting["data"] for row in rows}
        among = {"mini-battles/battle among 1,500 vectors"}
        assert seen == (
            among if number == "05" else both if number in ("01", "02") else both - clean
        )
        assert all(row.evaluation.n_queries <= limit for row in rows)
    if number == "01":
        assert "same background" in said


@pytest.mark.parametrize("number", ["01", "02", "03"])  # 04 needs boxes to learn from
def test_a_notebook_runs_on_photographs_without_boxes(run, number, real_photographs, tmp_path):
    species = sorted((real_photographs / "cub_2011_species").iterdir())[:6]
    for place in species:
        own = tmp_path / "my birds" / place.name
        own.mkdir(parents=True)
        for photograph in sorted(place.iterdir())[:3]:
            os.symlink(photograph, own / photograph.name)
    said = run(number, f"folder:{tmp_path / 'my birds'}")
    assert number == "03" or "no box is known in 9 of 9 images" in said
    (written,) = Path(tmp_path / "runs" / "smoke").glob("folder-my_birds-*/leaderboard/*")
    rows = read(written).rows
    assert number != "03" or not any("true" in row.name for row in rows)
    assert {row.evaluation.n_queries for row in rows} == {9}
