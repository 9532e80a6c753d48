"""One command for every benchmark: it knows them, and draws what they found."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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


def test_ratios_are_those_of_the_files(tmp_path):
    (tmp_path / "extract.json").write_text(
        '{"images_per_second": {"first loop, files to vectors": 20, "extract": 90,'
        ' "again, from the cache": 9000}}'
    )
    (tmp_path / "search.json").write_text(
        '{"exact": {"1_at_a_time": {"x_faiss": {"numpy": 0.5}}},'
        ' "graphs": {"recall 0.95": {"hnswlib": {"queries_per_second": 40},'
        ' "Index": {"queries_per_second": 50}}}}'
    )
    (tmp_path / "objects.json").write_text('{"cost_in_whole_images": {"10 boxes": 1.25}}')
    found = every.ratios(tmp_path)
    assert found == {
        "extraction, x the plain loop": {"first loop, files to vectors": 1.0, "extract": 4.5},
        "objects, in passes of a whole image": {"10 boxes": 1.25},
        "exact search, 1 at a time, x plain faiss": {"numpy": 0.5},
        "graphs at recall 0.95, x hnswlib": {"hnswlib": 1.0, "Index": 1.25},
    }
    every.plot(found, tmp_path / "all.png")
    assert Image.open(tmp_path / "all.png").size[0] > 800


def test_the_committed_results_can_be_drawn(tmp_path):
    found = every.ratios()
    assert len(found) >= 4 and all(v > 0 for bars in found.values() for v in bars.values())
    every.plot(found, tmp_path / "all.png")
