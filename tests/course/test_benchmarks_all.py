"""One command for every benchmark: it knows them, and draws what they found."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
every = importlib.import_module("all")  # benchmarks/all.py


def test_a_script_that_fails_is_named_after_the_others_have_run(monkeypatch, capsys):
    ran = []

    def pretend(command: list[str]) -> subprocess.CompletedProcess:
        ran.append(Path(command[1]))
        return subprocess.CompletedProcess(command, int(Path(command[1]).stem == "objects"))

    monkeypatch.setattr(subprocess, "run", pretend)
    with pytest.raises(SystemExit, match="failed: objects;"):
        every.run(quick=True)
    assert [path.stem for path in ran] == [name for name, _, quick in every.SCRIPTS if quick]
    assert all(path.is_file() for path in ran)


def test_the_committed_results_can_be_drawn(tmp_path):
    found = every.ratios()
    assert len(found) >= 4 and all(v > 0 for bars in found.values() for v in bars.values())
    every.plot(found, tmp_path / "all.png")
    page = every.PAGE.read_text(encoding="utf-8")
    same = every.rewritten(page, every.lines(found), *every.MARKS)
    assert same == page, "run python benchmarks/all.py --plot"
