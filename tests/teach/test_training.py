"""The training loop: kills at any moment, runs that diverge, damaged folders, the rates."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from objemb_lib.config import TrainingError
from objemb_lib.teach import training
from objemb_lib.teach.training import Schedule, read_log, snapshot_path, train

STEPS, EVERY = 23, 5
SCHEDULE = Schedule(STEPS, 4, rate=0.05, warmup=3, snapshots=(0, 5, 12))


class Killed(BaseException):
    """Neither caught nor cleaned up after."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).tanh())


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")


def batch(generator: torch.Generator, step: int) -> tuple[Tensor, int]:
    return torch.randn(4, 3, generator=generator), step


def losses(model: nn.Module, given: tuple[Tensor, int]) -> dict[str, Tensor]:
    """Random twice: in the batch, and in what a detector would sample."""
    x, _ = given
    error = (model(x)[:, 0] - x.sum(dim=1)) * torch.rand(len(x))
    return {"square": error.square().mean(), "edge": 0.1 * error.abs().mean()}


def run(folder: Path, schedule: Schedule = SCHEDULE, what=losses, model=None, **how) -> dict:
    model = model or Model()
    known = {"progress": False, "checkpoint_every": EVERY}
    trained = train(model, model.trunk, batch, what, schedule, folder, **known | how)
    assert trained is model and not model.training
    return model.state_dict()


def dies_at(step: int):
    def loss(model: nn.Module, given: tuple[Tensor, int]) -> dict[str, Tensor]:
        if given[1] == step:
            raise Killed
        return losses(model, given)

    return loss


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
    last = {key: value.tolist() for key, value in weights.items()}
    assert snapshots[f"step-{STEPS:06d}.safetensors"] == last
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(9))
    errors = []
    for state in (start, last):
        model = Model()
        model.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
        errors.append((model(x)[:, 0] - x.sum(dim=1)).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


@hypothesis.settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    kills=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=3),
    every=st.sampled_from([EVERY, 50]),
)
def test_a_run_killed_at_any_step_ends_as_an_unbroken_one(
    unbroken: tuple, kills: list[int], every: int
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        for step in kills:
            try:
                run(folder, what=dies_at(step), checkpoint_every=every)
            except Killed:
                continue
        assert same(run(folder, checkpoint_every=every), unbroken[0])
        assert left(folder) == unbroken[1]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("part", ["_log", "_checkpoint", "_snapshot"])
def test_a_run_killed_while_it_writes_ends_as_an_unbroken_one(
    part: str, moment: str, unbroken: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = getattr(training, part), 0
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
            except Killed:
                pass
            else:
                break  # there were fewer calls
        assert same(run(folder), unbroken[0]), call
        assert left(folder) == unbroken[1], call
    assert call > 3


def test_a_line_of_the_log_that_a_kill_cut_off_is_forgotten(
    unbroken: tuple, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, what=dies_at(12))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 20, "squ')
    assert [line["step"] for line in read_log(tmp_path)] == [10]
    run(tmp_path)
    assert left(tmp_path) == unbroken[1]
    assert read_log(tmp_path / "nowhere") == []


def test_a_finished_run_is_not_trained_again(unbroken: tuple, tmp_path: Path) -> None:
    run(tmp_path)
    assert same(run(tmp_path, what=dies_at(0)), unbroken[0])
    assert left(tmp_path) == unbroken[1]


def test_another_seed_is_another_run(unbroken: tuple, tmp_path: Path) -> None:
    other = Schedule(**{**SCHEDULE.__dict__, "seed": 1})
    assert not same(run(tmp_path, other), unbroken[0])


def test_whoever_watches_is_told_what_is_logged(tmp_path: Path) -> None:
    told = []
    run(tmp_path, watch=lambda step, values: told.append({"step": step, **values}))
    assert told == losses_of(tmp_path) and len(told) == 3


@pytest.mark.parametrize("kill", [None, 12])
def test_helpers_that_read_ahead_change_nothing(
    kill: int | None, unbroken: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBJEMB_WORKERS", "2")
    asked = []

    def by_helpers(generator: torch.Generator, step: int) -> tuple[Tensor, int]:
        asked.append(step)  # in the helper's memory
        return batch(generator, step)

    if kill:
        with pytest.raises(Killed):
            run(tmp_path, what=dies_at(kill))
    model = Model()
    how = {"progress": False, "checkpoint_every": EVERY}
    train(model, model.trunk, by_helpers, losses, SCHEDULE, tmp_path, **how)
    assert same(model.state_dict(), unbroken[0]) and left(tmp_path) == unbroken[1]
    assert asked == []


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_learnt_from_in_parts(
    room: int, unbroken: tuple, tmp_path: Path
) -> None:
    sizes = []

    def full(model: nn.Module, given: tuple[Tensor, list]) -> dict[str, Tensor]:
        x, steps = given
        sizes.append(len(x))
        found = losses(model, (x, steps[0]))
        if len(x) > room:  # in the middle: some gradients are there already
            found["square"].backward()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found

    def lists(generator: torch.Generator, step: int) -> tuple[Tensor, list]:
        return batch(generator, step)[0], [step] * 4

    model = Model()
    with pytest.warns(UserWarning, match="out of memory"):
        train(model, model.trunk, lists, full, SCHEDULE, tmp_path, progress=False)
    for key, value in unbroken[0].items():
        assert torch.allclose(model.state_dict()[key], value, atol=1e-4), key
    for line, whole in zip(losses_of(tmp_path), unbroken[1][0], strict=True):
        assert line == {key: pytest.approx(value, abs=1e-4) for key, value in whole.items()}
    fits = {1: 1, 2: 2, 3: 2}[room]
    assert sizes.count(4) == 1 and sizes[-4 // fits :] == [fits] * (4 // fits)


# --- runs that cannot go on ---------------------------------------------------------------


def spoilt(step: int, how: str):
    """Losses that leave the numbers at a step: themselves, or only in their gradient."""

    def loss(model: nn.Module, given: tuple[Tensor, int]) -> dict[str, Tensor]:
        found = losses(model, given)
        if given[1] != step:
            return found
        bad = {"nan": torch.nan, "inf": torch.inf}.get(how)
        return found | {"bad": (0 * model.head.weight.sum()).sqrt() if bad is None
                        else found["square"] * bad}  # fmt: skip

    return loss


@pytest.mark.parametrize(("how", "what"), [("nan", "loss"), ("inf", "loss"), ("", "gradient")])
@pytest.mark.parametrize("step", [9, 13])  # 9: the step after which a checkpoint is due
def test_a_run_that_diverges_says_so_and_keeps_good_weights(
    step: int, how: str, what: str, unbroken: tuple, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=f"the {what} is .* at step {step} of") as caught:
        run(tmp_path, what=spoilt(step, how))
    assert str(tmp_path) in caught.value.problem and "learning rate" in caught.value.remedy
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    assert kept["step"] == step // EVERY * EVERY
    assert all(value.isfinite().all() for value in kept["model"].values())
    assert same(run(tmp_path), unbroken[0])  # and they are those of that step


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not a checkpoint",
        lambda data: b"\0" * len(data),
        lambda data: data[:-9],
    ],
    ids=["half", "empty", "text", "zeros", "tail"],
)
def test_a_damaged_checkpoint_is_named(damage, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, what=dies_at(12))
    file = tmp_path / "last.pt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TrainingError, match=r"last\.pt cannot be continued: \w+") as caught:
        run(tmp_path)
    assert str(tmp_path) in caught.value.problem and f"Delete {tmp_path}" in caught.value.remedy


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path) -> None:
    for content in ({"model": {}}, [1, 2], {"schedule": repr(SCHEDULE), "step": 1}):
        torch.save(content, tmp_path / "last.pt")
        with pytest.raises(TrainingError, match=r"last\.pt cannot be continued"):
            run(tmp_path)


def test_another_schedule_or_model_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, what=dies_at(12))
    before = (tmp_path / "last.pt").read_bytes()
    other = Schedule(**{**SCHEDULE.__dict__, "rate": 0.01})
    with pytest.raises(TrainingError, match="another schedule") as caught:
        run(tmp_path, other)
    assert "another folder" in caught.value.remedy
    with pytest.raises(TrainingError, match="other data"):
        run(tmp_path, about="other photographs")
    model = Model()
    model.head = nn.Linear(4, 2)
    with pytest.raises(TrainingError, match=r"last\.pt cannot be continued"):
        run(tmp_path, model=model)
    assert (tmp_path / "last.pt").read_bytes() == before


