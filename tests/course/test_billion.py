"""The page on a billion objects says what was measured, and its sums are right."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))

billion, query = map(importlib.import_module, ("billion", "query"))


def tables() -> list[list[list[str]]]:
    """The page's generated tables, cell by cell, without their heads."""
    part = billion.PAGE.read_text().split(billion.START)[1].split(billion.END)[0]
    found = re.findall(r"(?:^\|.+\n)+", part, re.M)
    return [[line.strip("|\n").split(" | ") for line in t.splitlines()[2:]] for t in found]


def number(cell: str) -> float:
    value = float(re.sub(r"[^\d.]", "", cell))
    return value / 100 if cell.strip().endswith("%") else value


def test_page_and_measurements_agree():
    part = billion.generated(billion.read("billion"), billion.read("query"), billion.speeds())
    page = billion.PAGE.read_text()
    assert billion.rewritten(page, part) == page, "run python benchmarks/billion.py"


def test_a_reader_who_checks_the_tables_finds_them_right():
    """By the page's formulas and the page's own numbers, which are rounded to three digits."""
    codes, plans, machines = tables()
    assumed = billion.ASSUMED
    for (_, size, speed, share, _), (_, memory, shards, nodes, met, ms, queries) in zip(
        codes, plans
    ):
        gigabytes = assumed["objects"] * number(size) / 1e9
        assert number(memory) == pytest.approx(gigabytes, rel=0.02)
        whole = math.ceil(gigabytes / (assumed["node_gb"] * assumed["usable"]))
        assert abs(number(shards) - whole) <= 0.02 * whole
        assert number(nodes) == number(shards) * assumed["replicas"]
        here = assumed["objects"] / number(shards) * number(share)
        assert number(met) == pytest.approx(here, rel=0.05)
        assert number(ms) == pytest.approx(1000 * here / number(speed), rel=0.06)
        every = 1000 / number(ms) * assumed["node_cores"] * assumed["replicas"]
        assert number(queries) == pytest.approx(every, rel=0.02)
    for _, speed, images, hours, count in machines:
        assert number(hours) == pytest.approx(number(images) / number(speed) / 3600, rel=0.02)
        assert number(count) == pytest.approx(number(hours) / 24 / assumed["days"], abs=1)


def test_a_plan_by_hand():
    code = {"bytes": 72, "codes_a_second_and_core": 2e7, "share_of_lists": 0.125}
    plan = billion.search_plan(code)
    # 72 GB over nodes that give 48: two shards of half a billion, of which an eighth is met.
    assert plan == pytest.approx(
        {"gigabytes": 72, "shards": 2, "nodes": 4, "scanned": 62_500_000, "ms": 3125,
         "queries": 0.32 * 16 * 2}
    )  # fmt: skip
    plan = billion.extraction_plan(100, 5)
    assert plan["images"] == 2e8 and plan["hours"] == pytest.approx(555.6, abs=0.1)
    assert plan["machines"] == 1 and billion.extraction_plan(50, 5)["machines"] == 2


def test_a_gpu_that_was_measured_gets_a_line(tmp_path):
    row = {"way": "student", "objects": 10, "batch": 4, "images_per_second": 900.0}
    known = {"machine": {"device": "cuda", "architecture": "x86_64"}, "table": [row]}
    (tmp_path / "student_gpu.json").write_text(json.dumps(known))
    assert billion.speeds(tmp_path) == [("GPU (x86_64)", 900.0)]
    read = billion.read("billion"), billion.read("query")
    with_gpu = billion.generated(*read, billion.speeds(tmp_path))
    assert re.search(r"\| GPU \(x86_64\) +\| 900 +\|", with_gpu) and "No GPU" not in with_gpu


def test_codes_cost_what_they_say():
    """Bytes by hand: the code and 8 of the id; nothing that is kept once for all vectors."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1200, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    truth = np.argsort(-vectors[:20] @ vectors.T, axis=1)[:, :10]  # by the cosine
    billion.LISTS, kept = 8, billion.LISTS
    try:
        full = billion.of_code("", "Flat", vectors, vectors[:20], truth)
        small = billion.of_code("", "SQ8", vectors, vectors[:20], truth)
    finally:
        billion.LISTS = kept
    assert full["bytes"] == pytest.approx(32 * 4 + 8, abs=1)
    assert small["bytes"] == pytest.approx(32 + 8, abs=1)
    assert full["recall_at_10"] >= 0.95 and 0 < full["share_of_lists"] <= 1


def test_an_exponent_is_the_slope_of_the_logarithms():
    assert query.exponent([10, 20, 80], [7, 7, 7]) == 0
    assert query.exponent([1, 2, 4], [3, 6 * 2**0.5, 24]) == 1.5
