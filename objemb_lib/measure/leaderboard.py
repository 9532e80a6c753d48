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

import numpy as np
import pandas as pd
import yaml
from pandas.io.formats.style import Styler

from objemb_lib import config
from objemb_lib.config import DataError, ReproduceError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk
from objemb_lib.measure.intervals import Evaluation, Interval, paired_difference

TOLERANCE = 0.01  # another machine may round differently; the same one gives the same numbers
MEASURED = ("value", "low", "high", "tolerance")  # all else says what was measured
VERDICTS = {"higher": "holds", "lower": "reversed", "inconclusive": "inconclusive"}
SHARED = {"data": "", "queries": "queries", "trunk": "", "size": "px"}  # by the README's rows

_stated = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))
CLAIMS: dict[int, dict] = _stated["claims"]  # what each says, and its pairs, by its number
IN_README: list[str] = _stated["readme"]


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
        setting: what both sides share; the last part, after the comma, names the way of comparing.
        a: the side that the claim calls better. b: the other.
        data: data set and split. queries: how many have a score.
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
        """Holds if the whole interval lies above 0, reversed if below, else inconclusive."""
        return VERDICTS[self.interval.verdict]

    def said(self, *values: float) -> str:
        """Both sides (with their ``values``), the difference and the verdict in one line."""
        ends = f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        a, b = [f" {value:.2f}" for value in values] if len(values) == 2 else ("", "")
        return f"{self.a}{a} against {self.b}{b}: {ends} {self.metric}, {self.verdict}"


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
        DataError: no such metric, or other queries on one side than on the other.
    """
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
        run_dir: folder of the run, which gets ``leaderboard/<notebook>.jsonl`` in place of an
            earlier run's. Empty: nothing is written.
        setting: of its rows, unless :meth:`add` says otherwise: trunk, size in pixels, stage,
            pooling, and who drew the boxes.
    """

    def __init__(self, notebook: str = "", run_dir: str | Path = "", **setting: str | int) -> None:
        self.notebook, self.setting = notebook, setting
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
        metrics: Sequence[str] = ("mAP", "R@1"),
        tolerance: float = TOLERANCE,
        **setting: str | int,
    ) -> None:
        """Add a row; the same name in the same setting replaces the earlier one.

        Args:
            tolerance: how far a rerun may stray: more where rounding grows, as in a training.
            setting: what is other than the board's, see :class:`Leaderboard`.
        """
        setting = {"data": evaluation.dataset.rsplit(" ", 1)[0]} | self.setting | setting
        known = replace(evaluation, values={metric: evaluation[metric] for metric in metrics})
        stated = {"name": name, "data": setting["data"]}
        stated |= {"queries": known.n_queries - known.n_skipped, **setting}
        how = {"tolerance": tolerance}
        numbers = [stated | {"metric": m} | rounded(known.interval(m)) | how for m in metrics]
        self.record(Row(name, setting, known, numbers))

    def row(self, name: str, **setting: str | int) -> Row:
        """The row of a name, and of as much of its setting as tells it from others of that name.

        Raises DataError if it is none or one of several.
        """
        found = [r for r in self.rows if r.name == name and r.setting | setting == r.setting]
        if len(found) != 1:
            problem = f"{len(found)} rows are called {name!r} and have {setting or 'any setting'}"
            remedy = "Tell it by its data, region or pooling; table() shows those there are."
            raise DataError(problem, remedy)
        return found[0]

    def paired(self, a: str, b: str, metric: str = "mAP", **setting: str | int) -> Interval:
        """Mean of ``a - b``, two rows of the same queries, with its interval."""
        sides = (self.row(name, **setting).evaluation for name in (a, b))
        return paired_difference(*sides, metric)

    def table(self) -> pd.DataFrame:
        """What was measured so far, a line a row."""
        return table(number for row in self.rows for number in row.numbers)

    def earlier(self) -> list[dict]:
        """Numbers of the notebooks before this one on the same queries as its first row: of this
        run, where it has them, else of the committed one; each name once."""
        if not self.rows:
            return []
        like, known = self.rows[0].numbers[0], committed("workshop").get("measurements", {})
        for file in sorted(self.path.parent.glob("*.jsonl")) if self.path else ():
            known[file.stem] = [n for row in read(file).rows for n in row.numbers]
        found: dict[tuple, dict] = {}
        for stem in sorted(stem for stem in known if stem < self.notebook):
            for n in known[stem]:
                if all(n[key] == like[key] for key in ("data", "queries")):
                    found.setdefault((n["name"], n["metric"]), n | {"notebook": stem[:2]})
        mine = {row.name for row in self.rows}
        return [n for n in found.values() if n["name"] not in mine]

    def show(self) -> Styler:
        """The board so far, a line a row, mAP first; grey: what earlier notebooks measured. What
        all rows share is said above them."""
        own = [n | {"notebook": self.notebook[:2]} for row in self.rows for n in row.numbers]
        every = table([*self.earlier(), *own])
        grey = every["notebook"] != self.notebook[:2]
        alike = [part for part in every if part != "name" and every[part].nunique() == 1]
        shared = ", ".join(f"{part} {every[part].iloc[0]}" for part in alike)
        said = f"{shared}. Mean and 95 % interval, resampling query objects"
        shown = every.drop(columns=alike).style.hide().format(precision=2).set_caption(said)
        return shown.apply(lambda row: ["color: #767676" if grey[row.name] else ""] * len(row), 1)

    def verdicts(self, claim: int) -> None:
        """Print the claim's verdict on each pair of rows that this board has, and record it."""
        print(f"Claim {claim}. {CLAIMS[claim]['says']}:")
        names = {row.name for row in self.rows}
        for a, b in (pair for pair in CLAIMS[claim]["pairs"] if names.issuperset(pair)):
            data = self.rows[0].setting["data"]
            sides = [self.row(name, data=data).evaluation for name in (a, b)]
            one = difference(claim, "", a, sides[0], b, sides[1])
            self.record(one)
            print(f"  {one.said(*(side.mean('mAP') for side in sides))}")

    def record(self, one: Row | Difference) -> None:
        """Keep a row or a difference; one that was measured before is replaced."""
        kept = self.rows if isinstance(one, Row) else self.differences
        kept[:] = [other for other in kept if other.key != one.key] + [one]
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one), default=np.ndarray.tolist) + "\n")


