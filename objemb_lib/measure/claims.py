"""Claims: what the paper says, as data, and the verdict that measurements give.

A claim says that one way of embedding is better than another. A notebook measures both on the
same queries in one or more settings and records each paired difference; the verdict is computed
from its confidence interval, here and nowhere else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DataError, ReproduceError
from objemb_lib.measure.metrics import Evaluation, Interval, paired_difference
from objemb_lib.measure.results import TOLERANCE

Expected = Literal["higher", "lower"]
Verdict = Literal["holds", "reversed", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("holds", "reversed", "inconclusive")


@dataclass(frozen=True)
class Comparison:
    """What would bear a claim out.

    Args:
        setting: what both sides share, so that only the claim's subject differs.
        better: the side that the claim calls better, ``a`` of a :class:`Difference`.
        worse: the other side, ``b``.
        metric: what is compared.
        expected: which sign of ``better - worse`` the claim expects.
    """

    setting: str
    better: str
    worse: str
    metric: str
    expected: Expected = "higher"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: its number here, a short title, the paper's words, how to test it."""

    number: int
    title: str
    sentence: str
    comparisons: tuple[Comparison, ...] = ()


SAME_TRUNK = "the same trunk, stage, pooling, region and data"

SAME_DATA = "the same trunk, data and queries"
HARD_ATTENTION = (  # how it is asked, the side that should win, the other
    ("a click", "detector boxes", "whole image"),
    ("no click", "detector boxes", "whole image"),
    ("the same stage and pooling", "detector boxes", "whole image"),
    ("a click", "detector masks", "whole image"),
    ("a click", "true boxes", "whole image"),
    ("a click", "detector boxes", "soft attention"),
    ("a click", "true boxes", "random boxes of the same sizes"),  # the control
)
GUIDED = (
    ("true boxes", "student", "detector's box head"),
    ("true boxes", "student", "detector on its map"),
    ("true boxes", "student", "teacher on the map"),
    ("true boxes", "student", "untrained branch"),
    ("the student's own boxes", "student", "teacher on the map"),
)

CLAIMS = (
    Claim(
        1,
        "Detection embeddings are worse than classification embeddings",
        "even with additional human annotations such as bounding boxes and segmentation masks, "
        "the discriminative power of the embeddings based on modern object detection models is "
        "significantly worse than their classification counterparts for the retrieval task",
        (
            Comparison(SAME_TRUNK, "classification", "detection", "mAP"),
            Comparison(SAME_TRUNK, "classification", "detection", "R@1"),
        ),
    ),
    Claim(
        2,
        "A detector helps as hard attention",
        "object detection model can help retrieval task by acting as a hard attention module "
        "for extracting object embeddings that focus on salient region from the convolutional "
        "feature map",
        tuple(
            Comparison(f"{SAME_DATA}, {how}", better, worse, metric)
            for how, better, worse in HARD_ATTENTION
            for metric in ("mAP", "R@1")
        ),
    ),
    Claim(
        3,
        "A guided student learns discriminative embeddings inside the detector",
        "we introduce a simple guided student-teacher training paradigm for learning "
        "discriminative embeddings within the object detection framework",
        tuple(
            Comparison(f"{SAME_DATA}, {how}", better, worse, metric)
            for how, better, worse in GUIDED
            for metric in ("mAP", "R@1")
        ),
    ),
)


def claim(number: int) -> Claim:
    """A claim by its number. Raises DataError if there is none.

    >>> claim(2).title
    'A detector helps as hard attention'
    """
    for one in CLAIMS:
        if one.number == number:
            return one
    raise DataError(f"no claim {number}", f"There are {', '.join(str(c.number) for c in CLAIMS)}.")


def expected(number: int, metric: str) -> Expected:
    """The sign of ``a - b`` that a claim expects: as its comparison says, else "higher".

    >>> expected(1, "mAP")
    'higher'
    """
    said = (c.expected for c in claim(number).comparisons if c.metric == metric)
    return next(said, "higher")


def verdict(interval: Interval, expected: Expected = "higher") -> Verdict:
    """What the interval of a paired difference says of a claim.

    "holds" if it lies wholly on the expected side of 0, "reversed" if wholly on the other,
    else (it touches 0, or there is none) "inconclusive": no proof that both are equal.

    >>> verdict(Interval(0.05, 0.01, 0.09)), verdict(Interval(0.05, 0.01, 0.09), "lower")
    ('holds', 'reversed')
    >>> verdict(Interval(0.05, -0.01, 0.11))
    'inconclusive'
    """
    if expected not in ("higher", "lower"):
        raise DataError(f"a claim cannot expect {expected!r}", 'Use "higher" or "lower".')
    if interval.verdict == "inconclusive":
        return "inconclusive"
    return "holds" if interval.verdict == expected else "reversed"


