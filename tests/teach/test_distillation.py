"""What a student learns from: regions, losses, and a whole training in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_scenes import lively, scenes, small

from objemb_lib.config import DataError, TrainingError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.teach.distillation import (
    DistillationModule,
    DistillConfig,
    choose_regions,
    random_boxes,
    train_student,
)
from objemb_lib.teach.student import Student, Teacher
from objemb_lib.teach.training import Schedule

BOXES = [torch.tensor([[4.0, 6.0, 30.0, 40.0], [36.0, 10.0, 60.0, 30.0]]), torch.zeros(0, 4)]
TARGETS = [{"boxes": boxes} for boxes in BOXES]
DETECTION = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
pytestmark = pytest.mark.usefixtures("on_cpu")
SHORT = Schedule(steps=2, batch_size=2, warmup=1, rate=1e-3)


def test_guided_regions_mean_the_true_boxes() -> None:
    close = BOXES[0] + 1.0
    far = torch.tensor([[0.0, 50.0, 10.0, 60.0]])
    offered = [torch.cat([close, far]), far]
    torch.manual_seed(0)
    many = choose_regions(TARGETS, offered, DistillConfig(free=2, jitter=0.05), 64)
    looked, aimed = many[0][0], many[1][0]
    assert torch.equal(looked[:2], aimed[:2]) and len(looked) == 2 + 2 + 2
    assert torch.equal(aimed[2:], torch.cat([BOXES[0], BOXES[0]]))
    sides = (BOXES[0][:, 2:] - BOXES[0][:, :2]).repeat(1, 2)
    assert ((looked[2:4] - BOXES[0]).abs() <= 0.05 * sides + 1e-4).all()
    assert not torch.equal(looked[2:4], BOXES[0])
    assert torch.equal(looked[4:], close), "the matching proposals, never the far one"
    assert len(many[0][1]) == len(many[1][1]) == 2, "without objects, the free ones"
    _, aimed = choose_regions(TARGETS[:1], [torch.zeros(0, 4)], DistillConfig(free=0), 64)
    assert torch.equal(aimed[0], BOXES[0]), "without proposals, the true boxes"


def test_unguided_regions_are_proposals_as_they_are() -> None:
    offered = [torch.cat([BOXES[0] + k for k in range(4)]), BOXES[0]]
    config = DistillConfig(regions="proposals", free=0)
    looked, aimed = choose_regions(TARGETS, offered, config, 64)
    assert torch.equal(looked[0], aimed[0]) and len(looked[0]) == 4
    assert {tuple(b) for b in looked[0].tolist()} <= {tuple(b) for b in offered[0].tolist()}
    looked, _ = choose_regions(TARGETS, offered, DistillConfig(regions="none", free=3), 64)
    assert [len(b) for b in looked] == [3, 3]


@given(st.integers(0, 20), st.integers(8, 512), st.integers(0, 1000))
def test_free_boxes_lie_inside(count: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    boxes = random_boxes(count, size)
    assert boxes.shape == (count, 4)
    assert (boxes >= 0).all() and (boxes <= size + 1e-3).all()
    sides = (boxes[:, 2:] - boxes[:, :2]) / size
    assert (sides > 0.199).all() and (sides < 0.651).all()


@pytest.mark.parametrize("config", [
    DistillConfig(), DistillConfig(losses=("cosine",)), DistillConfig(regions="proposals"),
    DistillConfig(detection=False), DistillConfig("none", 0),
])  # fmt: skip
def test_the_config_says_which_losses_there_are(config: DistillConfig) -> None:
    torch.manual_seed(0)
    student = Student(small("faster_rcnn"), leave_out=(), dim=176)
    module = DistillationModule(student, Teacher(lively(), size=64), config).train()
    assert all(key.startswith("student.") for key in module.state_dict())  # not the teacher
    images, labels = list(torch.rand(2, 3, 64, 64)), torch.ones(2, dtype=torch.int64)
    found = module(images, [{"boxes": BOXES[0][:k], "labels": labels[:k]} for k in (2, 1)])
    own = set(config.losses if config.free else ())
    assert found.keys() == own | (DETECTION if config.detection else set())
    assert all(value.isfinite() and value > 0 for value in found.values())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return scenes(tmp_path_factory.mktemp("photographs"))


def taught(dataset: ImageDataset, folder: Path, **how: object) -> Student:
    """A small student after a short training."""
    known = {"detector": small("faster_rcnn"), "teacher": Teacher(lively(), size=64),
             "schedule": SHORT, "progress": False, "leave_out": ()}  # fmt: skip
    return train_student(dataset=dataset, folder=folder, **known | how)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_a_short_training_teaches_branch_and_body(data, tmp_path: Path) -> None:
    detector, seen = small("faster_rcnn"), []
    watch = lambda who, step, values: seen.append((who, step, set(values)))  # noqa: E731
    ours = taught(data, tmp_path / "run", detector=detector, watch=watch)
    before = small("faster_rcnn").state_dict()
    assert not ours.training and same(detector, small("faster_rcnn"))
    changed = [k for k, v in ours.detector.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and not [k for k in changed if "running" in k], "batch norm stays frozen"
    ((who, step, values),) = seen
    assert who is ours and step == 2 and values >= {"cosine", "relational", "loss_classifier"}
    assert same(ours, taught(data, tmp_path / "again"))


def test_a_run_is_not_continued_from_another_beginning(data, tmp_path: Path) -> None:
    """Whoever trains the detector anew must not get the student of the old one."""
    taught(data, tmp_path)
    for other in (
        {"config": DistillConfig(free=1)},
        {"detector": small("faster_rcnn", seed=1)},
        {"teacher": Teacher(lively("lcnet_050"), size=64)},
    ):
        with pytest.raises(TrainingError, match="another schedule or other data"):
            taught(data, tmp_path, **other)


def test_vectors_are_projected_into_a_space_of_other_dimensions(data, tmp_path: Path) -> None:
    teacher = Teacher(lively(), stage="stage3", size=64)
    ours = taught(data, tmp_path, teacher=teacher)
    assert ours.embedding.dim == ours.embedding.project.out_features == teacher.dim != 176


def test_only_the_detection_losses_need_known_categories(data, tmp_path: Path) -> None:
    strange = replace(data, category_names=("left", "right"))
    with pytest.raises(DataError, match="no image has a box with a category"):
        taught(strange, tmp_path / "run")
    taught(strange, tmp_path / "run", config=DistillConfig(detection=False))