def read(*files: Path) -> Leaderboard:
    """The boards of several notebooks as one. Raises ReproduceError for a damaged file."""
    board = Leaderboard()
    for file in files:
        try:
            for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
                board.record(Difference(**line) if "claim" in line else _row(**line))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ReproduceError(f"{file}: {error}", "Run the notebook again.") from error
    return board


def committed(run: str) -> dict:
    """The report of a committed run, ``results/<run>.json``; {} where there is none."""
    path = config.PROJECT / "results" / f"{run}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def measured(report: dict) -> tuple[list[dict], list[Difference]]:
    """Numbers and differences of a report, of all its notebooks."""
    numbers, told = ([one for many in report.get(part, {}).values() for one in many]
                     for part in ("measurements", "claims"))  # fmt: skip
    return numbers, [Difference(**one) for one in told]


def _row(evaluation: dict, **stated: object) -> Row:
    values = {metric: np.array(scores) for metric, scores in evaluation.pop("values").items()}
    arrays = {part: np.array(evaluation.pop(part)) for part in ("groups", "queries")}
    return Row(evaluation=Evaluation(values, **arrays, **evaluation), **stated)


def where(
    dataset: ImageDataset, trunk: Trunk, size: int, pair: tuple[str, str], region: Region
) -> dict[str, str | int]:
    """The setting of a row; ``size`` in pixels."""
    return {
        "data": f"{dataset.name}/{dataset.split}",
        "trunk": trunk.name,
        "size": size,
        "stage": pair[0],
        "pooling": pair[1],
        "region": region.name,
        "boxes": region.source,
    }


def readme_rows(numbers: Sequence[dict]) -> tuple[list[dict], str]:
    """The rows of the README, those that ``claims.yaml`` names, on the first one's data; and what
    they have in common."""
    named = [n for name in IN_README for n in numbers if n["name"] == name]
    named = [n for n in named if n["data"] == named[0]["data"]]
    found: dict[str, dict] = {}
    for n in named:
        row = found.setdefault(n["name"], {"what is compared": n["name"], "mAP": "", "R@1": ""})
        row[n["metric"]] = str(Interval(n["value"], n["low"], n["high"]))
        other = f", {n['size']} px" if n["size"] != named[0]["size"] else ""
        row |= {"stage, pooling": f"{n['stage']}, {n['pooling']}{other}"}
        row |= {"boxes": n.get("boxes", "none")}
    alike = [f"{named[0][part]} {word}".strip() for part, word in SHARED.items()] if named else []
    return list(found.values()), ", ".join(alike)


def table(numbers: Iterable[dict]) -> pd.DataFrame:
    """A line for each setting: its name, its metrics as mean [95 % interval], then all else."""
    frame = pd.DataFrame(list(numbers))
    frame["said"] = [str(Interval(*ends)) for ends in frame[["value", "low", "high"]].to_numpy()]
    setting = [part for part in frame if part not in ("metric", "said", *MEASURED)]
    frame[setting] = frame[setting].astype(object).fillna("")  # a pivot drops what is not a number
    wide = frame.pivot_table("said", setting, "metric", aggfunc="first", sort=False)
    wide = wide.fillna("").reset_index().rename_axis(columns=None)
    return wide[["name", *frame["metric"].unique(), *setting[1:]]]


def compare(fresh: Iterable[dict], committed: Iterable[dict]) -> tuple[int, list[str]]:
    """How many numbers both have; a sentence for each that left its tolerance, came or vanished.

    Records of rows or of differences; the committed one's tolerance counts. A number of another
    setting is another number.
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
