"""The page on a billion objects says what was measured, and its sums are right."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))

billion = importlib.import_module("billion")


def test_page_and_measurements_agree():
    part = billion.generated(billion.read("billion"), billion.read("query"), billion.speeds())
    page = billion.PAGE.read_text()
    assert billion.rewritten(page, part) == page, "run python benchmarks/billion.py"


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
    known = {"device": "cuda", "machine": "x86_64", "table": [row]}
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
