"""The leaderboard: rows that keep their queries, verdicts at every side of 0, numbers compared."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from tiny_queries import dataset

from objemb_lib import config
from objemb_lib.config import DataError, ReproduceError
from objemb_lib.measure.intervals import Evaluation, paired_difference
from objemb_lib.measure.leaderboard import (
    Difference,
    Leaderboard,
    compare,
    difference,
    read,
    table,
)
from objemb_lib.measure.metrics import evaluate

ONE = Difference(1, "layer 4", "mAP", "cls", "det", "toy/test", 40, 0.05, 0.01, 0.09)
WHERE = {"data": "toy/test", "trunk": "t", "size": 256, "stage": "head", "pooling": "gem",
         "region": "whole image", "boxes": "none"}  # fmt: skip
NAN = float("nan")


def scored(values, per_object=2) -> Evaluation:
    values, n = np.asarray(values, float), np.arange(len(values))
    return Evaluation({"mAP": values}, n // per_object, n, "toy/test 0a1b")


def compared(a, b) -> Difference:
    return difference(1, "layer 4", "cls", a, "det", b, "mAP")


def test_what_touches_0_or_has_no_interval_is_inconclusive():
    for low, high in ((-0.01, 0.09), (0.0, 0.09), (-0.09, 0.0), (NAN, NAN)):
        assert replace(ONE, low=low, high=high).verdict == "inconclusive"


def test_difference_by_hand():
    """Every object gains 0.1, on average of its two queries; query 5 has no relevant image."""
    b = scored([0.2, 0.6, 0.5, 0.1, 0.3, NAN])
    a = scored([0.4, 0.6, 0.5, 0.3, 0.4, NAN])
    found = compared(a, b)
    assert found == Difference(1, "layer 4", "mAP", "cls", "det", "toy/test", 5, 0.1, 0.1, 0.1)
    swapped = compared(b, a)
    assert swapped.value == -0.1 and (found.verdict, swapped.verdict) == ("holds", "reversed")
    tiny = compared(scored([0.5] * 4), scored([0.50001] * 4))  # too small to print: no sign
    assert str([tiny.value, tiny.low]) == "[0.0, 0.0]" and tiny.verdict == "inconclusive"


def test_a_row_of_another_setting_stays_and_of_the_same_is_replaced():
    """Once, another pooling or size of the same name deleted the first measurement."""
    board = Leaderboard()
    board.add("a", scored([0.25] * 4), ["mAP"], **WHERE)
    board.add("a", scored([0.5] * 4), ["mAP"], **WHERE | {"pooling": "mac"})
    board.add("a", scored([0.7] * 4), ["mAP"], **WHERE | {"size": 320})
    board.add("a", scored([0.75] * 4), ["mAP"], **WHERE)
    found = {(r.setting["pooling"], r.setting["size"]): r.numbers[0]["value"] for r in board.rows}
    assert found == {("gem", 256): 0.75, ("mac", 256): 0.5, ("gem", 320): 0.7}
    for one in (ONE, replace(ONE, setting="layer 3"), replace(ONE, value=0.06)):
        board.record(one)
    assert [d.value for d in board.differences] == [0.05, 0.06]


def test_rows_of_two_notebooks_compare_query_by_query(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    a, b = scored(hard + 0.05 + 0.01 * rng.random(60), 3), scored(hard, 3)
    first, second = Leaderboard("01", tmp_path), Leaderboard("02", tmp_path)
    first.add("better", a, ["mAP"], **WHERE)
    second.add("worse", b, ["mAP"], **WHERE)
    second.record(compared(a, b))
    second.record(replace(ONE, low=NAN, high=NAN))
    board = read(*sorted((tmp_path / "leaderboard").iterdir()))
    assert board.paired("better", "worse") == paired_difference(a, b, "mAP")
    assert list(map(repr, board.differences)) == list(map(repr, second.differences))  # nan != nan
    assert [row.numbers for row in board.rows] == [row.numbers for row in first.rows + second.rows]
    assert board.table()["mAP"].tolist() == [str(one.interval("mAP")) for one in (a, b)]


def test_a_cell_says_only_a_name_and_the_scores_and_earlier_rows_are_grey(tmp_path, capsys):
    """The board knows its setting; claims are pairs of its rows, their verdicts are kept."""
    shared = {"trunk": "t", "size": 256, "stage": "head", "pooling": "spoc", "boxes": "none"}
    first = Leaderboard("01_a", tmp_path, **shared)
    first.add("whole image", scored([0.1, 0.2] * 6), ["mAP"])
    board = Leaderboard("03_b", tmp_path, **shared)
    board.add("whole image", scored([0.1, 0.2] * 6), ["mAP"])
    board.add("detector's boxes", scored([0.5, 0.6] * 6), ["mAP"], boxes="mask_rcnn")
    first.add("crop", scored([0.8] * 12), ["mAP"], boxes="ground truth")
    assert [(n["name"], n["notebook"]) for n in board.earlier()] == [("crop", "01")]
    table = board.show()
    assert table.data["name"].tolist() == ["crop", "whole image", "detector's boxes"]
    assert table.data["boxes"].tolist() == ["ground truth", "none", "mask_rcnn"]
    assert "trunk t, size 256, stage head" in table.to_html() and "#767676" in table.to_html()
    assert table.data.columns.tolist() == ["name", "mAP", "boxes", "notebook"]
    board.verdicts(2)  # of its three pairs two lack a row
    said = capsys.readouterr().out
    assert "boxes 0.55 against whole image 0.15: +0.40 [+0.40, +0.40] mAP, holds" in said
    assert "random" not in said and [d.value for d in read(board.path).differences] == [0.4]


def test_a_row_is_told_by_its_setting_where_its_name_is_not_enough():
    board = Leaderboard()
    for value, region in ((0.1, "crop"), (0.2, "whole image")):
        board.add("a", scored([value] * 4), ["mAP"], **WHERE | {"region": region})
    assert board.row("a", region="crop").evaluation.mean("mAP") == pytest.approx(0.1)
    for name, setting in (("a", {}), ("b", {}), ("a", {"region": "RoI"})):
        with pytest.raises(DataError, match="rows are called"):
            board.row(name, **setting)


def test_an_opened_board_starts_anew_and_is_on_disk_at_once(tmp_path):
    for value in (0.25, 0.5):
        board = Leaderboard("nb", tmp_path)
        board.add("a", scored([value, value, NAN, value]), ["mAP"], **WHERE)
        (row,) = read(board.path).rows
        (number,) = row.numbers
        assert number == {"name": "a", "queries": 3, "metric": "mAP", "value": value, "low": value,
                          "high": value, "tolerance": 0.01, **WHERE}  # fmt: skip
    with pytest.raises(DataError, match="'R@1' was not evaluated"):
        board.add("b", scored([1, 0]), **WHERE)


def test_files_that_are_not_ours_are_named(tmp_path):
    path = tmp_path / "x.jsonl"
    cut = json.dumps(asdict(ONE))[:-9]
    more = json.dumps(asdict(ONE) | {"verdict": "holds"})
    for text in (cut, more, "[3]", '{"name": "a"}', "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ReproduceError, match="x.jsonl"):
            read(path)
    with pytest.raises(ReproduceError, match="gone"):
        read(tmp_path / "gone")


def test_table_has_a_line_a_setting_and_a_column_a_metric():
    found = evaluate(np.ones((4, 2)), dataset([0, 0, 0, -1]))
    board = Leaderboard()
    board.add("b", found, **WHERE)
    board.add("a", found, ["mAP"], **WHERE)
    found = board.table()
    assert found["name"].tolist() == ["b", "a"] and found.columns[1:3].tolist() == ["mAP", "R@1"]
    assert found["R@1"].tolist() == ["1.00 [nan, nan]", ""]  # one object


NUMBER = {"name": "a", **WHERE, "queries": 8, "metric": "mAP", "value": 0.5, "low": 0.4,
          "high": 0.6, "tolerance": 0.02}  # fmt: skip


@pytest.mark.parametrize("one", [NUMBER, asdict(replace(ONE, value=0.5))], ids=["row", "claim"])
def test_compare_names_what_strayed(one):
    limit = one.get("tolerance", 0.01)
    assert compare([one], [one]) == (1, [])
    assert compare([one | {"value": 0.499 + limit}], [one]) == (1, [])
    _, (off,) = compare([one | {"value": 0.501 + limit}], [one])
    assert "0.5000" in off and f"tolerance {limit}" in off and "mAP" in off
    assert len(compare([one | {"value": NAN}], [one])[1]) == 1
    assert "only in the committed run" in compare([], [one])[1][0]
    assert "only in this run" in compare([one], [])[1][0]


def test_numbers_of_another_setting_are_not_compared():
    count, problems = compare([NUMBER | {"trunk": "u"}], [NUMBER])
    assert count == 0 and len(problems) == 2 and any("trunk u" in said for said in problems)
    assert compare([NUMBER], [NUMBER, NUMBER | {"queries": 9}])[0] == 1


@pytest.mark.parametrize("name", ["workshop", "photographs"])
def test_the_committed_numbers_are_all_different_and_can_be_shown(name: str) -> None:
    report = json.loads((config.PROJECT / "results" / f"{name}.json").read_text())
    every = [many for part in ("measurements", "claims") for many in report[part].values()]
    assert [compare(many, many) for many in every] == [(len(many), []) for many in every]
    assert sum(map(len, every)) > 80
    assert len(table(max(report["measurements"].values(), key=len))) > 5
