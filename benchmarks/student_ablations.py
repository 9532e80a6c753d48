"""What matters in guided student-teacher training: recipes that differ in one thing, three seeds.

    python benchmarks/student_ablations.py               all that is not done yet, then the file
    python benchmarks/student_ablations.py --part 1/2    every other run: two processes, two cores
    python benchmarks/student_ablations.py --gather      write the file from the runs that there are

Each run begins as the shipped Faster R-CNN, takes a few minutes on one core and is kept in
runs/ablations/, so that a killed one costs no other. Results: benchmarks/results/
student_ablations.json, the mean average precision of each battle object for each recipe and seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from objemb_lib import config
from objemb_lib.cache import atomic_write_text
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.metrics import coco_ap, detect
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.regions import crop, roi
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import PCAWhitening, l2
from objemb_lib.measure.metrics import evaluate
from objemb_lib.teach.student import (
    SCHEDULE,
    DistillConfig,
    Student,
    StudentTrunk,
    Teacher,
    train_student,
)

GUIDED, SIDE, WHITENED = DistillConfig(), 160, 256
LESSONS = replace(SCHEDULE, steps=40, warmup=10)
OBJECTS = (15, 30, 59)  # of the 118 train objects: the curve
RESULTS = Path(__file__).parent / "results" / "student_ablations.json"
RUNS = config.PROJECT / "runs" / "ablations"


def teacher(trunk: str = "efficientnet_lite0", **how: object) -> Teacher:
    return Teacher(load_trunk(trunk), size=SIDE, **how)


def whitened() -> Teacher:
    train = mini_battles("train").first_of_each(5)
    pair = ("head", "rmac")
    vectors = l2(extract(train, load_trunk(), [pair], crop(train), ExtractOptions(SIDE))[pair])
    return teacher(whitening=PCAWhitening(WHITENED, shrink=0.3).fit(vectors))


# name: (recipe, what makes the teacher, whether the vectors are projected)
ABLATIONS: dict[str, tuple[DistillConfig, Callable[[], Teacher], bool]] = {
    "guided": (GUIDED, teacher, False),
    "guided, projected": (GUIDED, teacher, True),
    "cosine alone": (replace(GUIDED, losses=("cosine",)), teacher, False),
    "relational alone": (replace(GUIDED, losses=("relational",)), teacher, False),
    "squared difference": (replace(GUIDED, losses=("squared",)), teacher, False),
    "no free regions": (replace(GUIDED, free=0), teacher, False),
    "free regions alone": (replace(GUIDED, regions="none", free=5), teacher, False),
    "all proposals alike": (replace(GUIDED, regions="proposals"), teacher, False),
    "hints of the whole map": (DistillConfig("none", 0, ("hint",)), teacher, False),
    "no detection losses": (replace(GUIDED, detection=False), teacher, False),
    "frozen detector": (replace(GUIDED, frozen=True), teacher, True),
    "labels, no teacher": (DistillConfig(free=0, losses=("labels",)), teacher, False),
    "teacher on the map": (GUIDED, lambda: teacher(from_map=True), False),
    "teacher whitened": (GUIDED, whitened, True),
    "teacher Lite2": (GUIDED, lambda: teacher("efficientnet_lite2"), True),
}


def lesson(name: str) -> tuple[DistillConfig, Callable[[], Teacher], bool, ImageDataset]:
    """DistillConfig, teacher, projection and training scenes of a run."""
    train = mini_battles("train")
    if name.endswith(" objects"):  # distractors are objects, too: fewer of them, fewer scenes
        few = np.unique(train.labels)[:: round(118 / int(name.split()[-2]))]
        there = [np.isin(b, few).all() for b in train.box_labels]
        return *ABLATIONS["guided"], train.subset(np.array(there))
    return *ABLATIONS[name], train


def run(name: str, seed: int) -> dict:
    """Train one student and score it on unseen objects."""
    recipe, make, projected, train = lesson(name)
    folder = RUNS / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    schedule = replace(LESSONS, seed=seed)
    start = load_detector("faster_rcnn")
    options = {"projected": projected, "progress": False}
    learnt = train_student(start, train, make(), folder, recipe, schedule, **options)
    shutil.rmtree(folder)  # weights that nobody asks for again
    seen = {"objects seen": len(np.unique(train.labels)), "scenes": len(train)}
    return {"name": name, "seed": seed, "recipe": asdict(recipe), **seen, **score(learnt)}


def score(student: Student) -> dict:
    """mAP of each battle object by true boxes, and box AP."""
    battle, pair = mini_battles("battle").first_of_each(3), ("student", "spoc")
    trunk = StudentTrunk(student)
    vectors = extract(battle, trunk, [pair], roi(battle), ExtractOptions(cache=False))[pair]
    found = evaluate(l2(vectors), battle, metrics=["mAP"])
    objects = np.unique(found.groups)
    means = [float(found.values["mAP"][found.groups == k].mean()) for k in objects]
    few = battle.first_of_each(2)
    ap = coco_ap(detect(student.detector, few, progress=False, masks=False), few)["AP"]
    return {"mAP": round(found.mean("mAP"), 4), "objects": [round(m, 4) for m in means],
            "box AP": round(ap, 4)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="1/1", help="which share of the runs: K/N")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gather", action="store_true", help="only write what is done already")
    asked = parser.parse_args()
    k, n = map(int, asked.part.split("/"))
    jobs = [(name, seed) for seed in range(asked.seeds) for name in ABLATIONS]
    jobs += [(f"guided, {n} objects", 0) for n in OBJECTS]
    for name, seed in [] if asked.gather else jobs[k - 1 :: n]:
        path = RUNS / f"{name}-{seed}.json"
        if not path.exists():
            atomic_write_text(path, json.dumps(run(name, seed)))
        print(f"{name}, seed {seed}: {json.loads(path.read_text())['mAP']:.4f}", flush=True)
    paths = [RUNS / f"{name}-{seed}.json" for name, seed in jobs]
    done = [json.loads(path.read_text()) for path in paths if path.exists()]
    untrained = {"name": "not trained", **score(Student(load_detector("faster_rcnn")))}
    about = {"data": mini_battles("battle").fingerprint, "schedule": asdict(LESSONS),
             "teacher": repr(teacher())}  # fmt: skip
    text = json.dumps({**about, "untrained": untrained, "runs": done}, indent=1)
    atomic_write_text(RESULTS, text + "\n")
    print(f"wrote {RESULTS.name}: {len(done)} of {len(jobs)} runs")


if __name__ == "__main__":
    main()
