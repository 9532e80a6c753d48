"""Is the app's first answer right, how often, and does it know? Photographs, pasted ones, scenes.

    OBJEMB_REAL=FOLDER python benchmarks/app.py [--fit] [--quick]

FOLDER as of `course.photographs`. Every photograph asks all others of its collection, in the app's
own settings, with the surest box of the proposer; of COCO, of which the proposer learned, with that
of one that learned from the other half. Chances are learned on labels of even number and checked on
the odd ones, and learned on other collections; COCO, whose labels are categories, is only tested.
`--fit` writes the former to objemb_lib/search/calibrations.json, with those of mini-battles'
training scenes. Prints tables, and writes benchmarks/results/app.json.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from objemb_lib.measure.intervals import Evaluation, paired_difference
from objemb_lib.measure.metrics import evaluate_scores, truth
from objemb_lib.search.calibration import SHIPPED, Calibration, made_of, nearness
from objemb_lib.search.retriever import Retriever, is_whole
from objemb_lib.show.app import PHOTOGRAPHS, SCENES, TOP, own_boxes
from objemb_lib.teach.student import StudentTrunk, load_student

LEARNED = ("groceries", "birds", "cars")  # COCO, whose labels are categories, is only tested
KINDS, FIRST = ("box", "whole", "both"), 8  # answers that a person sees
NONE = -2.0  # a cosine where there is no box
FAR = -99.0
SURE, FEWEST = 0.75, 20  # "nothing here" must be right so often, of as many queries at least


@dataclass(frozen=True, eq=False)
class Gallery:
    """A collection in the app's index, and all cosines between its images."""

    way: Retriever

    @property
    def data(self) -> ImageDataset:
        return self.way.dataset

    @cached_property
    def cosines(self) -> dict[str, np.ndarray]:
        """``(N, N)`` of each kind of pair, the best one, the surest box asks; ``any box``: all."""
        sizes, objects = (
            self.data.sizes(),
            [self.way.index.of_images([i])[0] for i in range(len(self.data))],
        )
        whole = np.concatenate([is_whole(b, size) for (b, _), size in zip(objects, sizes)])
        starts = np.cumsum([0, *(len(b) for b, _ in objects[:-1])])
        vectors = np.concatenate([v for _, v in objects])
        every = vectors @ vectors.T
        best = lambda rows, ok: np.maximum.reduceat(  # noqa: E731
            np.where(ok, every[rows], NONE), starts, axis=1)  # fmt: skip
        asks = {"box": starts, "whole": np.flatnonzero(whole)}
        found = {f"{a} to {b}": best(rows, ok) for a, rows in asks.items()
                 for b, ok in (("box", ~whole), ("whole", whole))}  # fmt: skip
        parts = [every[start : start + len(b)] for start, (b, _) in zip(starts, objects)]
        found["any box"] = [np.maximum.reduceat(part, starts, axis=1) for part in parts]
        return found

    @cached_property
    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        """``(N, N)`` booleans: what is relevant, and what is junk."""
        return tuple(
            np.stack(one) for one in zip(*(truth(self.data, q) for q in range(len(self.data))))
        )

    def scores(self, kind: str = "both") -> np.ndarray:
        """``(N, N)``, as the app scores: the best of all pairs."""
        asks = KINDS[:2] if kind == "both" else [kind]
        return np.max([self.cosines[f"{one} to {other}"] for one in asks for other in KINDS[:2]], 0)

    def first(self, scores: np.ndarray) -> Evaluation:
        """Is the first answer right?"""
        return evaluate_scores(np.maximum(scores, NONE), self.data, ["R@1"])

    def ranked(self, scores: np.ndarray, absent: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """``(Q, N)`` scores, best first, and which are right; of queries that have an answer.

        ``absent``: as if nothing that is right were there.
        """
        relevant, junk = self.truth
        scores = np.where(junk | (relevant & absent), FAR, scores)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :32]
        right = np.take_along_axis(relevant & ~absent, order, 1)
        return np.take_along_axis(scores, order, 1), right


