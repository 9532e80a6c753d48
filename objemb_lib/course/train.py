"""Train the course's detectors and the student, and ship them: what `make train` runs.

    python -m objemb_lib.course.train                    all of them, an hour on two cores
    python -m objemb_lib.course.train faster_rcnn        one
    python -m objemb_lib.course.train student            the student, begins as the Faster R-CNN
    python -m objemb_lib.course.train fcos --steps 20    a try; goes to runs/, is not shipped

Another student begins as another detector, imitates another teacher, or sees other photographs:

    python -m objemb_lib.course.train student --detector torchvision/fasterrcnn_resnet50_fpn \\
        --teacher torchvision/resnet50:IMAGENET1K_V1 --data coco:PATH --steps 20000 --batch 16

PATH holds annotations/instances_train2017.json, train2017/, and the same of val2017, on which it is
scored. On several GPUs of one machine, `torchrun` in place of `python`; each takes its share of
a batch:

    torchrun --nproc-per-node 4 -m objemb_lib.course.train student --detector ...

The device is the best there is (OBJEMB_DEVICE chooses another). On a GPU, helpers read the
photographs (OBJEMB_WORKERS says how many; 0 where a container has little shared memory), and losses
are computed in bfloat16 if it multiplies that. A batch that does not fit into memory is worked
through in parts, with a warning; their gradients add up.

Each run writes a log and checkpoints to runs/train/<name>/; started again after a kill it goes
on where it stopped. Finished weights go to objemb_lib/detect/shipped/, those of other students to
runs/weights/, with a card of their metrics.
"""

from __future__ import annotations

import argparse
import copy
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from objemb_lib import config
from objemb_lib.attend.objects import oracle_query, retrieval_scores
from objemb_lib.attend.sources import detector_boxes, run_detector
from objemb_lib.config import ObjembError
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.coco import coco_photographs
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.detectors import KINDS, Detector, build_detector
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.metrics import coco_ap, detect, main_recall
from objemb_lib.detect.weights import load_detector, load_state, read_card, save_weights
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, extract_objects, extract_regions
from objemb_lib.embed.regions import WHOLE, Region, crop, roi
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.metrics import evaluate, evaluate_scores
from objemb_lib.teach import distributed, student
from objemb_lib.teach.targets import (
    GRANULARITIES,
    augmentation,
    drawn,
    in_categories,
    relabel,
    usable,
)
from objemb_lib.teach.training import Schedule, read_log, snapshot_path, train

SCHEDULE = Schedule(steps=1000, snapshots=(0, 50, 150, 400))
STUDENT = "student"
# Of other students: longer, and slower where a detector has learned all that COCO can teach it.
LONGER = Schedule(steps=20_000, batch_size=16, rate=2e-4, warmup=500)
SCORED = 500  # unseen photographs that another student is scored on, evenly spread
C4 = {"cells": 14, "leave_out": ()}  # the branch on a ResNet, as in Faster R-CNN
NAMES = (*KINDS, STUDENT)  # in the order of their training: the student begins as a detector
METRICS = "metrics on mini-battles/battle"
FEW = "metrics on the first two battle scenes of each object"  # what a test can afford
CURVE = (("head", "spoc"), ("stage5", "spoc"), ("head", "mac"))  # watched while training


def train_detector(
    kind: str,
    dataset: ImageDataset,
    trunk: Trunk,
    folder: Path,
    schedule: Schedule = SCHEDULE,
    size: int = 256,
    progress: bool = True,
) -> Detector:
    """A detector trained on the boxes (and masks) of a data set, or the rest of such a training.

    Args:
        kind: see :data:`KINDS`. trunk: with its ImageNet weights; is not changed.
        folder: of the run, see :mod:`training`.
    Raises:
        DataError: nothing to learn from. TrainingError: see :func:`training.train`.
    """
    images = usable(dataset)
    torch.manual_seed(schedule.seed)  # of the new layers
    detector = build_detector(kind, trunk, dataset.category_names, size)
    detector = detector.to(memory_format=torch.channels_last)
    augment, masks = augmentation(size), kind == "mask_rcnn"

    def batch(generator: torch.Generator, step: int) -> tuple[list, list]:
        return drawn(dataset, images, schedule.batch_size, generator, augment, masks)

    about = f"{dataset.fingerprint} {dataset.category_names} {kind} {size} {trunk.fingerprint()}"
    return train(
        detector, detector.trunk, batch, lambda model, b: model(*b), schedule, folder, progress,
        about=about,
    )  # fmt: skip


