"""Train the course's detectors and the student, and ship them: what `make train` runs.

    python -m objemb_lib.course.train                    all of them, eighty minutes on two cores
    python -m objemb_lib.course.train faster_rcnn        one
    python -m objemb_lib.course.train classifier         a control that learns no boxes
    python -m objemb_lib.course.train student            the student, begins as the Faster R-CNN
    python -m objemb_lib.course.train fork               a student that shares ImageNet's body
    python -m objemb_lib.course.train proposer           boxes for real photographs, minutes
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

The proposer learns from COCO: `--data coco:PATH`, or `coco:PATH,PATH` for several folders; default
those of OBJEMB_REAL, else the built `coco`. Where there is none, it says so, and stays as it is.

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
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from objemb_lib import config
from objemb_lib.attend.objects import evaluate_objects
from objemb_lib.attend.proposer import cross_fitted, train_proposer
from objemb_lib.attend.sources import detector_boxes
from objemb_lib.config import DataError, ObjembError
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.coco import coco_photographs
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.classifier import CLASSIFIER, Classifier, load_classifier, score_classifier
from objemb_lib.detect.detectors import KINDS, Detector, build_detector
from objemb_lib.detect.metrics import detect, main_recall, score_detector
from objemb_lib.detect.weights import LIMIT, load_detector, save_weights, update_card
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, extract_objects, extract_regions
from objemb_lib.embed.regions import WHOLE, Region, crop, roi
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.intervals import cluster_interval
from objemb_lib.measure.metrics import evaluate
from objemb_lib.teach import distillation, targets
from objemb_lib.teach.student import ADAPTIVE, Student, StudentTrunk, Teacher, load_student
from objemb_lib.teach.training import Schedule, rank, read_log, snapshot_path, train

SCHEDULE = Schedule(steps=1000, snapshots=(0, 50, 150, 400))
# Of other students: longer, and slower where a detector has learned all that COCO can teach it.
LONGER = Schedule(steps=20_000, batch_size=16, rate=2e-4, warmup=500)
SCORED = 500  # unseen photographs that another student is scored on, evenly spread
C4 = {"cells": 14, "leave_out": ()}  # the branch on a ResNet, as in Faster R-CNN
STUDENT = "student"
FORK = "fork"
PROPOSER = "proposer"
NAMES = (*KINDS, CLASSIFIER, STUDENT, FORK, PROPOSER)  # the student begins as a detector
ANOTHER = ("detector", "teacher", "data", "batch", "size")  # options of another student
OPTIONS = ("detector", "teacher", "data", "steps", "batch", "size", "labels")  # as names have them
# The fork sees more pixels, as its regions cost little; nothing up to its last part learns.
FORK_SIZE, SHARED = 384, "stage4"
CUT = {"stage": SHARED, "cells": ADAPTIVE, "leave_out": (), "pooling": "rmac"}
MOST, SCENES = 1000, 300  # photographs of each part of COCO, scenes: what the proposer learns from
COCO_TERMS = {
    "attribution": "Lin et al., Microsoft COCO: Common Objects in Context, 2014; cocodataset.org",
    "licence": "annotations: CC BY 4.0, COCO Consortium; photographs: the Flickr licence that COCO "
    "states for each; neither is contained in these weights",
}
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
    frozen: str = "",
) -> Detector | Classifier:
    """A detector trained on the boxes (and masks) of a data set, or the rest of such a training.

    Args:
        kind: see :data:`KINDS`; or ``classifier``: the same images, augmented alike, which tell it
            only the categories on them. trunk: with its ImageNet weights; is not changed.
        folder: of the run, see :func:`training.train`, also for what goes wrong.
        frozen: the stage up to which the trunk stays as it is, see :func:`build_detector`.
    """
    augment, masks = targets.augmentation(size), kind == "mask_rcnn"
    draw = targets.draw_batches(dataset, schedule.batch_size, augment, masks)
    torch.manual_seed(schedule.seed)  # of the new layers
    if kind == CLASSIFIER:
        network = Classifier(trunk, dataset.category_names, size)
    else:
        network = build_detector(kind, trunk, dataset.category_names, size, frozen=frozen)
    network = network.to(memory_format=torch.channels_last)
    about = f"{dataset.fingerprint} {dataset.category_names} {kind} {size} {trunk.fingerprint()}"
    about += f" frozen to {frozen}" if frozen else ""
    return train(network, network.trunk, draw, schedule, folder, progress, about=about)


def score_student(learnt: Student, dataset: ImageDataset, teacher: Teacher) -> dict:
    """Retrieval by a student's vectors, mAP and R@1: true main boxes, and its own five surest.

    *Share* is that of the mAP that the teacher reaches with crops of the true boxes.
    """
    seen = detect(learnt.detector, dataset, progress=False, masks=False)
    own = Region(detector_boxes(dataset, learnt.detector, seen).top(5))
    trunk, pair = StudentTrunk(learnt), ("student", "spoc")
    ways = {
        "true boxes": (trunk, pair, Region(true_boxes(dataset, main_only=True))),
        "own boxes": (trunk, pair, own),
        "crop teacher": (teacher.trunk, (teacher.stage, teacher.pooling), crop(dataset)),
    }
    scores = {}
    for name, (trunk, pair, region) in ways.items():
        size = learnt.detector.size if region.on == "map" else teacher.size
        options = ExtractOptions(size, cache=False, progress=False)
        some = extract_objects(dataset, trunk, [pair], {name: region}, options)[name]
        found = evaluate_objects(some, dataset, pair)
        scores |= {f"{name}, {m}": round(found.mean(m), 4) for m in ("mAP", "R@1")}
    for name in ("true boxes", "own boxes"):
        scores[f"{name}, share"] = round(scores[f"{name}, mAP"] / scores["crop teacher, mAP"], 3)
    return scores


def curve(
    learnt: Detector | Classifier, folder: Path, schedule: Schedule, dataset: ImageDataset
) -> list:
    """How retrieval changes along the checkpoints: mAP and R@1 of the body's maps, by region."""
    rows, moving = [], copy.deepcopy(learnt).eval()
    for step in (*schedule.snapshots, schedule.steps):
        moving.load_state_dict(load_file(snapshot_path(folder, step)))
        regions = {region.name: region for region in (WHOLE, roi(dataset), crop(dataset))}
        options = ExtractOptions(learnt.size, cache=False, progress=False)
        vectors = extract_regions(dataset, moving.trunk, CURVE, regions, options)
        for region, many in vectors.items():
            for (stage, pooling), x in many.items():
                found = evaluate(l2(x), dataset, metrics=["mAP", "R@1"])
                where = {"step": step, "region": region, "stage": stage, "pooling": pooling}
                rows.append({**where, **{m: round(found.mean(m), 4) for m in ("mAP", "R@1")}})
    return rows


