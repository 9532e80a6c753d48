"""What several test files need: real photographs, and small images on disk."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
from local_server import Handler, Server
from PIL import Image
from tiny_scenes import SIZE, scenes

from objemb_lib.data.dataset import ImageDataset

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def real_photographs() -> Path:
    """Folder of public test photographs (``OBJEMB_REAL``, or ../shared/real); skips if absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "real"
    place = Path(os.environ.get("OBJEMB_REAL", beside))
    if not place.is_dir():
        pytest.skip("no real photographs: set OBJEMB_REAL to their folder")
    return place


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever engine is installed: its last bits are others (``test_compiled`` turns it on)."""
    monkeypatch.setenv("OBJEMB_ENGINE", "torch")


@pytest.fixture
def on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In single precision, with an empty cache."""
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OBJEMB_DEVICE", "cpu")
    monkeypatch.delenv("OBJEMB_PRECISION", raising=False)


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    """Four small pictures with boxes and masks, of 100 x 48 while the trunk sees 64 x 64."""
    return scenes(tmp_path / "scenes", size=SIZE)


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


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.script, server.seen = {}, []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked for; none is slept."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    waits: list[float] = []
    monkeypatch.setattr("objemb_lib.data.fetch._sleep", waits.append)
    clock = SimpleNamespace(time=time.time, sleep=waits.append)
    monkeypatch.setattr("urllib3.util.retry.time", clock)
    return waits


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
