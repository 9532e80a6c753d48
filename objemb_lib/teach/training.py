"""One training loop for detectors and students: progress, a log, checkpoints that resume.

A run lives in a folder: ``last.pt`` (weights, optimiser, step), ``log.jsonl`` (a line every few
steps), and ``step-*.safetensors``, the weights at the steps that were asked for.

Under ``torchrun --nproc-per-node 4 -m objemb_lib.course.train ...`` several processes, a GPU each,
train one model together: each takes its share of every batch, gradients are averaged, and the first
process alone writes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.cache import atomic_path, atomic_write_text
from objemb_lib.config import TrainingError
from objemb_lib.embed.memory import until_it_fits

LOG_EVERY, CHECKPOINT_EVERY = 10, 50  # steps; in long runs a checkpoint every hundredth of them
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]  # images and targets
Draw = Callable[[torch.Generator], Batch]


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

    def factor(self, step: int) -> float:
        """What the rate is multiplied with at a step, from 0."""
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        return rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def train(
    model: nn.Module,
    pretrained: nn.Module,
    draw: Draw,
    schedule: Schedule,
    folder: Path,
    progress: bool = True,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    about: str = "",
) -> nn.Module:
    """Train ``model`` in place, or go on where an earlier call in ``folder`` stopped.

    A batch that does not fit into memory is worked through in parts whose gradients add up: a loss
    that compares a batch's images with each other then sees fewer pairs.

    Args:
        model: gives named losses of images and targets; their sum is minimised.
        pretrained: the part of ``model`` that learns at ``trunk_rate``.
        draw: a batch (this process's :func:`share`) from a generator, which is seeded by the step.
        watch: called with the step and the losses whenever they are logged.
        about: what else must be the same for the run to be continued, e.g. the data.
    Returns:
        the model, in evaluation mode.
    Raises:
        TrainingError: a loss or a gradient is not finite (the last good checkpoint stays), or
            the folder holds a damaged run, or one of another schedule, model or ``about``.
    """
    share(range(schedule.batch_size))  # or say at once that it cannot be shared
    model.to(config.device()).train()
    optimiser = _optimiser(model, pretrained, schedule)
    about, writes = f"{schedule!r} {about}", rank() == 0
    done, log = _resume(folder, model, optimiser, about)
    init_process_group(model)
    if done == 0 and writes:
        _snapshot(folder, model, 0, schedule)
    start = time.monotonic() - (log[-1]["seconds"] if log else 0.0)  # kills left out
    fits, quiet = schedule.batch_size // count(), not (progress and writes)
    with tqdm(None, "training", schedule.steps, unit="step", disable=quiet, initial=done) as bar:
        for step, batch in enumerate(_batches(draw, schedule, done), done + 1):
            try:
                values, fits = until_it_fits(partial(_gradients, model, optimiser, batch), fits)
                _update(model, optimiser, schedule, step - 1)
            except FloatingPointError as error:
                remedy = "Lower the learning rate. The checkpoint of an earlier step is kept."
                raise TrainingError(f"{error} at step {step - 1} of {folder}", remedy) from error
            bar.update()
            if not writes:
                continue
            if step % LOG_EVERY == 0 or step == schedule.steps:
                seconds = round(time.monotonic() - start, 1)
                log.append({"step": step, "seconds": seconds, **values})
                _write_log(folder, log)
                bar.set_postfix(loss=f"{sum(values.values()):.3f}")
                if watch:
                    watch(step, values)
            _snapshot(folder, model, step, schedule)  # first: a resumed run does not look back
            if step % max(CHECKPOINT_EVERY, schedule.steps // 100) == 0 or step == schedule.steps:
                _checkpoint(folder, model, optimiser, {"about": about, "step": step, "log": log})
    return model.eval()


def _batches(draw: Draw, schedule: Schedule, start: int) -> DataLoader:
    """The batches that are left, read ahead by helpers where an accelerator computes."""

    def drawn(step: int) -> tuple[int, Batch, Tensor]:
        """Seed, batch, and the random state that it leaves: the same, whoever draws it."""
        seed = schedule.seed * 1_000_003 + step
        torch.manual_seed(seed + rank() * 7_919_000_003)  # augmentation: each its own
        batch = draw(torch.Generator().manual_seed(seed))
        return seed, batch, torch.get_rng_state()

    how, workers = {}, config.workers()
    if workers and sys.platform == "linux":  # closures: elsewhere nobody can send them
        how = {"num_workers": workers, "multiprocessing_context": "fork"}
    steps = range(schedule.steps)
    return DataLoader(steps, batch_size=None, sampler=steps[start:], collate_fn=drawn, **how)


def _gradients(
    model: nn.Module, optimiser: torch.optim.Optimizer, batch: tuple[int, Batch, Tensor], size: int
) -> dict[str, float]:
    """Gradients of a batch, ``size`` images at once; returns the losses."""
    (seed, (images, targets), state), device, values = batch, config.device(), {}
    torch.manual_seed(seed)  # of accelerators, too: detectors sample their anchors
    torch.set_rng_state(state)
    optimiser.zero_grad(set_to_none=True)
    # GPUs since 2020 multiply bfloat16; older ones would only imitate it.
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    for start in range(0, len(images), size):
        some = [image.to(device) for image in images[start : start + size]]
        of_them = [{k: v.to(device) for k, v in one.items()} for one in targets[start:][:size]]
        weight = len(some) / len(images)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            losses = model(some, of_them)
        if not losses:  # of images without any region
            continue
        loss = weight * sum(losses.values())
        _check_finite("loss", loss)
        loss.backward()
        for name, value in losses.items():
            values[name] = values.get(name, 0.0) + weight * float(value.detach())
    return {name: round(value, 5) for name, value in values.items()}


def _update(
    model: nn.Module, optimiser: torch.optim.Optimizer, schedule: Schedule, step: int
) -> None:
    """One step along the gradients, those of all processes."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * schedule.factor(step)
    average_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
    _check_finite("gradient", norm)  # the step would spoil the weights
    optimiser.step()


def _check_finite(what: str, value: Tensor) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(f"the {what} is {float(value.detach())}")


def _optimiser(model: nn.Module, pretrained: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    theirs = [p for p in pretrained.parameters() if p.requires_grad]
    known = {id(p) for p in theirs}
    new = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    rates = ((new, schedule.rate), (theirs, schedule.rate * schedule.trunk_rate))
    groups = [{"params": some, "full_rate": rate} for some, rate in rates if some]
    return torch.optim.AdamW(groups, lr=schedule.rate, weight_decay=schedule.weight_decay)


def _resume(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, about: str
) -> tuple[int, list[dict[str, float]]]:
    """The step to go on from, and the log until then; fills model and optimiser."""
    path, remedy = folder / "last.pt", f"Delete {folder}, or give the run another folder."
    if not path.exists():
        return 0, []
    try:
        state = torch.load(path, map_location=config.device(), weights_only=True)
        if state["about"] == about:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            return state["step"], state["log"]
    except Exception as error:  # damaged files fail in many ways: pickle's, zip's, torch's own
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise TrainingError(f"{path} cannot be continued: {why}", remedy) from error
    raise TrainingError(f"{folder} holds a run of another schedule or other data", remedy)


def _checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, more: dict
) -> None:
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    with atomic_path(folder / "last.pt") as path:
        torch.save(state | more, path)


def snapshot_path(folder: Path, step: int) -> Path:
    """Where the weights of a step are kept."""
    return folder / f"step-{step:06d}.safetensors"


def _snapshot(folder: Path, model: nn.Module, step: int, schedule: Schedule) -> None:
    if step in schedule.snapshots or step == schedule.steps:
        state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        with atomic_path(snapshot_path(folder, step)) as path:
            save_file(state, path)


def _write_log(folder: Path, log: list[dict[str, float]]) -> None:
    atomic_write_text(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))


