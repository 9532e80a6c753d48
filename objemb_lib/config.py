"""What everything else stands on: errors, seeds, folders, the device.

Environment variables (all optional):

``OBJEMB_DATA``       folder of built data sets
``OBJEMB_CACHE``      folder of cached embeddings
``OBJEMB_MIRROR``     folder or URL that serves downloads to a whole classroom
``OBJEMB_DEVICE``     ``cpu``, ``cuda``, ``cuda:1``, ``mps`` (default: the best there is)
``OBJEMB_PRECISION``  ``fp32`` or ``bf16`` (default: fp32)
``OBJEMB_ENGINE``     ``torch`` or ``onnx`` (default), on a CPU
``OBJEMB_WORKERS``    helpers that read images for an accelerator (default: a core each, at most 8)

Folders lie beside the library in a checkout, and where the platform keeps a user's data elsewhere.
``~`` is the home folder; a variable that is empty is as one that is not set.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

if TYPE_CHECKING:
    import torch

SEED = 0
PROJECT = Path(__file__).resolve().parent.parent
IN_CHECKOUT = (PROJECT / "pyproject.toml").is_file()  # else pip installed the library alone


def printable(text: object) -> str:
    """A text that any terminal, notebook and table takes: bytes of a file's name that are not
    UTF-8 are spelt out."""
    return str(text).encode("utf-8", "backslashreplace").decode()


class ObjembError(Exception):
    """Base of every error this library raises on purpose.

    Args:
        problem: what is wrong, naming the file or the setting. remedy: what to do, an imperative.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem, self.remedy = problem, remedy = printable(problem), printable(remedy)
        super().__init__(f"{problem}\n  What to do: {remedy}" if remedy else problem)

    def __reduce__(self) -> tuple:  # keeps both parts across worker processes
        return type(self), (self.problem, self.remedy)


class ImageError(ObjembError):
    """A file that cannot be used as an image."""


class DownloadError(ObjembError):
    """A file that could not be fetched, or arrived with the wrong bytes."""


class DataError(ObjembError):
    """A data set that is absent, damaged or inconsistent."""


class CacheError(ObjembError):
    """A cache that cannot be written or does not hold what its key says."""


class ReproduceError(ObjembError):
    """A run that failed, or numbers that left their tolerance."""


class TrainingError(ObjembError):
    """A training run that cannot go on."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around an import: DataError that says which extra of pyproject.toml brings what is missing.

    >>> with needs("scale"):
    ...     import no_such_package
    Traceback (most recent call last):
    objemb_lib.config.DataError: no_such_package is not installed
      What to do: Run `make extras`, or `pip install "objemb[scale]"`.
    """
    try:
        yield
    except ImportError as error:
        remedy = f'Run `make extras`, or `pip install "objemb[{extra}]"`.'
        raise DataError(f"{error.name or error} is not installed", remedy) from error


def setting(name: str) -> str:
    """An environment variable, without blanks around it; empty where it is not set."""
    return os.environ.get(name, "").strip()


def place(name: str) -> Path | None:
    """The absolute path that an environment variable names, if it is set.

    Raises DataError: it is an address, or starts at the home folder of nobody.
    """
    if "://" in (chosen := setting(name)):
        raise DataError(f"{name} is {chosen!r}: an address", f"Set {name} to a folder.")
    try:
        return Path(chosen).expanduser().absolute() if chosen else None
    except RuntimeError as error:
        raise DataError(f"{name} is {chosen!r}: {error}", f"Set {name} to a folder.") from error


def fix_places() -> None:
    """Make the folders of the environment absolute: notebooks' kernels start in another one."""
    places = {name: place(name) for name in ("OBJEMB_DATA", "OBJEMB_CACHE")}
    places["OBJEMB_MIRROR"] = mirror()
    os.environ.update({name: str(where) for name, where in places.items() if where})


def data_root() -> Path:
    """Folder that holds built data sets, one folder each."""
    own = PROJECT / "data" if IN_CHECKOUT else platformdirs.user_data_path("objemb")
    return place("OBJEMB_DATA") or own


def cache_root() -> Path:
    """Folder that holds cached embeddings; safe to delete at any time."""
    own = PROJECT / ".cache" if IN_CHECKOUT else platformdirs.user_cache_path("objemb")
    return place("OBJEMB_CACHE") or own


def mirror() -> str | None:
    """Folder or URL to try before every public address, if one is set."""
    url = "://" in setting("OBJEMB_MIRROR")
    return setting("OBJEMB_MIRROR") if url else str(place("OBJEMB_MIRROR") or "") or None


def device() -> torch.device:
    """``OBJEMB_DEVICE``, else CUDA (each process of ``torchrun`` its own), else MPS, else CPU.

    Raises DataError: what is set is no device, or none of this machine's.
    """
    import torch  # here, so that `data/download.py --help` need not wait for it

    if chosen := setting("OBJEMB_DEVICE"):
        cards = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
        there = ["cpu", *["cuda"] * bool(cards), *cards]
        there += ["mps"] * torch.backends.mps.is_available()
        if chosen not in there:
            problem = f"OBJEMB_DEVICE is {chosen!r}: no device of this machine"
            raise DataError(problem, f"Unset OBJEMB_DEVICE, or set it to: {', '.join(there)}.")
        return torch.device(chosen)
    if torch.cuda.is_available():
        own = os.environ.get("LOCAL_RANK")
        return torch.device("cuda", int(own)) if own else torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision(chosen: str | None = None) -> str:
    """What is chosen, else ``OBJEMB_PRECISION``, else ``fp32``.

    ``bf16`` is about twice as fast on hardware that multiplies it, but moved R@1 by more than
    0.2 points in some settings (``benchmarks/extract.py``): nobody gets it without asking.

    Raises DataError: it is neither.
    """
    found = chosen or setting("OBJEMB_PRECISION") or "fp32"
    if found not in ("fp32", "bf16"):
        raise DataError(f"no precision {found!r}", "Set OBJEMB_PRECISION to fp32 or bf16.")
    return found


def workers() -> int:
    """``OBJEMB_WORKERS``, else one a core of this process's; 0 beside a CPU, which would wait.

    Raises DataError: what is set is no number.
    """
    if chosen := setting("OBJEMB_WORKERS"):
        if not (chosen.isascii() and chosen.isdecimal()):
            problem = f"OBJEMB_WORKERS is {chosen!r}: not a number of helpers"
            raise DataError(problem, "Set it to 0 or more, or unset it.")
        return int(chosen)
    if device().type == "cpu":
        return 0
    return min(8, max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def start(seed: int = SEED) -> None:
    """What a notebook begins with: :func:`tune_process`; seeds of Python, NumPy and torch."""
    import torch

    tune_process()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that still use the global state
    torch.manual_seed(seed)


def tune_process() -> None:
    """Make this process compute faster: for the course's entry points.

    Two programs that compute at once wait for each other's spinning threads, ten times slower, and
    torch waits for numpy's, which spin on after every product: let them spin less (those that start
    from now on: of this process where its libraries are not loaded yet). And glibc gives the
    large maps of every batch back to the system, which then clears every page again: keep them (1.4
    times as fast in extraction, on two cores).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD: free bytes that stay ours
            libc.mallopt(-3, 128 << 20)  # M_MMAP_THRESHOLD: larger blocks still go back at once
