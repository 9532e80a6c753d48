"""One training loop for detectors and students: progress, a log, checkpoints that resume.

A run lives in a folder: ``last.pt`` (weights, optimiser, step; written atomically, so that a
kill costs at most the steps since), ``log.jsonl`` (a line every few steps), and
``step-*.safetensors``, the weights at the steps that were asked for.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.cache import atomic_path
from objemb_lib.config import TrainingError
from objemb_lib.embed.memory import until_it_fits
from objemb_lib.teach import distributed

LOG_EVERY = 10


@dataclass(frozen=True)
class Schedule:
    """AdamW with a linear warm-up and a cosine to zero.

    Args:
        steps: updates. batch_size: images an update, of all processes together.
        rate: learning rate of new layers.
        trunk_rate: of the pretrained ones, as a part of ``rate``.
        warmup: steps. clip: largest norm of the gradient. seed: of everything random.
        snapshots: steps whose weights are kept, beside the last.
    """

    steps: int = 1000
    batch_size: int = 8
    rate: float = 4e-4
    trunk_rate: float = 0.25
    weight_decay: float = 1e-4
    warmup: int = 50
    clip: float = 5.0
    seed: int = config.SEED
    snapshots: Sequence[int] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "snapshots", tuple(self.snapshots))  # a card's are a list

    def factor(self, step: int) -> float:
        """What the rate is multiplied with at a step, from 0."""
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        return rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def train(
    model: nn.Module,
    pretrained: nn.Module,
    batch: Callable[[torch.Generator, int], tuple],
    losses: Callable[[nn.Module, tuple], dict[str, Tensor]],
    schedule: Schedule,
    folder: Path,
    progress: bool = True,
    checkpoint_every: int | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    about: str = "",
) -> nn.Module:
    """Train ``model`` in place, or go on where an earlier call in ``folder`` stopped.

    A batch that does not fit into memory is worked through in smaller parts whose gradients add
    up. Losses are then means of the parts' means: what compares a batch's images with each other
    sees fewer pairs. Under ``torchrun`` several processes share each batch, see :mod:`processes`.

    Args:
        pretrained: the part of ``model`` that learns at ``trunk_rate``.
        batch: ``(generator, step)`` to a tuple of lists as long as there are images, on the CPU:
            this process's share. The generator is seeded by the step, so that a resumed run sees
            the batches that an unbroken one would. Called by helpers, see ``config.workers``.
        losses: the model and a batch to named losses; their sum is minimised.
        folder: of the run. checkpoint_every: steps; default 50, in long runs a hundredth of them.
        watch: called with the step and the losses whenever they are logged.
        about: what else must be the same for the run to be continued, e.g. the data.
    Returns:
        the model, in evaluation mode.
    Raises:
        TrainingError: a loss or a gradient is not finite (the last good checkpoint stays), or
            the folder holds a damaged run, or one of another schedule, model or ``about``; a
            batch that processes cannot share. ObjembError: one image does not fit into memory.
    """
    distributed.share(range(schedule.batch_size))  # or say at once that it cannot be shared
    model.to(config.device()).train()
    optimiser = _optimiser(model, pretrained, schedule)
    about, writes = f"{schedule!r} {about}", distributed.first()
    checkpoint_every = checkpoint_every or max(50, schedule.steps // 100)
    done = _resume(folder, model, optimiser, about)
    distributed.init_process_group(model, done)
    if done == 0 and writes:
        _snapshot(folder, model, 0, schedule)
    before = ([line["seconds"] for line in read_log(folder)] or [0.0])[-1]
    start = time.monotonic() - before  # of the whole run, kills left out
    fits, quiet = schedule.batch_size // distributed.count(), not (progress and writes)
    with tqdm(None, "training", schedule.steps, unit="step", disable=quiet, initial=done) as bar:
        for step, lesson in enumerate(_lessons(batch, schedule, done), done + 1):
            update = partial(_gradients, model, optimiser, losses, schedule, step - 1, folder)
            values, fits = until_it_fits(partial(update, lesson), fits)
            _update(model, optimiser, schedule, step - 1, folder)
            bar.update()
            if not writes:
                continue
            if step % LOG_EVERY == 0 or step == schedule.steps:
                _log(folder, step, time.monotonic() - start, values)
                bar.set_postfix(loss=f"{sum(values.values()):.3f}")
                if watch:
                    watch(step, values)
            _snapshot(folder, model, step, schedule)  # first: a resumed run does not look back
            if step % checkpoint_every == 0 or step == schedule.steps:
                _checkpoint(folder, model, optimiser, about, step)
    return model.eval()


class _Lessons(Dataset):
    """The batches of a run by their step, each with the random state that it leaves.

    Whoever makes a batch, this process or a helper, it is the same, and so is all that is drawn
    after it.
    """

    def __init__(self, batch: Callable[[torch.Generator, int], tuple], schedule: Schedule) -> None:
        self.batch, self.schedule = batch, schedule

    def __getitem__(self, step: int) -> tuple[tuple, Tensor]:
        seed = _seed(self.schedule, step)
        torch.manual_seed(seed + distributed.rank() * 7_919_000_003)  # augmentation: each its own
        examples = self.batch(torch.Generator().manual_seed(seed), step)
        return examples, torch.get_rng_state()


def _lessons(
    batch: Callable[[torch.Generator, int], tuple], schedule: Schedule, start: int
) -> DataLoader:
    """The batches that are left, read ahead by helpers where an accelerator computes."""
    how, workers = {}, config.workers()
    if workers and sys.platform == "linux":  # ``batch`` is a closure: elsewhere nobody can send it
        how = {"num_workers": workers, "multiprocessing_context": "fork"}
    rest = range(start, schedule.steps)
    return DataLoader(_Lessons(batch, schedule), None, sampler=rest, collate_fn=_as_is, **how)


def _as_is(lesson: tuple) -> tuple:
    return lesson


def _seed(schedule: Schedule, step: int) -> int:
    return schedule.seed * 1_000_003 + step


def _gradients(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    losses: Callable[[nn.Module, tuple], dict[str, Tensor]],
    schedule: Schedule,
    step: int,
    folder: Path,
    lesson: tuple[tuple, Tensor],
    size: int,
) -> dict[str, float]:
    """Gradients of a batch, ``size`` images at once; returns the losses."""
    examples, state = lesson
    total, values = len(examples[0]), {}
    torch.manual_seed(_seed(schedule, step))  # of accelerators, too: detectors sample their anchors
    torch.set_rng_state(state)
    optimiser.zero_grad(set_to_none=True)
    for start in range(0, total, size):
        part = examples
        if size < total:
            part = tuple(many[start : start + size] for many in examples)
        weight = len(part[0]) / total
        with torch.autocast(config.device().type, torch.bfloat16, enabled=_half_precision()):
            found = losses(model, _on(config.device(), part))
        loss = weight * sum(found.values())
        if not torch.isfinite(loss):
            raise _diverged("loss", loss, step, folder)
        loss.backward()
        for name, value in found.items():
            values[name] = values.get(name, 0.0) + weight * float(value.detach())
    return {name: round(value, 5) for name, value in values.items()}


def _half_precision() -> bool:
    """GPUs since 2020 multiply bfloat16; older ones would only imitate it."""
    gpu = config.device().type == "cuda"
    return gpu and torch.cuda.is_bf16_supported(including_emulation=False)


def _on(device: torch.device, value: object) -> object:
    """A batch's tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(device, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on(device, part) for part in value)
    return value