def ship_detector(asked: argparse.Namespace, kind: str) -> tuple[str, dict]:
    """Train one of the course's detectors, or the classifier beside them; see :func:`_ship`."""
    schedule = replace(SCHEDULE, steps=asked.steps, snapshots=(0,)) if asked.steps else SCHEDULE
    classifies = kind == CLASSIFIER
    load = load_classifier if classifies else load_detector
    score = score_classifier if classifies else score_detector
    called = partial(targets.relabel, labels=asked.labels or "category")
    return _ship(
        kind, asked, schedule, "mini-battles",
        lambda data, folder: train_detector(kind, called(data), load_trunk(), folder, schedule),
        load, lambda learnt, unseen: {METRICS: score(learnt, called(unseen))},
    )  # fmt: skip


def ship_student(asked: argparse.Namespace, kind: str) -> tuple[str, dict]:
    """The course's student, or another one that was asked for; see :func:`_ship`."""
    another = any(getattr(asked, option) for option in ANOTHER)
    begins, data = asked.detector or "faster_rcnn", asked.data or "mini-battles"
    trunk = asked.teacher or "efficientnet_lite0"
    usual = LONGER if another else distillation.SCHEDULE
    steps, batch_size = asked.steps or usual.steps, asked.batch or usual.batch_size
    schedule = replace(usual, steps=steps, batch_size=batch_size)
    detector, teacher = load_detector(begins, size=asked.size), Teacher(load_trunk(trunk))
    branch = {} if detector.kind in KINDS else C4

    def learn(train_on: ImageDataset, folder: Path) -> Student:
        how = {"schedule": schedule, **branch}
        return distillation.train_student(detector, train_on, teacher, folder, **how)

    def score(learnt: Student, unseen: ImageDataset) -> dict:
        if not another:
            return _score_both(learnt, unseen, teacher)
        few = np.unique(np.linspace(0, len(unseen) - 1, SCORED).astype(int))
        unseen = targets.in_categories(unseen.subset(few), detector.categories)
        both = score_detector(learnt.detector, unseen) | score_student(learnt, unseen, teacher)
        before = score_detector(detector, unseen)
        return {f"metrics on {data}": both, "scored on": len(unseen), "before": before}

    more = {"teacher": repr(teacher), "config": asdict(distillation.DistillConfig())}
    return _ship(kind, asked, schedule, data, learn, load_student, score, **more)