def score_detector(detector: Detector, dataset: ImageDataset, progress: bool = True) -> dict:
    """Metrics on a data set of unseen objects: COCO AP, and recall of main objects.

    AP only where detector and data set know the same categories: elsewhere nothing could be right.
    """
    found = detect(detector, dataset, progress=progress)
    right, same = main_recall(found, dataset), detector.categories == tuple(dataset.category_names)
    scores = {f"box {name}": v for name, v in coco_ap(found, dataset).items()} if same else {}
    if detector.kind == "mask_rcnn" and same:
        scores |= {f"mask {n}": value for n, value in coco_ap(found, dataset, True).items()}
    scores["recall of main objects, IoU 0.5"] = float(right.mean())
    scores["the same, 5 best detections"] = float(main_recall(found, dataset, 5).mean())
    scores["detections an image"] = float(np.mean([len(one["boxes"]) for one in found]))
    return {name: round(value, 4) for name, value in scores.items()}


def curve(detector: Detector, folder: Path, schedule: Schedule, dataset: ImageDataset) -> list:
    """How retrieval changes along the checkpoints: mAP and R@1 of the body's maps, by region."""
    rows, moving = [], copy.deepcopy(detector)
    for step in (*schedule.snapshots, schedule.steps):
        path = snapshot_path(folder, step)
        trunk = DetectorTrunk(load_state(moving, load_file(path), path))
        regions = {region.name: region for region in (WHOLE, roi(dataset), crop(dataset))}
        options = ExtractOptions(detector.size, cache=False, progress=False)
        vectors = extract_regions(dataset, trunk, CURVE, regions, options)
        for region, many in vectors.items():
            for (stage, pooling), x in many.items():
                found = evaluate(l2(x), dataset, metrics=["mAP", "R@1"])
                where = {"step": step, "region": region, "stage": stage, "pooling": pooling}
                rows.append({**where, **{m: round(found.mean(m), 4) for m in ("mAP", "R@1")}})
    return rows


def train_and_save(
    kind: str, schedule: Schedule = SCHEDULE, labels: str = "category", root: Path | None = None
) -> dict:
    """Train one of the course's detectors, score it, write weights and card; returns the card.

    The metrics are those of the file as it is written, in half precision.

    Args:
        labels: what a box is called, see :func:`detectors.targets.relabel`.
        root: folder of the weights; default the course's own.
    """
    data, battle, trunk = mini_battles("train"), mini_battles("battle"), load_trunk()
    tries = f" --steps {schedule.steps}" if schedule != SCHEDULE else ""
    tries += f" --labels {labels}" if labels != "category" else ""
    name, folder = named(kind, tries)
    detector = train_detector(kind, relabel(data, labels), trunk, folder, schedule)
    if not distributed.first():
        return {}
    card = {
        **history(f"{kind}{tries}", schedule, folder),
        "curve": curve(detector, folder, schedule, battle),
    }
    save_weights(detector, card, name, root)
    shipped, unseen = load_detector(name, root), relabel(battle, labels)
    card[METRICS] = score_detector(shipped, unseen)
    save_weights(detector, card, name, root)
    return read_card(name, root)


def ship_student(schedule: Schedule = student.SCHEDULE, root: Path | None = None) -> dict:
    """Train the course's student, score it, write weights and card; returns the card.

    It begins as the shipped Faster R-CNN. Arguments as for :func:`train_and_save`.
    """
    data, battle, recipe = mini_battles("train"), mini_battles("battle"), student.DistillConfig()
    tries = f" --steps {schedule.steps}" if schedule != student.SCHEDULE else ""
    name, folder = named(STUDENT, tries)
    teacher = student.Teacher(load_trunk())
    learnt = student.train_student(
        load_detector("faster_rcnn"), data, teacher, folder, recipe, schedule
    )
    if not distributed.first():
        return {}
    card = history(f"{STUDENT}{tries}", schedule, folder)
    card |= {"teacher": repr(teacher), "recipe": asdict(recipe)}
    student.save_student(learnt, card, name, root)
    shipped = student.load_student(name, root)
    card[METRICS] = score_detector(shipped.detector, battle)
    card[METRICS] |= score_student(shipped, battle, teacher)
    card[FEW] = score_student(shipped, battle.first_of_each(2), teacher)
    student.save_student(learnt, card, name, root)
    return read_card(name, root)


