"""Real photographs on which the course's findings are put to the test (notebook 06).

A folder holds any of these, as their publishers lay them out: ``coco/`` and ``coco_tiny/`` (COCO
2017 or a part of it; detections of others in ``boxes/NAME_train2017.json`` and ``..._val2017.json``
join), ``cub_2011_species/`` (a sub-folder each species), ``stanford_cars/`` (photographs cut to the
car), ``grocery/dataset/`` (the Grocery Store data set). The folder of ``data/download.py`` with
``coco``, ``cub`` and ``cars`` in it is one as well. Small samples: what they cannot tell, their
intervals say.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from objemb_lib import config
from objemb_lib.attend.detections import boxes_from
from objemb_lib.attend.objects import evaluate_objects, oracle_query, retrieval_scores
from objemb_lib.attend.proposer import cross_fitted
from objemb_lib.attend.sources import centre, fixed_boxes, grid, random_like
from objemb_lib.cache import atomic_path
from objemb_lib.config import DownloadError
from objemb_lib.course.train import coco_folds, proposer_scenes
from objemb_lib.data import catalogue
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder, read_table
from objemb_lib.detect.classifier import practised
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.detect.metrics import main_recall
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import Boxes, true_boxes, whole_image, with_whole
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.intervals import Evaluation
from objemb_lib.measure.leaderboard import (
    Difference,
    Leaderboard,
    committed,
    difference,
    measured,
    where,
)
from objemb_lib.measure.metrics import evaluate, evaluate_scores
from objemb_lib.teach.student import ADAPTIVE, CutTrunk, Student, StudentTrunk, load_student

CLASSES, EACH = 40, 8  # of birds and cars: classes, and photographs of each
TOP = 5  # boxes of a photograph
SIZE, LARGE = 256, 384  # sides in pixels of what a network sees; the larger one is the fork's
QUIET = ExtractOptions(progress=False)
METRICS = ("mAP", "R@1")
Pair = tuple[str, str]
PLAIN: Pair = ("head", "spoc")
NEWER = ("vit_small_patch14_dinov2.lvd142m", "vit_base_patch16_clip_224.openai",
         "vit_base_patch16_siglip_224.webli")  # fmt: skip
CONTEXTS = (0.0, -0.2, -0.35, -0.5)
RIVALS = {  # of claim 3, each pair compared on each collection
    "student, adaptive cut": ("untrained branch, adaptive cut",),
    "student": ("detector's box head", "untrained branch, adaptive cut",
                "teacher's head on the map"),
    "fork": ("teacher's head on a larger map", "crop teacher"),
}  # fmt: skip


def collections(root: str | Path, **scenes: ImageDataset) -> dict[str, ImageDataset]:
    """The photographs of a folder by the name of their collection, after ``scenes``, which stand
    beside them; {} for no folder.

    Every photograph asks all others of its collection. Of COCO the label is the category of the
    main object, the largest that is no crowd; the others have no boxes.
    """
    root = Path(os.path.expandvars(str(root))).expanduser()
    if not str(root).strip(".") or not root.is_dir():
        return {}
    found = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are here")
        if (root / "coco" / "annotations").is_dir():
            found["COCO"] = coco(root)[0]
        if (root / "cub_2011_species").is_dir():
            found["birds"] = _few(folder(root / "cub_2011_species", progress=False))
        for name, entry, place in (("birds", "cub", "cub"), ("cars", "cars", "stanford_cars"),
                                   ("cars", "cars", "cars")):  # fmt: skip
            if name not in found and (root / place).is_dir():
                data = catalogue.entry(entry).load("train", root / place)
                bare = {"boxes": (), "box_labels": (), "box_categories": (), "masks": None}
                found[name] = _few(replace(data, **bare))
    if (listed := root / "grocery" / "dataset" / "test.txt").is_file():
        rows = read_table(listed, names=["file", "label", "coarse"], skipinitialspace=True)
        rows = rows[[(listed.parent / file).is_file() for file in rows.file]]
        files, labels = list(rows.file), rows.label.to_numpy()
        found["groceries"] = ImageDataset("groceries", "all", listed.parent, files, labels)
    plain = {"split": "photographs", "protocol": "objects"}
    found = {name: replace(data, name=name, **plain) for name, data in found.items()}
    return scenes | found if found else {}


def _few(data: ImageDataset) -> ImageDataset:
    return data.subset(data.labels < CLASSES).first_of_each(EACH)


def coco(root: Path) -> tuple[ImageDataset, np.ndarray]:
    """COCO's photographs with a box, and the fold of each: what learns, learns from the others."""
    places = [root / name for name in ("coco", "coco_tiny") if (root / name).is_dir()]
    folds = coco_folds("coco:" + ",".join(map(str, places)))
    folds = [[one.subset([len(b) > 0 for b in one.boxes]) for one in fold] for fold in folds]
    parts = [one for fold in folds for one in fold]
    files = [str((Path(d.root) / file).relative_to(root)) for d in parts for file in d.files]
    boxed = {part: tuple(one for d in parts for one in getattr(d, part))
             for part in ("boxes", "box_labels", "box_categories")}  # fmt: skip
    labels = np.concatenate([d.labels for d in parts])
    data = ImageDataset("COCO", "photographs", root, files, labels, parts[0].label_names, labels,
                        parts[0].category_names, **boxed)  # fmt: skip
    return data, np.repeat(range(len(folds)), [sum(map(len, fold)) for fold in folds])


