"""`python -m objemb_lib.course.train`: arguments, and a training on the tiny mini-battles."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_scenes import lively, small

from objemb_lib import config
from objemb_lib.attend.proposer import load_proposer
from objemb_lib.config import DataError
from objemb_lib.course import train
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.classifier import load_classifier
from objemb_lib.detect.detectors import KINDS, Detector, load_coco_detector
from objemb_lib.detect.weights import load_detector, read_card, weights_root
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach import training
from objemb_lib.teach.distillation import train_student
from objemb_lib.teach.student import Teacher, load_student
from objemb_lib.teach.training import Schedule, read_log, snapshot_path

pytest_plugins = ("tiny_battles",)
FASTER = "torchvision/fasterrcnn_resnet50_fpn"


@pytest.fixture
def root(tiny_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The tiny data; a try leaves the shipped weights as they are."""
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    monkeypatch.setenv("OBJEMB_DATA", str(tiny_root))
    monkeypatch.setattr(config, "PROJECT", tmp_path / "project")
    before = {file: file.stat().st_mtime_ns for file in weights_root().iterdir()}
    yield tiny_root
    assert before == {file: file.stat().st_mtime_ns for file in weights_root().iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "no detector called nope; use faster_rcnn, mask_rcnn, fcos, classifier"),
        (["fcos", "--steps", "0"], "at least 1"),
        (["--steps", "many"], "many"),
        (["student", "--batch", "0"], "at least 1"),
        (["fcos", "--data", "coco"], "--data is for the student alone"),
        (["--teacher", "resnet50"], "--teacher is for the student alone"),
        (["student", "--labels", "one"], "--labels is for detectors: leave it away for student"),
    ],
)
def test_wrong_arguments_are_told(arguments: list, said: str, capsys, root: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(arguments)
    assert caught.value.code == 2 and said in capsys.readouterr().err
    assert not (config.PROJECT / "runs").exists()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "classifier", "student"])
