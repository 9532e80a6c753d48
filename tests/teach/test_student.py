"""The student: its embedding branch, what it learns from, and a whole training in small."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_scenes import CATEGORIES, lively, scenes, small
from torchvision.ops import FrozenBatchNorm2d, roi_align

from objemb_lib.config import DataError, TrainingError
from objemb_lib.course.train import FEW, METRICS, score_student
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.coco import load_coco_detector
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.weights import LIMIT, read_card, save_weights, weights_root
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.pooling import rmac
from objemb_lib.embed.regions import roi
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import PCAWhitening
from objemb_lib.teach import student as room
from objemb_lib.teach import training
from objemb_lib.teach.student import (
    DistillationModule,
    DistillConfig,
    Student,
    StudentTrunk,
    Teacher,
    choose_regions,
    load_student,
    random_boxes,
    save_student,
    train_student,
)
from objemb_lib.teach.training import Schedule, read_log

pytest_plugins = ("tiny_battles",)

BOXES = [torch.tensor([[4.0, 6.0, 30.0, 40.0], [36.0, 10.0, 60.0, 30.0]]), torch.zeros(0, 4),
         torch.tensor([[0.0, 0.0, 64.0, 64.0]])]  # fmt: skip


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")


def student(kind: str = "faster_rcnn", seed: int = 0, **how: object) -> Student:
    torch.manual_seed(seed)
    return Student(small(kind), **{"leave_out": ()} | how).eval()


def noise(count: int = 3, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


# --- teacher and embedding branch ---------------------------------------------------------


def test_the_teacher_sees_the_crop_alone() -> None:
    trunk, images = lively(), noise(2, 128)
    teacher = Teacher(trunk, size=64)
    boxes = [torch.tensor([[0.0, 0.0, 64.0, 64.0], [32.0, 16.0, 96.0, 80.0]]),
             torch.tensor([[64.0, 64.0, 128.0, 128.0]])]  # fmt: skip
    crops = torch.stack(
        [images[0, :, :64, :64], images[0, :, 16:80, 32:96], images[1, :, 64:, 64:]]
    )
    with torch.no_grad():
        expected = F.normalize(rmac(trunk(trunk.normalise(crops))["head"]), dim=1)
    assert torch.allclose(teacher(images, boxes, batch_size=2), expected, atol=1e-4)
    changed = images.clone()
    changed[0, :, 80:] = 0  # outside both of the first image's boxes
    assert torch.allclose(teacher(changed, boxes)[:2], expected[:2], atol=1e-4)


def test_a_teacher_can_be_whitened() -> None:
    trunk, images = lively(), noise(8)
    plain = Teacher(trunk, size=64)
    boxes = [BOXES[0]] * 8
    learnt = PCAWhitening(4).fit(plain(images, boxes).numpy())
    white = Teacher(trunk, size=64, whitening=learnt)
    assert white.dim == 4 and "whitened to 4" in repr(white) and repr(white) != repr(plain)
    found = white(images, boxes)
    assert np.allclose(found.numpy(), learnt(plain(images, boxes).numpy()), atol=1e-5)


def test_a_teacher_of_the_map_sees_what_lies_around() -> None:
    teacher = Teacher(lively(), from_map=True)
    images = noise(1)
    vectors = teacher(images, BOXES[:1])
    assert vectors.shape == (2, teacher.dim)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
    images[0, :, 50:] = 0
    assert not torch.allclose(teacher(images, BOXES[:1]), vectors, atol=1e-3)


@pytest.mark.parametrize("from_map", [False, True])
def test_a_teacher_without_regions_says_nothing(from_map: bool) -> None:
    teacher = Teacher(lively(), from_map=from_map)
    assert teacher(noise(1), [torch.zeros(0, 4)]).shape == (0, teacher.dim)


def test_the_branch_runs_the_bodys_last_layers_on_the_region() -> None:
    """A box around the whole image, cut into as many cells as the map has: nothing changes."""
    ours, images = student(cells=4), noise()
    body = ours.detector.trunk
    with torch.no_grad():
        maps = body(body.normalise(images))
        found = ours.embed(maps, BOXES)
        finer = student(cells=8).embed(maps, BOXES)
    assert found.shape == (3, ours.embedding.dim)
    whole = F.normalize(maps["head"][2].mean(dim=(1, 2)), dim=0)
    assert torch.allclose(found[2], whole, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not torch.allclose(finer[2], whole, atol=1e-3)


def test_layers_can_be_left_out() -> None:
    ours, images = student(leave_out=(1,)), noise()
    body = ours.detector.trunk
    (first, left_out) = body.after("stage4")
    with torch.no_grad():
        maps = body(body.normalise(images))
        found = ours.embed(maps, BOXES[2:])
        pooled = first(room._cut(maps, body.stages["stage4"], BOXES[2:], 6)).mean(dim=(2, 3))
    assert torch.allclose(found, F.normalize(pooled, dim=1), atol=1e-5)


def test_order_and_company_of_boxes_do_not_matter() -> None:
    ours, images = student(), noise()
    body = ours.detector.trunk
    with torch.no_grad():
        maps = body(body.normalise(images))
        every = ours.embed(maps, BOXES)
        turned = ours.embed(maps, [BOXES[0].flip(0), BOXES[1], BOXES[2]])
        alone = ours.embed({k: m[2:] for k, m in maps.items()}, BOXES[2:])
    assert torch.allclose(turned, every[[1, 0, 2]], atol=1e-5)
    assert torch.allclose(alone, every[2:], atol=1e-5)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_it_detects_as_its_detector_and_embeds_what_it_detects(kind: str) -> None:
    ours = student(kind, top=4)
    detector = ours.detector
    detector.network.roi_heads.score_thresh = 0.0  # random weights are sure of nothing
    images = list(noise())
    with torch.no_grad():
        found, plain = ours(images), detector(images)
        trunk = StudentTrunk(ours)
        maps = trunk(trunk.normalise(torch.stack(images)))
        boxes = [one["boxes"][:4] for one in found]
        expected = trunk.box_features(maps, "student", boxes).flatten(1)
    assert max(len(one["boxes"]) for one in found) > 4
    for one, other in zip(found, plain):
        assert one.keys() - other.keys() == {"embeddings"}
        assert all(torch.equal(one[key], other[key]) for key in other)
    vectors = torch.cat([one["embeddings"] for one in found])
    assert torch.allclose(vectors, F.normalize(expected, dim=1), atol=1e-4)


@pytest.mark.parametrize("wrong", [(0,), (1, 2), (-1,)])
def test_layers_that_cannot_be_left_out_are_named(wrong: tuple) -> None:
    with pytest.raises(DataError, match=r"cannot leave out its layers .*\n.*are \[1\]"):
        student(leave_out=wrong)


def test_boxes_of_one_pixel_and_hundreds_of_boxes_are_embedded() -> None:
    ours, images = student(), noise(1)
    body = ours.detector.trunk
    one = torch.tensor([[5.0, 5.0, 6.0, 6.0], [7.0, 7.0, 7.0, 7.0]])
    with torch.no_grad():
        maps = body(body.normalise(images))
        assert ours.embed(maps, [one]).isfinite().all()
        many = ours.embed(maps, [random_boxes(300, 64)])
    assert many.shape == (300, ours.embedding.dim) and many.isfinite().all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_extracted_as_any_trunk(data, precision: str) -> None:
    options = ExtractOptions(64, precision=precision, cache=False, progress=False)
    found = extract(data, StudentTrunk(student()), [("student", "spoc")], roi(data), options)
    x = found["student", "spoc"]
    assert x.shape == (4, 176) and np.isfinite(x).all() and np.ptp(x) > 0


def test_prepared_for_inference_it_gives_the_same() -> None:
    ours = student(top=3)
    ours.detector.network.roi_heads.score_thresh = 0.0
    images = list(noise())
    with torch.no_grad():
        plain, fast = ours(images), ours.for_inference(torch.device("cpu"))(images)
    for one, other in zip(plain, fast):
        assert torch.allclose(one["embeddings"], other["embeddings"], atol=1e-3)
        assert torch.allclose(one["boxes"][:3], other["boxes"][:3], atol=0.1)


def test_an_image_without_detections_has_no_embeddings() -> None:
    ours = student()
    ours.detector.network.roi_heads.score_thresh = 1.1
    (one,) = ours(list(noise(1)))
    assert one["boxes"].shape == (0, 4)
    assert one["embeddings"].shape == (0, ours.embedding.dim)


def test_larger_images_are_embedded_as_their_small_copies() -> None:
    ours = student(top=3)
    ours.detector.network.roi_heads.score_thresh = 0.0
    image = F.interpolate(noise(1, 8), size=64, mode="nearest")
    double = F.interpolate(image, scale_factor=2, mode="nearest")
    with torch.no_grad():
        (one,), (large,) = ours(list(image)), ours(list(double))
    assert torch.allclose(large["boxes"], 2 * one["boxes"], atol=2)
    assert (large["embeddings"] * one["embeddings"]).sum(dim=1).min() > 0.98


def test_a_one_stage_detector_cannot_be_a_student() -> None:
    with pytest.raises(DataError, match="fcos has no RoI head"):
        student("fcos")


def test_as_a_trunk_it_keeps_the_detectors_stages() -> None:
    ours = student()
    trunk, plain = StudentTrunk(ours), DetectorTrunk(ours.detector)
    assert [*plain.stages, "student"] == list(trunk.stages)
    assert trunk.stages["student"].per_box
    before = trunk.fingerprint()
    assert before != plain.fingerprint()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.01)
    assert trunk.fingerprint() == before, "a copy"
    assert StudentTrunk(ours).fingerprint() != before
    assert StudentTrunk(student(cells=5)).fingerprint() != before, "other numbers, same weights"
    maps = trunk(trunk.normalise(noise(1)))
    for stage in ("roi", "box_head"):
        ours_, theirs = (t.box_features(maps, stage, BOXES[:1]) for t in (trunk, plain))
        assert torch.equal(ours_, theirs)


# --- regions ------------------------------------------------------------------------------


def targets() -> list[dict]:
    return [{"boxes": BOXES[0], "objects": torch.tensor([5, -1])},
            {"boxes": BOXES[1], "objects": torch.zeros(0, dtype=torch.int64)}]  # fmt: skip


def test_guided_regions_mean_the_true_boxes() -> None:
    close = BOXES[0] + 1.0
    far = torch.tensor([[0.0, 50.0, 10.0, 60.0]])
    offered = [torch.cat([close, far]), far]
    torch.manual_seed(0)
    found = choose_regions(targets(), offered, DistillConfig(free=2, jitter=0.05), 64)
    looked, aimed = found.looked[0], found.aimed[0]
    assert torch.equal(looked[:2], aimed[:2]) and len(looked) == 2 + 2 + 2
    assert torch.equal(aimed[2:], torch.cat([BOXES[0], BOXES[0]]))
    sides = (BOXES[0][:, 2:] - BOXES[0][:, :2]).repeat(1, 2)
    assert ((looked[2:4] - BOXES[0]).abs() <= 0.05 * sides + 1e-4).all()
    assert not torch.equal(looked[2:4], BOXES[0])
    assert torch.equal(looked[4:], close), "the matching proposals, never the far one"
    assert found.objects.tolist() == [-1, -1, 5, -1, 5, -1, -1, -1]
    assert len(found.looked[1]) == len(found.aimed[1]) == 2, "without objects, the free ones"


def test_unguided_regions_are_proposals_as_they_are() -> None:
    offered = [torch.cat([BOXES[0] + k for k in range(4)]), BOXES[0]]
    found = choose_regions(targets(), offered, DistillConfig(regions="proposals", free=0), 64)
    assert torch.equal(found.looked[0], found.aimed[0]) and len(found.looked[0]) == 4
    assert {tuple(b) for b in found.looked[0].tolist()} <= {tuple(b) for b in offered[0].tolist()}
    assert (found.objects == -1).all()
    alone = choose_regions(targets(), offered, DistillConfig(regions="none", free=3), 64)
    assert [len(b) for b in alone.looked] == [3, 3]


def test_without_proposals_the_true_boxes_remain() -> None:
    found = choose_regions(targets()[:1], [torch.zeros(0, 4)], DistillConfig(free=0), 64)
    assert torch.equal(found.aimed[0], BOXES[0])


@given(st.integers(0, 20), st.integers(8, 512), st.integers(0, 1000))
def test_free_boxes_lie_inside(count: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    boxes = random_boxes(count, size)
    assert boxes.shape == (count, 4)
    assert (boxes >= 0).all() and (boxes <= size + 1e-3).all()
    sides = (boxes[:, 2:] - boxes[:, :2]) / size
    assert (sides > 0.199).all() and (sides < 0.651).all()


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 9)), min_size=1, max_size=6))
def test_category_and_object_survive_in_one_number(said: list[tuple[int, int]]) -> None:
    categories, objects = (np.array(part) for part in zip(*said))
    data = scenes_of(categories, objects)
    codes = room._with_objects(data).box_categories[0]
    known = categories >= 0
    assert ((codes >= 0) == known).all()
    target = {"labels": torch.from_numpy(codes[known] + 1)}
    found = room._decoded(target, 4)
    assert (found["labels"] - 1).tolist() == categories[known].tolist()
    assert found["objects"].tolist() == objects[known].tolist()


def scenes_of(categories: np.ndarray, objects: np.ndarray) -> ImageDataset:
    boxes = np.tile([0.0, 0.0, 9.0, 9.0], (len(categories), 1))
    return ImageDataset("made", "train", Path(), ["a.png"], [0], category_names=list("abcd"),
                        boxes=[boxes], box_labels=[objects], box_categories=[categories],
                        content="x")  # fmt: skip


# --- recipes ------------------------------------------------------------------------------


def test_hints_look_at_every_cell() -> None:
    maps = torch.rand(2, 8, 4, 4)
    assert room.hint(3 * maps, maps) == pytest.approx(0, abs=1e-6)
    other = maps.clone()
    other[0, :, 1, 2] = -maps[0, :, 1, 2]
    assert room.hint(other, maps) == pytest.approx(2 / 32, abs=1e-6)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(DataError, match="no loss called triplet"):
        DistillConfig(losses=("cosine", "triplet"))


def lesson(recipe: DistillConfig) -> tuple[DistillationModule, dict]:
    torch.manual_seed(0)
    pupil = DistillationModule(
        student(dim=176), Teacher(lively(), size=64), recipe, objects=9
    ).train()
    images = list(noise(2))
    labels = torch.ones(2, dtype=torch.int64)
    objects = torch.tensor([5, 2])
    many = [{"boxes": BOXES[0][:k], "labels": labels[:k], "objects": objects[:k]} for k in (2, 1)]
    return pupil, pupil.losses((images, many))


@pytest.mark.parametrize(
    ("recipe", "own"),
    [
        (DistillConfig(), {"cosine", "relational"}),
        (DistillConfig(losses=("squared",)), {"squared"}),
        (DistillConfig(losses=("hint",), regions="none", free=0), {"hint"}),
        (DistillConfig(losses=("labels",), free=0), {"labels"}),
        (DistillConfig(regions="proposals"), {"cosine", "relational"}),
    ],
)
def test_a_recipe_says_which_losses_there_are(recipe: DistillConfig, own: set) -> None:
    _, found = lesson(recipe)
    detection = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert found.keys() == own | detection
    assert all(value.isfinite() and value > 0 for value in found.values())
    for how in ({"detection": False}, {"frozen": True}):
        assert lesson(replace(recipe, **how))[1].keys() == own


def test_a_frozen_detector_gets_no_gradients_and_the_branch_does() -> None:
    pupil, found = lesson(DistillConfig(frozen=True))
    sum(found.values()).backward()
    assert all(p.grad is None for p in pupil.student.detector.parameters())
    assert pupil.student.embedding.project.weight.grad.abs().sum() > 0


def test_the_teacher_is_neither_trained_nor_saved() -> None:
    pupil, _ = lesson(DistillConfig())
    ours = {id(p) for p in pupil.parameters()}
    assert not ours & {id(p) for p in pupil.teacher[0].parameters()}
    assert all(key.startswith("student.") for key in pupil.state_dict())


def test_labels_pull_one_object_together() -> None:
    """Proxy-NCA's loss falls when vectors of one object move to one place."""
    pupil, _ = lesson(DistillConfig(losses=("labels",), free=0))
    proxies = F.normalize(pupil.labels.proxies.detach(), dim=1)
    near, far = proxies[[5, 2]], proxies[[2, 5]]
    assert pupil.labels(near, torch.tensor([5, 2])) < pupil.labels(far, torch.tensor([5, 2]))


