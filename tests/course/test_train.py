"""`python -m objemb_lib.course.train`: arguments, and a training on the tiny mini-battles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_scenes import lively, small

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.course import train
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.coco import load_coco_detector
from objemb_lib.detect.detectors import KINDS, Detector
from objemb_lib.detect.weights import load_detector, read_card, weights_root
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach import training
from objemb_lib.teach.student import load_student
from objemb_lib.teach.training import Schedule, read_log, snapshot_path

pytest_plugins = ("tiny_battles",)


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
        (["nope"], "nope"),
        (["fcos", "--steps", "0"], "at least 1"),
        (["--steps", "many"], "many"),
        (["student", "--batch", "0"], "at least 1"),
        (["fcos", "--data", "coco"], "--data is for the student alone"),
        (["--teacher", "resnet50"], "--teacher is for the student alone"),
    ],
)
def test_wrong_arguments_are_told(arguments: list, said: str, capsys, root: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and said in error
    if arguments == ["nope"]:
        assert "no detector called nope" in error and all(kind in error for kind in KINDS)
    assert not (config.PROJECT / "runs").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_training_leaves_a_detector_log_and_snapshots(
    kind: str, root: Path, tmp_path: Path
) -> None:
    data, trunk, folder = mini_battles("train"), lively(), tmp_path / "run"
    schedule = Schedule(steps=2, batch_size=2, warmup=1, snapshots=(0,))
    before = trunk.fingerprint()
    how = {"schedule": schedule, "size": 64, "progress": False}
    detector = train.train_detector(kind, data, trunk, folder, **how)
    assert (detector.kind, detector.size, detector.training) == (kind, 64, False)
    assert detector.categories == tuple(data.category_names)
    assert trunk.fingerprint() == before != detector.trunk.fingerprint()
    (line,) = read_log(folder)
    assert line["step"] == 2 and len(line) > 3
    assert ("loss_mask" in line) == (kind == "mask_rcnn")
    assert snapshot_path(folder, 0).is_file() and snapshot_path(folder, 2).is_file()
    again = train.train_detector(kind, data, trunk, tmp_path / "again", **how)
    assert torch.equal(next(again.parameters()), next(detector.parameters()))
    for key, value in detector.state_dict().items():
        assert torch.allclose(again.state_dict()[key], value, atol=1e-6), key


def test_the_command_ships_a_try_with_its_card(
    root: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_trunk", lively)
    monkeypatch.setattr(train, "SCHEDULE", replace(train.SCHEDULE, batch_size=2))
    assert train.main(["faster_rcnn", "--steps", "1"]) == 0
    shipped = config.PROJECT / "runs" / "weights"
    card = read_card("faster_rcnn-steps-1", shipped)
    assert load_detector("faster_rcnn-steps-1", shipped).trunk.name == "lcnet_035"
    assert card["command"].endswith("faster_rcnn --steps 1")
    assert {row["step"] for row in card["curve"]} == {0, 1} and len(card["curve"]) == 18
    metrics = card["metrics on mini-battles/battle"]
    assert set(metrics) >= {"box AP", "box AP50", "recall of main objects, IoU 0.5"}
    out = capsys.readouterr().out
    assert "faster_rcnn" in out and all(name in out for name in metrics)


def test_what_goes_wrong_is_one_line(root: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_data(split: str) -> None:
        raise DataError("nothing there", "Build it.")

    monkeypatch.setattr(train, "mini_battles", no_data)
    assert train.main(["fcos"]) == 1
    assert "nothing there" in (error := capsys.readouterr().err) and "Build it" in error
    assert "Traceback" not in error

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_and_save", stopped)
    assert train.main(["fcos"]) == 130
    assert "again" in capsys.readouterr().err


def test_the_student_begins_as_the_shipped_detector_and_is_scored(
    root: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.student, "SCHEDULE", Schedule(steps=300, batch_size=1, warmup=1))
    assert train.main(["student", "--steps", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("student: ")
    made = config.PROJECT / "runs" / "weights"
    card = read_card("student-steps-1", made)
    assert card["command"].endswith("student --steps 1") and card["schedule"]["steps"] == 1
    assert card["recipe"]["regions"] == "objects" and "head, rmac" in card["teacher"]
    scored = {"recall of main objects, IoU 0.5", "true boxes, mAP", "own boxes, R@1"}
    assert scored <= card[train.METRICS].keys()
    few = card[train.FEW]
    assert 0 <= few["true boxes, mAP"] <= 1
    assert few["own boxes, share"] * few["crop teacher, mAP"] == pytest.approx(
        few["own boxes, mAP"], abs=1e-3
    )
    assert load_student("student-steps-1", made).detector.categories == tuple(card["categories"])
    assert train.main(["student", "--steps", "1"]) == 0, "done already: scored again at once"


@pytest.mark.parametrize("kind", [*KINDS, "student"])
def test_training_works_in_half_precision(
    kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, by autocast; on the CPU it is only slower."""
    real = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled: real(device, dtype))
    data, trunk = mini_battles("train"), lively()
    schedule = Schedule(steps=2, batch_size=2, warmup=1)
    how = {"schedule": schedule, "progress": False}
    if kind == "student":
        teacher = train.student.Teacher(trunk, size=64)
        start = small("faster_rcnn", categories=data.category_names)
        how |= {"leave_out": ()}
        made = train.student.train_student(start, data, teacher, tmp_path / "run", **how)
    else:
        made = train.train_detector(kind, data, trunk, tmp_path / "run", size=64, **how)
    assert all(value.isfinite().all() for value in made.state_dict().values())
    (line,) = read_log(tmp_path / "run")
    assert all(value >= 0 for value in line.values())


# --- other students -----------------------------------------------------------------------

FASTER = "torchvision/fasterrcnn_resnet50_fpn"


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


def test_other_data_is_called_by_its_name(root: Path) -> None:
    seen, unseen = train.photographs("mini-battles")
    assert (seen.split, unseen.split) == ("train", "battle")


def test_photographs_of_coco_are_its_two_parts(real_photographs: Path) -> None:
    seen, unseen = train.photographs(f"coco:{real_photographs / 'coco'}")
    assert (len(seen), len(unseen)) == (80, 79) and len(seen.category_names) == 80
    with pytest.raises(DataError, match="no-such"):
        train.photographs("coco:/no-such")


def test_the_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    said = capsys.readouterr().out
    for word in ("torchrun --nproc-per-node", "coco:PATH", "--teacher", "OBJEMB_DEVICE"):
        assert word in said


def test_processes_other_than_the_first_ship_nothing(
    root: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(train.student, "train_student", lambda *given, **how: None)
    monkeypatch.setattr(train, "train_detector", lambda *given, **how: None)
    monkeypatch.setattr(train, "load_trunk", lambda *given: lively())
    monkeypatch.setattr(train, "load_detector", lambda *given, **how: small("faster_rcnn"))
    for given in (["student", "--batch", "2"], ["student"], ["fcos"]):
        assert train.main(given) == 0
    assert capsys.readouterr().out == ""
    assert not (config.PROJECT / "runs" / "weights").exists()
