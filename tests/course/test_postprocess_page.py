"""The page on the steps after extraction shows what its benchmark found."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

bench = importlib.import_module("postprocess")


def test_page_and_measurements_agree() -> None:
    page = bench.PAGE.read_text(encoding="utf-8")
    report = json.loads(bench.RESULT.read_text())
    same = bench.rewritten(page, bench.generated(report), bench.START, bench.END)
    assert same == page, "run python benchmarks/postprocess.py --page"


def test_what_the_page_says_in_words_is_what_was_found() -> None:
    rows = json.loads(bench.RESULT.read_text())["table"]
    verdicts: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        where = row["region"], row["data"].partition("/")[2]
        verdicts.setdefault(where, []).append(row["mAP verdict"])
    assert "higher" not in verdicts["whole image", "battle"]
    assert verdicts["whole image", "battle"].count("lower") == 1
    assert {*verdicts["crop", "battle"], *verdicts["crop", "clean"]} == {"higher"}
