"""Several processes that train one model together, a GPU each: what `torchrun` starts.

    torchrun --nproc-per-node 4 -m objemb_lib.course.train student ...

Each takes its share of every batch; gradients are averaged, so that the weights stay the same
everywhere; the first process alone writes. Without `torchrun` there is one, and nothing happens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from objemb_lib import config
from objemb_lib.config import TrainingError


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def first() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def share(batch: Sequence) -> Sequence:
    """This process's part of a batch's images: all of them, where there is one process.

    Raises:
        TrainingError: parts would differ in size, and some images would count more than others.
    """
    if len(batch) % count():
        raise TrainingError(
            f"a batch of {len(batch)} images for {count()} processes",
            f"Use a batch size that is a multiple of {count()}.",
        )
    return batch[rank() :: count()]


def init_process_group(model: nn.Module, step: int) -> None:
    """Meet the other processes, and begin with the first one's weights.

    Args:
        step: that this process begins at.
    Raises:
        TrainingError: not all begin at the same step.
    """
    if count() == 1:
        return
    device = config.device()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    steps = [torch.zeros(1, device=device) for _ in range(count())]
    dist.all_gather(steps, torch.tensor([float(step)], device=device))
    if len({int(s) for s in steps}) > 1:
        raise TrainingError(
            f"the processes would begin at steps {sorted(int(s) for s in steps)}",
            "Let all of them see the folder of the run: one machine, or a shared disk.",
        )
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)


def leave() -> None:
    """Part from the other processes, if there were any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def average_gradients(model: nn.Module) -> None:
    """Give every process the mean of all gradients, in place.

    What DistributedDataParallel does, but after the backward pass, not during it: a process whose
    memory runs out begins its part anew, and no other waits in the middle of an exchange.
    A gradient that no process has stays None.
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
