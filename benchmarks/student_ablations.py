"""What matters in guided student-teacher training: trainings that differ in one thing, three seeds.

    python benchmarks/student_ablations.py               all that is not done yet, then the file
    python benchmarks/student_ablations.py --picture     draw the picture from the file

Each run begins as the shipped Faster R-CNN, takes a few minutes on one core and is kept in
runs/ablations/, so that a killed one costs no other. Results: benchmarks/results/
student_ablations.json, the mean average precision of each battle object for each training and seed;
and student_ablations.png, which notebook 04 shows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import ProxyNCALoss
from torch import Tensor
from turns import arguments

from objemb_lib import config
from objemb_lib.cache import atomic_write_text
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.metrics import coco_ap, detect
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.extract import ExtractOptions, extract
from objemb_lib.embed.pooling import POOLINGS
from objemb_lib.embed.regions import CELLS, crop, roi
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import PCAWhitening, l2
from objemb_lib.measure.intervals import cluster_interval
from objemb_lib.measure.metrics import evaluate
from objemb_lib.show import plots
from objemb_lib.teach.distillation import (
    LOSSES,
    SCHEDULE,
    DistillationModule,
    DistillConfig,
    choose_regions,
    train_student,
)
from objemb_lib.teach.student import Student, StudentTrunk, Teacher, cut_regions

GUIDED, SIDE, WHITENED = DistillConfig(), 160, 256
SHORT = replace(SCHEDULE, steps=40, warmup=10)
SEEDS = 3
OBJECTS = (15, 30, 59)  # of the 118 train objects: the curve
RESULTS = Path(__file__).parent / "results" / "student_ablations.json"
RUNS = config.PROJECT / "runs" / "ablations"


class MapTeacher(Teacher):
    """Cuts regions out of the map of the whole image: as blind for small things as its student."""

    @torch.no_grad()
    def forward(self, images: Tensor, boxes: list[Tensor]) -> Tensor:
        parts = cut_regions(self.maps(images), self.trunk.stages[self.stage], boxes, CELLS)
        return F.normalize(POOLINGS[self.pooling](parts), dim=1)


class WhitenedTeacher(Teacher):
    """Gives whitened vectors, as crops of training objects have taught it."""

    def __init__(self, *given: object, **how: object) -> None:
        super().__init__(*given, **how)
        data, pair = mini_battles("train").first_of_each(5), (self.stage, self.pooling)
        options = ExtractOptions(self.size)
        vectors = l2(extract(data, load_trunk(), [pair], crop(data), options)[pair])
        self.whitening, self.dim = PCAWhitening(WHITENED, shrink=0.3).fit(vectors), WHITENED

    def forward(self, images: Tensor, boxes: list[Tensor]) -> Tensor:
        vectors = super().forward(images, boxes).float().cpu().numpy()
        return torch.from_numpy(self.whitening(vectors)).to(images.device)


class Hints(DistillationModule):
    """The teacher's whole map, objects and background alike.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015, eq. 3, with the cosine in place
    of the squared difference, so that bright cells do not decide alone.
    """

    def distil(self, maps: dict, images: Tensor, *_: object) -> dict[str, Tensor]:
        whole = self.teacher[0].maps(images)["head"].float()
        return {"hint": 5 * (1 - F.cosine_similarity(maps["head"].float(), whole, dim=1)).mean()}


class Labels(DistillationModule):
    """Objects by their labels, without a teacher (Proxy-NCA)."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        count = len(mini_battles("train").label_names)
        self.labels = ProxyNCALoss(count, self.student.embedding.dim, softmax_scale=10)

    def distil(self, maps: dict, images: Tensor, targets: list, proposals: list) -> dict:
        looked, aimed = choose_regions(targets, proposals, self.config, images.shape[-1])
        objects = []
        for target, boxes in zip(targets, aimed):
            same = (boxes[:, None] == target["boxes"]).all(dim=2)
            objects += [target["objects"][same.nonzero()[:, 1]]]
        known = (objects := torch.cat(objects)) >= 0
        if not known.any():
            return {}
        vectors = self.student.embed(maps, looked).float()
        return {"labels": self.labels(vectors[known], objects[known])}


class Frozen(DistillationModule):
    """Only the embedding head learns."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.student.detector.requires_grad_(False)


def squared(vectors: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``|v - t|^2``: the length counts, too."""
    return (vectors - targets).square().sum(dim=1).mean()


LOSSES["squared"] = (squared, 2.5)


