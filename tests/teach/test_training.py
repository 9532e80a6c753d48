"""The training loop: kills at any moment, runs that diverge, damaged folders, two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_scenes import lively, scenes, small
from torch import Tensor, nn

from objemb_lib.config import TrainingError
from objemb_lib.teach import training
from objemb_lib.teach.distillation import train_student
from objemb_lib.teach.student import Teacher
from objemb_lib.teach.training import Schedule, rank, read_log, share, train

STEPS, EVERY = 23, 5
SCHEDULE = Schedule(STEPS, 4, rate=0.05, warmup=3, snapshots=(0, 5, 12))


class Killed(BaseException):
    """Neither caught nor cleaned up after."""


class Model(nn.Module):
    """Random twice: in the batch, and in what a detector would sample.

    At a step something may happen: ``dies``, or a loss that is no number, or only its gradient.
    """

    def __init__(self, step: int = -1, happens: str = "", seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.step, self.happens = step, happens

    def error(self, x: Tensor) -> Tensor:
        return (self.head(self.trunk(x).tanh())[:, 0] - x.sum(dim=1)) * torch.rand(len(x))

    def forward(self, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        error = self.error(torch.stack(images))
        found = {"square": error.square().mean(), "edge": 0.1 * error.abs().mean()}
        if int(targets[0]["step"]) != self.step:
            return found
        if self.happens == "dies":
            raise Killed
        bad = {"nan": torch.nan, "inf": torch.inf}.get(self.happens)
        root = (0 * self.head.weight.sum()).sqrt()  # 0, and its gradient is not finite
        return found | {"bad": root if bad is None else found["square"] * bad}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", EVERY)


def draw(generator: torch.Generator) -> tuple[list[Tensor], list[dict]]:
    step = torch.tensor(generator.initial_seed() % 1_000_003)
    images = share(list(torch.randn(4, 3, generator=generator)))
    return images, [{"step": step}] * len(images)


def run(folder: Path, schedule: Schedule = SCHEDULE, model: Model | None = None, **how) -> dict:
    model = model or Model()
    trained = train(model, model.trunk, draw, schedule, folder, progress=False, **how)
    assert trained is model and not model.training
    return model.state_dict()


def killed(folder: Path, step: int) -> None:
    with pytest.raises(Killed):
        run(folder, model=Model(step, "dies"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def losses_of(folder: Path) -> list[dict[str, float]]:
    """The log without its clock."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder)]


def left(folder: Path) -> tuple:
    """All that a run leaves, to compare two of them."""
    snapshots = {path.name: load_file(path) for path in folder.glob("step-*")}
    return losses_of(folder), {name: {k: v.tolist() for k, v in s.items()}
                              for name, s in snapshots.items()}  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, tuple]:
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBJEMB_DEVICE", "cpu")
        return run(folder), left(folder)