def _update(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    step: int,
    folder: Path,
) -> None:
    """One step along the gradients, those of all processes."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * schedule.factor(step)
    distributed.average_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
    if not torch.isfinite(norm):  # the step would spoil the weights
        raise _diverged("gradient", norm, step, folder)
    optimiser.step()


def _diverged(what: str, value: Tensor, step: int, folder: Path) -> TrainingError:
    return TrainingError(
        f"the {what} is {float(value.detach())} at step {step} of {folder}",
        "Lower the learning rate. The checkpoint of an earlier step is kept.",
    )


def _optimiser(model: nn.Module, pretrained: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    theirs = [p for p in pretrained.parameters() if p.requires_grad]
    known = {id(p) for p in theirs}
    new = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": new, "full_rate": schedule.rate},
        {"params": theirs, "full_rate": schedule.rate * schedule.trunk_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=schedule.rate, weight_decay=schedule.weight_decay)


def _resume(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, about: str) -> int:
    """The step to go on from."""
    path = folder / "last.pt"
    if not path.exists():
        _cut_log(folder, 0)
        return 0
    remedy = f"Delete {folder} to start anew, or give the run another folder."
    try:
        state = torch.load(path, map_location=config.device(), weights_only=True)
        if state["about"] != about:
            raise TrainingError(f"{folder} holds a run of another schedule or other data", remedy)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except TrainingError:
        raise
    except Exception as error:  # damaged files fail in many ways: pickle's, zip's, torch's own
        why = str(error).partition("\n")[0]
        raise TrainingError(
            f"{path} cannot be continued: {type(error).__name__}: {why}", remedy
        ) from error
    _cut_log(folder, state["step"])
    return state["step"]


def _checkpoint(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    about: str,
    step: int,
) -> None:
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    with atomic_path(folder / "last.pt") as path:
        torch.save({**state, "about": about, "step": step}, path)


def snapshot_path(folder: Path, step: int) -> Path:
    """Where the weights of a step are kept."""
    return folder / f"step-{step:06d}.safetensors"


def _snapshot(folder: Path, model: nn.Module, step: int, schedule: Schedule) -> None:
    if step in schedule.snapshots or step == schedule.steps:
        state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        with atomic_path(snapshot_path(folder, step)) as path:
            save_file(state, path)


def _log(folder: Path, step: int, seconds: float, values: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **values}) + "\n")


def read_log(folder: Path) -> list[dict[str, float]]:
    """The logged losses, a dictionary each; lines that a kill cut off are left out."""
    path, lines = folder / "log.jsonl", []
    if not path.exists():
        return []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _cut_log(folder: Path, step: int) -> None:
    """Forget what was logged after the checkpoint: those steps are done again."""
    if not (folder / "log.jsonl").exists() or not distributed.first():
        return
    kept = [line for line in read_log(folder) if line["step"] <= step]
    with atomic_path(folder / "log.jsonl") as path:
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
