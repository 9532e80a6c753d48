"""Is this machine ready? A line for each thing that has to be right, as notebook 00 shows them.

python -m objemb_lib.course.doctor      exit status 1 if the course will fail here
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import torch
from packaging.requirements import Requirement

from objemb_lib import config
from objemb_lib.config import ObjembError
from objemb_lib.data import catalogue
from objemb_lib.embed.trunks import PIP_WEIGHTS, load_trunk

LOCK = config.PROJECT / "requirements.lock"
KEY_PACKAGES = ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "scipy", "scikit-learn",
                "pillow", "jupyterlab", "ipywidgets", "papermill")  # fmt: skip
GIB = 1 << 30
MEMORY = 4  # GiB: a notebook's kernel takes 2, the browser and the system the rest
DISK = 2  # GiB: data, its downloads while it is built, cached vectors


class Row(NamedTuple):
    """One thing that was looked at. state: ``ok``, ``note`` (it runs, but differs), ``problem``."""

    what: str
    here: str
    state: str = "ok"
    remedy: str = ""


def check() -> pd.DataFrame:
    """Look at everything that the course needs: a :class:`Row` each, indexed by what it is."""
    rows = [Row("Python", platform.python_version()), *check_packages(), *check_machine(),
            check_device(), *check_data(), *check_weights()]  # fmt: skip
    return pd.DataFrame(rows).set_index("what")


def check_packages(lock: Path = LOCK) -> list[Row]:
    """The packages that decide the numbers: a row for each that is not as the lock says."""
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    stated = [Requirement(line) for line in lines]
    locked = {r.name: r.specifier for r in stated if not r.marker or r.marker.evaluate()}
    rows, remedy = [], "Numbers may move a little. `make install` gives the locked version."
    for name in KEY_PACKAGES:
        try:
            found, wanted = version(name), locked.get(name)
            if wanted and not wanted.contains(found, prereleases=True):
                rows.append(Row(name, f"{found}, the lock says {wanted}", "note", remedy))
        except PackageNotFoundError:
            rows.append(Row(name, "not installed", "problem", "Run `make install`."))
    beside = "as locked" if lines else "no requirements.lock to compare with"
    known = f"torch {version('torch')}, numpy {version('numpy')}; {beside}"
    return rows or [Row("packages", known)]


def check_machine() -> list[Row]:
    """CPU cores that this process may use, memory and disk that are free now."""
    bound = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    disk = min(map(free_bytes, (config.data_root(), config.cache_root()))) / GIB
    free, total = memory.available / GIB, memory.total / GIB
    few = "note", "Times in the course are for two: double them."
    full = "note", "Close other programs and other notebooks' kernels before you run one."
    small = "problem", f"Free some: {DISK} GiB are needed, or set OBJEMB_DATA and OBJEMB_CACHE."
    cpu = f"{cores}, torch uses {torch.get_num_threads()}"
    return [
        Row("CPU cores", cpu, *(few if cores < 2 else ())),
        Row("memory", f"{free:.1f} of {total:.1f} GiB free", *(full if free < MEMORY else ())),
        Row("free disk", f"{disk:.1f} GiB", *(small if disk < DISK else ())),
    ]


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that ``folder`` is on, or would be."""
    there = next(part for part in [folder.absolute(), *folder.absolute().parents] if part.exists())
    return shutil.disk_usage(there).free


def check_device() -> Row:
    """What computes, tried with a small sum."""
    try:
        device, precision = config.device(), config.precision()
        torch.ones(2, device=device).sum().item()
    except config.DataError as error:
        return Row("device", error.problem, "problem", error.remedy)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        asked = config.setting("OBJEMB_DEVICE") or "the GPU"
        first = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "Unset OBJEMB_DEVICE or set it to cpu; or update the GPU driver."
        return Row("device", f"{asked} does not work: {first}", "problem", remedy)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return Row("device", f"{device} ({name}), {precision}")


def check_data() -> list[Row]:
    """Whether the course's data set is built, and which benchmarks are."""
    rows = [Row(name, "built") for name, entry in catalogue.DATASETS.items() if entry.built()]
    if not catalogue.DATASETS[catalogue.COURSE].built():
        rows.append(Row(catalogue.COURSE, "not built", "problem", "Run `make data`."))
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
    """Print a line for each row; the exit status says whether the machine is ready."""
    report = check()
    for what, (here, state, remedy) in report.iterrows():
        print(f"{state:8} {what}: {here}" + (f"\n{'':8} What to do: {remedy}" if remedy else ""))
    return int((report["state"] == "problem").any())


if __name__ == "__main__":
    sys.exit(main())
