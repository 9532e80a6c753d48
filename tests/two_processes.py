"""What `torchrun` runs in tests/teach/test_training.py: two processes train one small model.

Arguments: a folder for the run, and one for what each process found.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny_scenes import lively, scenes, small
from torch import Tensor, nn

from objemb_lib.config import TrainingError
from objemb_lib.teach import training
from objemb_lib.teach.distillation import train_student
from objemb_lib.teach.student import Teacher
from objemb_lib.teach.training import Schedule, rank, share, train

SCHEDULE = Schedule(12, 4, rate=0.05, warmup=3, snapshots=(0, 5))


class Model(nn.Module):
    """With a layer that only some examples reach, and one that none does."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.seldom, self.never = nn.Linear(3, 1), nn.Linear(3, 1)
        self.dies_after = None

    def forward(self, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        if self.dies_after == 0:
            raise InterruptedError
        self.dies_after = self.dies_after and self.dies_after - 1
        x = torch.stack(images)
        found, few = self.head(self.trunk(x).tanh())[:, 0], x[:, 0] > 1
        if few.any():
            found = found + torch.where(few, self.seldom(x)[:, 0], 0)
        return {"square": (found - x.sum(dim=1)).square().mean()}


def draw(generator: torch.Generator) -> tuple[list[Tensor], list[dict]]:
    images = share(list(torch.randn(4, 3, generator=generator)))
    return images, [{}] * len(images)


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def equal_gradients() -> bool:
    """Of ten batches, each shared: as if one process had seen it whole."""
    right = []
    for seed in range(10):
        x = list(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)))
        found = []
        for part in (x, share(x)):
            model = Model()
            model(part, [])["square"].backward()
            if len(part) < len(x):
                training.average_gradients(model)
            found.append(gradients(model))
        right += [a is b if a is None or b is None else torch.allclose(a, b, atol=1e-6)
                  for a, b in zip(*found)]  # fmt: skip
    return all(right)


def taught(folder: Path, place: Path) -> str:
    """Hash of a student after two steps with a detector's losses."""
    data = replace(scenes(place / f"photographs-{rank()}"), content="scenes")
    made = train_student(
        small("faster_rcnn"), data, Teacher(lively(), size=64), folder,
        schedule=Schedule(2, 2, warmup=1), leave_out=(), progress=False,
    )  # fmt: skip
    digest = hashlib.sha256()
    for value in made.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def main(folder: Path, told: Path) -> None:
    wrote: list[str] = []
    for part in ("_write_log", "_checkpoint", "_snapshot"):
        real = getattr(training, part)

        def write(*given: object, part: str = part, real: object = real) -> None:
            real(*given)
            wrote.append(part)

        setattr(training, part, write)
    training.CHECKPOINT_EVERY = 4
    model = Model(seed=3 + rank())  # other weights on each process: the first one's count
    model.dies_after = 6
    try:
        train(model, model.trunk, draw, SCHEDULE, folder, progress=False)
    except InterruptedError:
        model = Model()
        train(model, model.trunk, draw, SCHEDULE, folder, progress=False)
    try:
        train(Model(), model.trunk, draw, Schedule(2, 3), folder / "uneven")
    except TrainingError as error:
        refused = error.remedy
    state = {key: value.tolist() for key, value in model.state_dict().items()}
    found = {"state": state, "wrote": wrote, "equal": equal_gradients(), "refused": refused}
    found["student"] = taught(folder / "student", told)
    (told / f"{rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
