"""Real photographs as collections, things pasted small, and what was committed of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tiny_queries import dataset
from tiny_scenes import PAIR, objects_of, scenes

from objemb_lib import config
from objemb_lib.course import photographs
from objemb_lib.data.catalogue import load_splits
from objemb_lib.embed.boxes import Boxes, true_boxes, whole_image
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.regions import Region
from objemb_lib.measure.intervals import Evaluation
from objemb_lib.measure.leaderboard import Difference, Leaderboard

pytest_plugins = ("tiny_battles",)


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
    number = {"name": "embedding: fork", "data": "d", "metric": "mAP", "value": 0.5}
    stated = Difference(3, "d, against b", "mAP", "fork", "b", "d/x", 9, 0.1, -0.1, 0.3)
    told = {"measurements": {"06": [number]}, "claims": {"06": [asdict(stated)]}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "photographs.json").write_text(json.dumps(told))
    monkeypatch.setattr(config, "PROJECT", tmp_path)
    board = Leaderboard()
    assert photographs.numbers(board) == [number]
    assert photographs.compare_embeddings(board, {}).to_dict() == {"d": {"fork": 0.5}}
    assert photographs.differences(board, 3) == [stated] and not photographs.differences(board, 1)
    (said,) = photographs.verdicts(board, 3).loc["fork − b"]
    assert said == "+0.10 [-0.10, +0.30] inconclusive"
    assert photographs.compare_newer(board, {}).empty and photographs.compare_own("").empty
    data = dataset([0, 0, 1])
    board.add("embedding: mine", photographs.evaluate(np.eye(3), data), ["mAP"], data="d")
    assert [n["name"] for n in photographs.numbers(board)] == ["embedding: mine"]
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


def test_a_run_measures_what_is_committed(real_photographs, mini_battles_built, monkeypatch):
    """All names and settings; made-up vectors, so not what is chosen by their scores."""

    def made_up(data, network, pairs, regions, options):
        rng = np.random.default_rng(0)
        return {name: Objects({pair: rng.normal(size=(sum(map(len, region.boxes.boxes)), 4))
                               for pair in pairs}, region.boxes)
                for name, region in regions.items()}  # fmt: skip

    def sources(root):
        true = true_boxes(sets["COCO"]).boxes
        return {name.partition(": ")[2]: Boxes(name, true) for name in names("boxes")}

    def names(part):
        return {n["name"] for n in committed if n["name"].startswith(part)}

    def stated(n):
        made_up = "chosen_on" in n or n.get("name", "").startswith("boxes")
        free = ("stage", "pooling", "region", "boxes") if made_up else ()
        return tuple((k, n[k]) for k in sorted(n) if k not in ("value", "low", "high", *free))

    path = config.PROJECT / "results" / "photographs.json"
    (committed,) = json.loads(path.read_text())["measurements"].values()
    (claims,) = json.loads(path.read_text())["claims"].values()
    monkeypatch.setattr(photographs, "extract_objects", made_up)
    monkeypatch.setattr(photographs, "coco_boxes", sources)
    small = {"box_labels": (), "box_categories": ()}
    monkeypatch.setattr(photographs, "pasted", lambda data, _: replace(
        data, name=f"{data.name}, pasted", boxes=whole_image(data).boxes, **small))  # fmt: skip
    monkeypatch.setattr(photographs, "CONTEXTS", (0.0,))  # quicker
    board, battle = Leaderboard(), load_splits("mini-battles").lesson(2)[1]
    sets = photographs.collections(real_photographs, battle=battle)
    for compare in (photographs.compare_boxes, photographs.compare_embeddings,
                    photographs.compare_practice, photographs.compare_small):  # fmt: skip
        assert not compare(board, sets).empty
    assert set(map(stated, photographs.numbers(board))) == set(map(stated, committed))
    found = [asdict(d) for claim in (1, 2, 3) for d in photographs.differences(board, claim)]
    assert sorted(map(stated, found)) == sorted(map(stated, claims))
