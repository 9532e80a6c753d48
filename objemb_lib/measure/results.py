"""Measurements of a run: recorded by notebooks, gathered, compared and shown by ``reproduce``.

A measurement always says what was measured on what: data set, number of queries, trunk, input
size, stage, pooling, region with its box source, metric, interval, and how far a rerun may stray.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from objemb_lib.cache import atomic_write_text
from objemb_lib.config import ReproduceError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import Trunk
from objemb_lib.measure.metrics import Evaluation, Interval

SETTING = ("trunk", "size", "stage", "pooling", "region", "boxes")
TOLERANCE = 0.01  # another machine may round differently; the same one gives the same numbers


@dataclass(frozen=True)
class Measurement:
    """One number with all that a reader must know to trust it."""

    name: str
    data: str
    queries: int
    trunk: str
    size: int
    stage: str
    pooling: str
    region: str
    boxes: str
    metric: str
    value: float
    low: float
    high: float
    tolerance: float = TOLERANCE
    shown: bool = True  # in the README's table

    @property
    def key(self) -> tuple[str, ...]:
        """What is measured, where, by which metric; the rest of the setting may be chosen."""
        return self.name, self.data, self.region, self.metric

    def __str__(self) -> str:
        return f"{self.metric} {Interval(self.value, self.low, self.high)}"


class Results:
    """The measurements of one notebook, written to ``<run_dir>/results/<notebook>.json``.

    Args:
        notebook: its file name without ending.
        run_dir: folder of the run; an empty string records nothing on disk.
    """

    def __init__(self, notebook: str, run_dir: str | Path = "") -> None:
        self.notebook = notebook
        self.path = Path(run_dir) / "results" / f"{notebook}.json" if str(run_dir) else None
        self.measurements: list[Measurement] = []

    def add(
        self,
        name: str,
        evaluation: Evaluation,
        metrics: Iterable[str] = ("R@1", "mAP"),
        shown: bool = True,
        tolerance: float = TOLERANCE,
        **where: str | int,
    ) -> list[Measurement]:
        """Record metrics of an evaluation, at once, so that a later failure loses nothing.

        Args:
            name: what is measured; with its setting and metric, unique in the notebook.
            shown: whether the README's table has a line for it.
            tolerance: how far a rerun may stray: more where rounding grows, as in a training.
            where: the setting, see :func:`where`.
        """
        new = []
        for metric in metrics:
            interval = evaluation.interval(metric)
            value, low, high = (round(v, 4) for v in (interval.value, interval.low, interval.high))
            queries = evaluation.n_queries - evaluation.n_skipped
            ends = {"value": value, "low": low, "high": high}
            stated = {"name": name, "queries": queries, "metric": metric, "shown": shown}
            stated["tolerance"] = tolerance
            new.append(Measurement(**stated, **ends, **where))
        names = {m.key for m in new}
        kept = [m for m in self.measurements if m.key not in names]
        self.measurements = [*kept, *new]
        if self.path:
            rows = [asdict(m) for m in self.measurements]
            atomic_write_text(self.path, json.dumps(rows, indent=1))
        return new

    def markdown(self) -> str:
        """The table of everything recorded so far."""
        return table(self.measurements)


def where(
    dataset: ImageDataset,
    trunk: Trunk,
    size: int,
    pair: tuple[str, str],
    region: Region,
    note: str = "",
) -> dict[str, str | int]:
    """What a :class:`Measurement` says of its setting.

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


def table(rows: Iterable[Measurement]) -> str:
    """A Markdown table, one line a setting, its metrics side by side."""
    settings: dict[tuple, dict[str, Measurement]] = {}
    metrics: list[str] = []
    for m in rows:
        key = (m.name, m.data, m.queries, *(getattr(m, part) for part in SETTING))
        settings.setdefault(key, {})[m.metric] = m
        metrics += [m.metric] if m.metric not in metrics else []
    head = ["what", "data", "queries", *SETTING, *metrics]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for key, found in settings.items():
        cells = [str(part) for part in key]
        for metric in metrics:
            m = found.get(metric)
            cells.append(str(Interval(m.value, m.low, m.high)) if m else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[Measurement]:
    """Measurements of one file. Raises ReproduceError if it is not one of ours."""
    try:
        return [Measurement(**row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ReproduceError(f"{path}: {error}", "Run the notebook again.") from error


def compare(fresh: Iterable[Measurement], committed: Iterable[Measurement]) -> list[str]:
    """Sentences that name every number which left its tolerance, appeared or vanished.

    The committed measurement's tolerance counts. Numbers of a setting are never compared with
    those of another: any change of data, trunk, stage, pooling or region is said as such.
    """
    problems = []
    now = {m.key: m for m in fresh}
    then = {m.key: m for m in committed}
    for key in then.keys() - now.keys():
        problems.append(f"{', '.join(key)}: in the committed results, not in this run")
    for key in now.keys() - then.keys():
        problems.append(f"{', '.join(key)}: in this run, not in the committed results")
    for key in now.keys() & then.keys():
        a, b = asdict(now[key]), asdict(then[key])
        for part in ("queries", *SETTING):
            if a[part] != b[part]:
                problems.append(f"{', '.join(key)}: {part} is {a[part]}, committed is {b[part]}")
        off = abs(a["value"] - b["value"])
        if not off <= b["tolerance"]:  # also true of nan
            problems.append(
                f"{', '.join(key)}: {a['value']:.4f}, committed {b['value']:.4f}; "
                f"off by {off:.4f}, tolerance {b['tolerance']}"
            )
    return sorted(problems)