def ship_fork(asked: argparse.Namespace, kind: str) -> tuple[str, dict]:
    """A detector on a body that stays ImageNet's up to stage4, from where ImageNet's own layers
    embed its boxes; see :func:`_ship`. No lesson: two tails on one body.
    """
    schedule = replace(SCHEDULE, steps=asked.steps or SCHEDULE.steps, snapshots=())
    trunk = load_trunk()

    def learn(data: ImageDataset, folder: Path) -> Student:
        how = {"size": FORK_SIZE, "frozen": SHARED}
        learnt = train_detector("faster_rcnn", data, trunk, folder, schedule, **how)
        return Student(learnt, tail=trunk.name, **CUT)

    score = partial(_score_both, teacher=Teacher(trunk))
    return _ship(kind, asked, schedule, "mini-battles", learn, load_student, score)


def _score_both(learnt: Student, battle: ImageDataset, teacher: Teacher) -> dict:
    """How well one of the course's students finds and embeds."""
    scores = score_detector(learnt.detector, battle) | score_student(learnt, battle, teacher)
    return {METRICS: scores, FEW: score_student(learnt, battle.first_of_each(2), teacher)}


def _ship(
    kind: str,
    asked: argparse.Namespace,
    schedule: Schedule,
    data: str,
    learn: Callable[[ImageDataset, Path], nn.Module],
    load: Callable[[str, Path | None], nn.Module],
    score: Callable[[nn.Module, ImageDataset], dict],
    **more: object,
) -> tuple[str, dict]:
    """Train; write and score weights, as they are in half precision.

    Args:
        data: see :func:`photographs`. learn: what trains on them, in a folder.
        score: what the card says of the weights, as ``load`` gives them, on unseen photographs.
        more: what else the card says.
    Returns:
        name and card; the latter is empty in every process of ``torchrun`` but the first.
    """
    name, folder, root, command = _places(kind, asked)
    train_on, unseen = photographs(data)
    learnt = learn(train_on, folder)
    if rank():
        return name, {}
    log = read_log(folder)
    card = {"command": command, "schedule": asdict(schedule)}
    card["augmentation"] = "mirror, colours, zoom in and out: teach.targets.augmentation"
    card["data"] = {one.split: one.content or one.fingerprint for one in (train_on, unseen)}
    card |= _environment() | {"minutes": round(log[-1]["seconds"] / 60, 1), "log": log} | more
    if schedule.snapshots:
        card["curve"] = curve(learnt, folder, schedule, unseen)
    save_weights(learnt, card, name, root, None if root else LIMIT)
    return name, update_card(name, score(load(name, root), unseen), root)


def photographs(data: str) -> tuple[ImageDataset, ImageDataset]:
    """Photographs with boxes to learn from, and unseen ones: of COCO, or of any other data set.

    ``data`` is a name; or ``coco:PATH``, in COCO's official layout.
    """
    name, _, path = data.partition(":")
    if name != "coco":
        train_on, tests = load_splits(data)
        return train_on, next(iter(tests.values()))
    root = Path(path).expanduser() if path else None
    return coco_photographs("train", root), coco_photographs("test", root)


def ship_proposer(asked: argparse.Namespace, kind: str) -> tuple[str, dict]:
    """As :func:`_ship`: the proposer, or nothing where COCO is not here.

    Its recall is cross-fitted: of each fold by what the others taught. The file learned from all.
    """
    name, _, root, command = _places(kind, asked)
    if rank():
        return name, {}
    try:
        folds, also = coco_folds(asked.data or "coco"), proposer_scenes()
    except DataError as error:
        if asked.names:
            raise
        print(f"{name}: stays as it is, COCO is not here: {error}")
        return name, {}
    start, how = time.monotonic(), {"epochs": asked.steps} if asked.steps else {}
    parts, found = [one for fold in folds for one in fold], cross_fitted(folds, [also], 10, **how)
    scores, intervals = {}, {}
    for top in (1, 5, 10):
        hits = np.concatenate([
            main_recall([{"boxes": torch.from_numpy(b)} for b in some.boxes], data, top)
            for some, data in zip(found, parts)
        ])  # fmt: skip
        one = cluster_interval(hits.astype(float), np.arange(len(hits)))
        scores[f"recall of main objects, {top} best"] = round(one.value, 4)
        intervals[f"{top} best"] = [round(one.low, 4), round(one.high, 4)]
    card = {"trunk": "efficientnet_lite0", "command": command, **COCO_TERMS, **_environment()}
    card |= {"metrics on the fold that it did not learn from, IoU 0.5": scores}
    card |= {"95 % intervals, bootstrap over photographs": intervals}
    card["data"] = {"scenes": f"{len(also)} of mini-battles, train", "content": also.content}
    card["photographs"] = {f"{k} {one.split}": [int(Path(file).stem) for file in one.files]
                           for k, fold in enumerate(folds) for one in fold}  # fmt: skip
    learnt = train_proposer([*parts, also], **how)
    card["minutes"] = round((time.monotonic() - start) / 60, 1)
    save_weights(learnt, card, name, root, 2_000_000)
    return name, card