def teacher(kind: type[Teacher] = Teacher, trunk: str = "efficientnet_lite0") -> Teacher:
    return kind(load_trunk(trunk), size=SIDE)


# name: (config, what makes the teacher, options of train_student)
PROJECTED = {"projected": True}
ABLATIONS: dict[str, tuple[DistillConfig, Callable[[], Teacher], dict]] = {
    "guided": (GUIDED, teacher, {}),
    "guided, projected": (GUIDED, teacher, PROJECTED),
    "cosine alone": (replace(GUIDED, losses=("cosine",)), teacher, {}),
    "relational alone": (replace(GUIDED, losses=("relational",)), teacher, {}),
    "squared difference": (replace(GUIDED, losses=("squared",)), teacher, {}),
    "no free regions": (replace(GUIDED, free=0), teacher, {}),
    "free regions alone": (replace(GUIDED, regions="none", free=5), teacher, {}),
    "all proposals alike": (replace(GUIDED, regions="proposals"), teacher, {}),
    "hints of the whole map": (DistillConfig("none", 0, ("hint",)), teacher, {"module": Hints}),
    "no detection losses": (replace(GUIDED, detection=False), teacher, {}),
    "frozen detector": (replace(GUIDED, detection=False), teacher, PROJECTED | {"module": Frozen}),
    "labels, no teacher": (DistillConfig(free=0, losses=("labels",)), teacher, {"module": Labels}),
    "teacher on the map": (GUIDED, lambda: teacher(MapTeacher), {}),
    "teacher whitened": (GUIDED, lambda: teacher(WhitenedTeacher), PROJECTED),
    "teacher Lite2": (GUIDED, lambda: teacher(trunk="efficientnet_lite2"), PROJECTED),
}


def run(name: str, seed: int) -> dict:
    """Train one student and score it on unseen objects."""
    train = mini_battles("train")
    if name.endswith(" objects"):  # distractors are objects, too: fewer of them, fewer scenes
        few = np.unique(train.labels)[:: round(118 / int(name.split()[-2]))]
        train = train.subset(np.array([np.isin(b, few).all() for b in train.box_labels]))
    how, make, options = ABLATIONS.get(name, ABLATIONS["guided"])
    folder = RUNS / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    schedule, start = replace(SHORT, seed=seed), load_detector("faster_rcnn")
    learnt = train_student(start, train, make(), folder, how, schedule, progress=False, **options)
    shutil.rmtree(folder)  # weights that nobody asks for again
    seen = {"objects seen": len(np.unique(train.labels)), "scenes": len(train)}
    return {"name": name, "seed": seed, "config": asdict(how), **seen, **score(learnt)}


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


def picture() -> None:
    """The mean difference of each recipe to the guided one, with its interval over objects."""
    runs = pd.DataFrame(json.loads(RESULTS.read_text())["runs"])
    means = runs.groupby("name", sort=False).objects.apply(lambda seeds: np.mean([*seeds], axis=0))
    changes = means[~means.index.str.contains("guided")].map(lambda mean: mean - means["guided"])
    changes = changes[changes.map(np.mean).sort_values(ascending=False).index]
    lines = {n: cluster_interval(x, np.arange(len(x))) for n, x in changes.items()}
    figure, ax = plt.subplots(figsize=(7, 4.4))
    plots.intervals(lines, "mAP, recipe − guided", ax, zero=True)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=100, bbox_inches="tight")


def main() -> None:
    if arguments(__doc__, picture=False).picture:
        return picture()
    jobs = [(name, seed) for seed in range(SEEDS) for name in ABLATIONS]
    jobs += [(f"guided, {n} objects", 0) for n in OBJECTS]
    done = []
    for name, seed in jobs:
        path = RUNS / f"{name}-{seed}.json"
        if not path.exists():
            atomic_write_text(path, json.dumps(run(name, seed)))
        done.append(json.loads(path.read_text()))
        print(f"{name}, seed {seed}: {done[-1]['mAP']:.4f}", flush=True)
    untrained = {"name": "not trained", **score(Student(load_detector("faster_rcnn")))}
    about = {"data": mini_battles("battle").fingerprint, "schedule": asdict(SHORT),
             "teacher": repr(teacher())}  # fmt: skip
    text = json.dumps({**about, "untrained": untrained, "runs": done}, indent=1)
    atomic_write_text(RESULTS, text + "\n")
    picture()


if __name__ == "__main__":
    main()