@dataclass(frozen=True)
class Difference:
    """One measured comparison: the mean of ``a - b`` over the same queries, 95 % interval.

    Args:
        claim: number of the claim it bears on.
        setting: what both sides share, in the notebook's words.
        metric: e.g. "mAP".
        a: the side that the claim calls better.
        b: the other side.
        data: data set and split.
        queries: how many have a score.
        value: mean difference, with ``low`` and ``high`` the ends of its interval.
    Raises:
        DataError: no such claim.
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

    def __post_init__(self) -> None:
        claim(self.claim)

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def interval(self) -> Interval:
        """The value with its ends."""
        return Interval(self.value, self.low, self.high)

    @property
    def verdict(self) -> Verdict:
        """Computed from the stored numbers, so that a reader of the table can check it."""
        return verdict(self.interval, expected(self.claim, self.metric))

    @property
    def key(self) -> tuple:
        """What is compared; measuring it again replaces the earlier numbers."""
        return self.claim, self.setting, self.data, self.a, self.b, self.metric


def difference(
    claim: int,
    setting: str,
    a_name: str,
    a_eval: Evaluation,
    b_name: str,
    b_eval: Evaluation,
    metric: str = "mAP",
    data: str = "",
) -> Difference:
    """Compare two evaluations query by query, rounded to four digits as every result.

    Args:
        claim: number of the claim; ``a`` must be the side that it calls better.
        setting: what both sides share; any words, the same for the same setting.
        data: default the name and split that were evaluated.
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
    interval = paired_difference(a_eval, b_eval, metric)
    queries = int((~np.isnan(a_eval.values[metric] - b_eval.values[metric])).sum())
    data = data or a_eval.dataset.rsplit(" ", 1)[0]  # without the content's hash
    ends = (round(v, 4) + 0.0 for v in (interval.value, interval.low, interval.high))  # no -0.0
    return Difference(claim, setting, metric, a_name, b_name, data, queries, *ends)


def write(path: str | Path, differences: Iterable[Difference]) -> None:
    """Write differences to a JSON file, whole or not at all."""
    rows = [asdict(d) for d in _latest(differences)]
    atomic_write_text(path, json.dumps(rows, indent=1) + "\n")


def read(path: str | Path) -> list[Difference]:
    """Differences of one file. Raises ReproduceError if it is not one of ours."""
    try:
        return [Difference(**row) for row in json.loads(Path(path).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, DataError) as error:
        raise ReproduceError(f"{path}: {error}", "Run the notebook again.") from error


def table(differences: Iterable[Difference]) -> str:
    """A Markdown table grouped by claim; a claim without differences is "not measured yet"."""
    head = ["claim", "setting", "data", "compared", "metric", "difference [95 % CI]", "verdict"]
    lines = [head]
    for number, found in _by_claim(differences).items():
        for d in found:
            data, compared = f"{d.data}, {d.queries} queries", f"{d.a} minus {d.b}"
            lines.append([str(number), d.setting, data, compared, d.metric, str(d), d.verdict])
        if not found:
            lines.append([str(number), "", "", "", "", "", "not measured yet"])
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]]) + "\n"


def compare(fresh: Iterable[Difference], committed: Iterable[Difference]) -> list[str]:
    """Sentences that name every comparison whose value strayed, or that appeared or vanished."""
    problems = []
    now, then = ({d.key: d for d in side} for side in (fresh, committed))
    for key in now.keys() ^ then.keys():
        there = "this run" if key in now else "the committed results"
        problems.append(f"claim {' '.join(map(str, key))}: only in {there}")
    for key in now.keys() & then.keys():
        a, b = now[key], then[key]
        if not abs(a.value - b.value) <= TOLERANCE:
            problems.append(f"claim {' '.join(map(str, key))}: {a}, committed {b}")
    return sorted(problems)


def summary(differences: Iterable[Difference]) -> str:
    """Of each claim: in how many settings it holds, is reversed, or neither.

    Ways of comparing answer different questions, so they are counted apart: the last part of a
    setting's words, after the comma, names its way.

    >>> print(summary([Difference(1, "x, y", "mAP", "c", "d", "toy", 9, 0.2, 0.1, 0.3)]), end="")
    - Claim 1. Detection embeddings are worse than classification embeddings:
      - y, mAP: holds in 1 of 1 settings, reversed in 0, inconclusive in 0
    - Claim 2. A detector helps as hard attention: not measured yet
    - Claim 3. A guided student learns discriminative embeddings inside the detector: \
not measured yet
    """
    lines = []
    for number, found in _by_claim(differences).items():
        lines.append(f"- Claim {number}. {claim(number).title}:")
        lines[-1] += "\n" if found else " not measured yet\n"
        kinds = [(d.setting.rpartition(", ")[2], d.metric) for d in found]
        for way, metric in sorted(dict.fromkeys(kinds), key=kinds.index):
            some = zip(kinds, found)
            counts = Counter(d.verdict for kind, d in some if kind == (way, metric))
            holds, reverse, neither = (counts[v] for v in VERDICTS)
            total = f"holds in {holds} of {counts.total()} settings"
            lines.append(
                f"  - {way}, {metric}: {total}, reversed in {reverse}, inconclusive in {neither}\n"
            )
    return "".join(lines)


def _latest(differences: Iterable[Difference]) -> list[Difference]:
    """Each comparison once, as last measured: a cell run twice must not count twice."""
    return list({d.key: d for d in differences}.values())


def _by_claim(differences: Iterable[Difference]) -> dict[int, list[Difference]]:
    """Every claim's number -> its differences, in the order given."""
    known = _latest(differences)
    return {c.number: [d for d in known if d.claim == c.number] for c in CLAIMS}
