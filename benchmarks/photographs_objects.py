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
from pathlib import Path

import numpy as np
import pandas as pd

from objemb_lib.attend.objects import image_scores, oracle_query, retrieval_scores, top1_query
from objemb_lib.attend.sources import box_sources, detector_boxes
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.detect.metrics import crowds, detect
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.analysis import BODY
from objemb_lib.measure.intervals import Evaluation, paired_difference
from objemb_lib.measure.metrics import evaluate_scores, metric_function
from objemb_lib.teach.student import StudentTrunk, load_student

PAIRS = [(stage, pooling) for stage in BODY for pooling in ("spoc", "rmac", "crow")]
METRICS = ("mAP", "R@1")
SMALLEST = 32  # pixels: smaller objects are a few cells of the map
CONTEXTS = (-0.1, -0.2, -0.3)
QUIET = ExtractOptions(progress=False)


# --- COCO: a true box asks for images that hold its category -----------------------------


def queries_of(data: ImageDataset) -> pd.DataFrame:
    """The true boxes that ask: their ``row`` among all, ``image`` and ``category``."""
    found, start = [], 0
    for i, boxes in enumerate(data.boxes):
        large = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST).all(axis=1) & ~crowds(data, i)
        found += [(start + k, i, int(data.box_categories[i][k])) for k in np.flatnonzero(large)]
        start += max(1, len(boxes))  # of none, the whole image stands in
    return pd.DataFrame(found, columns=["row", "image", "category"])


def by_category(data: ImageDataset, scores: np.ndarray, queries: pd.DataFrame) -> Evaluation:
    """Score ``(Q, N)`` rankings of the other images; relevant: those with the query's category."""
    holds = np.zeros((len(data), len(data.category_names)), bool)
    for i, many in enumerate(data.box_categories):
        holds[i, np.asarray(many, int)] = True
    images = queries["image"].to_numpy()
    ranked = []
    for line, i, category in zip(scores, images, queries["category"]):
        order = np.argsort(-line, kind="stable")
        ranked.append(holds[order[order != i], category])
    found = {m: np.array([metric_function(m)(one) for one in ranked]) for m in METRICS}
    return Evaluation(found, images, np.arange(len(images)), f"{data.name}/{data.split} f")


def coco_objects(data: ImageDataset, trunk, detector) -> dict[str, tuple[Objects, Objects]]:
    """Asking and answering objects of each way."""
    true, named = true_boxes(data), box_sources(data, detector, progress=False)
    same = {"whole image": named["whole image"], "true boxes": Region(true)}
    same |= {f"true boxes, context {c}": Region(true, context=c) for c in CONTEXTS}
    same |= {"true masks": Region(true, masked=True), "crops of true boxes": Region(true, "pixels")}
    guesses = ("mask_rcnn, top 5", "proposals, top 10", "R-MAC grid", "random boxes")
    regions = same | {name: named[name] for name in guesses}
    found = extract_objects(data, trunk, PAIRS, regions, QUIET)
    made = {way: (found[way if way in same else "true boxes"], found[way]) for way in regions}
    asking, answering = students(data, Region(true))
    made["student, true boxes"] = asking, asking
    return made | {"student, its own boxes": (asking, answering)}


def students(data: ImageDataset, *others: Region) -> list[Objects]:
    """The shipped student's vectors of some boxes, last of its own five best."""
    student = load_student()
    seen = detect(student.detector, data, progress=False, masks=False)
    own = Region(detector_boxes(data, student.detector, seen).top(5, name="its own boxes"))
    trunk, pair = StudentTrunk(student), ("student", "spoc")
    regions = {region.name: region for region in (*others, own)}
    return list(extract_objects(data, trunk, [pair], regions, QUIET).values())


def coco_scores(data: ImageDataset, asking, answering, pair) -> Evaluation:
    queries, vectors = queries_of(data), l2(asking.vectors[pair])
    asked = vectors[queries["image" if len(asking) == len(data) else "row"]]
    scores = image_scores(asked, l2(answering.vectors[pair]), answering.image)
    return by_category(data, scores, queries)


def coco(place: Path, trunk, detector) -> None:
    """Choose on train2017, report on val2017."""
    made = {}
    for split in ("train2017", "val2017"):
        truth = place / "annotations" / f"instances_{split}.json"
        made[split] = folder(place, annotations=truth, split=split, progress=False)
    train, val = (coco_objects(data, trunk, detector) for data in made.values())
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
    named = box_sources(data, detector, truth=False, progress=False)
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
        if some.where.counts.max() > 1 and name.startswith(("mask_rcnn", "student")):
            scores = retrieval_scores(vectors, some, top1_query(some), data, "best")
            found[f"{name}, the surest ({', '.join(pair)})"] = evaluate_scores(
                scores, data, METRICS
            )
    report(f"{data}", found)


def grocery_store(place: Path) -> ImageDataset:
    """Shop photographs of the test split (queries) and iconic pictures (gallery)."""
    classes = pd.read_csv(place / "classes.csv")
    photos = pd.read_csv(
        place / "test.txt", names=["file", "label", "coarse"], skipinitialspace=True
    )
    photos = photos[[(place / file).is_file() for file in photos["file"]]]
    files = [*photos["file"], *classes["Iconic Image Path (str)"].str.lstrip("/")]
    labels = np.concatenate([photos["label"], classes["Class ID (int)"]])
    every = np.arange(len(files))
    return ImageDataset("groceries", "photo to iconic", place, files, labels,
                        queries=every[: len(photos)], gallery=every[len(photos) :])  # fmt: skip


def chosen_on_battles(trunk, detector) -> dict[str, tuple[str, str]]:
    """Stage and pooling that train scenes choose for each source that needs no truth."""
    train = mini_battles("train").first_of_each(3)
    train = train.subset(train.labels % 2 == 0)
    named, found = box_sources(train, detector, truth=False, progress=False), {}
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
    first, rows = next(iter(found)), {}
    for name, one in found.items():
        change = paired_difference(one, found[first], "mAP")
        rows[name] = {"mAP": str(one.interval("mAP")), "R@1": str(one.interval("R@1")),
                      f"mAP, minus {first}": f"{change} {change.verdict}"}  # fmt: skip
    print(f"\n{title}\n\n{pd.DataFrame(rows).T.to_markdown()}")


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
