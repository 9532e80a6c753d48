"""Fixtures: the built mini-battles, and a tiny one of 15 scenes that builds in a second.

The tiny one has six painted stamps in place of Tux Paint's, and real backgrounds from the
packages that ship them; everything else is the real code.
"""

from __future__ import annotations

import functools
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from objemb_lib import config
from objemb_lib.data import fetch, mini_battles
from objemb_lib.data.archives import sha256_file

NAME = mini_battles.NAME
NAMES = ("wren", "tulip", "hammer", "finch", "poppy", "saw")  # three of train, three of test
ARCHIVE = "stamps-1.0.tar.gz"
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Tiny:
    """Where the photographs of the tiny mini-battles lie, and its lists.

    Args:
        source: folder in the layout of ``--source``.
        archives: folder with the stamps' upstream archive, as a mirror may have it.
        objects, backgrounds: the lists that stand in for the reviewed ones.
    """

    source: Path
    archives: Path
    objects: tuple[dict, ...]
    backgrounds: tuple[dict, ...]

    def build(self, root: Path, **options: object) -> Path:
        return mini_battles.build(root, **{"source": self.source} | options)


def paint_stamp(path: Path, seed: int) -> None:
    """A blob on a transparent ground, in colours of its own."""
    y, x = np.mgrid[-1:1:120j, -1:1:160j]
    rgba = np.zeros((120, 160, 4), np.uint8)
    waves = np.sin(np.stack([(3 + seed) * x, (2 + seed) * y, 4 * x * y], -1) + seed)
    rgba[..., :3] = 128 + 127 * waves
    rgba[..., 3] = 255 * (x**2 + y**2 + 0.1 * np.sin(seed * np.arctan2(y, x)) < 0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgba).save(path)


def with_tiny_lists(patch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    """Let mini-battles use the tiny lists, and no network."""
    archive, registry = tiny.archives / ARCHIVE, tiny.archives / "registry.csv"
    registry.write_text(
        "collection,file,digest,size,into,members,url\n"
        f"objects,{ARCHIVE},{sha256_file(archive)},{archive.stat().st_size},,*,{NOWHERE}/{ARCHIVE}\n"
    )
    patch.setattr(fetch, "REGISTRY", registry)
    patch.setattr(fetch, "debian_package", lambda *args: None)
    patch.setattr(mini_battles, "objects", lambda: tiny.objects)
    patch.setattr(mini_battles, "backgrounds", lambda: tiny.backgrounds)
    split = mini_battles.Split
    splits = {"train": split("train", 2), "battle": split("test", 2), "clean": split("test", 1)}
    patch.setattr(mini_battles, "SPLITS", splits)


@pytest.fixture(scope="session")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    place = tmp_path_factory.mktemp("tiny")
    rows = []
    for seed, name in enumerate(NAMES):
        path = f"things/{name}.png"
        paint_stamp(place / "source" / "stamps" / path, seed)
        digest = sha256_file(place / "source" / "stamps" / path)
        split = "train" if seed < 3 else "test"
        kind = "tool" if name in ("hammer", "saw") else "living"
        rows.append(
            {"path": path, "sha256": digest, "category": kind, "name": name, "split": split}
        )
    (place / "archives").mkdir()
    with tarfile.open(place / "archives" / ARCHIVE, "w:gz") as archive:
        archive.add(place / "source" / "stamps", "stamps-1.0/stamps")
    shipped = [b for b in mini_battles.backgrounds() if b["collection"] in ("skimage", "sklearn")]
    chosen = [[b for b in shipped if b["split"] == split][:2] for split in ("train", "test")]
    return Tiny(place / "source", place / "archives", tuple(rows), (*chosen[0], *chosen[1]))


@pytest.fixture
def tiny(_tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """mini-battles uses tiny lists during this test; nothing is built yet."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("OBJEMB_MIRROR", raising=False)
    with_tiny_lists(monkeypatch, _tiny)
    return _tiny


@pytest.fixture(scope="session")
def _tiny_built(_tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny-data")
    with pytest.MonkeyPatch.context() as patch:
        with_tiny_lists(patch, _tiny)
        _tiny.build(root)
    return root


@pytest.fixture
def tiny_root(tiny: Tiny, _tiny_built: Path, tmp_path: Path) -> Path:
    """Folder of data sets that holds a tiny mini-battles; the test may damage it."""
    return Path(shutil.copytree(_tiny_built, tmp_path / "data"))


@pytest.fixture
def tiny_reference(
    tiny: Tiny, _tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The tiny build is the reference build during this test."""
    file = tmp_path / "reference.json"
    shutil.copyfile(_tiny_built / NAME / "manifest.json", file)
    monkeypatch.setattr(mini_battles, "REFERENCE", file)
    return file


@pytest.fixture
def serve_folder() -> Iterator[Callable[[Path], str]]:
    """``serve_folder(folder)`` -> address of an HTTP server on this machine that serves it."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    def serve(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def mini_battles_built() -> Path:
    """Folder of the built mini-battles; skips where it was not built."""
    folder = config.data_root() / NAME
    if not (folder / "manifest.json").is_file():
        pytest.skip("mini-battles is not built: python data/download.py build mini-battles")
    return folder
