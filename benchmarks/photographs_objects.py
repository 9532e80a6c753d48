"""Claims 2 and 3 on real photographs, which no network here has practised on.

    python benchmarks/photographs_objects.py [--coco FOLDER] [--groceries FOLDER]

COCO (official layout: annotations/instances_{train,val}2017.json, train2017/, val2017/): each true
box of 32 pixels and more asks for other val2017 images that hold its category. Stage, pooling and
context of each way are chosen on train2017.

Groceries (the Grocery Store data set: its folder `dataset`): a photograph taken in the shop asks
for the product's iconic picture. There are no boxes: any object of the photograph may ask. Stage
and pooling are those that mini-battles' train objects choose.

Prints mAP and R@1 with 95 % intervals, and paired differences with the whole image.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from objemb_lib.attend.objects import image_scores, oracle_query, retrieval_scores, top1_query
from objemb_lib.attend.sources import detector_boxes, run_detector, sources
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.metrics import crowds
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure import leaderboard
from objemb_lib.measure.analysis import BODY
from objemb_lib.measure.intervals import Evaluation
from objemb_lib.measure.metrics import evaluate_scores, metric_function
from objemb_lib.teach.student import StudentTrunk, load_student

PAIRS = [(stage, pooling) for stage in BODY for pooling in ("spoc", "rmac", "crow")]
METRICS = ("mAP", "R@1")
SMALLEST = 32  # pixels: smaller objects are a few cells of the map
CONTEXTS = (-0.1, -0.2, -0.3)
QUIET = ExtractOptions(progress=False)


# --- COCO: a true box asks for images that hold its category -----------------------------


def queries_of(data: ImageDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the true boxes that ask, their images and categories."""
    rows, owners, categories, row = [], [], [], 0
    for i, some in enumerate(data.boxes):
        for k, box in enumerate(some):
            large = (box[2:] - box[:2] >= SMALLEST).all()
            if large and not crowds(data, i)[k]:
                rows.append(row)
                owners.append(i)
                categories.append(int(data.box_categories[i][k]))
            row += 1
        row += not len(some)  # the whole image stands in
    return np.array(rows), np.array(owners), np.array(categories)


def by_category(data: ImageDataset, scores: np.ndarray, owners, categories) -> Evaluation:
    """Score ``(Q, N)`` rankings of the other images; relevant: those with the query's category."""
    holds = np.zeros((len(data), len(data.category_names)), bool)
    for i, many in enumerate(data.box_categories):
        holds[i, np.asarray(many, int)] = True
    values = {metric: [] for metric in METRICS}
    for line, i, category in zip(scores, owners, categories):
        order = np.argsort(-line, kind="stable")
        ranked = holds[order[order != i], category]
        for metric in METRICS:
            values[metric].append(metric_function(metric)(ranked))
    found = {metric: np.array(v) for metric, v in values.items()}
    return Evaluation(found, owners, np.arange(len(owners)), f"{data.name}/{data.split} f")


def coco_ways(data: ImageDataset, detector) -> dict[str, list[Region]]:
    """What is looked at in each way; the first region of a list is the one that asks."""
    true = true_boxes(data)
    named = sources(data, detector, progress=False)
    whole, plain = named["whole image"], Region(true)
    ways = {"whole image": [whole, whole], "true boxes": [plain, plain]}
    for context in CONTEXTS:
        ways[f"true boxes, context {context}"] = [Region(true, context=context)] * 2
    ways["true masks"] = [Region(true, masked=True)] * 2
    for name in ("detector, top 5", "proposals, top 10", "R-MAC grid", "random boxes"):
        ways[name] = [plain, named[name]]
    return ways


def coco_vectors(data: ImageDataset, trunk, detector) -> dict[str, list]:
    """Asking and answering objects of each way, with a way of crops."""
    ways = coco_ways(data, detector)
    regions = {r.name: r for pair in ways.values() for r in pair}
    regions["crops"] = Region(true_boxes(data), "pixels")
    found = extract_objects(data, trunk, PAIRS, regions, QUIET)
    made = {way: [found[r.name] for r in pair] for way, pair in ways.items()}
    made["crops of true boxes"] = [found["crops"]] * 2
    asking, answering = students(data, Region(true_boxes(data)))
    made["student, true boxes"] = [asking, asking]
    return made | {"student, its own boxes": [asking, answering]}


def students(data: ImageDataset, *others: Region) -> list[Objects]:
    """The shipped student's vectors of some boxes, last of its own five best."""
    student = load_student()
    seen = run_detector(data, student.detector, progress=False)
    own = Region(detector_boxes(data, student.detector, seen).top(5, name="its own boxes"))
    trunk, pair = StudentTrunk(student), ("student", "spoc")
    regions = {region.name: region for region in (*others, own)}
    return list(extract_objects(data, trunk, [pair], regions, QUIET).values())


