"""One place for seeds, folders, the device and the profile.

Environment variables (all optional):

``OBJEMB_DATA``       folder of built data sets (default: ``data`` beside the library)
``OBJEMB_CACHE``      folder of cached embeddings (default: ``.cache`` beside the library)
``OBJEMB_MIRROR``     folder or URL that serves downloads to a whole classroom
``OBJEMB_DEVICE``     ``cpu``, ``cuda``, ``cuda:1``, ``mps`` (default: the best there is)
``OBJEMB_PRECISION``  ``fp32`` or ``bf16`` (default: the fastest that keeps the numbers)
``OBJEMB_WORKERS``    helpers that read images for an accelerator (default: a core each, at most 8)
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SEED = 0
PROJECT = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """Folder that holds built data sets, one folder each."""
    return Path(os.environ.get("OBJEMB_DATA", PROJECT / "data"))


def cache_root() -> Path:
    """Folder that holds cached embeddings; safe to delete at any time."""
    return Path(os.environ.get("OBJEMB_CACHE", PROJECT / ".cache"))


def mirror() -> str | None:
    """Folder or URL to try before every public address, if one is set."""
    return os.environ.get("OBJEMB_MIRROR") or None


def device() -> torch.device:
    """The device that computes: ``OBJEMB_DEVICE``, else CUDA, else Apple's MPS, else the CPU.

    Of several GPUs each process of ``torchrun`` gets its own.
    """
    import torch  # here, so that `data/download.py --help` need not wait for it

    if chosen := os.environ.get("OBJEMB_DEVICE"):
        return torch.device(chosen)
    if torch.cuda.is_available():
        own = os.environ.get("LOCAL_RANK")
        return torch.device("cuda", int(own)) if own else torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def workers() -> int:
    """``OBJEMB_WORKERS``, else one a core that this process may call its own; 0 on a CPU.

    Beside a CPU that computes they would only make it wait.
    """
    if (chosen := os.environ.get("OBJEMB_WORKERS")) is not None:
        return int(chosen)
    if device().type == "cpu":
        return 0
    return min(8, max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def seed_everything(seed: int = SEED) -> int:
    """Seed Python, NumPy and torch; returns the seed, so that a run can record it."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that still use the global state
    torch.manual_seed(seed)
    return seed
