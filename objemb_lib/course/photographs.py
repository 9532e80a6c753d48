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
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from objemb_lib import config
from objemb_lib.attend.detections import boxes_from
from objemb_lib.attend.objects import oracle_query, retrieval_scores
from objemb_lib.attend.proposer import cross_fitted
from objemb_lib.attend.sources import centre, fixed_boxes, grid, random_like
from objemb_lib.cache import atomic_path
from objemb_lib.course.train import coco_folds, proposer_scenes
from objemb_lib.data import catalogue
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder, read_table
from objemb_lib.detect.metrics import main_recall
from objemb_lib.embed.boxes import Boxes, true_boxes, whole_image, with_whole
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.intervals import Evaluation
from objemb_lib.measure.leaderboard import Leaderboard
from objemb_lib.measure.metrics import evaluate, evaluate_scores

CLASSES, EACH = 40, 8  # of birds and cars: classes, and photographs of each
TOP = 5  # boxes of a photograph
QUIET = ExtractOptions(progress=False)
METRICS = ("mAP", "R@1")
Pair = tuple[str, str]


def collections(root: str | Path) -> dict[str, ImageDataset]:
    """The photographs of a folder by the name of their collection; {} for no folder.

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
        found["groceries"] = ImageDataset(
            "groceries", "all", listed.parent, list(rows.file), rows.label.to_numpy()
        )
    plain = {"split": "photographs", "protocol": "objects"}
    return {name: replace(data, name=name, **plain) for name, data in found.items()}


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


def coco_boxes(root: str | Path) -> dict[str, Boxes]:
    """Boxes of COCO's photographs by their source, five each where the name says no other number.

    What learns from photographs (the proposer, the fixed boxes) learned from the other fold.
    """
    root = Path(os.path.expandvars(str(root))).expanduser()
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


def scored(
    data: ImageDataset,
    network: Trunk,
    pairs: Sequence[Pair],
    on: str = "map",
    contexts: Sequence[float] = (0.0,),
    size: int = 256,
) -> dict[tuple[Pair, float], Evaluation]:
    """Retrieval by the main object (the whole photograph where it has no box), for each choice of
    (stage, pooling) and context."""
    boxes = true_boxes(data, main_only=True)
    regions = {str(c): Region(boxes, on, c) for c in contexts}
    options = replace(QUIET, size=size)
    found = extract_objects(data, network, pairs, regions, options)
    return {(pair, c): evaluate(l2(found[str(c)].vectors[pair]), data, metrics=METRICS)
            for pair in pairs for c in contexts}  # fmt: skip


def best_of(found: Mapping[str, Mapping], others: Sequence[str]) -> tuple[Pair, float]:
    """The choice of the highest mAP on the mean of ``others``, collections of :func:`scored`."""
    return max(found[others[0]], key=lambda c: np.mean([found[o][c].mean("mAP") for o in others]))


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


def numbers(board: Leaderboard) -> list[dict]:
    """A board's numbers, or where it measured none those of the committed run."""
    return [n for row in board.rows for n in row.numbers] or _committed()["measurements"]


def differences(board: Leaderboard) -> list[dict]:
    """The same of the differences."""
    return [d.__dict__ for d in board.differences] or _committed()["claims"]


def committed_embeddings() -> list[dict]:
    """The mAP of each way of embedding, in the committed run of notebook 06."""
    every = _committed()["measurements"]
    return [n for n in every if n["name"].startswith("embedding:") and n["metric"] == "mAP"]


def _committed() -> dict[str, list[dict]]:
    path = config.PROJECT / "results" / "photographs.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {part: [one for many in told.get(part, {}).values() for one in many]
            for part in ("measurements", "claims")}  # fmt: skip