def test_a_short_training_leaves_a_network_log_and_snapshots(
    kind: str, half: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision too: what a GPU does, by autocast; on the CPU it is only slower."""
    if half:
        real = torch.autocast
        monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled: real(device, dtype))
    data, trunk, folder = mini_battles("train"), lively(), tmp_path / "run"
    schedule = Schedule(steps=2, batch_size=2, warmup=1, snapshots=(0,))
    before = trunk.fingerprint()
    how = {"schedule": schedule, "progress": False}
    if kind == "student":
        start = small("faster_rcnn", categories=data.category_names)
        made = train_student(start, data, Teacher(trunk, size=64), folder, leave_out=(), **how)
    else:
        made = train.train_detector(kind, data, trunk, folder, size=64, **how)
        assert (made.size, made.categories) == (64, tuple(data.category_names))
        assert made.trunk.fingerprint() != before
    assert trunk.fingerprint() == before and not made.training
    assert all(value.isfinite().all() for value in made.state_dict().values())
    (line,) = read_log(folder)
    assert line["step"] == 2 and len(line) > 2 and all(value >= 0 for value in line.values())
    assert ("loss_mask" in line) == (kind == "mask_rcnn")
    assert snapshot_path(folder, 0).is_file() and snapshot_path(folder, 2).is_file()


def test_the_command_ships_a_try_with_its_card(
    root: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_trunk", lively)
    monkeypatch.setattr(train, "SCHEDULE", replace(train.SCHEDULE, batch_size=2))
    for options, count in (([], 12), (["--labels", "one"], 1)):
        assert train.main(["faster_rcnn", "--steps", "1", *options]) == 0
        shipped = config.PROJECT / "runs" / "weights"
        name = "-".join(["faster_rcnn-steps-1", *(o.strip("-") for o in options)])
        card = read_card(name, shipped)
        assert load_detector(name, shipped).trunk.name == "lcnet_035"
        assert card["command"].endswith(" ".join(["faster_rcnn --steps 1", *options]))
        assert {row["step"] for row in card["curve"]} == {0, 1} and len(card["curve"]) == 18
        metrics, out = card["metrics on mini-battles/battle"], capsys.readouterr().out
        assert set(metrics) >= {"box AP", "recall of main objects, IoU 0.5"}
        assert "faster_rcnn" in out and all(metric in out for metric in metrics)
        assert len(card["categories"]) <= count


def test_the_control_is_shipped_with_the_card_of_a_detector(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_trunk", lively)
    monkeypatch.setattr(train, "SCHEDULE", replace(train.SCHEDULE, batch_size=2))
    assert train.main(["classifier", "--steps", "1"]) == 0
    shipped = config.PROJECT / "runs" / "weights"
    card, detectors = read_card("classifier-steps-1", shipped), read_card("faster_rcnn")
    assert detectors.keys() - card.keys() == {"kind"}
    assert card["curve"][0].keys() == detectors["curve"][0].keys()
    assert 0 <= card[train.METRICS]["image labels, mAP"] <= 1
    assert load_classifier("classifier-steps-1", shipped).trunk.name == "lcnet_035"


def test_what_goes_wrong_is_one_line(root: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_data(name: str) -> None:
        raise DataError("nothing there", "Build it.")

    monkeypatch.setattr(train, "load_splits", no_data)
    assert train.main(["fcos"]) == 1
    assert "nothing there" in (error := capsys.readouterr().err) and "Build it" in error
    assert "Traceback" not in error

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "ship_detector", stopped)
    assert train.main(["fcos"]) == 130
    assert "again" in capsys.readouterr().err


def test_the_student_begins_as_the_shipped_detector_and_is_scored(
    root: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(steps=300, batch_size=1, warmup=1)
    monkeypatch.setattr(train.distillation, "SCHEDULE", schedule)
    assert train.main(["student", "--steps", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("student-steps-1: ") and "own boxes, R@1" in said
    made = config.PROJECT / "runs" / "weights"
    card = read_card("student-steps-1", made)
    assert card["command"].endswith("student --steps 1") and card["schedule"]["steps"] == 1
    assert card["config"]["regions"] == "objects" and "head, rmac" in card["teacher"]
    first = next(key for key in card if key.startswith("metrics on"))  # as notebook 04 reads it
    assert first == train.METRICS
    scored = {"recall of main objects, IoU 0.5", "true boxes, mAP", "own boxes, R@1"}
    assert scored <= card[train.METRICS].keys()
    few = card[train.FEW]
    assert 0 <= few["true boxes, mAP"] <= 1
    assert few["own boxes, share"] * few["crop teacher, mAP"] == pytest.approx(
        few["own boxes, mAP"], abs=1e-3
    )
    assert load_student("student-steps-1", made).detector.categories == tuple(card["categories"])


def test_a_fork_is_shipped_as_a_student_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SCHEDULE", replace(train.SCHEDULE, batch_size=1))
    assert train.main(["fork", "--steps", "1"]) == 0
    made = config.PROJECT / "runs" / "weights"
    card, fork = read_card("fork-steps-1", made), load_student("fork-steps-1", made)
    assert (card["frozen"], fork.detector.size) == ("stage4", 384) and "curve" not in card
    assert card[train.METRICS].keys() > card[train.FEW].keys() > {"own boxes, share"}


# --- other students -----------------------------------------------------------------------


@pytest.fixture
def random_resnets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's networks with random weights in place of downloads; few boxes, few images."""

    def detector(name: str, root: Path | None = None, size: int | None = None) -> Detector:
        torch.manual_seed(0)
        made = load_coco_detector(name, pretrained=False, size=size or 800)
        made.network.rpn._post_nms_top_n = {"training": 20, "testing": 20}
        made.network.roi_heads.detections_per_img = 5
        return made

    monkeypatch.setattr(train, "load_detector", detector)
    monkeypatch.setattr(train, "load_trunk", lambda name: load_trunk(name, pretrained=False))
    monkeypatch.setattr(train, "SCORED", 6)
    for part in ("_checkpoint", "_snapshot"):  # half a gigabyte, and tested with small networks
        monkeypatch.setattr(training, part, lambda *given: None)


@pytest.mark.filterwarnings("ignore:.*images of coco are here:UserWarning")
def test_a_student_of_a_coco_detector_learns_on_coco(
    random_resnets: None, root: Path, real_photographs: Path, capsys
) -> None:
    given = ["student", "--detector", FASTER, "--teacher", "torchvision/resnet18"]
    given += ["--data", f"coco:{real_photographs / 'coco'}", "--size", "96", "--steps", "2"]
    assert train.main([*given, "--batch", "2"]) == 0
    said = capsys.readouterr().out
    assert "true boxes, mAP" in said and "box AP50" in said
    made = config.PROJECT / "runs" / "weights"
    (file,) = made.glob("student*.json")
    card = read_card(file.stem, made)
    assert (card["kind"], card["size"]) == ("fasterrcnn_resnet50_fpn", 96)
    assert card["schedule"]["batch_size"] == 2 and card["schedule"]["steps"] == 2
    assert len(card["data"]) == 2 and card["scored on"] == 6 and "box AP" in card["before"]
    assert {"cosine", "relational", "loss_classifier"} <= card["log"][-1].keys()
    student = load_student(file.stem, made)
    assert student.embedding.cells == 14 and student.embedding.dim == 512  # as the teacher's
    assert len(student.detector.categories) == 90


def test_processes_other_than_the_first_ship_nothing(
    root: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(train.distillation, "train_student", lambda *given, **how: None)
    monkeypatch.setattr(train, "train_detector", lambda *given, **how: None)
    monkeypatch.setattr(train, "load_trunk", lambda *given: lively())
    monkeypatch.setattr(train, "load_detector", lambda *given, **how: small("faster_rcnn"))
    for given in (["student", "--batch", "2"], ["student"], ["fcos"]):
        assert train.main(given) == 0
    assert capsys.readouterr().out == ""
    assert not (config.PROJECT / "runs" / "weights").exists()


def photographs_of(folder: Path, numbers: range) -> ImageDataset:
    """Grey photographs of COCO's kind of names, each with a box."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (64, 48), (number, 90, 90)).save(folder / f"{number:012}.jpg")
    files, boxes = [f"{n:012}.jpg" for n in numbers], [[[8, 8, 40, 40]]] * len(numbers)
    boxes = np.array(boxes, np.float32)
    return ImageDataset("coco", folder.name, folder, files, np.zeros(len(files)), boxes=boxes)


def test_no_photograph_of_coco_is_in_two_folds(monkeypatch, tmp_path: Path) -> None:
    parts = {("a", "train"): range(5), ("a", "test"): range(5, 9), ("b", "train"): range(3, 12),
             ("b", "test"): range(12, 30)}  # fmt: skip
    monkeypatch.setattr(train, "coco_photographs", lambda split, place, **_: photographs_of(
        tmp_path / split, parts[place.name, split]))  # fmt: skip
    folds = train.coco_folds("coco:a,b")
    every = [file for fold in folds for part in fold for file in part.files]
    assert len(folds) == 2 and len(every) == len(set(every)) == 30


def test_a_short_training_of_the_proposer(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("OBJEMB_REAL", raising=False)
    asked = argparse.Namespace(names=[], steps=1, **dict.fromkeys([*train.ANOTHER, "labels"]))
    assert (
        train.ship_proposer(asked, "proposer")[1] == {}
        and "COCO is not here" in capsys.readouterr().out
    )
    assert train.main(["proposer", "--steps", "1"]) == 1  # asked for by its name
    folds = [
        [photographs_of(tmp_path / "a", range(3))],
        [photographs_of(tmp_path / "b", range(3, 6))],
    ]
    monkeypatch.setattr(train, "coco_folds", lambda data: folds)
    assert train.main(["proposer", "--steps", "1"]) == 0
    assert "recall of main objects, 5 best" in capsys.readouterr().out
    card = read_card("proposer-steps-1", config.PROJECT / "runs" / "weights")
    assert card["photographs"] == {"0 a": [0, 1, 2], "1 b": [3, 4, 5]} and card["licence"]
    assert load_proposer("proposer-steps-1", config.PROJECT / "runs" / "weights").members == 3
