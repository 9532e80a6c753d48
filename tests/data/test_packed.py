"""A classroom's copy: the same bytes whoever packs it, checked before anything is installed."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from objemb_lib.config import DownloadError
from objemb_lib.data import packed
from objemb_lib.data.download import sha256_file

pytest_plugins = ("tiny_battles",)
FILES = {"manifest.json": b"{}", "train/00000.jpg": b"one", "train/00001.jpg": b"two", "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "data" / "photos", FILES)


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def test_two_people_pack_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = packed.pack(folder, tmp_path / "mirror").read_bytes()
    other = write_all(tmp_path / "other" / "photos", dict(reversed(FILES.items())))
    for file in other.rglob("*"):  # another umask, another day
        os.utime(file, (1e9, 1e9))
        file.chmod(0o700 if file.is_dir() else 0o600)
    assert packed.pack(other, tmp_path / "mirror2").read_bytes() == first


def test_the_list_of_hashes_is_as_sha256sum_has_it(folder: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    write_all(mirror, {"SHA256SUMS": b"%s *upstream-1.0.tar.gz\n" % (b"a" * 64)})
    archive = packed.pack(folder, mirror)
    packed.pack(folder, mirror)  # again: the line is replaced, not added
    lines = (mirror / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{sha256_file(archive)}  photos.tar", f"{'a' * 64}  upstream-1.0.tar.gz"]


@pytest.mark.parametrize("kind", ["folder", "URL", "URL with slash"])
def test_round_trip(folder: Path, tmp_path: Path, serve_folder, kind: str) -> None:
    mirror = tmp_path / "mirror"
    packed.pack(folder, mirror)
    where = str(mirror) if kind == "folder" else serve_folder(mirror) + "/" * ("slash" in kind)
    (tmp_path / "work").mkdir()
    copy = packed.unpack_from(where, "photos", tmp_path / "work")
    assert copy.name == "photos" and content(copy) == FILES


def test_mirror_in_the_home_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    packed.pack(folder, tmp_path / "mirror")
    assert content(packed.unpack_from("~/mirror", "photos", tmp_path / "work")) == FILES


def flip(data: bytes) -> bytes:
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:2000], lambda data: b""])
@pytest.mark.parametrize("kind", ["folder", "URL"])
def test_a_tampered_or_cut_copy_is_refused(
    folder: Path, tmp_path: Path, serve_folder: Callable[[Path], str], damage, kind: str
) -> None:
    archive = packed.pack(folder, tmp_path / "mirror")
    archive.write_bytes(damage(archive.read_bytes()))
    mirror = str(tmp_path / "mirror") if kind == "folder" else serve_folder(tmp_path / "mirror")
    (tmp_path / "work").mkdir()
    with pytest.raises(DownloadError, match="photos.tar"):
        packed.unpack_from(mirror, "photos", tmp_path / "work")
    assert not (tmp_path / "work" / "unpacked").exists()


def test_an_archive_that_leads_outside_is_refused(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    write_all(mirror, {"evil": b"evil"})
    with tarfile.open(mirror / "photos.tar", "w") as tar:
        tar.add(mirror / "evil", "../../evil")
    (mirror / "SHA256SUMS").write_text(f"{sha256_file(mirror / 'photos.tar')}  photos.tar\n")
    (tmp_path / "work").mkdir()
    with pytest.raises(DownloadError, match="outside"):
        packed.unpack_from(str(mirror), "photos", tmp_path / "work")
    assert not list(tmp_path.glob("evil"))


LOGIN = b"<html>\nPlease\nlog in to the hotel's Wi-Fi</html>"


@pytest.mark.parametrize("listing", [None, b"", LOGIN, b"\xff\xfe\x00", b"a" * 64 + b"  other.tar"])
@pytest.mark.parametrize("kind", ["folder", "URL"])
def test_a_mirror_without_the_data_set(
    tmp_path: Path, serve_folder: Callable[[Path], str], listing: bytes | None, kind: str
) -> None:
    mirror = tmp_path / "mirror"
    write_all(mirror, {"photos.txt": b""} | ({} if listing is None else {"SHA256SUMS": listing}))
    where = str(mirror) if kind == "folder" else serve_folder(mirror)
    assert packed.unpack_from(where, "photos", tmp_path) is None


def test_a_mirror_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with pytest.raises(DownloadError, match="typo.*not a folder(.|\n)*--mirror"):
        packed.unpack_from(str(tmp_path / "typo"), "photos", tmp_path)
    for address in ("http://127.0.0.1:9/class", "ftp://127.0.0.1/class"):
        with pytest.raises(DownloadError, match=f"{address}.*does not answer(.|\n)*--mirror"):
            packed.unpack_from(address, "photos", tmp_path)
