"""Real photographs as collections, things pasted small, and what was committed of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_queries import dataset
from tiny_scenes import PAIR, objects_of, scenes

from objemb_lib import config
from objemb_lib.course import photographs
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.regions import Region
from objemb_lib.measure.intervals import Evaluation
from objemb_lib.measure.leaderboard import Leaderboard


def test_a_photograph_is_pasted_where_its_box_says(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    things, behind = (scenes(tmp_path / name, size=size)
                      for name, size in (("things", (40, 30)), ("behind", (100, 80))))  # fmt: skip
    small = photographs.pasted(things, behind)
    assert small.labels.tolist() == things.labels.tolist() and len(small) == len(things)
    for i, boxes in enumerate(small.boxes):
        ((x0, y0, x1, y1),) = boxes.astype(int).tolist()
        assert 0.3 * 80 - 1 <= max(x1 - x0, y1 - y0) <= 0.6 * 80 + 1
        inside = np.asarray(small.image(i).crop((x0, y0, x1, y1)), float)
        thing = np.asarray(things.image(i).resize((x1 - x0, y1 - y0)), float)
        assert np.abs(inside - thing).mean() < 12  # another filter resized it
    again = photographs.pasted(things, behind)
    assert again.fingerprint == small.fingerprint


def test_a_click_on_some_photographs_scores_and_says_what_was_met(data) -> None:
    data = replace(data, labels=np.array([0, 0, 1, 1]))
    true = [b[:1] for b in data.boxes]
    beside = [np.array([[0, 0, 2, 2]], float), *true[1:]]
    some = objects_of(data, Region(Boxes("some", beside)))
    found = photographs.by_click(some, data, PAIR)
    assert found.values["recall"].tolist() == [0, 1, 1, 1] and found.n_queries == 4
    part = photographs.by_click(some, data, PAIR, np.array([0, 1, 2]))
    assert part.values["recall"].tolist() == [0, 1, 1] and part.n_queries == 3


def test_others_choose() -> None:
    """By hand: what is best on the collection itself does not count."""
    one = lambda *values: Evaluation({"mAP": np.array(values)}, np.arange(2), np.arange(2))  # noqa: E731
    a, b = (("head", "spoc"), 0.0), (("head", "spoc"), -0.2)
    found = {"mine": {a: one(0, 0), b: one(1, 1)}, "x": {a: one(0.5, 0.5), b: one(0.2, 0.6)},
             "y": {a: one(0.3, 0.3), b: one(0.2, 0.2)}}  # fmt: skip
    assert photographs.best_of(found, ["x", "y"]) == a
    assert photographs.best_of(found, ["mine", "x"]) == b


def test_without_a_run_the_committed_numbers_are_shown(tmp_path, monkeypatch) -> None:
    number = {"name": "embedding: fork", "metric": "mAP", "value": 0.5}
    told = {"measurements": {"06": [number]}, "claims": {"06": [{"a": "fork"}]}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "photographs.json").write_text(json.dumps(told))
    monkeypatch.setattr(config, "PROJECT", tmp_path)
    board = Leaderboard()
    assert photographs.numbers(board) == [number] == photographs.committed_embeddings()
    assert photographs.differences(board) == [{"a": "fork"}]
    data = dataset([0, 0, 1])
    board.add("mine", photographs.evaluate(np.eye(3), data), ["mAP"], data="d")
    assert [n["name"] for n in photographs.numbers(board)] == ["mine"]
    assert photographs.collections("") == {} == photographs.collections(tmp_path / "nowhere")


def test_collections_of_real_photographs(real_photographs: Path) -> None:
    sets = photographs.collections(real_photographs)
    assert {name: len(data) for name, data in sets.items()} == {
        "COCO": 318, "birds": 320, "cars": 320, "groceries": 405,
    }  # fmt: skip
    with pytest.warns(UserWarning, match="are here"):
        coco, fold = photographs.coco(real_photographs)
    assert np.bincount(fold).tolist() == [159, 159]  # the one that is in both counts once
    assert len({Path(file).name for file in coco.files}) == 318
    for data in sets.values():
        counts = np.bincount(data.labels - data.labels.min())
        assert counts.max() >= 5 and replace(data).image(0).size
