"""The solutions' code runs, and prints as many lines as the page shows; on few images."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from objemb_lib.data import mini_battles

pytest_plugins = ("tiny_battles",)
PROJECT = Path(__file__).resolve().parents[2]
SOLUTIONS = sorted((PROJECT / "notebooks" / "solutions").glob("*.md"))


@pytest.fixture(scope="module")
def solutions():
    spec = importlib.util.spec_from_file_location("sol", PROJECT / "benchmarks" / "solutions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_notebook_of_the_core_has_solutions_that_run(solutions):
    core = [path.stem for path in SOLUTIONS if solutions.blocks(path.read_text(encoding="utf-8"))]
    assert core[:5] == ["00", "01", "02", "03", "04"]


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_its_code_runs(path: Path, solutions, mini_battles_built, monkeypatch, tmp_path):
    whole = mini_battles.mini_battles

    def few(split: str, root: Path | None = None):
        """Two scenes of each of five objects: enough to run every line."""
        some = whole(split)
        return some.subset(some.labels <= sorted({*some.labels})[4]).first_of_each(2)

    monkeypatch.setattr(mini_battles, "mini_battles", few)
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path))
    blocks = solutions.blocks(path.read_text(encoding="utf-8"))
    codes = [re.sub(r"^STEPS = \d+", "STEPS = 2", block["code"], flags=re.M) for block in blocks]
    if not codes:
        pytest.skip("words only")
    for block, said in zip(blocks, solutions.printed(codes, path.stem), strict=True):
        shown = (block["printed"] or "").splitlines()
        assert len(shown) == len(said.splitlines()), "run benchmarks/solutions.py"