def test_a_run_learns_and_leaves_log_and_snapshots(unbroken: tuple) -> None:
    weights, (log, snapshots) = unbroken
    assert [line["step"] for line in log] == [10, 20, STEPS]
    assert all(set(line) == {"step", "square", "edge"} for line in log)
    assert set(snapshots) == {f"step-{step:06d}.safetensors" for step in (0, 5, 12, STEPS)}
    start = {key: value.tolist() for key, value in Model().state_dict().items()}
    assert snapshots["step-000000.safetensors"] == start
    assert snapshots[f"step-{STEPS:06d}.safetensors"] == {k: v.tolist() for k, v in weights.items()}
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(9))
    model, errors = Model(), []
    for state in (Model().state_dict(), weights):
        model.load_state_dict(state)
        errors.append((model.head(model.trunk(x).tanh())[:, 0] - x.sum(dim=1)).square().mean())
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("kills", [(0,), (3, 4, 5), (12, 20, 22), (22, 22)])
@pytest.mark.parametrize("every", [1, EVERY, 50])
def test_a_run_killed_at_any_step_ends_as_an_unbroken_one(
    kills: tuple, every: int, unbroken: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", every)
    for step in kills:
        try:
            run(tmp_path, model=Model(step, "dies"))
        except Killed:
            continue
    assert same(run(tmp_path), unbroken[0])
    assert left(tmp_path) == unbroken[1]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("part", ["_write_log", "_checkpoint", "_snapshot"])
def test_a_run_killed_while_it_writes_ends_as_an_unbroken_one(
    part: str, moment: str, unbroken: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(training, part)
    for call in range(1, 30):
        folder, count = tmp_path / str(call), 0

        def write(*args: object, call: int = call) -> None:
            nonlocal count
            count += 1
            if count == call and moment == "before":
                raise Killed
            real(*args)
            if count == call:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(training, part, write)
            try:
                run(folder)
                break  # there were fewer calls
            except Killed:
                pass
        assert same(run(folder), unbroken[0]), call
        assert left(folder) == unbroken[1], call
    assert call > 3


def test_what_is_logged_is_watched_and_a_finished_run_stays(unbroken, tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    told = []
    run(tmp_path, watch=lambda step, values: told.append({"step": step, **values}))
    assert told == losses_of(tmp_path) and len(told) == 3
    assert same(run(tmp_path, model=Model(0, "dies")), unbroken[0])
    assert left(tmp_path) == unbroken[1]


@pytest.mark.parametrize("kill", [None, 12])
def test_helpers_that_read_ahead_change_nothing(kill, unbroken, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OBJEMB_WORKERS", "2")
    model, asked = Model(), []

    def by_helpers(generator: torch.Generator) -> tuple[list[Tensor], list[dict]]:
        asked.append(generator)  # in the helper's memory
        return draw(generator)

    if kill:
        killed(tmp_path, kill)
    train(model, model.trunk, by_helpers, SCHEDULE, tmp_path, progress=False)
    assert same(model.state_dict(), unbroken[0]) and left(tmp_path) == unbroken[1]
    assert asked == []


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_learnt_from_in_parts(room, unbroken, tmp_path) -> None:
    sizes = []

    class Full(Model):
        def forward(self, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
            sizes.append(len(images))
            found = super().forward(images, targets)
            if len(images) > room:  # in the middle: some gradients are there already
                found["square"].backward()
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return found

    with pytest.warns(UserWarning, match="out of memory"):
        state = run(tmp_path, model=Full())
    for key, value in unbroken[0].items():
        assert torch.allclose(state[key], value, atol=1e-4), key
    for line, whole in zip(losses_of(tmp_path), unbroken[1][0], strict=True):
        assert line == {key: pytest.approx(value, abs=1e-4) for key, value in whole.items()}
    fits = {1: 1, 2: 2, 3: 2}[room]
    assert sizes.count(4) == 1 and sizes[-4 // fits :] == [fits] * (4 // fits)


def test_a_batch_without_any_loss_teaches_nothing(tmp_path: Path) -> None:
    model, before = Model(), Model().state_dict()
    model.forward = lambda images, targets: {}
    assert same(run(tmp_path, model=model), before)


@pytest.mark.parametrize(("happens", "what"), [("nan", "loss"), ("inf", "loss"), ("", "gradient")])
@pytest.mark.parametrize("step", [9, 13])  # 9: the step after which a checkpoint is due
def test_a_run_that_diverges_says_so_and_keeps_good_weights(
    step: int, happens: str, what: str, unbroken: tuple, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=f"the {what} is .* at step {step} of {tmp_path}"):
        run(tmp_path, model=Model(step, happens))
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    assert kept["step"] == step // EVERY * EVERY
    assert all(value.isfinite().all() for value in kept["model"].values())
    assert same(run(tmp_path), unbroken[0])  # and they are those of that step


def test_a_damaged_run_or_one_of_something_else_is_refused(tmp_path: Path) -> None:
    killed(tmp_path, 12)
    file = tmp_path / "last.pt"
    before = file.read_bytes()
    with pytest.raises(TrainingError, match="another schedule"):
        run(tmp_path, replace(SCHEDULE, rate=0.01))
    with pytest.raises(TrainingError, match="other data"):
        run(tmp_path, about="other photographs")
    model = Model()
    model.head = nn.Linear(4, 2)
    with pytest.raises(TrainingError, match=r"last\.pt cannot be continued"):
        run(tmp_path, model=model)
    assert file.read_bytes() == before
    for bad in (before[: len(before) // 2], before[:-9], b""):
        file.write_bytes(bad)
        with pytest.raises(TrainingError, match=rf"{file} cannot be continued: \w+") as caught:
            run(tmp_path)
        assert f"Delete {tmp_path}" in caught.value.remedy
    for content in ({"model": {}}, [1, 2]):
        torch.save(content, file)
        with pytest.raises(TrainingError, match=r"last\.pt cannot be continued"):
            run(tmp_path)


def test_the_rate_rises_and_then_falls_to_zero() -> None:
    schedule = Schedule(steps=100, warmup=4)
    by_hand = {0: 0.25, 1: 0.5 * 0.999753, 3: 0.997781, 50: 0.5, 75: 0.146447, 99: 0.000247}
    factors = {step: schedule.factor(step) for step in by_hand}
    assert factors == pytest.approx(by_hand, abs=1e-6)
    assert Schedule(steps=10, warmup=0).factor(0) == 1


def test_pretrained_layers_learn_slower_and_frozen_ones_stay(tmp_path: Path) -> None:
    # Adam's first step is the rate itself, in the direction of the gradient.
    before = Model().state_dict()
    for part in (0.25, 0.0):
        schedule = Schedule(1, rate=0.01, trunk_rate=part, weight_decay=0.0, warmup=2)
        after = run(tmp_path / str(part), schedule)
        moved = {key: (after[key] - before[key]).abs().max().item() for key in before}
        assert moved["head.weight"] == pytest.approx(0.01 * 0.5, rel=1e-2)
        assert moved["trunk.weight"] == pytest.approx(0.01 * 0.5 * part, rel=1e-2)
    model = Model()
    model.trunk.requires_grad_(False)
    after = run(tmp_path / "frozen", model=model)
    assert torch.equal(before["trunk.weight"], after["trunk.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


# --- two processes ------------------------------------------------------------------------


class Shared(Model):
    """Not random, with a layer that only some examples reach and one that none does."""

    def __init__(self, *how: object, seed: int = 3) -> None:
        super().__init__(*how, seed=seed)
        self.seldom, self.never = nn.Linear(3, 1), nn.Linear(3, 1)

    def error(self, x: Tensor) -> Tensor:
        error, few = self.head(self.trunk(x).tanh())[:, 0] - x.sum(dim=1), x[:, 0] > 1
        return error + torch.where(few, self.seldom(x)[:, 0], 0) if few.any() else error


def one_of_two(folder: Path, place: Path) -> None:
    """What `torchrun` runs twice: a run that is killed, and a student of a detector's losses."""
    wrote: list[str] = []
    for part in ("_write_log", "_checkpoint", "_snapshot"):
        real = getattr(training, part)
        note = lambda *given, part=part, real=real: wrote.append(part) or real(*given)  # noqa: E731
        setattr(training, part, note)
    training.CHECKPOINT_EVERY = EVERY
    with pytest.raises(Killed):  # other weights on each process: the first one's count
        run(folder, model=Shared(7, "dies", seed=3 + rank()))
    state, data = run(folder, model=Shared()), scenes(place / f"photographs-{rank()}")
    student = train_student(
        small("faster_rcnn"), replace(data, content="scenes"), Teacher(lively(), size=64),
        folder / "student", schedule=Schedule(2, 2, warmup=1), leave_out=(), progress=False,
    )  # fmt: skip
    found = {"state": state, "wrote": wrote, "student": student.state_dict()}
    torch.save(found, place / f"{rank()}.pt")


def test_two_processes_do_as_one(tmp_path: Path) -> None:
    """The run is killed and goes on; the first process alone writes.

    Of the student's batches each saw other photographs, and sampled other anchors.
    """
    folder, place = tmp_path / "run", tmp_path / "told"
    place.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    subprocess.run(
        [*command, "2", __file__, str(folder), str(place)], check=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    first, second = (torch.load(place / f"{k}.pt", weights_only=True) for k in (0, 1))
    assert same(first["state"], second["state"]) and same(first["student"], second["student"])
    alone = run(tmp_path / "alone", model=Shared())
    assert all(torch.allclose(first["state"][key], alone[key], atol=1e-4) for key in alone)
    assert not torch.allclose(Shared().head.weight, alone["head.weight"], atol=1e-2)
    assert second["wrote"] == []
    assert set(first["wrote"]) == {"_write_log", "_checkpoint", "_snapshot"}
    assert [line["step"] for line in read_log(folder)] == [10, 20, STEPS]
    assert [line["step"] for line in read_log(folder / "student")] == [2]


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert share(range(6)) == range(1, 6, 3)
    with pytest.raises(TrainingError, match="4 images for 3 processes"):
        run(tmp_path)


if __name__ == "__main__":
    one_of_two(*map(Path, sys.argv[1:]))
