"""Is the app's first answer right, how often, and does it know? Photographs, pasted ones, scenes.

    OBJEMB_REAL=FOLDER python benchmarks/app.py [--fit] [--quick]

FOLDER as of `course.photographs`. Every photograph asks all others of its collection, in the app's
own settings, with the surest box of the proposer; of COCO, of which the proposer learned, with that
of one that learned from the other half. What a collection is scored by was learned on others;
COCO, whose labels are categories, is only tested. Chances are also learned on labels of even number
and checked on the odd ones: `--fit` writes these to objemb_lib/search/calibrations.json, with those
of mini-battles' training scenes. Prints tables, and writes benchmarks/results/app.json.
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
from objemb_lib.measure.metrics import evaluate_scores, truth
from objemb_lib.search.calibration import SHIPPED, Calibration, made_of, standing
from objemb_lib.search.retriever import Retriever, is_whole
from objemb_lib.show.app import PHOTOGRAPHS, SCENES, TOP, own_boxes
from objemb_lib.teach.student import StudentTrunk, load_student

LEARNED = ("groceries", "birds", "cars")  # COCO, whose labels are categories, is only tested
KINDS, FIRST = ("box", "whole", "both"), 8  # answers that a person sees
PAIRS = [f"{one} to {other}" for one in KINDS[:2] for other in KINDS[:2]]
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

    def scores(self, known: Calibration, kind: str = "both") -> np.ndarray:
        """``(N, N)``, as the app scores."""
        best = []
        for one in KINDS[:2] if kind == "both" else [kind]:
            pairs = [
                known.scaled(self.cosines[f"{one} to {other}"], one == "whole", other == "whole")
                for other in KINDS[:2]
            ]
            best.append(np.maximum(*pairs))
        return known.fused(np.stack(best))

    def first(self, scores: np.ndarray) -> np.ndarray:
        """``(N,)``: 1 where the first answer is right, nan where nothing is."""
        return evaluate_scores(scores, self.data, ["R@1"]).values["R@1"]

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


def logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> list[float]:
    """Slope and offset."""
    found = LogisticRegression(C=1e3).fit(x[:, None], y, weights)
    return [float(found.coef_[0, 0]), float(found.intercept_[0])]


def fit_scales(galleries: Sequence[Gallery], who: Halves) -> Calibration:
    """A logistic curve for each kind of pair: is it the same? Both answers count alike, and all
    collections; then all in terms of pairs of boxes."""
    curves = {}
    for pair in PAIRS:
        x, y, weights = [], [], []
        for one in galleries:
            relevant, junk = one.truth
            cosines, rows = one.cosines[pair], who(one.data)
            use = rows[:, None] & rows & ~junk & (cosines > NONE)
            x.append(cosines[use])
            y.append(relevant[use])
            weights.append(np.where(y[-1], 0.5 / y[-1].mean(), 0.5 / (~y[-1]).mean()) / len(y[-1]))
        weights = np.concatenate(weights)
        curves[pair] = logistic(
            np.concatenate(x), np.concatenate(y), weights * len(weights) / weights.sum()
        )
    a, b = curves["box to box"]  # of scenes wholes tell nothing, or less
    scales = {pair: [max(c, 0) / a, (d - b) / a] for pair, (c, d) in curves.items()}
    return Calibration(scales, a)


def answers(
    galleries: Sequence[Gallery], known: Calibration, kind: str, who: Halves, absent: bool = False
) -> Iterator[tuple]:
    """Of each collection scores ``(Q, 32)``, and which are right."""
    for one in galleries:
        scores, right = one.ranked(one.scores(known, kind), absent)
        asks = who(one.data) & one.truth[0].any(axis=1)
        yield scores[asks], right[asks]


def fit_chances(galleries: Sequence[Gallery], known: Calibration, who: Halves) -> Calibration:
    """How often answers are right, by how far they stand above later ones; and the chance below
    which "nothing here" is right of :data:`SURE` queries, if it is true of half of all."""
    chances = {}
    for kind in KINDS:
        x, y = zip(
            *(
                (standing(s)[:, :FIRST].ravel(), r[:, :FIRST].ravel())
                for s, r in answers(galleries, known, kind, who)
            )
        )
        chances[kind] = logistic(np.concatenate(x), np.concatenate(y))
    chances = {kind: curve for kind, curve in chances.items() if curve[0] > 0}  # else it tells none
    known = replace(known, chances=chances)
    there, p = presence(galleries, known, who)
    order = np.argsort(p)
    sure = np.cumsum(~there[order]) / np.arange(1, len(p) + 1) >= SURE
    last = np.flatnonzero(sure[FEWEST:])
    return replace(known, nothing=float(p[order][last[-1] + FEWEST]) if len(last) else np.nan)


def presence(
    galleries: Sequence[Gallery], known: Calibration, who: Halves
) -> tuple[np.ndarray, np.ndarray]:
    """Whether what was asked for is in the gallery, and the chance of the first answer."""
    found = [known.chance(s, "both")[:, 0] for absent in (False, True)
             for s, _ in answers(galleries, known, "both", who, absent)]  # fmt: skip
    half = len(found) // 2
    return np.repeat(
        [True, False], [sum(map(len, f)) for f in (found[:half], found[half:])]
    ), np.concatenate(found)


# --- what is checked -------------------------------------------------------------------------


def checked(galleries: Sequence[Gallery], known: Calibration, who: Halves) -> dict[str, float]:
    """How true the chances are: error of calibration (ten bins), AUC; of all and first answers."""
    told: dict[str, float] = {}
    every = list(answers(galleries, known, "both", who))
    for name, some in (("first answer", slice(0, 1)), (f"first {FIRST}", slice(0, FIRST))):
        p = np.concatenate([known.chance(s, "both")[:, some].ravel() for s, _ in every])
        right = np.concatenate([r[:, some].ravel() for _, r in every])
        bins = np.minimum((10 * p).astype(int), 9)
        off = sum(abs(p[bins == n].sum() - right[bins == n].sum()) for n in range(10)) / len(p)
        told |= {f"{name}: right": right.mean(), f"{name}: said": p.mean(), f"{name}: error": off,
                 f"{name}: AUC": roc_auc_score(right, p)}  # fmt: skip
    there, p = presence(galleries, known, who)
    if (p < known.nothing).any():
        told["nothing: right"] = (~there)[p < known.nothing].mean()
        told["nothing: said where true"] = (p < known.nothing)[~there].mean()
    return {name: round(float(value), 3) for name, value in told.items()}


def firsts(one: Gallery, known: Calibration) -> dict[str, float]:
    """How often the first answer is right, by who asks and what is searched."""
    c = one.cosines
    ways = {"whole to whole": c["whole to whole"], "box to boxes": c["box to box"],
            "before: box to boxes and whole": np.maximum(c["box to box"], c["box to whole"]),
            **{f"app: {kind}": one.scores(known, kind) for kind in KINDS}}  # fmt: skip
    told = {name: one.first(np.maximum(scores, NONE)) for name, scores in ways.items()}
    more = told["app: both"] - told["whole to whole"]
    found = {name: round(float(np.nanmean(hits)), 3) for name, hits in told.items()}
    most = max(map(len, c["any box"]))
    boxes = [
        one.first(np.stack([part[min(k, len(part) - 1)] for part in c["any box"]]))
        for k in range(most)
    ]
    found["oracle: best of its boxes"] = round(float(np.nanmean(np.max(boxes, axis=0))), 3)
    asked = ~np.isnan(more)
    labels = np.unique(one.data.labels[asked])
    sums = np.array(
        [
            [more[asked & (one.data.labels == x)].sum(), (asked & (one.data.labels == x)).sum()]
            for x in labels
        ]
    )
    drawn = np.random.default_rng(config.SEED).integers(len(labels), size=(2000, len(labels)))
    means = sums[drawn].sum(axis=1)
    low, high = np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    return found | {"both - whole": f"{np.nanmean(more):+.3f} [{low:+.3f}, {high:+.3f}]"}


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
            known = fit_chances(others, fit_scales(others, everything), everything)
            told["first answer right"][f"{name}, {network}"] = firsts(one, known)
            told["chances"][f"{name}, not seen, {network}"] = checked([one], known, everything)
        learned = [real[name] for name in LEARNED]
        known = fit_chances(learned, fit_scales(learned, even), even)
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
        known = fit_chances([train], fit_scales([train], everything), everything)
        told["first answer right"][f"battle scenes, own boxes, {network}"] = firsts(test, known)
        told["chances"][f"battle scenes, own boxes, {network}"] = checked([test], known, everything)
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
