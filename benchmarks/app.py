"""Does the app know how often its first answers are right? What it says of them, learned anew.

    OBJEMB_REAL=FOLDER python benchmarks/app.py [--fit] [--quick]

FOLDER as of `course.photographs`. Every photograph asks all others of its collection, in the app's
own settings, with the surest box of the proposer; of COCO, of which the proposer learned, with that
of one that learned from the other half. Chances are learned on labels of even number and checked on
the odd ones, and learned on other collections; COCO, whose labels are categories, is only tested.
`--fit` writes the former to objemb_lib/search/calibrations.json, with those of mini-battles'
training scenes. Prints what was checked, and writes benchmarks/results/app.json.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from turns import arguments, write

from objemb_lib import config
from objemb_lib.attend.detections import PROPOSER, boxes_from
from objemb_lib.cache import atomic_write_text
from objemb_lib.course import photographs
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.measure.metrics import truth
from objemb_lib.search.calibration import SHIPPED, Calibration, made_of, nearness
from objemb_lib.search.retriever import Retriever, is_whole
from objemb_lib.show.app import PHOTOGRAPHS, SCENES, TOP, own_boxes
from objemb_lib.teach.student import StudentTrunk, load_student

LEARNED = ("groceries", "birds", "cars")  # COCO, whose labels are categories, is only tested
KINDS, FIRST = ("box", "whole", "both"), 8  # answers that a person sees
FAR = -99.0
ALL, EVEN, ODD = slice(None), slice(0, None, 2), slice(1, None, 2)  # labels whose images ask
SURE, FEWEST = 0.75, 20  # "nothing here" must be right so often, of as many queries at least


@dataclass(frozen=True, eq=False)
class Gallery:
    """A collection in the app's index, and the scores of its images for each other."""

    way: Retriever

    @property
    def data(self) -> ImageDataset:
        return self.way.dataset

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """``(N, N)`` by what asks, surest box or whole: as the app, the best of all pairs."""
        objects = [self.way.index.of_images([i])[0] for i in range(len(self.data))]
        whole = [is_whole(boxes, size) for (boxes, _), size in zip(objects, self.data.sizes())]
        starts = np.cumsum([0, *(len(boxes) for boxes, _ in objects[:-1])])
        vectors = np.concatenate([vectors for _, vectors in objects])
        asks = {"box": starts, "whole": np.flatnonzero(np.concatenate(whole))}
        found = {kind: np.maximum.reduceat(vectors[rows] @ vectors.T, starts, axis=1)
                 for kind, rows in asks.items()}  # fmt: skip
        return found | {"both": np.maximum(found["box"], found["whole"])}

    @cached_property
    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        """``(N, N)`` booleans: what is relevant, and what is junk."""
        each = [truth(self.data, query) for query in range(len(self.data))]
        return np.stack([relevant for relevant, _ in each]), np.stack([junk for _, junk in each])

    def ranked(self, kind: str, absent: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """``(N, 32)`` scores, best first, and which are right.

        ``absent``: as if nothing that is right were there.
        """
        relevant, junk = self.truth
        scores = np.where(junk | (relevant & absent), FAR, self.scores[kind])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :32]
        right = np.take_along_axis(relevant & ~absent, order, 1)
        return np.take_along_axis(scores, order, 1), right


# --- what is learned -------------------------------------------------------------------------


