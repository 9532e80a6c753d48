"""The leaderboard: every way of searching that was measured, and what the paper claims of them.

A row keeps the score of every query, so that any two rows of the same queries compare by a paired
interval. A claim says that one way is better than another; its verdict is computed from such an
interval, here and nowhere else. Each notebook writes a file of its own; :func:`read` merges them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from objemb_lib.config import DataError, ReproduceError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk
from objemb_lib.measure.intervals import Evaluation, Interval, paired_difference

TOLERANCE = 0.01  # another machine may round differently; the same one gives the same numbers
MEASURED = ("value", "low", "high", "tolerance", "shown")  # all else says what was measured
VERDICTS = {"higher": "holds", "lower": "reversed", "inconclusive": "inconclusive"}


class Claim(NamedTuple):
    """A claim of the paper: a short title, and its words."""

    title: str
    sentence: str


CLAIMS = {
    1: Claim(
        "Detection embeddings are worse than classification embeddings",
        "even with additional human annotations such as bounding boxes and segmentation masks, "
        "the discriminative power of the embeddings based on modern object detection models is "
        "significantly worse than their classification counterparts for the retrieval task",
    ),
    2: Claim(
        "A detector helps as hard attention",
        "object detection model can help retrieval task by acting as a hard attention module "
        "for extracting object embeddings that focus on salient region from the convolutional "
        "feature map",
    ),
    3: Claim(
        "A guided student learns discriminative embeddings inside the detector",
        "we introduce a simple guided student-teacher training paradigm for learning "
        "discriminative embeddings within the object detection framework",
    ),
}


@dataclass(frozen=True)
class Row:
    """One way of searching.

    Args:
        name: what it is called; with its setting, unique on a board.
        setting: data, trunk, size, stage, pooling, region and boxes, see :func:`where`.
        evaluation: the score of every query.
        numbers: a flat record for each metric, to four digits: what is committed and compared.
    """

    name: str
    setting: dict[str, str | int]
    evaluation: Evaluation
    numbers: list[dict]

    @property
    def key(self) -> tuple:
        """What is measured, on which data: one row of a board."""
        return self.name, self.setting, self.evaluation.dataset


@dataclass(frozen=True)
class Difference:
    """A claim put to the test: the mean of ``a - b`` over the same queries, 95 % interval.

    Args:
        claim: its number in :data:`CLAIMS`.
        setting: what both sides share, in the notebook's words; the last part, after the comma,
            names the way of comparing.
        metric: e.g. "mAP".
        a: the side that the claim calls better. b: the other.
        data: data set and split.
        queries: how many have a score.
    """

    claim: int
    setting: str
    metric: str
    a: str
    b: str
    data: str
    queries: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def key(self) -> tuple:
        """What is compared."""
        return self.claim, self.setting, self.metric, self.a, self.b, self.data

    @property
    def interval(self) -> Interval:
        """The value with its ends."""
        return Interval(self.value, self.low, self.high)

    @property
    def verdict(self) -> str:
        """From the stored numbers: "holds" if the whole interval lies above 0, "reversed" if below,
        else (it touches 0, or there is none) "inconclusive", which proves no equality.
        """
        return VERDICTS[self.interval.verdict]


def difference(
    claim: int,
    setting: str,
    a: str,
    a_scores: Evaluation,
    b: str,
    b_scores: Evaluation,
    metric: str = "mAP",
) -> Difference:
    """Compare two evaluations query by query, rounded to four digits as every number.

    Raises:
        DataError: no such claim or metric, or other queries on one side than on the other.

    >>> objects = np.array([0, 1, 2])
    >>> better, worse = (
    ...     Evaluation({"mAP": np.array(v)}, objects, objects, "toy/test f")
    ...     for v in ([0.9, 0.7, 0.8], [0.4, 0.2, 0.3])
    ... )
    >>> found = difference(1, "layer 4", "classification", better, "detection", worse)
    >>> print(found, found.verdict, "on", found.data)
    +0.5000 [+0.5000, +0.5000] holds on toy/test
    """
    if claim not in CLAIMS:
        raise DataError(f"no claim {claim}", f"There are {', '.join(map(str, CLAIMS))}.")
    interval = paired_difference(a_scores, b_scores, metric)
    queries = int((~np.isnan(a_scores[metric] - b_scores[metric])).sum())
    data = a_scores.dataset.rsplit(" ", 1)[0]  # without the content's hash
    return Difference(claim, setting, metric, a, b, data, queries, **rounded(interval))


def rounded(interval: Interval) -> dict[str, float]:
    """The three numbers to four digits, none of them -0.0."""
    return {name: round(number, 4) + 0.0 for name, number in vars(interval).items()}


class Leaderboard:
    """The rows and differences of a notebook, each on disk at once: a later failure loses nothing.

    Args:
        notebook: its file name without ending.
        run_dir: folder of the run, which gets ``leaderboard/<notebook>.jsonl``, a line for each
            row or difference; an earlier run's file is replaced. Empty: nothing is written.
    """

    def __init__(self, notebook: str = "", run_dir: str | Path = "") -> None:
        self.path = Path(run_dir) / "leaderboard" / f"{notebook}.jsonl" if str(run_dir) else None
        self.rows: list[Row] = []
        self.differences: list[Difference] = []
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("")

    def add(
        self,
        name: str,
        evaluation: Evaluation,
        metrics: Sequence[str] = ("R@1", "mAP"),
        shown: bool = True,
        tolerance: float = TOLERANCE,
        **setting: str | int,
    ) -> None:
        """Add a row; the same name in the same setting replaces the earlier one.

        Args:
            shown: whether the README's table has a line for it.
            tolerance: how far a rerun may stray: more where rounding grows, as in a training.
            setting: see :func:`where`.
        """
        known = replace(evaluation, values={metric: evaluation[metric] for metric in metrics})
        stated = {"name": name, "data": setting["data"]}
        stated |= {"queries": known.n_queries - known.n_skipped, **setting}
        how = {"tolerance": tolerance, "shown": shown}
        numbers = [stated | {"metric": m} | rounded(known.interval(m)) | how for m in metrics]
        self._keep(Row(name, setting, known, numbers))

    def record(self, differences: Iterable[Difference]) -> None:
        """Record differences; one that was measured before is replaced."""
        for one in differences:
            self._keep(one)

    def row(self, name: str, **setting: str | int) -> Row:
        """The row of a name, and of as much of its setting as tells it from others of that name.

        Raises DataError if it is none or one of several.
        """
        found = [r for r in self.rows if r.name == name and r.setting | setting == r.setting]
        if len(found) != 1:
            known = ", ".join(dict.fromkeys(row.name for row in self.rows))
            raise DataError(
                f"{len(found)} rows are called {name!r} and have {setting or 'any setting'}",
                f"Tell it by its data, region or pooling. There are: {known}.",
            )
        return found[0]

    def paired(self, a: str, b: str, metric: str = "mAP", **setting: str | int) -> Interval:
        """Mean of ``a - b``, two rows of the same queries, with its interval."""
        sides = (self.row(name, **setting).evaluation for name in (a, b))
        return paired_difference(*sides, metric)

    def table(self) -> pd.DataFrame:
        """What was measured so far, a line a row."""
        return table(number for row in self.rows for number in row.numbers)

    def _keep(self, one: Row | Difference) -> None:
        kept = self.rows if isinstance(one, Row) else self.differences
        kept[:] = [other for other in kept if other.key != one.key] + [one]
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one), default=np.ndarray.tolist) + "\n")


def read(*files: Path) -> Leaderboard:
    """The boards of several notebooks as one. Raises ReproduceError for a file that is not ours."""
    board = Leaderboard()
    for file in files:
        try:
            for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
                board._keep(Difference(**line) if "claim" in line else _row(**line))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ReproduceError(f"{file}: {error}", "Run the notebook again.") from error
    return board


def _row(evaluation: dict, **stated: object) -> Row:
    values = {metric: np.array(scores) for metric, scores in evaluation.pop("values").items()}
    arrays = {part: np.array(evaluation.pop(part)) for part in ("groups", "queries")}
    return Row(evaluation=Evaluation(values, **arrays, **evaluation), **stated)


def where(
    dataset: ImageDataset,
    trunk: Trunk,
    size: int,
    pair: tuple[str, str],
    region: Region,
    note: str = "",
) -> dict[str, str | int]:
    """The setting of a row.

    Args:
        size: side in pixels of what the trunk saw. note: follows the pooling's name.
    """
    return {
        "data": f"{dataset.name}/{dataset.split}",
        "trunk": trunk.name,
        "size": size,
        "stage": pair[0],
        "pooling": pair[1] + note,
        "region": region.name,
        "boxes": region.source,
    }


def table(numbers: Iterable[dict]) -> pd.DataFrame:
    """A line for each setting, its metrics side by side, as mean [95 % interval]."""
    frame = pd.DataFrame(list(numbers))
    frame["said"] = [str(Interval(*ends)) for ends in frame[["value", "low", "high"]].to_numpy()]
    setting = [part for part in frame if part not in ("metric", "said", *MEASURED)]
    wide = frame.pivot_table("said", setting, "metric", aggfunc="first", sort=False)
    return wide.fillna("").reset_index().rename_axis(columns=None)


def verdicts(differences: Sequence[Difference]) -> pd.DataFrame:
    """Of each claim, in how many settings it holds, is reversed, or neither.

    Ways of comparing answer different questions, so they are counted apart: the last part of a
    setting's words, after the comma, names its way.

    >>> print(verdicts([Difference(1, "x, y", "mAP", "c", "d", "toy", 9, 0.2, 0.1, 0.3)]))
       claim way metric  holds  reversed  inconclusive
    0      1   y    mAP      1         0             0
    """
    ways = [(d.claim, d.setting.rpartition(", ")[2], d.metric) for d in differences]
    frame = pd.DataFrame(ways, columns=["claim", "way", "metric"])
    for word in VERDICTS.values():
        frame[word] = [int(d.verdict == word) for d in differences]
    return frame.groupby(["claim", "way", "metric"], sort=False, as_index=False).sum()


def compare(fresh: Iterable[dict], committed: Iterable[dict]) -> tuple[int, list[str]]:
    """How many numbers both have; a sentence for each that left its tolerance, came or vanished.

    Records of rows or of differences; the committed one's tolerance counts. All that is not a
    result says what was measured: in another setting it is another number.
    """
    now, then = (
        {frozenset((k, v) for k, v in r.items() if k not in MEASURED): r for r in records}
        for records in (fresh, committed)
    )
    problems = []
    for key in now | then:
        record = now.get(key) or then[key]
        said = ", ".join(f"{k} {v}" for k, v in record.items() if k not in MEASURED)
        if key not in now or key not in then:
            problems.append(f"{said}: only in {'this run' if key in now else 'the committed run'}")
            continue
        a, b = now[key]["value"], then[key]["value"]
        tolerance = then[key].get("tolerance", TOLERANCE)
        if not abs(a - b) <= tolerance:  # also true of nan
            problems.append(f"{said}: {a:.4f}, committed {b:.4f}, tolerance {tolerance}")
    return len(now.keys() & then.keys()), sorted(problems)
