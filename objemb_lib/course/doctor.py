"""Is this machine ready for the course?

python -m objemb_lib.course.doctor      a line per thing that has to be right; exit status 1 if not
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import pandas as pd
import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from objemb_lib import config
from objemb_lib.config import ObjembError
from objemb_lib.data import catalogue
from objemb_lib.embed.trunks import PIP_WEIGHTS, load_trunk

LOCK = config.PROJECT / "requirements.lock"
KEY_PACKAGES = ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "scipy", "scikit-learn",
                "pillow", "jupyterlab", "ipywidgets", "papermill")  # fmt: skip
PYTHON = (3, 10)
GIB = 1 << 30
MEMORY = 4  # GiB: a notebook's kernel takes 2, the browser and the system the rest
DISK = 2  # GiB: data, its downloads while it is built, cached vectors

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    Args:
        what: the thing. found: how it is here.
        state: ``ok``; ``note``, the course runs but differs; ``problem``, it will fail.
        remedy: what to do, for all but ``ok``.
    """

    what: str
    found: str
    state: State = "ok"
    remedy: str = ""


class Report(list[Row]):
    """Rows that show themselves: a table in a notebook, lines in a terminal.

    >>> print(Report([Row("cores", "2"), Row("data", "not built", "problem", "Run make data.")]))
    ok       cores: 2
    PROBLEM  data: not built
             What to do: Run make data.
    """

    @property
    def ready(self) -> bool:
        """Whether nothing is a problem."""
        return all(row.state != "problem" for row in self)

    def _repr_html_(self) -> str:
        table = pd.DataFrame(self).set_axis(["what", "here", "state", "what to do"], axis=1)
        return table.style.format(escape="html").hide(axis="index").to_html()

    def __str__(self) -> str:
        lines = []
        for row in self:
            state = row.state.upper() if row.state == "problem" else row.state
            lines.append(f"{state:8} {row.what}: {row.found}")
            lines += [f"{'':8} What to do: {row.remedy}"] if row.remedy else []
        return "\n".join(lines)

    __repr__ = __str__


def check() -> Report:
    """Look at everything that the course needs; raises nothing, each problem is a row."""
    return Report(
        [
            check_python(),
            *check_packages(),
            check_cores(),
            check_memory(),
            check_disk(),
            check_device(),
            *check_data(),
            *check_weights(),
        ]
    )


def check_python() -> Row:
    """The running Python."""
    needed, found = ".".join(map(str, PYTHON)), platform.python_version()
    if sys.version_info < PYTHON:
        return Row("Python", found, "problem", f"Install {needed} or later, then `make install`.")
    return Row("Python", found)


def locked(lock: Path = LOCK) -> dict[str, Requirement]:
    """What the lock file states for this Python and system, by normalised name; {} without one."""
    if not lock.is_file():
        return {}
    lines = lock.read_text(encoding="utf-8").splitlines()
    stated = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [r for r in stated if r.marker is None or r.marker.evaluate()]
    return {canonicalize_name(r.name): r for r in here}


def check_packages(lock: Path = LOCK) -> list[Row]:
    """The packages that decide the numbers, beside the lock; a line each that is not as locked."""
    stated, rows = locked(lock), []
    for name in KEY_PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            rows.append(Row(name, "not installed", "problem", "Run `make install`."))
            continue
        wanted = stated.get(name)
        if wanted and not wanted.specifier.contains(found, prereleases=True):
            remedy = "Numbers may move a little. `make install` gives the locked version."
            rows.append(Row(name, f"{found}, the lock says {wanted.specifier}", "note", remedy))
    if not rows:
        beside = "as locked" if stated else "no requirements.lock to compare with"
        rows = [Row("packages", f"torch {version('torch')}, numpy {version('numpy')}; {beside}")]
    return rows


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_cores() -> Row:
    """CPU cores, and how many of them torch uses."""
    found = f"{cores()}, torch uses {torch.get_num_threads()}"
    if cores() < 2:
        return Row("CPU cores", found, "note", "Times in the course are for two: double them.")
    return Row("CPU cores", found)


def check_memory() -> Row:
    """Memory that is free now."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < MEMORY * GIB:
        remedy = "Close other programs and other notebooks' kernels before you run one."
        return Row("memory", found, "note", remedy)
    return Row("memory", found)


def check_disk() -> Row:
    """Free space where data and cached vectors go."""
    free = min(free_bytes(config.data_root()), free_bytes(config.cache_root())) / GIB
    if free < DISK:
        remedy = f"Free some: {DISK} GiB are needed, or set OBJEMB_DATA and OBJEMB_CACHE."
        return Row("free disk", f"{free:.1f} GiB", "problem", remedy)
    return Row("free disk", f"{free:.0f} GiB")


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that ``folder`` is on, or would be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_device() -> Row:
    """What computes, tried with a small sum."""
    try:
        device = config.device()
        torch.ones(2, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        asked = os.environ.get("OBJEMB_DEVICE")
        remedy = (
            "Unset OBJEMB_DEVICE." if asked else "Set OBJEMB_DEVICE=cpu; or update the GPU driver."
        )
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return Row("device", f"{asked or 'the GPU'} does not work: {first}", "problem", remedy)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return Row("device", f"{device} ({name}), {config.precision()}")


def check_data() -> list[Row]:
    """Whether the course's data set is built, and which benchmarks are."""
    rows = []
    for entry in catalogue.DATASETS.values():
        if entry.built():
            rows.append(Row(entry.name, "built"))
        elif entry.name == catalogue.COURSE:
            remedy = f"Run `make data`, or python data/download.py build {entry.name}."
            rows.append(Row(entry.name, "not built", "problem", remedy))
    return rows


def check_weights() -> list[Row]:
    """Whether the networks' weights are there and are the right ones."""
    rows = []
    for name in PIP_WEIGHTS:
        try:
            load_trunk(name)
        except ObjembError as error:
            # A file's path names the user's home folder: not into a notebook that may be shared.
            rows.append(Row(name, "weights absent or damaged", "problem", error.remedy))
    return rows or [Row("ImageNet weights", f"{', '.join(PIP_WEIGHTS)}: present and right")]


def main() -> int:
    """Print the report; the exit status says whether the machine is ready."""
    report = check()
    print(report)
    return 0 if report.ready else 1


if __name__ == "__main__":
    sys.exit(main())
