"""Archives that lie, and folders that appear whole."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from local_server import BODY, archive

from objemb_lib.config import DownloadError
from objemb_lib.data import archives
from objemb_lib.data.archives import build_folder, unpack

FILES = {"top/a.txt": b"alpha" * 50, "top/sub/b.png": BODY[:3000], "top/empty": b""}
FORMATS = pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.zip"])


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def make(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    path.write_bytes(archive(path.name, files, *others))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Files by name; follows no link, and fails on anything that is neither file nor folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        assert not path.is_symlink()
        if not path.is_dir():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


# unpack -----------------------------------------------------------------------------------


@FORMATS
def test_unpacks_all_or_the_chosen(tmp_path: Path, name: str) -> None:
    archive = make(tmp_path / name, FILES)
    assert tree(unpack(archive, tmp_path / "out")) == FILES
    assert (tmp_path / "out/top/a.txt").stat().st_mode & 0o7111 == 0  # no rights from elsewhere
    chosen = unpack(archive, tmp_path / "some", lambda inside: inside.endswith(".txt"))
    assert tree(chosen) == {"top/a.txt": FILES["top/a.txt"]}


EVIL = ["../evil", "top/../../evil", "/tmp/objemb-evil", "..\\evil", "C:\\evil", "C:evil", "\\evil"]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_refuses_paths_outside(tmp_path: Path, name: str, evil: str) -> None:
    archive = make(tmp_path / name, {evil: b"evil"})
    with pytest.raises(DownloadError, match="outside"):
        unpack(archive, tmp_path / "home" / "out")
    assert list(tree(tmp_path)) == [name] and not Path("/tmp/objemb-evil").exists()
    unpack(archive, tmp_path / "home", FILES.__contains__)  # left out by choice, it does no harm


@pytest.mark.parametrize(
    "entry",
    [
        link("top/out", "../../secret"),
        link("top/in", "a.txt"),
        link("top/hard", "../secret", tarfile.LNKTYPE),
        link("top/fifo", "", tarfile.FIFOTYPE),
        link("top/device", "", tarfile.CHRTYPE),
    ],
    ids=lambda entry: f"{entry.type!r} {entry.linkname}",
)
def test_refuses_links_and_devices(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    archive = make(tmp_path / "a.tar.gz", FILES, entry)
    with pytest.raises(DownloadError, match=f"{entry.name}.*link or device"):
        unpack(archive, tmp_path / "out")
    assert tree(unpack(archive, tmp_path / "other", FILES.__contains__)) == FILES


def test_refuses_links_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("top/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        pack.writestr(info, "../../secret")
    with pytest.raises(DownloadError, match="top/link"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@FORMATS
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_refuses_cut_archives(tmp_path: Path, name: str, share: float) -> None:
    archive = make(tmp_path / name, FILES)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DownloadError, match="damaged or cut short") as caught:
        unpack(archive, tmp_path / "out")
    assert str(archive) in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["a.tar.gz", "a.tar.xz", "a.zip"]),
    place=st.floats(0, 1),
    bit=st.integers(0, 7),
)
def test_one_flipped_bit_never_passes_unseen(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    archive = make(folder / name, FILES)
    data = bytearray(archive.read_bytes())
    data[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
    archive.write_bytes(data)
    try:
        held = tree(unpack(archive, folder / "out"))
    except DownloadError as error:
        assert str(archive) in str(error)
    else:  # a bit that bears no content, such as a time
        assert set(held.values()) <= set(FILES.values())
        assert name == "a.zip" or held == FILES  # a zip's list of names has no checksum


def test_the_checksum_at_the_end_is_read(tmp_path: Path) -> None:
    plain = make(tmp_path / "a.tar.gz", FILES).read_bytes()
    padded = bytearray(gzip.compress(gzip.decompress(plain) + bytes(1_000_000)))
    padded[-8] ^= 1  # gzip's CRC, far behind the end of the tar
    (tmp_path / "b.tar.gz").write_bytes(padded)
    with pytest.raises(DownloadError, match="CRC"):
        unpack(tmp_path / "b.tar.gz", tmp_path / "out")


# build_folder -----------------------------------------------------------------------------


def fill(made: Path, downloads: Path) -> None:
    downloads.mkdir(exist_ok=True)
    (downloads / "archive").write_bytes(b"big")
    (made / "photo").write_bytes(b"new")
    archives.write_manifest(made, {"files": 1})


def fail(made: Path, downloads: Path) -> None:
    fill(made, downloads)
    raise KeyboardInterrupt


def test_a_folder_appears_whole_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    root = tmp_path / "new" / "data"
    with pytest.raises(KeyboardInterrupt):
        build_folder(root, "birds", fail)
    # What was downloaded is kept for the next try; half a data set is not.
    assert list(tree(root)) == [".birds.lock", ".downloads-birds/archive"]
    assert build_folder(root, "birds", fill) == root / "birds"
    before = tree(root)
    assert list(before) == [".birds.lock", "birds/manifest.json", "birds/photo"]
    (root / "birds" / "stray").write_bytes(b"from an older version")
    with pytest.raises(KeyboardInterrupt):
        build_folder(root, "birds", fail)
    assert (root / "birds" / "stray").exists()
    build_folder(root, "birds", fill)
    assert list(tree(root)) == list(before)


def test_what_a_killed_build_leaves_is_put_away(tmp_path: Path) -> None:
    (tmp_path / ".birds-abc").mkdir()
    fill(tmp_path / ".birds-abc", tmp_path / ".downloads-birds")
    (tmp_path / ".birds-xyz" / "old").mkdir(parents=True)  # between the two renames
    (tmp_path / ".birds-xyz" / "old" / "photo").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):  # the next build fails: what there was must be back
        build_folder(tmp_path, "birds", fail)
    assert (tmp_path / "birds" / "photo").read_bytes() == b"old"
    assert not list(tmp_path.glob(".birds-*"))


def test_who_waits_takes_what_the_other_built(tmp_path: Path, monkeypatch) -> None:
    class Lock(FileLock):
        def __enter__(self) -> FileLock:  # another process was first
            (tmp_path / "birds").mkdir()
            fill(tmp_path / "birds", tmp_path / "downloads")
            return super().__enter__()

    monkeypatch.setattr(archives, "FileLock", Lock)
    assert build_folder(tmp_path, "birds", None) == tmp_path / "birds"