# --- who says where to look --------------------------------------------------------------------


def coco_boxes(root: Path) -> dict[str, Boxes]:
    """Boxes of COCO's photographs by their source, five each where the name says no other number.

    What learns from photographs (the proposer, the fixed boxes) learned from the other fold.
    """
    data, fold = coco(root)
    folds = [data.subset(fold == one) for one in np.unique(fold)]
    found = {"whole image": whole_image(data), "true boxes": true_boxes(data)}
    for name in sorted({p.stem.rpartition("_")[0] for p in root.glob("*/boxes/*_*2017.json")}):
        found[name] = _elsewhere(name, data, root)
    for name in ("mask_rcnn", "faster_rcnn"):
        found[name] = boxes_from(name, data, progress=False).top(TOP)
    found |= {"random boxes of true sizes": random_like(found["true boxes"], data)}
    found |= {"centre box": centre(data), "R-MAC grid (14)": grid(data)}
    others = [data.subset(fold != one) for one in np.unique(fold)]
    fixed = [fixed_boxes(train, one, TOP) for train, one in zip(others, folds)]
    found["five fixed boxes"] = _together("five fixed boxes", fixed)
    proposed = cross_fitted([[one] for one in folds], [proposer_scenes()], options=QUIET)
    found["proposer"] = _together("proposer", proposed)
    return found | {"proposer and whole image": with_whole(found["proposer"], data)}


def _elsewhere(name: str, data: ImageDataset, root: Path) -> Boxes:
    """Detections that lie beside the photographs, a file each part."""
    each = np.array([str(Path(file).parent) for file in data.files])
    parts = list(dict.fromkeys(each))
    files = [root / Path(p).parent / "boxes" / f"{name}_{Path(p).name}.json" for p in parts]
    return _together(name, [boxes_from(f, data.subset(each == p)) for f, p in zip(files, parts)])


def _together(name: str, parts: Sequence[Boxes]) -> Boxes:
    boxes, scores = ([one for part in parts for one in getattr(part, what)]
                     for what in ("boxes", "scores"))  # fmt: skip
    return Boxes(name, boxes, scores, source=name).top(TOP, name=name)


def compare_boxes(board: Leaderboard, sets: Mapping[str, ImageDataset]) -> pd.DataFrame:
    """Claim 2 on COCO, if it is there, and the scores of each source of boxes (a line each)."""
    if "COCO" in sets:
        data, trunk = sets["COCO"], load_trunk()
        regions = {n: Region(some, called=n) for n, some in coco_boxes(data.root).items()}
        objects = extract_objects(data, trunk, [PLAIN], regions, replace(QUIET, size=SIZE))
        val = np.flatnonzero(["val2017" in file for file in data.files])
        for part, which in (("COCO", np.arange(len(data))), ("COCO val2017", val)):
            clicks = {n: by_click(o, data, PLAIN, which) for n, o in objects.items()}
            for name, found in clicks.items():
                setting = where(data, trunk, SIZE, PLAIN, regions[name]) | {"data": part}
                board.add(f"boxes: {name}", found, ("mAP", "recall"), **setting)
                if name != "whole image":
                    sides = name, found, "whole image", clicks["whole image"]
                    board.record(difference(2, f"{part}, a click", *sides))
    shown = {metric: means(board, "boxes", metric)["COCO"] for metric in ("recall", "mAP")}
    return pd.DataFrame(shown).sort_values("recall", ascending=False)