def logistic(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Slope and offset."""
    found = LogisticRegression(C=1e3).fit(x[:, None], y)
    return [float(found.coef_[0, 0]), float(found.intercept_[0])]


def answers(
    galleries: Sequence[Gallery], kind: str, who: slice, absent: bool = False
) -> Iterator[tuple]:
    """Of each collection scores ``(Q, 32)``, and which are right; without an answer, no query."""
    for one in galleries:
        scores, right = one.ranked(kind, absent)
        asks = np.isin(one.data.labels, np.unique(one.data.labels)[who])
        asks &= one.truth[0].any(axis=1)
        yield scores[asks], right[asks]


def fit(galleries: Sequence[Gallery], who: slice, first: str = "both") -> Calibration:
    """How often answers are right, by how near they are; and, where ``first`` asks, the chance
    below which "nothing here" is right of :data:`SURE` queries, if it is true of half of all."""
    chances = {}
    for kind in KINDS:
        each = list(answers(galleries, kind, who))
        x = np.concatenate([nearness(s)[:, :FIRST].ravel() for s, _ in each])
        chances[kind] = logistic(x, np.concatenate([r[:, :FIRST].ravel() for _, r in each]))
    chances = {kind: curve for kind, curve in chances.items() if curve[0] > 0}  # else it tells none
    known = Calibration(chances)
    there, p = presence(galleries, known, who, first)
    order = np.argsort(p)
    sure = np.cumsum(~there[order]) / np.arange(1, len(p) + 1) >= SURE
    last = np.flatnonzero(sure[FEWEST:])
    return replace(known, nothing=float(p[order][last[-1] + FEWEST]) if len(last) else np.nan)


def presence(
    galleries: Sequence[Gallery], known: Calibration, who: slice, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Whether what was asked for is in the gallery, and the chance of the first answer."""
    found = [(known.chance(s, kind)[:, 0], not absent) for absent in (False, True)
             for s, _ in answers(galleries, kind, who, absent)]  # fmt: skip
    there = np.concatenate([np.full(len(chances), is_there) for chances, is_there in found])
    return there, np.concatenate([chances for chances, _ in found])


def checked(
    galleries: Sequence[Gallery], known: Calibration, who: slice, kind: str = "both"
) -> dict[str, float]:
    """How true the chances are: error of calibration (ten bins), AUC; of all and first answers."""
    told: dict[str, float] = {}
    every = list(answers(galleries, kind, who))
    for name, some in (("first answer", slice(0, 1)), (f"first {FIRST}", slice(0, FIRST))):
        p = np.concatenate([known.chance(s, kind)[:, some].ravel() for s, _ in every])
        right = np.concatenate([r[:, some].ravel() for _, r in every])
        bins = np.minimum((10 * p).astype(int), 9)
        off = sum(abs(p[bins == n].sum() - right[bins == n].sum()) for n in range(10)) / len(p)
        told |= {f"{name}: right": right.mean(), f"{name}: said": p.mean(), f"{name}: error": off,
                 f"{name}: AUC": roc_auc_score(right, p)}  # fmt: skip
    there, p = presence(galleries, known, who, kind)
    if (p < known.nothing).any():
        told["nothing: right"] = (~there)[p < known.nothing].mean()
        told["nothing: said where true"] = (p < known.nothing)[~there].mean()
        told["nothing: said where false"] = (p < known.nothing)[there].mean()
    return {name: round(float(value), 3) for name, value in told.items()}


# --- the app's own settings -------------------------------------------------------------------


def settings(given: Mapping) -> dict[str, tuple[Trunk, list, float, int]]:
    """The two networks of the app by name, with (stage, pooling), context and size."""
    (name, how), (_, plain) = given.items()
    trunk = load_trunk("efficientnet_lite0")
    return {name: (StudentTrunk(load_student(name)), *how), trunk.name: (trunk, *plain)}


def gallery(data: ImageDataset, boxes: Boxes, how: tuple) -> Gallery:
    network, pairs, context, size = how
    region = Region(boxes, context=context)
    return Gallery(Retriever.build(data, network, pairs, region, size, progress=False))


def made(network: str, how: tuple, boxes: str, known: Calibration) -> dict:
    """A calibration as it is shipped; what is nan is left out."""
    curve = {name: value for name, value in asdict(known).items() if value == value}
    return {"network": network, "made_of": made_of(*how, boxes), "calibration": curve}


def photograph_sets(quick: bool) -> dict[str, tuple[ImageDataset, Boxes]]:
    """Collections with the proposer's boxes."""
    root = config.place("OBJEMB_REAL")
    sets = photographs.collections(root)
    coco = sets.pop("COCO")
    if quick:
        sets = {name: data.first_of_each(2) for name, data in sets.items()}
    found = {name: (data, boxes_from(PROPOSER, data, progress=False).top(TOP))
             for name, data in sets.items()}  # fmt: skip
    return found if quick else found | {"COCO": (coco, photographs.coco_boxes(root)["proposer"])}


def main() -> None:
    """Learn, check, keep."""
    asked = arguments(__doc__, fit=False, quick=False)
    if not photographs.collections(config.setting("OBJEMB_REAL")):
        print("no photographs: OBJEMB_REAL names no folder of them")
        return
    warnings.filterwarnings("ignore", message=".*learned from.*")
    told, shipped, sets = {}, [], photograph_sets(asked.quick)
    for network, how in settings(PHOTOGRAPHS).items():
        real = {name: gallery(data, boxes, how) for name, (data, boxes) in sets.items()}
        learned = [real[name] for name in LEARNED]
        known = fit(learned, EVEN)
        told[f"odd labels of all, {network}"] = checked(list(real.values()), known, ODD)
        for name, one in real.items():
            told[f"{name}, odd labels, {network}"] = checked([one], known, ODD)
            others = fit([other for other in learned if other is not one], ALL)
            told[f"{name}, not seen, {network}"] = checked([one], others, ALL)
        shipped.append(made(network, how, PROPOSER, known))
    splits, each = load_splits("mini-battles"), 2 if asked.quick else 3
    parts = [one.first_of_each(each) for one in (splits.train, splits.tests["battle"])]
    detector = load_student("student").detector.for_inference(config.device())
    boxes = [own_boxes(data, detector) for data in parts]
    for network, how in settings(SCENES).items():
        train, test = (gallery(*one, how) for one in zip(parts, boxes))
        known = fit([train], ALL, "box")
        told[f"battle scenes, {network}"] = checked([test], known, ALL, "box")
        shipped.append(made(network, how, "detected", known))
    print(pd.DataFrame(told).T.to_markdown(), flush=True)
    if asked.fit and not asked.quick:
        atomic_write_text(SHIPPED, json.dumps(shipped, indent=1) + "\n")
    if not asked.quick:
        write("app", {"chances": told})


if __name__ == "__main__":
    main()