def teach(
    detector: str, teacher: str, data: str, schedule: Schedule, size: int | None = None
) -> tuple[str, dict]:
    """Train a student of any detector with a RoI head; its name and card, in ``runs/weights/``.

    Args:
        detector: name for :func:`load_detector`. teacher: for :func:`load_trunk`.
        data: see :func:`photographs`. size: shorter side of what torchvision's detectors see.
    Returns:
        an empty card in every process of ``torchrun`` but the first.
    """
    train_on, unseen = photographs(data)
    begins, master = load_detector(detector, size=size), student.Teacher(load_trunk(teacher))
    options = f" --detector {detector} --teacher {teacher} --data {data} --steps {schedule.steps}"
    options += f" --batch {schedule.batch_size}" + (f" --size {size}" if size else "")
    name, folder = named(STUDENT, re.sub(r"[^\w .-]+", "_", options))
    branch = {} if begins.kind in KINDS else C4
    projected = begins.trunk.stages["head"].channels != master.dim
    learnt = student.train_student(
        begins, train_on, master, folder, schedule=schedule, projected=projected, **branch
    )
    if not distributed.first():
        return name, {}
    card = history(f"{STUDENT}{options}", schedule, folder, (train_on, unseen))
    card |= {"teacher": repr(master), "recipe": asdict(student.DistillConfig())}
    few = np.unique(np.linspace(0, len(unseen) - 1, SCORED).astype(int))
    unseen, metrics = in_categories(unseen.subset(few), begins.categories), f"metrics on {data}"
    root = config.PROJECT / "runs" / "weights"
    student.save_student(learnt, card, name, root, limit=0)
    learnt = student.load_student(name, root)
    card |= {"scored on": len(unseen), "before": score_detector(begins, unseen)}
    card[metrics] = score_detector(learnt.detector, unseen) | score_student(learnt, unseen, master)
    student.save_student(learnt, card, name, root, limit=0)
    return name, read_card(name, root)


def photographs(data: str) -> tuple[ImageDataset, ImageDataset]:
    """Photographs with boxes to learn from, and unseen ones.

    Args:
        data: ``coco`` or ``coco:PATH`` in COCO's official layout; any other data set's name, of
            which the hardest test counts.
    """
    name, _, path = data.partition(":")
    if name != "coco":
        train_on, tests = load_splits(data)
        return train_on, next(iter(tests.values()))
    root = Path(path).expanduser() if path else None
    return coco_photographs("train", root), coco_photographs("test", root)


def score_student(learnt: student.Student, dataset: ImageDataset, teacher: student.Teacher) -> dict:
    """Retrieval by a student's vectors, mAP and R@1: true main boxes, and its own five surest.

    *Share* is that of the mAP that the teacher reaches with crops of the true boxes.
    """
    true = Region(true_boxes(dataset, main_only=True))
    seen = run_detector(dataset, learnt.detector, progress=False)
    own = Region(detector_boxes(dataset, learnt.detector, seen).top(5))
    ways = {
        "true boxes": (student.StudentTrunk(learnt), ("student", "spoc"), true),
        "own boxes": (student.StudentTrunk(learnt), ("student", "spoc"), own),
        "crop teacher": (teacher.trunk, (teacher.stage, teacher.pooling), crop(dataset)),
    }
    scores = {}
    for name, (trunk, pair, region) in ways.items():
        size = learnt.detector.size if region.on == "map" else teacher.size
        options = ExtractOptions(size, cache=False, progress=False)
        some = extract_objects(dataset, trunk, [pair], {name: region}, options)[name]
        vectors, asking = l2(some.vectors[pair]), oracle_query(some, dataset)
        found = evaluate_scores(retrieval_scores(vectors, some, asking, dataset, "best"), dataset)
        scores |= {f"{name}, {m}": round(found.mean(m), 4) for m in ("mAP", "R@1")}
    for name in ("true boxes", "own boxes"):
        scores[f"{name}, share"] = round(scores[f"{name}, mAP"] / scores["crop teacher, mAP"], 3)
    return scores


def named(kind: str, tries: str) -> tuple[str, Path]:
    """Name of what is trained with some options, and the folder of its run."""
    name = kind + tries.replace(" --", "-").replace(" ", "-")
    return name, config.PROJECT / "runs" / "train" / name