# --- what is learned -------------------------------------------------------------------------

Halves = Callable[[ImageDataset], np.ndarray]


def even(data: ImageDataset) -> np.ndarray:
    return np.isin(data.labels, np.unique(data.labels)[::2])


def odd(data: ImageDataset) -> np.ndarray:
    return ~even(data)


def everything(data: ImageDataset) -> np.ndarray:
    return np.ones(len(data), bool)


def logistic(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Slope and offset."""
    found = LogisticRegression(C=1e3).fit(x[:, None], y)
    return [float(found.coef_[0, 0]), float(found.intercept_[0])]


def answers(
    galleries: Sequence[Gallery], kind: str, who: Halves, absent: bool = False
) -> Iterator[tuple]:
    """Of each collection scores ``(Q, 32)``, and which are right."""
    for one in galleries:
        scores, right = one.ranked(one.scores(kind), absent)
        asks = who(one.data) & one.truth[0].any(axis=1)
        yield scores[asks], right[asks]


def fit(galleries: Sequence[Gallery], who: Halves, first: str = "both") -> Calibration:
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
    galleries: Sequence[Gallery], known: Calibration, who: Halves, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Whether what was asked for is in the gallery, and the chance of the first answer."""
    found = [(known.chance(s, kind)[:, 0], not absent) for absent in (False, True)
             for s, _ in answers(galleries, kind, who, absent)]  # fmt: skip
    there = np.concatenate([np.full(len(chances), is_there) for chances, is_there in found])
    return there, np.concatenate([chances for chances, _ in found])


# --- what is checked -------------------------------------------------------------------------


def checked(
    galleries: Sequence[Gallery], known: Calibration, who: Halves, kind: str = "both"
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


def firsts(one: Gallery) -> dict[str, float | str]:
    """How often the first answer is right, by who asks and what is searched."""
    c = one.cosines
    ways = {"whole to whole": c["whole to whole"], "box to boxes": c["box to box"],
            **{f"app: {kind}": one.scores(kind) for kind in KINDS}}  # fmt: skip
    told = {name: one.first(scores) for name, scores in ways.items()}
    found = {name: round(hits.mean("R@1"), 3) for name, hits in told.items()}
    tries = [[part[min(k, len(part) - 1)] for part in c["any box"]]
             for k in range(max(map(len, c["any box"])))]  # fmt: skip
    best = np.max([one.first(np.stack(some))["R@1"] for some in tries], axis=0)
    more = paired_difference(told["app: both"], told["whole to whole"], "R@1")
    said = f"{more.value:+.3f} [{more.low:+.3f}, {more.high:+.3f}]"
    return found | {"oracle: best of its boxes": round(float(np.nanmean(best)), 3),
                    "both - whole": said}  # fmt: skip


def latency(one: Gallery, queries: int = 40) -> dict[str, float]:
    """Milliseconds of a search, and what the wholes add to an index."""
    asked = [one.way.query(i) for i in range(min(queries, len(one.data)))]
    spent: dict[str, list[float]] = {"before: box to objects": [], "box": [], "both": []}
    for query in asked:
        for kind, times in spent.items():
            start = time.perf_counter()
            if kind in KINDS:
                one.way.search(query, 0, FIRST, kind)
            else:
                one.way.index.search(query.vectors[0], FIRST)
            times.append(1000 * (time.perf_counter() - start))
    told = {f"ms, {kind}": round(statistics.median(times), 2) for kind, times in spent.items()}
    vectors = len(one.way.index)
    return told | {
        "objects": vectors,
        "of them wholes": len(one.data),
        "MB": round(one.way.index.index.n_bytes / 1e6, 2),
    }


# --- the app's own settings -------------------------------------------------------------------


def told_of(known: Calibration) -> dict:
    """For a file: what is nan is left out."""
    return {name: value for name, value in asdict(known).items() if value == value}


def settings(given: Mapping) -> dict[str, tuple[Trunk, list, float, int]]:
    """The two networks of the app by name, with (stage, pooling), context and size."""
    (name, how), (_, plain) = given.items()
    trunk = load_trunk("efficientnet_lite0")
    return {name: (StudentTrunk(load_student(name)), *how), trunk.name: (trunk, *plain)}


def gallery(data: ImageDataset, boxes: Boxes, how: tuple) -> Gallery:
    network, pairs, context, size = how
    return Gallery(
        Retriever.build(data, network, pairs, Region(boxes, context=context), size, progress=False)
    )


def photograph_sets(quick: bool) -> dict[str, tuple[ImageDataset, Boxes]]:
    """Collections, some of them pasted small on COCO's, and battle scenes; with their boxes."""
    root = config.place("OBJEMB_REAL")
    sets = photographs.collections(root)
    coco = sets.pop("COCO")
    if quick:
        sets = {name: data.first_of_each(2) for name, data in sets.items()}
    sets |= {
        f"{name}, pasted": photographs.pasted(sets[name], coco) for name in ("groceries", "birds")
    }
    sets["battle scenes"] = (
        load_splits("mini-battles").tests["battle"].first_of_each(2 if quick else 3)
    )
    found = {
        name: (data, boxes_from(PROPOSER, data, progress=False).top(TOP))
        for name, data in sets.items()
    }
    if not quick:
        found["COCO"] = coco, photographs.coco_boxes(root)["proposer"]
    return found


def main() -> None:
    """Measure, print, keep."""
    asked = arguments(__doc__, fit=False, quick=False)
    if not photographs.collections(config.setting("OBJEMB_REAL")):
        print("no photographs: OBJEMB_REAL names no folder of them")
        return
    warnings.filterwarnings("ignore", message=".*learned from.*")
    told: dict[str, dict] = {"first answer right": {}, "chances": {}, "cost": {}}
    made, sets = [], photograph_sets(asked.quick)
    for network, how in settings(PHOTOGRAPHS).items():
        every = {name: gallery(data, boxes, how) for name, (data, boxes) in sets.items()}
        real = {
            name: one for name, one in every.items() if "," not in name and name != "battle scenes"
        }
        for name, one in every.items():
            own = name.split(",")[0]
            others = [real[other] for other in LEARNED if other != own]
            known = fit(others, everything)
            told["first answer right"][f"{name}, {network}"] = firsts(one)
            told["chances"][f"{name}, not seen, {network}"] = checked([one], known, everything)
        learned = [real[name] for name in LEARNED]
        known = fit(learned, even)
        told["chances"][f"odd labels of all, {network}"] = checked(list(real.values()), known, odd)
        for name, one in real.items():
            told["chances"][f"{name}, odd labels, {network}"] = checked([one], known, odd)
        told["cost"][f"groceries, {network}"] = latency(every["groceries"])
        made.append(
            {
                "network": network,
                "made_of": made_of(how[0], *how[1:], PROPOSER),
                "calibration": told_of(known),
            }
        )
    splits = load_splits("mini-battles")
    parts = [
        one.first_of_each(2 if asked.quick else 3) for one in (splits.train, splits.tests["battle"])
    ]
    detector = load_student("student").detector.for_inference(config.device())
    boxes = [own_boxes(data, detector) for data in parts]
    for network, how in settings(SCENES).items():
        train, test = (gallery(*one, how) for one in zip(parts, boxes))
        known = fit([train], everything, "box")
        told["first answer right"][f"battle scenes, own boxes, {network}"] = firsts(test)
        told["chances"][f"battle scenes, own boxes, {network}"] = checked(
            [test], known, everything, "box"
        )
        made.append(
            {
                "network": network,
                "made_of": made_of(how[0], *how[1:], "detected"),
                "calibration": told_of(known),
            }
        )
    for name, rows in told.items():
        print(f"\n{name}\n\n{pd.DataFrame(rows).T.to_markdown()}", flush=True)
    if asked.fit and not asked.quick:
        atomic_write_text(SHIPPED, json.dumps(made, indent=1) + "\n")
    write("app", told | {"shipped": made})


if __name__ == "__main__":
    main()