# --- rates --------------------------------------------------------------------------------


def test_the_rate_rises_and_then_falls_to_zero() -> None:
    schedule = Schedule(steps=100, warmup=4)
    half = 0.5 * (1 + math.cos(math.pi * 0.5))
    by_hand = {0: 0.25 * 1.0, 1: 0.5 * 0.999753, 3: 0.997781, 50: half, 75: 0.146447, 99: 0.000247}
    for step, factor in by_hand.items():
        assert schedule.factor(step) == pytest.approx(factor, abs=1e-6), step
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[:4] == sorted(factors[:4]) and factors[4:] == sorted(factors[4:])[::-1]
    assert Schedule(steps=10, warmup=0).factor(0) == 1


def test_pretrained_layers_learn_slower(tmp_path: Path) -> None:
    # Adam's first step is the rate itself, in the direction of the gradient.
    before = Model().state_dict()
    for part in (0.25, 0.0):
        schedule = Schedule(1, rate=0.01, trunk_rate=part, weight_decay=0.0, warmup=2)
        after = run(tmp_path / str(part), schedule)
        moved = {key: (after[key] - before[key]).abs().max().item() for key in before}
        assert moved["head.weight"] == pytest.approx(0.01 * 0.5, rel=1e-2)
        assert moved["trunk.weight"] == pytest.approx(0.01 * 0.5 * part, rel=1e-2)


def test_frozen_layers_stay(tmp_path: Path) -> None:
    model = Model()
    model.trunk.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = run(tmp_path, model=model)
    assert torch.equal(before["trunk.weight"], after["trunk.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_the_log_is_a_json_object_a_line(tmp_path: Path) -> None:
    run(tmp_path)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_log(tmp_path)
    assert snapshot_path(tmp_path, 12).is_file()
