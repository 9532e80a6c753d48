"""The page on the student's lesson shows what its benchmark found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import numpy as np

from objemb_lib.measure.intervals import cluster_interval

PROJECT = Path(__file__).resolve().parents[2]


def test_its_table_is_what_was_measured() -> None:
    trials = json.loads((PROJECT / "benchmarks/results/student_ablations.json").read_text())
    runs: dict[str, list[dict]] = {}
    for run in trials["runs"]:
        runs.setdefault(run["name"], []).append(run)
    objects = {name: np.mean([one["objects"] for one in many], 0) for name, many in runs.items()}
    page = (PROJECT / "docs/student.md").read_text(encoding="utf-8").replace("−", "-")
    rows = dict(re.findall(r"^\| ([^|]+) \| [^|]+ (\| \d.*) \|$", page, re.M))
    assert rows.keys() == runs.keys()
    for name, many in runs.items():
        change = cluster_interval(objects[name] - objects["guided"], np.arange(len(objects[name])))
        said = f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        ap, box_ap = (np.mean([one[key] for one in many]) for key in ("mAP", "box AP"))
        said = f"| {ap:.3f} | {'' if name == 'guided' else said} | {box_ap:.3f}"
        assert rows[name] == said
    untrained = trials["untrained"]
    assert f"mAP {untrained['mAP']:.3f}, box AP {untrained['box AP']:.3f}" in page
    cells = nbformat.read(PROJECT / "notebooks/04_student_teacher.ipynb", as_version=4).cells
    prose = " ".join(" ".join(cell.source for cell in cells).split())
    lost = {name: np.mean(objects["guided"] - those) for name, those in objects.items()}
    pair = f"{lost['relational alone']:.2f} or {lost['cosine alone']:.2f}"
    labels = f"{lost['labels, no teacher']:.2f}"
    assert f"one loss alone loses {pair}, labels in place of a teacher {labels}." in prose
    assert f"labels instead lose {labels}." in prose