def read_log(folder: Path) -> list[dict[str, float]]:
    """The logged losses of a run, a dictionary each."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def share(batch: Sequence) -> Sequence:
    """This process's part of a batch's images: all of them, where there is one process.

    Raises TrainingError where parts would differ in size: some images would count more than others.
    """
    if len(batch) % count():
        problem = f"a batch of {len(batch)} images for {count()} processes"
        raise TrainingError(problem, f"Use a batch size that is a multiple of {count()}.")
    return batch[rank() :: count()]


def init_process_group(model: nn.Module) -> None:
    """Meet the other processes, and begin with the first one's weights."""
    if count() == 1:
        return
    if not dist.is_initialized():
        gpu = config.device().type == "cuda"
        if gpu:
            torch.cuda.set_device(config.device())
        dist.init_process_group("nccl" if gpu else "gloo")
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)


def average_gradients(model: nn.Module) -> None:
    """Give every process the mean of all gradients; one that no process has stays None.

    After the backward pass, not during it as DistributedDataParallel does: a process whose memory
    runs out begins its part anew, and no other waits in the middle of an exchange.
    """
    if count() == 1:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    had = [p.grad is not None for p in learning]
    there = torch.tensor(had, dtype=torch.float32, device=learning[0].device)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                      for p in learning])  # fmt: skip
    dist.all_reduce(there), dist.all_reduce(flat)
    parts = (flat / count()).split([p.numel() for p in learning])
    for parameter, anywhere, part in zip(learning, there.tolist(), parts):
        mean = torch.empty_like(parameter).copy_(part.view_as(parameter)) if anywhere else None
        parameter.grad = mean
