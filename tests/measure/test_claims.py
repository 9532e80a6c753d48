"""Claims: the paper's words, verdicts at every side of 0, and tables that hide nothing."""

import json
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objemb_lib import config
from objemb_lib.config import DataError, ReproduceError
from objemb_lib.measure.claims import (
    CLAIMS,
    VERDICTS,
    Difference,
    claim,
    compare,
    difference,
    expected,
    read,
    summary,
    table,
    verdict,
    write,
)
from objemb_lib.measure.metrics import Evaluation, Interval, paired_difference

ONE = Difference(1, "layer 4", "mAP", "cls", "det", "toy/test", 40, 0.05, 0.01, 0.09)
NAN = float("nan")


def scored(values, metric="mAP", dataset="toy/test 0a1b", **parts) -> Evaluation:
    """Two queries of each object."""
    values = np.asarray(values, float)
    n = len(values)
    parts = {"groups": np.arange(n) // 2, "queries": np.arange(n)} | parts
    return Evaluation({metric: values}, dataset=dataset, **parts)


def compared(a, b, **parts) -> Difference:
    parts = {"claim": 1, "setting": "layer 4"} | parts
    return difference(a_name="cls", a_eval=a, b_name="det", b_eval=b, **parts)


def test_the_papers_words_are_those_of_the_welcome():
    nb = nbformat.read(config.PROJECT / "notebooks/00_welcome_and_data.ipynb", as_version=4)
    prose = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    words = " ".join(prose.replace("\n>", "\n").split())
    for one in CLAIMS:
        assert f'*"{one.sentence}"*' in words and f"**Claim {one.number}.**" in words
    assert [one.number for one in CLAIMS] == [1, 2, 3] and claim(3) is CLAIMS[2]


def test_claim_one_expects_classification_to_win():
    assert {(c.better, c.worse, c.expected) for c in claim(1).comparisons} == {
        ("classification", "detection", "higher")
    }
    assert expected(1, "mAP") == expected(1, "R@1") == expected(2, "mAP") == "higher"


def test_claim_two_has_a_control_and_expects_looking_at_objects_to_win():
    sides = {(c.better, c.worse) for c in claim(2).comparisons}
    assert {
        ("detector boxes", "whole image"),
        ("true boxes", "random boxes of the same sizes"),
    } < sides
    assert {c.expected for c in claim(2).comparisons} == {"higher"}
    assert {c.metric for c in claim(2).comparisons} == {"mAP", "R@1"}


def test_unknown_claims_are_refused():
    for use in (claim, lambda n: expected(n, "mAP"), lambda n: replace(ONE, claim=n)):
        with pytest.raises(DataError, match="no claim 4"):
            use(4)


@pytest.mark.parametrize(
    "low, high, found, mirrored",
    [
        (0.01, 0.09, "holds", "reversed"),
        (-0.09, -0.01, "reversed", "holds"),
        (-0.01, 0.09, "inconclusive", "inconclusive"),
        (0.0, 0.09, "inconclusive", "inconclusive"),  # touches 0
        (-0.09, 0.0, "inconclusive", "inconclusive"),
        (0.0, 0.0, "inconclusive", "inconclusive"),
        (NAN, NAN, "inconclusive", "inconclusive"),  # a single object has no interval
    ],
)
def test_verdict(low, high, found, mirrored):
    interval = Interval((low + high) / 2, low, high)
    assert (verdict(interval), verdict(interval, "lower")) == (found, mirrored)
    assert replace(ONE, low=low, high=high).verdict == found


def test_verdict_goes_by_the_interval_not_by_the_value():
    assert verdict(Interval(0.5, -0.01, 0.9)) == "inconclusive"
    with pytest.raises(DataError, match="'better'"):
        verdict(Interval(0.5, 0.1, 0.9), "better")


@given(st.floats(-1, 1), st.floats(0, 1))
def test_mirroring_a_difference_mirrors_its_verdict(low, width):
    interval = Interval(low + width / 2, low, low + width)
    mirror = Interval(-interval.value, -interval.high, -interval.low)
    assert verdict(interval) == verdict(mirror, "lower")
    other = {"holds": "reversed", "reversed": "holds", "inconclusive": "inconclusive"}
    assert verdict(mirror) == other[verdict(interval)]


def test_difference_by_hand():
    """Every object gains 0.1, on average of its two queries; query 5 has no relevant image."""
    b = scored([0.2, 0.6, 0.5, 0.1, 0.3, NAN])
    a = scored([0.4, 0.6, 0.5, 0.3, 0.4, NAN])
    found = compared(a, b)
    assert found == Difference(
        1, "layer 4", "mAP", "cls", "det", "toy/test", 5, 0.1, found.low, found.high
    )
    assert (found.low, found.high) == (0.1, 0.1) and found.verdict == "holds"
    swapped = compared(b, a)
    assert swapped.value == -0.1 and swapped.verdict == "reversed"
    equal = compared(a, a)
    assert str(equal) == "+0.0000 [+0.0000, +0.0000]" and equal.verdict == "inconclusive"


def test_difference_is_the_paired_one():
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    a, b = scored(hard + 0.05 + 0.02 * rng.standard_normal(60), "R@1"), scored(hard, "R@1")
    found, interval = compared(a, b, metric="R@1"), paired_difference(a, b, "R@1")
    assert (found.value, found.low, found.high) == pytest.approx(
        (interval.value, interval.low, interval.high), abs=5e-5
    )
    assert found.metric == "R@1" and found.queries == 60
    assert a.interval("R@1").low < b.interval("R@1").high and found.verdict == "holds"


def test_differences_too_small_to_print_are_inconclusive_and_have_no_sign():
    found = compared(scored([0.5] * 4), scored([0.50001] * 4))
    assert str(found) == "+0.0000 [+0.0000, +0.0000]" and found.verdict == "inconclusive"


def test_difference_names_its_data():
    a, b = scored([1, 0]), scored([0, 0])
    assert compared(a, b).data == "toy/test"
    assert compared(a, b, data="toy, cropped").data == "toy, cropped"
    spaced = [scored([1, 0], dataset="my photos/all 0a1b") for _ in range(2)]
    assert compared(*spaced).data == "my photos/all"


def test_difference_refuses_what_cannot_be_compared():
    a = scored([1, 0])
    with pytest.raises(DataError, match="query by query"):
        compared(a, scored([1, 0], dataset="other/test 9f"))
    with pytest.raises(DataError, match="was not evaluated"):
        compared(a, a, metric="R@1")
    with pytest.raises(DataError, match="no claim 7"):
        compared(a, a, claim=7)


def test_files_keep_everything(tmp_path):
    path = tmp_path / "new folder" / "claims.json"
    many = [ONE, replace(ONE, setting="size 224 · GeM"), replace(ONE, claim=2, low=NAN, high=NAN)]
    write(path, many)
    assert list(map(repr, read(path))) == list(map(repr, many))  # repr: nan is not nan
    write(path, [])
    assert read(path) == []
    measured = compared(scored([0.4, 0.6]), scored([0.3, 0.5]))
    write(str(path), [measured])
    assert repr(read(str(path))) == repr([measured])  # numpy numbers would not come back


def test_files_that_are_not_ours_are_named(tmp_path):
    path = tmp_path / "x.json"
    bad_claim = json.dumps([{**vars(ONE), "claim": 9}])
    more = json.dumps([{**vars(ONE), "verdict": "holds"}])
    for text in ("[{", '{"claim": 1}', '[{"claim": 1}]', "[3]", bad_claim, more, "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ReproduceError, match="x.json"):
            read(path)
    with pytest.raises(ReproduceError, match="gone.json"):
        read(tmp_path / "gone.json")


def test_table_by_hand():
    third = replace(ONE, claim=3, a="student", b="teacher", value=-0.05, low=-0.09, high=-0.01)
    more = replace(ONE, setting="layer 3", low=-0.01)
    lines = table([third, ONE, more]).splitlines()
    assert lines == [
        "| claim | setting | data | compared | metric | difference [95 % CI] | verdict |",
        "|---|---|---|---|---|---|---|",
        "| 1 | layer 4 | toy/test, 40 queries | cls minus det | mAP "
        "| +0.0500 [+0.0100, +0.0900] | holds |",
        "| 1 | layer 3 | toy/test, 40 queries | cls minus det | mAP "
        "| +0.0500 [-0.0100, +0.0900] | inconclusive |",
        "| 2 |  |  |  |  |  | not measured yet |",
        "| 3 | layer 4 | toy/test, 40 queries | student minus teacher | mAP "
        "| -0.0500 [-0.0900, -0.0100] | reversed |",
    ]
    assert table([]).count("not measured yet") == 3


def test_summary_counts_every_setting_once_and_metrics_apart():
    differences = [
        replace(ONE, setting="layer 1, RoI"),
        replace(ONE, setting="layer 3, RoI"),
        replace(ONE, setting="layer 1, RoI", data="other/test", low=-0.02),
        replace(ONE, setting="layer 2, RoI", value=-0.05, low=-0.09, high=-0.01),
        replace(ONE, setting="layer 1, RoI", metric="R@1"),
        replace(ONE, setting="layer 1, crop"),
    ]
    first, *ways, second, third = summary(differences).splitlines()
    assert first == f"- Claim 1. {CLAIMS[0].title}:"
    assert ways == [
        "  - RoI, mAP: holds in 2 of 4 settings, reversed in 1, inconclusive in 1",
        "  - RoI, R@1: holds in 1 of 1 settings, reversed in 0, inconclusive in 0",
        "  - crop, mAP: holds in 1 of 1 settings, reversed in 0, inconclusive in 0",
    ]
    assert second.endswith("not measured yet") and third.endswith("not measured yet")


def test_measuring_again_replaces(tmp_path):
    again = replace(ONE, value=-0.05, low=-0.09, high=-0.01)
    assert table([ONE, again]) == table([again]) and summary([ONE, again]) == summary([again])
    write(tmp_path / "c.json", [ONE, again])
    assert read(tmp_path / "c.json") == [again]


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.integers(1, 3)), max_size=12))
def test_tables_and_counts_agree(cases):
    ends = {"holds": (0.1, 0.2), "reversed": (-0.2, -0.1), "inconclusive": (-0.1, 0.1)}
    differences = [
        replace(ONE, claim=number, setting=f"{i}, RoI", low=ends[kind][0], high=ends[kind][1])
        for i, (kind, number) in enumerate(cases)
    ]
    rows, text = table(iter(differences)).splitlines()[2:], summary(iter(differences))
    for number, line in enumerate(text.removeprefix("- ").split("\n- "), 1):
        kinds = [row.split(" | ")[-1][:-2] for row in rows if row.startswith(f"| {number} ")]
        line = line.rstrip("\n")
        if kinds == ["not measured yet"]:
            assert line.endswith("not measured yet")
        else:
            holds, reverse, neither = (kinds.count(kind) for kind in VERDICTS)
            assert line.endswith(
                f"holds in {holds} of {len(kinds)} settings, reversed in {reverse}, "
                f"inconclusive in {neither}"
            )


def test_a_rerun_is_compared_with_the_committed_differences() -> None:
    one = Difference(1, "crop", "mAP", "c", "d", "toy/test", 9, 0.2, 0.1, 0.3)
    assert compare([one], [one]) == []
    assert compare([replace(one, value=0.209)], [one]) == []
    (off,) = compare([replace(one, value=0.25)], [one])
    assert "crop" in off and "+0.2500" in off and "+0.2000" in off
    assert compare([replace(one, value=float("nan"))], [one])
    (gone,), (new,) = compare([], [one]), compare([one], [])
    assert "only in the committed" in gone and "only in this run" in new