def coco_scores(data: ImageDataset, asking, answering, pair) -> Evaluation:
    rows, owners, categories = queries_of(data)
    vectors = l2(asking.vectors[pair])
    asked = vectors[owners if len(asking) == len(data) else rows]
    scores = image_scores(asked, l2(answering.vectors[pair]), answering.image)
    return by_category(data, scores, owners, categories)


def coco(place: Path, trunk, detector) -> None:
    """Choose on train2017, report on val2017."""
    made = {}
    for split in ("train2017", "val2017"):
        truth = place / "annotations" / f"instances_{split}.json"
        made[split] = folder(place, annotations=truth, split=split, progress=False)
    train, val = (coco_vectors(data, trunk, detector) for data in made.values())
    found = {}
    for way, sides in train.items():
        offered = [pair for pair in sides[0].vectors if pair in sides[1].vectors]
        pair = max(offered, key=lambda p: coco_scores(made["train2017"], *sides, p).mean("mAP"))
        found[f"{way} ({', '.join(pair)})"] = coco_scores(made["val2017"], *val[way], pair)
    report(f"{made['val2017']}", found)


# --- groceries: a photograph in the shop asks for the iconic picture ----------------------


def groceries(place: Path, trunk, detector) -> None:
    """Any object of the photograph asks; the iconic picture answers with any of its own."""
    data = grocery_store(place)
    chosen = chosen_on_battles(trunk, detector)
    named = sources(data, detector, truth=False, progress=False)
    wanted = sorted(set(chosen.values()))
    found, objects = {}, extract_objects(data, trunk, wanted, named, QUIET)
    mine = "student, its own boxes"
    (objects[mine],), chosen[mine] = students(data), ("student", "spoc")
    for name, some in objects.items():
        pair = chosen[name]
        vectors = l2(some.vectors[pair])
        any_object = image_scores(vectors, vectors, some.image)
        starts = np.flatnonzero(np.diff(some.image, prepend=-1))
        scores = np.maximum.reduceat(any_object, starts)[data.queries][:, data.gallery]
        found[f"{name}, any object ({', '.join(pair)})"] = evaluate_scores(scores, data, METRICS)
        if some.where.counts.max() > 1 and name.startswith(("detector", "student")):
            scores = retrieval_scores(vectors, some, top1_query(some), data, "best")
            found[f"{name}, the surest ({', '.join(pair)})"] = evaluate_scores(
                scores, data, METRICS
            )
    report(f"{data}", found)


def grocery_store(place: Path) -> ImageDataset:
    """Shop photographs of the test split (queries) and iconic pictures (gallery)."""
    with open(place / "classes.csv", encoding="utf-8") as file:
        iconic = {int(r["Class ID (int)"]): r["Iconic Image Path (str)"].lstrip("/")
                  for r in csv.DictReader(file)}  # fmt: skip
    lines = (place / "test.txt").read_text(encoding="utf-8").splitlines()
    rows = [[part.strip() for part in line.split(",")] for line in lines if line.strip()]
    photos = [(file, int(label)) for file, label, _ in rows if (place / file).is_file()]
    files = [file for file, _ in photos] + list(iconic.values())
    return ImageDataset(
        "groceries", "photo to iconic", place, files,
        np.array([label for _, label in photos] + list(iconic)),
        queries=np.arange(len(photos)), gallery=np.arange(len(photos), len(files)),
    )  # fmt: skip


def chosen_on_battles(trunk, detector) -> dict[str, tuple[str, str]]:
    """Stage and pooling that train scenes choose for each source that needs no truth."""
    train = mini_battles("train").first_of_each(3)
    train = train.subset(train.labels % 2 == 0)
    named, found = sources(train, detector, truth=False, progress=False), {}
    objects = extract_objects(train, trunk, PAIRS, named, QUIET)
    for name, some in objects.items():
        found[name] = max(PAIRS, key=lambda pair: _on_train(some, pair, train))
    return found


def _on_train(some, pair: tuple[str, str], train: ImageDataset) -> float:
    scores = retrieval_scores(
        l2(some.vectors[pair]), some, oracle_query(some, train), train, "best"
    )
    return evaluate_scores(scores, train, ["mAP"]).mean("mAP")


def report(title: str, found: dict[str, Evaluation]) -> None:
    """Intervals of every way, and its difference from the first."""
    first = next(iter(found))
    print(f"\n{title}\n\n| way | mAP | R@1 | mAP, minus {first} |\n|---|---|---|---|")
    for name, one in found.items():
        change = leaderboard.difference(2, name, name, one, first, found[first])
        print(f"| {name} | {one.interval('mAP')} | {one.interval('R@1')} |"
              f" {change} {change.verdict} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, metavar="FOLDER")
    parser.add_argument("--groceries", type=Path, metavar="FOLDER")
    asked = parser.parse_args()
    trunk, detector = load_trunk(), load_detector("mask_rcnn")
    if asked.coco:
        coco(asked.coco, trunk, detector)
    if asked.groceries:
        groceries(asked.groceries, trunk, detector)


if __name__ == "__main__":
    main()
