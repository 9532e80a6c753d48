"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from objemb_lib import cache
from objemb_lib.config import ObjembError


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_atomic_writes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    cache.atomic_write_text(path, "zwölf\r\n→\n")
    assert path.read_bytes() == "zwölf\r\n→\n".encode()
    cache.atomic_write_bytes(path, b"\x00second")
    assert path.read_bytes() == b"\x00second"
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]


def test_atomic_path_shows_the_old_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    path.write_bytes(b"old")
    with cache.atomic_path(path) as temp:
        np.savez(temp, x=np.arange(3))  # adds .npz to any other suffix
        assert path.read_bytes() == b"old" and temp.parent == path.parent
    assert np.load(path)["x"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["table.npz"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_atomic_path_lets_a_classroom_read(tmp_path: Path, umask: int) -> None:
    """Also what its writer made for itself alone, as safetensors does."""
    path, before = tmp_path / "table.safetensors", os.umask(umask)
    try:
        with cache.atomic_path(path) as temp:
            save_file({"x": np.arange(3)}, temp)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_atomic_path_without_a_file_is_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), cache.atomic_path(tmp_path / "table"):
        pass
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, PermissionError(13, "no")])
def test_atomic_path_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"old")
    expected = error if isinstance(error, type) else type(error)
    with pytest.raises(expected), cache.atomic_path(path) as temp:
        temp.write_bytes(b"half")
        raise error
    assert tree(tmp_path) == {"table": b"old"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk that is full")
@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_bytes(b"new"), lambda path: torch.save(torch.ones(9_999), path),
     lambda path: faiss.write_index(faiss.IndexFlatIP(2), str(path))],
)  # fmt: skip
def test_a_full_disk_is_told_whoever_writes(tmp_path: Path, write: Callable) -> None:
    """torch and faiss raise errors of their own, torch without the cause."""
    path = tmp_path / "table"
    path.write_bytes(b"old")
    with pytest.raises(ObjembError, match="table: not written, the disk is full.*\n.*Free some"):
        with cache.atomic_path(path) as temp:
            temp.symlink_to("/dev/full")
            write(temp)
    assert tree(tmp_path) == {"table": b"old"}


# --- tables of vectors --------------------------------------------------------------------


@pytest.mark.parametrize("part", [None, range(3)])
def test_a_flipped_byte_anywhere_is_found(tmp_path: Path, part: range | None) -> None:
    """On a disk or a network drive that rots: once other vectors were read in silence."""
    vectors, pair = np.arange(6, dtype=np.float32).reshape(3, 2), ("head", "spoc")
    store = cache.Store(tmp_path, {"version": "4", "data": "x"})
    with store.lock():
        store.write(vectors, pair, part)
    file = store.path(pair, part)
    whole = file.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 0x20, 0x80):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.warns(UserWarning, match="damaged.*computing it again"):
                assert store.get(pair, part) is None, (place, bit)
            assert not file.exists()
    file.write_bytes(whole)
    np.testing.assert_array_equal(store.get(pair, part), vectors)


def test_tables_of_earlier_versions_are_believed(tmp_path: Path) -> None:
    store, vectors = cache.Store(tmp_path, {"version": "4"}), np.ones((2, 3), np.float32)
    with store.lock():
        save_file({"vectors": vectors}, store.path(("a", "b")), metadata=store.key)
    np.testing.assert_array_equal(store.get(("a", "b")), vectors)