def by_click(
    objects: Objects, data: ImageDataset, pair: Pair, which: np.ndarray | None = None
) -> Evaluation:
    """Retrieval among the photographs ``which`` (default all) by a click on the main object, with
    ``recall``: 1 where a box meets it at IoU 0.5."""
    which = np.arange(len(data)) if which is None else which
    vectors, boxes = l2(objects.vectors[pair]), objects.where.boxes
    scores = retrieval_scores(vectors, objects, oracle_query(objects, data), data)
    part = data.subset(which)
    hits = main_recall([{"boxes": torch.from_numpy(boxes[i])} for i in which], part, 100)
    found = evaluate_scores(scores[np.ix_(which, which)], part, METRICS)
    return replace(found, values=found.values | {"recall": hits.astype(float)})


# --- how a main object is embedded -------------------------------------------------------------


class Way(NamedTuple):
    """How a main object becomes a vector: of what may be chosen, :func:`scored` scores all.

    Args:
        pairs: stages with their poolings. on: where boxes are cut, see :class:`Region`.
        contexts: around a box. size: of the network's input, in pixels.
    """

    network: Trunk
    pairs: Sequence[Pair] = (PLAIN,)
    on: str = "map"
    contexts: Sequence[float] = (0.0,)
    size: int = SIZE

    def setting(self, data: ImageDataset, pair: Pair, context: float = 0.0) -> dict[str, str | int]:
        """Of its row on a board."""
        region = Region(true_boxes(data, main_only=True), self.on, context)
        return where(data, self.network, self.size, pair, region)


def ways() -> dict[str, Way]:
    """Those that claim 3 compares. Rivals choose stage, pooling and context as freely as ours."""
    trunk, branch = load_trunk(), [("student", "spoc")]
    body = [(s, pool) for s in ("stage4", "stage5", "head") for pool in ("spoc", "rmac", "crow")]
    detector, student, fork = load_detector("faster_rcnn"), load_student(), load_student("fork")
    again = {"cells": ADAPTIVE, "leave_out": ()}
    own, cut = DetectorTrunk(detector), CutTrunk(trunk, **again)
    untrained, adaptive = (Student(some, **again) for some in (detector, student.detector))
    return {
        "crop teacher": Way(trunk, [("head", "rmac")], "pixels"),
        "teacher's head on the map": Way(trunk),
        "teacher on the map": Way(trunk, body, contexts=CONTEXTS),
        "detector's box head": Way(own, [("box_head", "spoc")], contexts=CONTEXTS),
        "detector on its map": Way(own, body, contexts=CONTEXTS),
        "student": Way(StudentTrunk(student), branch, contexts=CONTEXTS),
        "untrained branch, adaptive cut": Way(StudentTrunk(untrained), branch, contexts=CONTEXTS),
        "student, adaptive cut": Way(StudentTrunk(adaptive), branch, contexts=CONTEXTS),
        "ImageNet's tail, adaptive cut": Way(cut, [("cut", "spoc")]),
        "teacher's head on a larger map": Way(trunk, size=LARGE),
        "fork": Way(StudentTrunk(fork), branch, size=LARGE),
        "fork on a smaller map": Way(StudentTrunk(fork), branch),
    }


def scored(data: ImageDataset, way: Way) -> dict[tuple[Pair, float], Evaluation]:
    """Retrieval by the main object (the whole photograph where it has no box), for each choice of
    (stage, pooling) and context."""
    boxes = true_boxes(data, main_only=True)
    regions = {str(c): Region(boxes, way.on, c) for c in way.contexts}
    options = replace(QUIET, size=way.size)
    found = extract_objects(data, way.network, way.pairs, regions, options)
    return {(pair, c): evaluate(l2(found[str(c)].vectors[pair]), data, metrics=METRICS)
            for pair in way.pairs for c in way.contexts}  # fmt: skip


