"""Which boxes see objects on real photographs, and what are they worth to a search?

    python benchmarks/proposals.py [--real FOLDER]

On 318 photographs of COCO (FOLDER/coco and FOLDER/coco_tiny, see OBJEMB_REAL), and on those of
val2017 apart, which no detector here has learned from:

- recall: the share of photographs whose main object, the largest box that is no crowd, is met at
  IoU 0.5 by one of the five best boxes; intervals by bootstrap over photographs;
- claim 2: mAP with a click on the main object minus mAP of the whole images (head, spoc, 256 px;
  every photograph asks all others, relevant: the main object is of the same category), paired by
  query, intervals by bootstrap over categories.

What learns from photographs (the proposer, the five fixed boxes) learns from the one folder and is
measured on the other, both ways. YOLOX-nano's and NanoDet-m's boxes lie beside the photographs.
Prints pandas tables, writes benchmarks/results/proposals.json; exits with 1 where the proposer
recalls less than 0.65, or takes more than 25 ms on two cores beside the forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from objemb_lib.attend.objects import oracle_query, retrieval_scores
from objemb_lib.attend.proposer import Proposer, cross_fitted, load_proposer
from objemb_lib.attend.sources import centre, detect_cached, detector_boxes, grid, random_like
from objemb_lib.cache import atomic_write_text
from objemb_lib.course.train import coco_folds
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.metrics import main_recall
from objemb_lib.detect.weights import load_detector
from objemb_lib.embed.boxes import Boxes, or_whole, true_boxes, whole_image
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region, model_input
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.metrics import Evaluation, cluster_interval, evaluate_scores, paired_difference

RESULT = Path(__file__).parent / "results" / "proposals.json"
QUIET = ExtractOptions(progress=False)
PAIR = ("head", "spoc")
TOP = 5
FOREIGN = {"YOLOX-nano": "yolox_nano", "NanoDet-m": "nanodet_m"}
FLOOR, CEILING = 0.65, 25.0  # recall; milliseconds


# --- photographs and boxes ----------------------------------------------------------------


def joined(parts: Sequence[ImageDataset], root: Path) -> ImageDataset:
    """Data sets below one folder, with the same categories, as one."""
    files = [str((Path(d.root) / file).relative_to(root)) for d in parts for file in d.files]
    boxed = {part: tuple(one for d in parts for one in getattr(d, part))
             for part in ("boxes", "box_labels", "box_categories")}  # fmt: skip
    labels = np.concatenate([d.labels for d in parts])
    return ImageDataset("COCO", "photographs", root, files, labels, parts[0].label_names, labels,
                        parts[0].category_names, **boxed)  # fmt: skip


def foreign_boxes(data: ImageDataset, name: str) -> Boxes:
    """What another detector found, from the COCO results beside the photographs."""
    found: dict[int, list[dict]] = {}
    for file in sorted(Path(data.root).glob(f"coco*/boxes/{FOREIGN[name]}_*.json")):
        once: dict[int, list[dict]] = {}
        for one in json.loads(file.read_text()):
            once.setdefault(one["image_id"], []).append(one)
        found |= once
    many = [found.get(int(Path(file).stem), []) for file in data.files]
    xywh = [np.array([one["bbox"] for one in some], np.float32).reshape(-1, 4) for some in many]
    boxes = [np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1) for b in xywh]
    scores = [np.array([one["score"] for one in some], np.float32) for some in many]
    return or_whole(name, data, boxes, scores, source=name)


def fixed_boxes(data: ImageDataset, fold: np.ndarray) -> Boxes:
    """The five boxes, of all on a grid of tenths, that together meet most of the other folds'
    main objects; chosen one by one."""
    ends = [(a, b) for a in np.linspace(0, 1, 11) for b in np.linspace(0, 1, 11) if b - a > 0.15]
    every = torch.tensor([[x0, y0, x1, y1] for x0, x1 in ends for y0, y1 in ends]).float()
    scale = np.tile(data.sizes(), 2)
    main = torch.tensor(np.stack([b[0] for b in data.boxes]) / scale).float()
    meets, found = box_iou(every, main).numpy() >= 0.5, {}
    for one in np.unique(fold):
        left, chosen = fold != one, []
        for _ in range(TOP):
            chosen.append(int((meets & left).sum(axis=1).argmax()))
            left = left & ~meets[chosen[-1]]
        found[one] = every[chosen].numpy()
    boxes = [found[one] * size for one, size in zip(fold, scale)]
    scores = [1 / np.arange(1, TOP + 1)] * len(data)
    return Boxes("five fixed boxes", boxes, scores, source="cross-fitted")


def every_source(data: ImageDataset, folds: list[list[ImageDataset]]) -> dict[str, Boxes]:
    """All boxes by their names, at most five an image but where the name says more."""
    fold = np.repeat(range(len(folds)), [sum(map(len, parts)) for parts in folds])
    some = [one for many in cross_fitted(folds, options=QUIET) for one in many]
    proposed = Boxes("proposer", [b for one in some for b in one.boxes],
                     [s for one in some for s in one.scores], source="cross-fitted")  # fmt: skip
    true = true_boxes(data)
    found = {"whole image": whole_image(data), "true boxes": true}
    found |= {name: foreign_boxes(data, name).top(TOP) for name in FOREIGN}
    for name in ("mask_rcnn", "faster_rcnn"):
        detector = load_detector(name)
        seen = detect_cached(data, detector, progress=False)
        found[name] = detector_boxes(data, detector, seen).top(TOP)
    found |= {"random boxes of true sizes": random_like(true, data), "centre box": centre(data)}
    found |= {"R-MAC grid (14)": grid(data), "five fixed boxes": fixed_boxes(data, fold)}
    return found | {"proposer": proposed, "proposer and whole image": with_whole(proposed, data)}


def with_whole(some: Boxes, data: ImageDataset) -> Boxes:
    """The whole image as a further object, the least sure."""
    boxes = [np.concatenate([b, w]) for b, w in zip(some.boxes, whole_image(data).boxes)]
    scores = [np.append(s, 0.0) for s in some.scores]
    return replace(some, name=f"{some.name} and whole image", boxes=boxes, scores=scores)


# --- measures -----------------------------------------------------------------------------


def recall(some: Boxes, data: ImageDataset, which: np.ndarray) -> dict:
    """Recall of main objects with its interval over the photographs ``which``."""
    hits = main_recall([{"boxes": torch.from_numpy(b)} for b in some.boxes], data)[which]
    found = cluster_interval(hits.astype(float), np.arange(len(hits)))
    return {"recall": found.value, "low": found.low, "high": found.high}


def by_click(some: Objects, data: ImageDataset, which: np.ndarray) -> Evaluation:
    """Retrieval among the photographs ``which``: a click's box asks, the best box answers."""
    vectors = l2(some.vectors[PAIR])
    scores = retrieval_scores(vectors, some, oracle_query(some, data), data, "best")
    return evaluate_scores(scores[np.ix_(which, which)], data.subset(which), ["mAP"])