# --- training -----------------------------------------------------------------------------

SHORT = Schedule(steps=2, batch_size=2, warmup=1, rate=1e-3)
GUIDED = DistillConfig()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return scenes(tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def taught(data: ImageDataset) -> Callable[..., Student]:
    """``taught(folder, recipe, schedule)``: a small student after a short training."""

    def teach(folder: Path, recipe=GUIDED, schedule=SHORT, **how: object) -> Student:
        detector, teacher = small("faster_rcnn"), Teacher(lively(), size=64)
        options = {"recipe": recipe, "schedule": schedule, "progress": False, "leave_out": ()}
        return train_student(detector, data, teacher, folder, **options, **how)

    return teach


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_a_short_training_teaches_branch_and_body(data, taught, tmp_path: Path) -> None:
    detector, seen = small("faster_rcnn"), []
    before = state(detector)
    ours = train_student(
        detector, data, Teacher(lively(), size=64), tmp_path / "run", schedule=SHORT, leave_out=(),
        progress=False, watch=lambda who, step, values: seen.append((who, step, set(values))),
    )  # fmt: skip
    assert not ours.training
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    changed = [k for k, v in ours.detector.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and not [k for k in changed if "running" in k], "batch norm stays frozen"
    ((who, step, values),) = seen
    assert who is ours and step == 2 and {"cosine", "relational", "loss_classifier"} <= values
    again = taught(tmp_path / "again")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in ours.state_dict().items())


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = replace(SHORT, steps=4)
    whole = taught(tmp_path / "whole", schedule=longer)
    real, calls = DistillationModule.losses, []

    def dies(self, examples):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, examples)

    monkeypatch.setattr(DistillationModule, "losses", dies)
    checkpoint = lambda *a, **k: training.train(*a, **k, checkpoint_every=2)  # noqa: E731
    monkeypatch.setattr(room, "train", checkpoint)
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "cut", schedule=longer)
    cut = taught(tmp_path / "cut", schedule=longer)
    assert all(torch.equal(v, cut.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_frozen_body_stays_as_it_was(taught, tmp_path: Path) -> None:
    ours = taught(tmp_path / "run", DistillConfig(frozen=True), projected=True)
    before = small("faster_rcnn").state_dict()
    assert all(torch.equal(v, before[k]) for k, v in ours.detector.state_dict().items())
    assert not torch.equal(ours.embedding.project.weight, torch.eye(ours.embedding.dim))


def test_another_recipe_does_not_go_on_in_the_same_folder(taught, tmp_path: Path) -> None:
    taught(tmp_path / "run")
    with pytest.raises(TrainingError, match="another schedule or other data"):
        taught(tmp_path / "run", DistillConfig(free=1))


def test_a_run_is_not_continued_from_other_weights(data, tmp_path: Path) -> None:
    """Whoever trains the detector anew must not get the student of the old one."""
    how = {"schedule": SHORT, "progress": False, "leave_out": ()}
    teacher = Teacher(lively(), size=64)
    train_student(small("faster_rcnn"), data, teacher, tmp_path, **how)
    with pytest.raises(TrainingError, match="other data"):
        train_student(small("faster_rcnn", seed=1), data, teacher, tmp_path, **how)
    with pytest.raises(TrainingError, match="other data"):
        other = Teacher(lively("lcnet_050"), size=64)
        how = how | {"projected": True}
        train_student(small("faster_rcnn"), data, other, tmp_path, **how)


def test_a_batch_without_any_lesson_is_no_end(taught, tmp_path: Path) -> None:
    taught(tmp_path / "run", DistillConfig(regions="none", free=0, detection=False))
    assert read_log(tmp_path / "run")[-1]["nothing"] == 0


def test_what_cannot_learn_is_said_so(taught, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing can learn"):
        taught(tmp_path / "run", DistillConfig(frozen=True))


def test_a_lesson_that_is_no_number_stops_the_training(
    taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = lambda self, images, boxes: torch.full((sum(map(len, boxes)), self.dim), np.nan)  # noqa: E731
    monkeypatch.setattr(Teacher, "forward", nothing)
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        taught(tmp_path / "run")
    assert read_log(tmp_path / "run") == []


def test_a_teacher_of_other_dimensions_is_refused(data, tmp_path: Path) -> None:
    teacher = Teacher(lively(), stage="stage3", size=64)
    how = {"schedule": SHORT, "progress": False, "leave_out": ()}
    with pytest.raises(DataError, match=r"(?s)vectors of .* projected=True"):
        train_student(small("faster_rcnn"), data, teacher, tmp_path / "run", **how)
    ours = train_student(small("faster_rcnn"), data, teacher, tmp_path, projected=True, **how)
    assert ours.embedding.dim == teacher.dim


# --- files --------------------------------------------------------------------------------


def test_a_student_is_saved_with_all_that_loads_it_again(tmp_path: Path) -> None:
    detector = small("faster_rcnn", channels=96, hidden=256)
    ours = Student(detector, cells=5, leave_out=(), dim=24)
    save_student(ours, {"minutes": 3}, "pupil", tmp_path)
    card = json.loads((tmp_path / "pupil.json").read_text())
    assert card["minutes"] == 3 and card["categories"] == list(CATEGORIES)
    loaded = load_student("pupil", tmp_path)
    assert not loaded.training and loaded.embedding.cells == 5 and loaded.embedding.dim == 24
    for key, value in ours.state_dict().items():
        assert torch.allclose(loaded.state_dict()[key].float(), value.float(), rtol=2e-3, atol=1e-5)
    save_weights(detector, {}, "plain", tmp_path)
    with pytest.raises(DataError, match="plain is a detector without embeddings"):
        load_student("plain", tmp_path)
    card["student"]["dim"] = 25
    (tmp_path / "pupil.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="another network"):
        load_student("pupil", tmp_path)


# --- torchvision's detectors --------------------------------------------------------------


@pytest.fixture(scope="module")
def of_coco() -> Student:
    """A student of a COCO detector with random weights, its branch as in Faster R-CNN."""
    torch.manual_seed(0)
    detector = load_coco_detector("torchvision/fasterrcnn_resnet50_fpn", False, 64)
    detector.network.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    detector.network.roi_heads.score_thresh = 0.0
    return Student(detector, top=3, cells=14, leave_out=()).eval()


def test_a_coco_detector_embeds_what_it_detects_in_any_shape(of_coco: Student) -> None:
    images = [torch.rand(3, 64, 96), torch.rand(3, 80, 64)]
    with torch.no_grad():
        found, plain = of_coco(images), of_coco.detector(images)
        network = of_coco.detector.network
        batch, _ = network.transform(images)
        maps = network.backbone.body(batch.tensors)
        scale = batch.image_sizes[0][1] / 96  # boxes are told in pixels of the photograph
        cut = roi_align(maps["stage4"], [found[0]["boxes"][:3] * scale, torch.zeros(0, 4)],
                        14, 1 / 16, sampling_ratio=1, aligned=True)  # fmt: skip
        by_hand = network.backbone.body.network.parts[-1](cut).mean(dim=(2, 3))  # layer4
    for one, other in zip(found, plain):
        assert torch.equal(one["boxes"], other["boxes"]) and len(one["boxes"]) > 3
        assert one["embeddings"].shape == (3, 2048)
    assert torch.allclose(found[0]["embeddings"], F.normalize(by_hand, dim=1), atol=1e-4)


def test_a_coco_detector_learns_to_detect_and_to_embed(of_coco: Student) -> None:
    torch.manual_seed(0)
    pupil = DistillationModule(
        copy.deepcopy(of_coco), Teacher(lively(), size=64), replace(GUIDED, losses=("squared",)), 9
    )
    pupil.student.embedding = room.EmbeddingHead(of_coco.detector.trunk, leave_out=(1, 2), dim=176)
    one = {"boxes": BOXES[0], "labels": torch.tensor([18, 1]), "objects": torch.tensor([5, -1])}
    found = pupil.train().losses((list(noise(1)), [one]))
    assert found.keys() > {"squared", "loss_classifier", "loss_rpn_box_reg"}
    sum(found.values()).backward()
    body = pupil.student.detector.trunk.network.parts
    assert body[-1][0].conv1.weight.grad.abs().sum() > 0  # layer4, of detector and branch


def test_a_student_of_a_coco_detector_is_loaded_again(tmp_path: Path) -> None:
    """As the weights of a trained one: frozen batch norm, whose numbers count."""
    detector = load_coco_detector("torchvision/fasterrcnn_resnet50_fpn", False, 64)
    norms = [m for m in detector.trunk.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 53 and all(norm.eps == 0 for norm in norms)
    for norm in norms:
        norm.running_mean.uniform_(-0.1, 0.1), norm.running_var.uniform_(0.5, 2)
    ours = Student(detector, cells=7, leave_out=(2,))
    with pytest.raises(DataError, match="would hold"):  # not for the course's own folder
        save_student(ours, {}, "large", tmp_path)
    save_student(ours, {}, "large", tmp_path, limit=0)
    loaded, before = load_student("large", tmp_path), ours.state_dict()
    for key, value in loaded.state_dict().items():
        assert torch.allclose(value, before[key], rtol=2e-3, atol=1e-4), key
    assert (loaded.detector.size, loaded.embedding.leave_out) == (64, (2,))


def test_photographs_without_any_known_category_are_refused(data, tmp_path: Path) -> None:
    strange = replace(data, category_names=("left", "right"))
    how = {"schedule": SHORT, "progress": False, "leave_out": ()}
    teacher = Teacher(lively(), size=64)
    with pytest.raises(DataError, match="no category that the detector knows"):
        train_student(small("faster_rcnn"), strange, teacher, tmp_path / "run", **how)
    recipe = DistillConfig(detection=False)
    train_student(small("faster_rcnn"), strange, teacher, tmp_path / "run", recipe, **how)


# --- the file that comes with the course --------------------------------------------------


def test_the_shipped_student_knows_objects_as_its_card_says(mini_battles_built: Path) -> None:
    card = read_card("student")
    assert (weights_root() / "student.safetensors").stat().st_size <= LIMIT
    teacher = Teacher(load_trunk())
    assert repr(teacher) == card["teacher"]
    found = score_student(load_student(), mini_battles("battle").first_of_each(2), teacher)
    assert found == {name: pytest.approx(value, abs=0.015) for name, value in card[FEW].items()}


def test_the_shipped_student_comes_near_its_teacher_with_boxes_as_they_are() -> None:
    """The goals were 0.90 and 0.85; notebook 04 chooses a context, too, and comes farther."""
    card = read_card("student")[METRICS]
    assert card["true boxes, share"] >= 0.9 and card["own boxes, share"] >= 0.85


def test_the_shipped_student_still_detects() -> None:
    """Box AP within a point of the detector that it began as."""
    before, after = (read_card(name)[METRICS]["box AP"] for name in ("faster_rcnn", "student"))
    assert after >= before - 0.01
