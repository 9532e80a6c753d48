"""What several test files need: real photographs, and small images on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def real_photographs() -> Path:
    """Folder of public test photographs (``OBJEMB_REAL``, or ../shared/real); skips if absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "real"
    place = Path(os.environ.get("OBJEMB_REAL", beside))
    if not place.is_dir():
        pytest.skip("no real photographs: set OBJEMB_REAL to their folder")
    return place


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., Path]:
    """``make_image(name, size=(width, height), mode="RGB", seed=0, **save)`` -> path.

    A smooth picture, different for every seed and not symmetric, written below ``tmp_path``.
    """

    def write(name: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **save) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(save.pop("seed", 0)).integers(0, 256, (3, 4, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        smooth.convert(mode).save(path, **save)
        return path

    return write