def table(found: dict[str, Boxes], objects: dict[str, Objects], data: ImageDataset,
          which: np.ndarray) -> pd.DataFrame:  # fmt: skip
    """A line a source: recall, mAP with a click, and its difference from the whole images."""
    whole = by_click(objects["whole image"], data, which)
    lines = []
    for name, boxes in found.items():
        one, said = by_click(objects[name], data, which), recall(boxes, data, which)
        more = paired_difference(one, whole, "mAP")
        lines.append({"boxes": name, "an image": boxes.counts[which].mean(), **said,
                      "mAP": one.mean("mAP"), "minus whole": more.value, "from": more.low,
                      "to": more.high, "verdict": more.verdict})  # fmt: skip
    return pd.DataFrame(lines).set_index("boxes")


@torch.inference_mode()
def milliseconds(proposer: Proposer, data: ImageDataset, images: int = 60) -> dict[str, float]:
    """Median times of one image: the forward pass, and what the proposer adds to it."""
    trunk, spent = load_trunk().for_inference(torch.device("cpu")), []
    for i in (0, *range(images)):  # the first one warms up
        pixels = torch.from_numpy(model_input(data.image(i), QUIET.size).copy())
        pixels = pixels.permute(2, 0, 1)[None]
        start = time.perf_counter()
        maps = trunk(trunk.normalise(pixels))
        middle = time.perf_counter()
        proposer.best(maps)
        spent.append((middle - start, time.perf_counter() - middle))
    median = partial(statistics.median)
    forward, beside = (1000 * median(times) for times in zip(*spent[1:]))
    return {"forward pass": round(forward, 1), "proposer": round(beside, 1)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    beside = Path(__file__).resolve().parents[2] / "shared" / "real"
    real = Path(os.environ.get("OBJEMB_REAL", beside))
    parser.add_argument("--real", type=Path, default=real, metavar="FOLDER")
    root = parser.parse_args().real
    warnings.filterwarnings("ignore", message=".*are here")
    folds = coco_folds([root / "coco", root / "coco_tiny"])
    data = joined([one for fold in folds for one in fold], root)
    times = milliseconds(load_proposer(), data)
    found = every_source(data, folds)
    regions = {name: Region(boxes) for name, boxes in found.items()}
    objects = extract_objects(data, load_trunk(), [PAIR], regions, QUIET)
    val = np.array(["val2017" in file for file in data.files])
    parts = {"all": np.arange(len(data)), "val2017": np.flatnonzero(val)}
    tables = {f"{name}, {len(which)} photographs": table(found, objects, data, which)
              for name, which in parts.items()}  # fmt: skip
    for name, one in tables.items():
        print(f"\n{name}\n\n{one.to_markdown(floatfmt='.3f')}")
    print(f"\nmilliseconds of one image, {torch.get_num_threads()} threads: {times}")
    results = {name: json.loads(one.round(4).to_json(orient="index")) for name, one in tables.items()}
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(),
               "torch": torch.__version__}  # fmt: skip
    atomic_write_text(RESULT, json.dumps({**results, "ms": times, **machine}, indent=1) + "\n")
    got = next(iter(tables.values())).loc["proposer", "recall"]
    return int(got < FLOOR or times["proposer"] > CEILING)


if __name__ == "__main__":
    sys.exit(main())