def best_of(found: Mapping[str, Mapping], others: Sequence[str]) -> tuple[Pair, float]:
    """The choice of the highest mAP on the mean of ``others``, collections of :func:`scored`."""
    return max(found[others[0]], key=lambda c: np.mean([found[o][c].mean("mAP") for o in others]))


def compare_embeddings(board: Leaderboard, sets: Mapping[str, ImageDataset]) -> pd.DataFrame:
    """Claim 3 on each collection, and the mAP of each way, chosen on the other collections.

    Chosen on pasted train scenes, too, which :func:`means` can show.
    """
    best = {}  # (way, collection, what it was chosen on) -> scores
    if sets:
        train = catalogue.load_splits("mini-battles").train.first_of_each(2).subsample_labels()
    for name, way in ways().items() if sets else ():
        found = {s: scored(data, way) for s, data in ({"scenes": train} | sets).items()}
        for s, data in sets.items():
            others = [o for o in sets if o not in (s, "battle")] or ["scenes"]
            for chosen_on, among in (("scenes", ["scenes"]), ("photographs", others)):
                pair, context = best_of(found, among)
                best[name, s, chosen_on] = one = found[s][pair, context]
                setting = way.setting(data, pair, context) | {"data": s, "chosen_on": chosen_on}
                board.add(f"embedding: {name}", one, **setting)
    for a, b, s in ((a, b, s) for a, rivals in RIVALS.items() for b in rivals for s in sets):
        sides = a, best[a, s, "photographs"], b, best[b, s, "photographs"]
        board.record(difference(3, f"{s}, against {b}", *sides))
    return means(board, "embedding")


def compare_practice(board: Leaderboard, sets: Mapping[str, ImageDataset]) -> pd.DataFrame:
    """Claim 1 on each collection, with its control, all at one stage; the mAP of each network."""
    if sets:
        networks = {"classification": load_trunk(), **practised(load_trunk().name)}
        for name in ("faster_rcnn", "mask_rcnn", "fcos"):
            networks[name] = DetectorTrunk(load_detector(name))
        found = _add(board, "claim 1", {n: Way(one) for n, one in networks.items()}, sets)
        for (name, s), one in found.items():
            if name != "classification":
                sides = "classification", found["classification", s], name, one
                board.record(difference(1, f"{s}, same stage", *sides))
    return means(board, "claim 1")


def compare_small(board: Leaderboard, sets: Mapping[str, ImageDataset]) -> pd.DataFrame:
    """The mAP of what fills its photograph, once it is :func:`pasted` small into those of COCO."""
    if "COCO" in sets:
        every = ways()
        cut = every["ImageNet's tail, adaptive cut"]
        some = {"crop teacher": every["crop teacher"],
                "head of the map": every["teacher's head on the map"], "adaptive cut": cut,
                "adaptive cut, larger input": cut._replace(size=LARGE),
                "fork": every["fork"]}  # fmt: skip
        small = [pasted(sets[s], sets["COCO"]) for s in sets if s not in ("battle", "COCO")]
        _add(board, "pasted", some, {data.name: data for data in small}, region="true boxes")
    return means(board, "pasted")


def compare_newer(board: Leaderboard, sets: Mapping[str, ImageDataset]) -> pd.DataFrame:
    """The mAP of vision transformers, those whose weights can be fetched."""
    for name in NEWER if sets else ():
        try:
            _add(board, "newer", {name: Way(load_trunk(name))}, sets)
        except DownloadError:
            break  # each would wait as long
    return means(board, "newer")


def _add(
    board: Leaderboard, part: str, ways: Mapping[str, Way], sets: Mapping, **setting: str
) -> dict[tuple[str, str], Evaluation]:
    """Rows of ways that leave no choice; their scores by way and collection."""
    found = {}
    for (name, way), (s, data) in itertools.product(ways.items(), sets.items()):
        ((choice, found[name, s]),) = scored(data, way).items()
        stated = way.setting(data, *choice) | {"data": s} | setting
        board.add(f"{part}: {name}", found[name, s], **stated)
    return found