def history(
    command: str, schedule: Schedule, folder: Path, data: Sequence[ImageDataset] = ()
) -> dict:
    """What a card says of how the weights came to be.

    Args:
        data: that it was trained and scored on; default mini-battles.
    """
    log = read_log(folder)
    data = data or [mini_battles(split) for split in ("train", "battle")]
    return {
        "command": f"python -m objemb_lib.course.train {command}",
        "schedule": asdict(schedule),
        "augmentation": "mirror, colours, zoom in and out: detectors.targets.augmentation",
        "data": {one.split: one.content or one.fingerprint for one in data},
        "environment": {name: version(name) for name in ("torch", "torchvision", "timm")}
        | {"machine": platform.machine(), "device": str(config.device())},
        "minutes": round(log[-1]["seconds"] / 60, 1),
        "log": log,
    }


def summary(name: str, card: dict) -> str:
    """What a card says, in a few lines: the detector, and what training did to retrieval."""
    lines = [f"{name}: {card['minutes']} minutes"]
    metrics = next(key for key in card if key.startswith("metrics on"))
    for metric, value in card[metrics].items():
        lines.append(f"  {metric:32} {value:.3f}")
    stage, pooling = CURVE[0]
    rows = [r for r in card.get("curve", ()) if (r["stage"], r["pooling"]) == (stage, pooling)]
    for region in dict.fromkeys(r["region"] for r in rows):
        values = [r for r in rows if r["region"] == region]
        along = ", ".join(f"{r['mAP']:.3f} at step {r['step']}" for r in (values[0], values[-1]))
        lines.append(f"  retrieval mAP, {region}, {stage} {pooling}: {along}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    config.tune_process()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(NAMES)}")
    parser.add_argument("--steps", type=int, help="fewer than usual: a try, which is not shipped")
    parser.add_argument(
        "--labels",
        choices=GRANULARITIES,
        default="category",
        help="what a box is called: one class for all, the coarse category (default), or the "
        "object itself; others than the default are not shipped",
    )
    other = parser.add_argument_group("another student")
    begins = "faster_rcnn (default), mask_rcnn, torchvision/fasterrcnn_resnet50_fpn, ..."
    options = {
        "--detector": {"metavar": "NAME", "help": f"what it begins as: {begins}"},
        "--teacher": {"metavar": "NAME", "help": "efficientnet_lite0 (default), any other trunk"},
        "--data": {"help": "mini-battles (default), coco:PATH, or another data set"},
        "--batch": {"metavar": "N", "type": int, "help": "images an update, of all GPUs (16)"},
        "--size": {"metavar": "PX", "type": int, "help": "shorter side of what torchvision's "
                   "detectors see (800)"},
    }  # fmt: skip
    for name, about in options.items():
        other.add_argument(name, **about)
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"no detector called {', '.join(sorted(unknown))}; use {', '.join(NAMES)}")
    for option in ("steps", "batch", "size"):
        if getattr(asked, option) is not None and getattr(asked, option) < 1:
            parser.error(f"--{option} must be at least 1")
    another = [o for o in ("detector", "teacher", "data", "batch", "size") if getattr(asked, o)]
    if another and asked.names != [STUDENT]:
        parser.error(
            f"--{another[0]} is for the student alone: python -m objemb_lib.course.train student"
        )
    if STUDENT in asked.names and asked.labels != "category":
        parser.error("the student learns no labels: leave --labels away")
    try:
        for name, card in _cards(asked, bool(another)):
            if card:  # the first process alone has one
                print(summary(name, card))
    except ObjembError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    finally:
        distributed.leave()
    return 0


def _cards(asked: argparse.Namespace, another: bool) -> Iterator[tuple[str, dict]]:
    """Train what was asked for; name and card of each."""
    steps = {"steps": asked.steps} if asked.steps else {}
    if another:
        batch = {"batch_size": asked.batch} if asked.batch else {}
        yield teach(
            asked.detector or "faster_rcnn", asked.teacher or "efficientnet_lite0",
            asked.data or "mini-battles", replace(LONGER, **steps, **batch), asked.size,
        )  # fmt: skip
        return
    shorter = steps and {**steps, "snapshots": (0,)}
    plain = asked.labels == "category"
    root = None if plain and not steps else config.PROJECT / "runs" / "weights"
    for name in asked.names or (NAMES if plain else KINDS):
        if name == STUDENT:
            yield name, ship_student(replace(student.SCHEDULE, **shorter), root)
        else:
            yield name, train_and_save(name, replace(SCHEDULE, **shorter), asked.labels, root)


if __name__ == "__main__":
    sys.exit(main())
