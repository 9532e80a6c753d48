"""What an embedding costs: the student against a detector with a teacher beside it.

    python benchmarks/student.py                    latency, images/s, FLOPs, parameters

For 1, 3 and 10 objects an image: the detector alone; the student, which embeds what it detects; the
fork, on 384 pixels where the others see 256; detector and teacher on the map (a second pass, all
objects cut out of it); detector and teacher on crops (a pass an object). All prepared alike (batch
norm folded, channels last), measured in turns, so that other load meets all of them; medians.
Writes benchmarks/results/student.json.
"""

from __future__ import annotations

import copy
import json
import os
import platform
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from student_ablations import MapTeacher
from torch.utils.flop_counter import FlopCounterMode
from turns import RESULTS, arguments, in_turns

from objemb_lib import config
from objemb_lib.cache import atomic_write_text
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach.student import Student, Teacher, load_student

OBJECTS = (1, 3, 10)
Way = Callable[[list[torch.Tensor]], object]


def prepared(student: Student, k: int) -> Student:
    """A copy that embeds ``k`` boxes an image, prepared for inference."""
    student = copy.deepcopy(student)
    student.detector, student.top = student.detector.for_inference(config.device()), k
    return student


def ways(student: Student, fork: Student, teachers: dict[str, Teacher], k: int) -> dict[str, Way]:
    """Everything that is compared, as functions of a list of images."""
    student, fork = prepared(student, k), prepared(fork, k)

    def with_teacher(teacher: Teacher) -> Way:
        return lambda images: teacher(
            torch.stack(images), [one["boxes"][:k] for one in student.detector(images)]
        )

    found = {"detector alone": student.detector, "student": student, "fork": fork}
    found |= {"fork's detector alone": fork.detector}
    return found | {f"detector + {name}": with_teacher(t) for name, t in teachers.items()}


def busy_images(student: Student, count: int, least: int) -> list[torch.Tensor]:
    """Battle scenes in which at least so many boxes are detected."""
    battle, found = mini_battles("battle"), []
    for i in range(0, len(battle), 5):
        pixels = torch.from_numpy(np.asarray(battle.image(i)).copy()).permute(2, 0, 1)
        image = pixels.to(config.device()).float() / 255
        if len(student.detector([image])[0]["boxes"]) >= least:
            found.append(image)
        if len(found) == count:
            break
    return found


def seconds(compared: dict[str, Way], images: list[torch.Tensor], batch: int, rounds: int) -> dict:
    """Median seconds an image, each way in turn."""

    def whole(way: Way) -> None:
        for first in range(0, len(images), batch):
            way(images[first : first + batch])
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    taken = in_turns({name: partial(whole, way) for name, way in compared.items()}, rounds)
    return {name: float(np.median(values)) / len(images) for name, values in taken.items()}


def of_ten_crops(table: pd.DataFrame) -> dict[str, float]:
    """What the fork's ten embeddings cost, as a share of ten crops.

    Each is what it adds to the detector alone, on 256 pixels: the fork's larger input is counted.
    """
    ten = table[table.objects == 10].pivot(index="way", columns="batch", values=["ms", "gflops"])
    more = ten - ten.loc["detector alone"]
    share = more.loc["fork"] / more.loc["detector + teacher on crops"]
    return {f"{what}, batch {batch}": round(value, 3) for (what, batch), value in share.items()}


def flops(way: Way, image: torch.Tensor) -> float:
    """Billions of multiply-adds of one image, counted."""
    with FlopCounterMode(display=False) as counter:
        way([image])
    return counter.get_total_flops() / 2e9


@torch.inference_mode()
def main() -> None:
    asked = arguments(__doc__, rounds=5, images=8)
    student, fork = (load_student(n).to(config.device()) for n in ("student", "fork"))
    trunk = load_trunk()
    teachers = {
        "teacher on the map": MapTeacher(trunk),
        "teacher Lite2 on the map": MapTeacher(load_trunk("efficientnet_lite2")),
        "teacher on crops": Teacher(trunk, size=256),
    }
    images = busy_images(student, asked.images, max(OBJECTS))
    table, every = [], {k: ways(student, fork, teachers, k) for k in OBJECTS}
    # First: an engine that takes over from torch is not counted.
    gflops = {k: {n: flops(way, images[0]) for n, way in some.items()} for k, some in every.items()}
    for k, compared in every.items():
        counted = gflops[k]
        for batch in (1, 4):
            found = seconds(compared, images, batch, asked.rounds)
            table += [
                {
                    "objects": k,
                    "batch": batch,
                    "way": name,
                    "ms": round(1000 * found[name], 2),
                    "images_per_second": round(1 / found[name], 1),
                    "ratio": round(found["student"] / found[name], 3),  # of seconds
                    "gflops": round(counted[name], 3),
                    "gflops_ratio": round(counted["student"] / counted[name], 3),
                }
                for name in compared
            ]
    parts = {"student": student, "detector alone": student.detector,
             "teacher": teachers["teacher on crops"].trunk}  # fmt: skip
    machine = {"cores": os.cpu_count(), "architecture": platform.machine(),
               "torch": torch.__version__, "device": str(config.device()),
               "other_load": os.getloadavg()[0]}  # fmt: skip
    report = {
        "images": len(images),
        "rounds": asked.rounds,
        "machine": machine,
        "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in parts.items()},
        "fork_of_ten_crops": of_ten_crops(pd.DataFrame(table)),
        "table": table,
    }
    atomic_write_text(RESULTS / "student.json", json.dumps(report, indent=1) + "\n")
    print(pd.DataFrame(table).to_string(index=False))
    print("ten boxes of the fork, of ten crops:", report["fork_of_ten_crops"])


if __name__ == "__main__":
    main()
