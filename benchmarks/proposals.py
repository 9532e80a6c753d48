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
measured on the other, both ways; the proposer also learns from scenes of mini-battles. YOLOX-nano's
and NanoDet-m's boxes lie beside the photographs.

Prints pandas tables, writes benchmarks/results/proposals.json; exits with 1 where the proposer
recalls less than 0.65, or takes more than 25 ms beside the forward pass (on a
quiet machine: other work slows both).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from turns import in_turns, write

from objemb_lib.attend.detections import boxes_from
from objemb_lib.attend.objects import oracle_query, retrieval_scores
from objemb_lib.attend.proposer import Proposer, cross_fitted, load_proposer
from objemb_lib.attend.sources import centre, fixed_boxes, grid, random_like
from objemb_lib.course.train import coco_folds, proposer_scenes
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.metrics import main_recall
from objemb_lib.embed.boxes import Boxes, true_boxes, whole_image, with_whole
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region, model_input
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure.intervals import Evaluation, cluster_interval, paired_difference
from objemb_lib.measure.metrics import evaluate_scores

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


def together(name: str, parts: Sequence[Boxes]) -> Boxes:
    """The boxes of the parts of a joined data set, five an image."""
    boxes, scores = ([one for part in parts for one in getattr(part, what)]
                     for what in ("boxes", "scores"))  # fmt: skip
    return Boxes(name, boxes, scores, source=name).top(TOP, name=name)


def foreign_boxes(name: str, parts: Sequence[ImageDataset]) -> Boxes:
    """What another detector found, from the COCO results beside the photographs."""
    places = [(Path(one.root) / one.files[0]).parent for one in parts]
    files = [p.parent / "boxes" / f"{FOREIGN[name]}_{p.name}.json" for p in places]
    return together(name, [boxes_from(file, one) for file, one in zip(files, parts)])


def every_source(data: ImageDataset, folds: list[list[ImageDataset]]) -> dict[str, Boxes]:
    """All boxes by their names, at most five an image but where the name says more."""
    fold = np.repeat(range(len(folds)), [sum(map(len, parts)) for parts in folds])
    halves = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(len(folds))]
    fixed = [fixed_boxes(data.subset(others), data.subset(these)) for others, these in halves]
    proposed, true = (
        together("proposer", cross_fitted(folds, [proposer_scenes()], options=QUIET)),
        true_boxes(data),
    )
    found = {"whole image": whole_image(data), "true boxes": true}
    parts = [one for many in folds for one in many]
    found |= {name: foreign_boxes(name, parts) for name in FOREIGN}
    for name in ("mask_rcnn", "faster_rcnn"):
        found[name] = boxes_from(name, data, progress=False).top(TOP)
    found |= {"random boxes of true sizes": random_like(true, data), "centre box": centre(data)}
    found |= {"R-MAC grid (14)": grid(data)}
    found["five fixed boxes"] = together("five fixed boxes", fixed)
    return found | {"proposer": proposed, "proposer and whole image": with_whole(proposed, data)}


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
def milliseconds(proposer: Proposer, data: ImageDataset, images: int = 40) -> dict[str, float]:
    """Median times of one image: the forward pass, and what the proposer adds to it."""
    trunk, spent = load_trunk().for_inference(torch.device("cpu")), {}
    for i in range(images):
        pixels = torch.from_numpy(model_input(data.image(i), QUIET.size).copy())
        pixels = trunk.normalise(pixels.permute(2, 0, 1)[None])
        maps = trunk(pixels)
        ways = {"forward pass": partial(trunk, pixels), "proposer": partial(proposer.best, maps)}
        for name, seconds in in_turns(ways, 1).items():
            spent.setdefault(name, []).extend(seconds)
    return {name: round(1000 * statistics.median(many), 1) for name, many in spent.items()}


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
    folds = coco_folds(f"coco:{root / 'coco'},{root / 'coco_tiny'}")
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
    results = {name: one.round(4).to_dict(orient="index") for name, one in tables.items()}
    write("proposals", {"threads": torch.get_num_threads(), "milliseconds": times, **results})
    got = next(iter(tables.values())).loc["proposer", "recall"]
    return int(got < FLOOR or times["proposer"] > CEILING)


if __name__ == "__main__":
    sys.exit(main())
