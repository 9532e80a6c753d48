"""benchmarks/own_boxes.py: a detector trained on a user's annotated photographs, from files."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_scenes import CATEGORIES, SCENES, lively, scenes

from objemb_lib import config
from objemb_lib.teach.training import read_log

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "own_boxes.py"


def annotated(place: Path) -> tuple[Path, Path]:
    """A folder of four pictures, and their boxes as a COCO file beside it."""
    scenes(place)
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(len(SCENES))]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CATEGORIES)]
    objects = []
    for i, (boxes, called) in enumerate(SCENES):
        for (x0, y0, x1, y1), category in zip(boxes, called):
            known = {"id": len(objects) + 1, "image_id": i, "category_id": category + 1}
            objects.append(known | {"bbox": [x0, y0, x1 - x0, y1 - y0]})
    file = place.with_suffix(".json")
    content = {"images": images, "annotations": objects, "categories": categories}
    file.write_text(json.dumps(content))
    return place, file


def test_photographs_in_scores_out_and_a_second_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The script as typed, but with a small random trunk."""
    spec = importlib.util.spec_from_file_location("own_boxes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    monkeypatch.setattr(config, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(module, "load_trunk", lively)
    monkeypatch.setattr(module, "SCHEDULE", replace(module.SCHEDULE, batch_size=2))
    places = [*annotated(tmp_path / "mine"), *annotated(tmp_path / "others")]

    def said(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["own_boxes.py", *map(str, places), *options])
        module.main()
        return capsys.readouterr().out

    first = said("--steps", "2")
    for words in ("step    2", "mine/all", "others/all", "categories: 2", "box AP50", "recall of"):
        assert words in first
    (folder,) = (tmp_path / "project" / "runs" / "train").iterdir()
    log = read_log(folder)
    assert [line["step"] for line in log] == [2]
    assert said("--steps", "2") == first and read_log(folder) == log  # nothing trained anew