def compare_own(place: str | Path, boxes: str = "proposer") -> pd.Series:
    """The mAP of two ways to search a folder with a sub-folder for each thing: by the whole image,
    or by ``boxes`` (a detector's name, a COCO file) and the whole image. Empty for no folder."""
    if not place:
        return pd.Series(dtype=object)
    data = folder(place)
    found = boxes_from(boxes, data, progress=False).top(TOP)
    looks = {"whole image": Region(whole_image(data)), found.name: Region(with_whole(found, data))}
    objects = extract_objects(data, load_trunk(), [PLAIN], looks, replace(QUIET, size=SIZE))
    return pd.Series({name: str(evaluate_objects(some, data, PLAIN, ["mAP"]).interval("mAP"))
                      for name, some in objects.items()})  # fmt: skip


def pasted(
    data: ImageDataset, behind: ImageDataset, low: float = 0.3, high: float = 0.6
) -> ImageDataset:
    """Each photograph as a small thing on another one, its place its box.

    Its longer side is ``low`` to ``high`` of the background's shorter one; every background is used
    once before any is used again.
    """
    rng, files, boxes = np.random.default_rng(config.SEED), [], []
    key = f"{data.fingerprint} {behind.fingerprint} {low} {high} 1"
    place = config.cache_root() / "pasted" / hashlib.sha256(key.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    grounds = rng.permutation(np.resize(np.arange(len(behind)), len(data)))
    for i, ground in enumerate(grounds):
        scene, thing = behind.image(int(ground)).copy(), data.image(i)
        side = rng.uniform(low, high) * min(scene.size) / max(thing.size)
        width, height = (max(8, round(side * n)) for n in thing.size)
        x, y = (int(rng.uniform(0, max(1, n - m)))
                for n, m in zip(scene.size, (width, height)))  # fmt: skip
        files.append(f"{i:05d}.png")
        boxes.append(np.array([[x, y, x + width, y + height]], np.float32))
        if not (place / files[-1]).exists():
            scene.paste(thing.resize((width, height), Image.Resampling.LANCZOS), (x, y))
            with atomic_path(place / files[-1]) as part:
                scene.save(part, format="PNG", compress_level=1)
    return ImageDataset(f"{data.name}, pasted", "photographs", place, files, data.labels,
                        data.label_names, boxes=boxes)  # fmt: skip


# --- what was measured -------------------------------------------------------------------------


def numbers(board: Leaderboard, part: str = "") -> list[dict]:
    """A board's numbers of a part ("boxes"), or where it has none those of the committed run."""
    own = [n for row in board.rows for n in row.numbers if n["name"].startswith(part)]
    kept, _ = measured(committed("photographs"))
    return own or [n for n in kept if n["name"].startswith(part)]


def differences(board: Leaderboard, claim: int) -> list[Difference]:
    """The same of a claim's differences."""
    own = [d for d in board.differences if d.claim == claim]
    return own or [d for d in measured(committed("photographs"))[1] if d.claim == claim]


def means(
    board: Leaderboard, part: str, metric: str = "mAP", chosen_on: str = "photographs"
) -> pd.DataFrame:
    """A line for each name of a part, a column for each collection."""
    found: dict[str, dict[str, float]] = {}
    for n in numbers(board, f"{part}: "):
        if n["metric"] == metric and n.get("chosen_on", chosen_on) == chosen_on:
            found.setdefault(n["data"], {})[n["name"].partition(": ")[2]] = n["value"]
    return pd.DataFrame(found)


def verdicts(board: Leaderboard, claim: int) -> pd.DataFrame:
    """A claim's differences with their verdicts: a line a pair, a column a collection."""
    found: dict[str, dict[str, str]] = {}
    for d in differences(board, claim):
        said = f"{d.value:+.2f} [{d.low:+.2f}, {d.high:+.2f}] {d.verdict}"
        found.setdefault(d.setting.partition(",")[0], {})[f"{d.a} − {d.b}"] = said
    return pd.DataFrame(found)
