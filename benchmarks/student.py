"""What an embedding costs: the student against a detector with a teacher beside it.

    python benchmarks/student.py                    latency, images/s, FLOPs

For ten objects an image: the detector alone; the student, which embeds what it detects; the fork,
on 384 pixels where the others see 256; detector and teacher on the map (a second pass, all objects
cut out of it); detector and teacher on crops (a pass an object). All prepared alike (batch norm
folded, channels last), measured in turns, so that other load meets all of them; medians.
Writes benchmarks/results/student.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from student_ablations import MapTeacher
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import pil_to_tensor
from turns import arguments, in_turns, write

from objemb_lib import config
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.teach.student import Student, Teacher, load_student

OBJECTS = 10  # of an image, as many as a student embeds
Way = Callable[[list[torch.Tensor]], object]


def prepared(name: str) -> Student:
    """A student, prepared for inference."""
    student = load_student(name).to(config.device())
    student.detector = student.detector.for_inference(config.device())
    return student


def ways(student: Student, fork: Student, teachers: dict[str, Teacher]) -> dict[str, Way]:
    """Everything that is compared, as functions of a list of images."""

    def with_teacher(teacher: Teacher) -> Way:
        return lambda images: teacher(
            torch.stack(images), [one["boxes"][:OBJECTS] for one in student.detector(images)]
        )

    found = {"detector alone": student.detector, "student": student, "fork": fork}
    found |= {"fork's detector alone": fork.detector}
    return found | {f"detector + {name}": with_teacher(t) for name, t in teachers.items()}


def busy_images(student: Student, count: int) -> list[torch.Tensor]:
    """Battle scenes in which as many boxes are detected."""
    battle, found = mini_battles("battle"), []
    for i in range(0, len(battle), 5):
        image = pil_to_tensor(battle.image(i)).to(config.device()).float() / 255
        if len(student.detector([image])[0]["boxes"]) >= OBJECTS:
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


def flops(way: Way, image: torch.Tensor) -> float:
    """Billions of multiply-adds of one image, counted."""
    with FlopCounterMode(display=False) as counter:
        way([image])
    return round(counter.get_total_flops() / 2e9, 3)


@torch.inference_mode()
def main() -> None:
    asked = arguments(__doc__, rounds=5, images=8)
    student, fork, trunk = prepared("student"), prepared("fork"), load_trunk()
    teachers = {
        "teacher on the map": MapTeacher(trunk),
        "teacher Lite2 on the map": MapTeacher(load_trunk("efficientnet_lite2")),
        "teacher on crops": Teacher(trunk, size=256),
    }
    images = busy_images(student, asked.images)
    compared, table = ways(student, fork, teachers), []
    # First: an engine that takes over from torch is not counted.
    gflops = {name: flops(way, images[0]) for name, way in compared.items()}
    for batch in (1, 4):
        for name, took in seconds(compared, images, batch, asked.rounds).items():
            table.append({
                "objects": OBJECTS, "batch": batch, "way": name, "ms": round(1000 * took, 2),
                "images_per_second": round(1 / took, 1), "gflops": gflops[name],
            })  # fmt: skip
    print(pd.DataFrame(table).to_string(index=False))
    about = {"device": str(config.device()), "images": len(images), "rounds": asked.rounds}
    write("student", about | {"table": table})


if __name__ == "__main__":
    main()