def proposer_scenes() -> ImageDataset:
    """Scenes of mini-battles' train objects that teach a proposer beside the photographs."""
    scenes = photographs("mini-battles")[0]
    return scenes.subset(np.unique(np.linspace(0, len(scenes) - 1, SCENES).astype(int)))


def coco_folds(data: str = "coco") -> list[list[ImageDataset]]:
    """Photographs of COCO with their boxes, in folds: one learns, another is measured.

    Args:
        data: ``coco:PATH,PATH``: a fold each, but train2017 and val2017 are the folds of a single
            folder. ``coco``: ``coco`` and ``coco_tiny`` in OBJEMB_REAL, else the built data set.
    Raises:
        DataError: COCO is not there.
    """
    places = [Path(path).expanduser() for path in data.partition(":")[2].split(",") if path]
    if not places and (real := config.place("OBJEMB_REAL")):
        places = [real / "coco", real / "coco_tiny"]
    folds, known = [], set()
    for place in places or [None]:
        folds.append([])
        for split in ("train", "test"):
            one = coco_photographs(split, place, masks=False)
            fresh = [i for i, file in enumerate(one.files) if Path(file).name not in known]
            known |= {Path(one.files[i]).name for i in fresh}
            folds[-1].append(one.subset(fresh[:: max(1, -(-len(fresh) // MOST))]))
    return folds if len(folds) > 1 else [[one] for one in folds[0]]


def _places(kind: str, asked: argparse.Namespace) -> tuple[str, Path, Path | None, str]:
    """Name of what is trained as asked, folders of its run and weights, the command."""
    given = {option: getattr(asked, option) for option in OPTIONS}
    said = "".join(f" --{option} {value}" for option, value in given.items() if value)
    name = kind + re.sub(r"[^\w .-]+", "_", said).replace(" --", "-").replace(" ", "-")
    runs = config.PROJECT / "runs"
    root = runs / "weights" if said else None  # the course's own
    return name, runs / "train" / name, root, f"python -m objemb_lib.course.train {kind}{said}"


def _environment() -> dict:
    packages = {name: version(name) for name in ("torch", "torchvision", "timm")}
    here = {"machine": platform.machine(), "device": str(config.device())}
    return {"environment": packages | here}


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
        choices=targets.GRANULARITIES,
        help="what a box is called: one class for all, the coarse category (default), or the "
        "object itself; others than the default are not shipped",
    )
    other = parser.add_argument_group("another student")
    begins = "what it begins as: faster_rcnn (default), torchvision/fasterrcnn_resnet50_fpn, ..."
    other.add_argument("--detector", metavar="NAME", help=begins)
    other.add_argument("--teacher", metavar="NAME", help="efficientnet_lite0 (default), any trunk")
    other.add_argument("--data", help="mini-battles (default), coco:PATH, or another data set")
    other.add_argument("--batch", metavar="N", type=int, help="images an update, of all GPUs (16)")
    shorter = "shorter side of what torchvision's detectors see (800)"
    other.add_argument("--size", metavar="PX", type=int, help=shorter)
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"no detector called {', '.join(sorted(unknown))}; use {', '.join(NAMES)}")
    for option in ("steps", "batch", "size"):
        if getattr(asked, option) is not None and getattr(asked, option) < 1:
            parser.error(f"--{option} must be at least 1")
    another = [option for option in ANOTHER if getattr(asked, option)]
    if another and asked.names != [STUDENT] and (asked.names, another) != ([PROPOSER], ["data"]):
        parser.error(f"--{another[0]} is for the student alone: train it by its name")
    if asked.labels and (others := sorted(set(asked.names) - set(KINDS))):
        parser.error(f"--labels is for detectors: leave it away for {', '.join(others)}")
    ship = {STUDENT: ship_student, FORK: ship_fork, PROPOSER: ship_proposer}
    try:
        for kind in asked.names or (KINDS if asked.labels else NAMES):
            name, card = ship.get(kind, ship_detector)(asked, kind)
            if card:  # the first process alone has one
                metrics = next(card[key] for key in card if key.startswith("metrics on"))
                print(f"{name}: {card['minutes']} minutes")
                print("\n".join(f"  {metric:32} {value:.3f}" for metric, value in metrics.items()))
    except ObjembError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
