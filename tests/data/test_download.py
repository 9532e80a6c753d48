"""Downloads that go wrong in every way a classroom has seen, against a server on this machine."""

from __future__ import annotations

import email.utils
import errno
import gzip
import hashlib
import io
import logging
import os
import socket
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_server import BODY, SHA, Act, Handler, Server, serve, status, whole
from safetensors.numpy import save_file

from objemb_lib import cache
from objemb_lib.config import DownloadError, ObjembError
from objemb_lib.data import download

pytestmark = pytest.mark.usefixtures("naps")
WRONG = bytes(reversed(BODY))


def get(*urls: str, to: Path, **options: object) -> Path:
    settings = {"sha256": SHA, "size": len(BODY), "progress": False} | options
    return download.fetch(urls, to / "file.bin", **settings)


def visible(folder: Path) -> list[str]:
    """Everything but the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".file.bin.lock")


def fill_disk_after(monkeypatch: pytest.MonkeyPatch, module: object, room: int) -> None:
    """From now on ``module`` can write only ``room`` bytes."""

    def full_open(path: object, mode: str = "r") -> object:
        file = open(path, mode)
        if "b" not in mode or not set(mode) & set("wa"):
            return file
        left, write = [room], file.write

        class Full(io.BufferedIOBase):
            def write(self, data: bytes) -> int:
                left[0] -= write(data[: max(left[0], 0)])
                if left[0] <= 0:
                    file.flush()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return len(data)

            def tell(self) -> int:
                return file.tell()

            def close(self) -> None:
                file.close()
                super().close()

        return Full()

    monkeypatch.setattr(module, "open", full_open, raising=False)


# fetch ------------------------------------------------------------------------------------


def test_fetches_once_and_never_asks_again(server: Server, tmp_path: Path) -> None:
    url = server.url(serve())
    file = get(url, to=tmp_path / "new" / "folder")
    assert file == tmp_path / "new" / "folder" / "file.bin" and file.read_bytes() == BODY
    assert download.sha256_file(file) == SHA
    assert file.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    before = file.stat().st_mtime_ns
    assert get(url, to=file.parent) == file
    assert len(server.seen) == 1 and file.stat().st_mtime_ns == before
    assert visible(file.parent) == ["file.bin"]


def test_a_file_that_is_there_needs_no_write(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(BODY)  # in a folder that may be read-only
    get(to=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def current_umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_size_may_be_unknown(server: Server, tmp_path: Path) -> None:
    file = get(server.url(serve(cut=200_000), serve()), to=tmp_path, size=None)
    assert file.read_bytes() == BODY


def test_damaged_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(WRONG)
    assert get(server.url(serve()), to=tmp_path).read_bytes() == BODY


def test_cut_connection_is_resumed(server: Server, tmp_path: Path, naps: list[float]) -> None:
    url = server.url(serve(cut=150_000), serve(cut=100_000), serve())
    assert get(url, to=tmp_path).read_bytes() == BODY
    first, second, third = server.ranges
    assert first is None and 0 < offset(second) <= 150_000 and offset(second) < offset(third)
    assert len(naps) == 2 and visible(tmp_path) == ["file.bin"]


def offset(asked: str | None) -> int:
    assert asked is not None and asked.startswith("bytes=") and asked.endswith("-")
    return int(asked[6:-1])


def test_many_cuts_do_not_matter_while_bytes_arrive(server: Server, tmp_path: Path) -> None:
    url = server.url(serve(cut=70_000))  # 400 kB in 64 kB steps: more cuts than TRIES
    assert get(url, to=tmp_path).read_bytes() == BODY
    assert len(server.seen) > download.TRIES + 1


def test_reset_connection_is_retried(server: Server, tmp_path: Path) -> None:
    url = server.url(serve(cut=300_000, reset=True), serve(cut=0, reset=True), serve())
    assert get(url, to=tmp_path).read_bytes() == BODY


def test_next_call_resumes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="connection cut"):
        get(server.url(serve(cut=200_000), serve(cut=0)), to=tmp_path)
    assert visible(tmp_path) == ["file.bin.part"]
    server.seen.clear()
    assert get(server.url(serve()), to=tmp_path).read_bytes() == BODY
    assert len(server.seen) == 1 and offset(server.ranges[0]) > 100_000


@pytest.mark.parametrize("then", [whole(), status(416)], ids=["ignores Range", "refuses Range"])
def test_server_without_range(server: Server, tmp_path: Path, then: Act) -> None:
    url = server.url(whole(cut=200_000), then, whole())
    assert get(url, to=tmp_path).read_bytes() == BODY
    assert offset(server.ranges[1]) > 0


def test_cuts_without_range_end_at_varying_places(server: Server, tmp_path: Path) -> None:
    cuts = [whole(cut=200_000), whole(cut=300_000)] * 10  # each second one looks like progress
    with pytest.raises(DownloadError, match="connection cut"):
        get(server.url(*cuts), to=tmp_path)
    assert len(server.seen) == download.TRIES + 2


def test_cuts_without_range_end(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="connection cut"):
        get(server.url(whole(cut=200_000)), to=tmp_path)  # 200 kB each time, never a new byte
    assert len(server.seen) == download.TRIES + 1


@pytest.mark.parametrize("length", [1, 100_000, len(BODY), len(BODY) + 9])
def test_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path, length: int) -> None:
    (tmp_path / "file.bin.part").write_bytes((WRONG * 2)[:length])
    assert get(server.url(serve()), to=tmp_path).read_bytes() == BODY
    assert server.ranges[-1] is None


def test_whole_part_needs_no_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY)  # killed just before the last rename
    assert get(server.url(status(500)), to=tmp_path).read_bytes() == BODY
    assert not server.seen


def test_wrong_bytes_are_named_and_removed(server: Server, tmp_path: Path) -> None:
    url = server.url(serve(WRONG))
    with pytest.raises(DownloadError) as caught:
        get(url, to=tmp_path)
    for part in (url, SHA, hashlib.sha256(WRONG).hexdigest(), "--mirror", "data/README.md"):
        assert part in str(caught.value)
    assert visible(tmp_path) == [] and len(server.seen) == 1


@pytest.mark.parametrize(
    "act",
    [
        serve(BODY[:-1]),
        serve(BODY + b"!"),
        serve(BODY * 20),
        serve(b"<html>Log in to the hotel's Wi-Fi</html>"),
        serve(b""),
        whole(length=len(BODY) - 1),
        whole(length=1000),
    ],
    ids=["short", "long", "very long", "portal", "empty", "claims one less", "claims less"],
)
def test_wrong_length(server: Server, tmp_path: Path, act: Act) -> None:
    with pytest.raises(DownloadError, match=f"expected {len(BODY)}"):
        get(server.url(act), to=tmp_path)
    assert visible(tmp_path) == []


def test_claimed_length_too_long(server: Server, tmp_path: Path) -> None:
    url = server.url(whole(length=len(BODY) + 1000), serve())  # looks cut, though all is there
    assert get(url, to=tmp_path).read_bytes() == BODY
    assert len(server.seen) <= 2


def test_archive_labelled_as_encoding_arrives_as_it_is(server: Server, tmp_path: Path) -> None:
    packed = gzip.compress(BODY)
    sha = hashlib.sha256(packed).hexdigest()
    url = server.url(serve(packed, Content_Encoding="gzip"))
    assert get(url, to=tmp_path, sha256=sha, size=len(packed)).read_bytes() == packed


def test_asks_for_bytes_as_they_are(server: Server, tmp_path: Path) -> None:
    def compress_if_welcome(handler: Handler) -> None:
        welcome = "gzip" in handler.headers["Accept-Encoding"]
        serve(gzip.compress(BODY) if welcome else BODY)(handler)

    assert get(server.url(compress_if_welcome), to=tmp_path).read_bytes() == BODY


def test_endless_answer_is_not_read_to_the_end(server: Server, tmp_path: Path) -> None:
    sent = [0]

    def endless(handler: Handler) -> None:
        handler.head(200)
        while sent[0] < 10**8:
            sent[0] += handler.wfile.write(BODY)

    with pytest.raises(DownloadError, match=f"expected {len(BODY)}"):
        get(server.url(endless), to=tmp_path)
    assert sent[0] < 5 * 10**7 and visible(tmp_path) == []


def test_redirect(server: Server, tmp_path: Path) -> None:
    server.url(serve(cut=100_000), serve(), path="/moved")
    url = server.url(status(302, Location="/moved"))
    assert get(url, to=tmp_path).read_bytes() == BODY


def test_redirect_loop_ends(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="redirects"):
        get(server.url(status(302, Location="/file.bin")), to=tmp_path)


def test_next_url_after_404(server: Server, tmp_path: Path, naps: list[float]) -> None:
    urls = [server.url(status(404), path="/gone"), server.url(serve())]
    assert get(*urls, to=tmp_path).read_bytes() == BODY
    assert [path for path, _ in server.seen] == ["/gone", "/file.bin"] and naps == []


IN_AN_HOUR = email.utils.formatdate(time.time() + 3600, usegmt=True)


@pytest.mark.parametrize(
    ("code", "after", "wait"),
    [
        (429, "7", 7),
        (503, "9999", download.RETRY_AFTER_CAP),
        # Its own name: xdist's workers must agree on it, and they start at different seconds.
        pytest.param(503, IN_AN_HOUR, download.RETRY_AFTER_CAP, id="503-date"),
        (503, "soon", download.BACKOFF),
        (500, None, download.BACKOFF),
    ],
)
def test_busy_server_is_waited_for(
    server: Server, tmp_path: Path, naps: list[float], code: int, after: str | None, wait: float
) -> None:
    busy = status(code, **({"Retry_After": after} if after else {}))
    assert get(server.url(busy, serve()), to=tmp_path).read_bytes() == BODY
    assert naps == [wait]


def test_busy_for_ever(server: Server, tmp_path: Path, naps: list[float]) -> None:
    with pytest.raises(DownloadError, match="HTTP 503"):
        get(server.url(status(503, Retry_After="soon")), to=tmp_path)
    assert len(server.seen) == download.TRIES and naps == [1, 2, 4]


@pytest.mark.parametrize("trailing", ["", "/"])
def test_mirror_folder_comes_first(server: Server, tmp_path: Path, trailing: str) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "file.bin").write_bytes(BODY)
    file = get(server.url(serve()), to=tmp_path / "data", mirror=f"{mirror}{trailing}")
    assert file.read_bytes() == BODY and not server.seen
    assert file.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def test_mirror_url_comes_first(server: Server, tmp_path: Path) -> None:
    public = server.url(serve(), path="/public")
    mirror = server.url(serve(), path="/class/file.bin").removesuffix("file.bin")
    assert get(public, to=tmp_path, mirror=mirror).read_bytes() == BODY
    assert [path for path, _ in server.seen] == ["/class/file.bin"]


def test_mirror_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "file.bin").write_bytes(BODY)
    assert get(to=tmp_path / "data", mirror="~/mirror").read_bytes() == BODY


@pytest.mark.parametrize("content", [None, "folder", WRONG, b"short"])
def test_bad_mirror_is_passed_over(server: Server, tmp_path: Path, content: object) -> None:
    if content == "folder":
        (tmp_path / "mirror" / "file.bin").mkdir(parents=True)
    elif content is not None:
        (tmp_path / "mirror").mkdir()
        (tmp_path / "mirror" / "file.bin").write_bytes(content)
    mirror = str(tmp_path / "mirror")
    file = get(server.url(serve()), to=tmp_path / "data", mirror=mirror)
    assert file.read_bytes() == BODY
    file.unlink()
    with pytest.raises(DownloadError) as caught:
        get(server.url(status(404)), to=tmp_path / "data", mirror=mirror)
    assert mirror in str(caught.value) and "HTTP 404" in str(caught.value)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        refused = f"http://127.0.0.1:{taken.getsockname()[1]}/file.bin"
        lookup = socket.getaddrinfo

        def no_names(host: str, *args: object, **options: object) -> object:
            if host != "127.0.0.1":
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return lookup(host, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", no_names)
        with pytest.raises(DownloadError) as caught:
            get("https://data.invalid/file.bin", refused, "http://", to=tmp_path)
    message = str(caught.value)
    for part in ("https://data.invalid", "data.invalid", refused, "refused", "http://:"):
        assert part in caught.value.problem
    for part in ("--source FOLDER", "--mirror DIR_OR_URL", "OBJEMB_MIRROR", "data/README.md"):
        assert part in caught.value.remedy
    assert naps == [] and visible(tmp_path) == [] and "Traceback" not in message


def test_no_address_at_all(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no address"):
        get(to=tmp_path)


def test_free_space_is_checked_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = download.shutil.disk_usage(tmp_path)._replace(free=1_150_000_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    url = server.url(status(404))
    with pytest.raises(DownloadError, match=r"needs 1167 MB, 1150 MB are free"):
        get(url, to=tmp_path, size=1_000_000_000)  # 1.1 times that, and 64 MiB
    assert not server.seen and visible(tmp_path) == []
    with pytest.raises(DownloadError, match="HTTP 404"):
        get(url, to=tmp_path, size=980_000_000)


def test_free_space_is_checked_by_what_the_server_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no list says how long the file is, its server does, before the first byte is kept."""
    usage = download.shutil.disk_usage(tmp_path)._replace(free=67_000_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="67 MB are free"):
        get(server.url(serve()), to=tmp_path, size=None)
    assert visible(tmp_path) == []


def test_md5_where_only_that_was_published(server: Server, tmp_path: Path) -> None:
    right = f"md5:{hashlib.md5(BODY).hexdigest().upper()}"
    with pytest.raises(DownloadError, match="known hash"):
        get(server.url(whole(WRONG)), to=tmp_path, sha256=right)
    assert get(server.url(serve()), to=tmp_path, sha256=right).read_bytes() == BODY
    get(to=tmp_path, sha256=right)  # it is there
    with pytest.raises(DownloadError):
        get(to=tmp_path, sha256=f"md5:{'0' * 32}")


def test_without_a_digest_the_file_is_read_before_it_gets_its_name(
    server: Server, tmp_path: Path
) -> None:
    def check(file: Path) -> None:
        assert file.name == "file.bin.part"
        if file.read_bytes() != BODY:
            raise ObjembError(f"{file.name} is no list")

    with pytest.raises(ValueError, match="nothing can check"):
        get(server.url(serve()), to=tmp_path, sha256=None)
    url = server.url(whole(b"<html>"), path="/portal")
    with pytest.raises(DownloadError, match="is no list"):
        get(url, to=tmp_path, sha256=None, size=None, check=check)
    assert visible(tmp_path) == []
    urls = url, server.url(serve(cut=100), serve())
    file = get(*urls, to=tmp_path, sha256=None, size=None, check=check)
    assert file.read_bytes() == BODY


def test_waiter_needs_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LockHeldByAnother:
        def __init__(self, path: Path) -> None:
            pass

        def __enter__(self) -> None:
            (tmp_path / "file.bin").write_bytes(BODY)  # which fills the disk

        def __exit__(self, *error: object) -> None:
            pass

    usage = download.shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(download, "FileLock", LockHeldByAnother)
    assert get(to=tmp_path).read_bytes() == BODY


def test_full_disk_keeps_what_arrived(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, spare = server.url(serve()), server.url(serve(), path="/spare")
    with monkeypatch.context() as patch:
        fill_disk_after(patch, download, 150_000)
        with pytest.raises(DownloadError, match="No space left") as caught:
            get(url, spare, to=tmp_path)
    assert str(tmp_path / "file.bin") in str(caught.value) and "Free some space" in str(
        caught.value
    )
    assert visible(tmp_path) == ["file.bin.part"]
    assert len(server.seen) == 1  # another address would not help
    assert get(url, to=tmp_path).read_bytes() == BODY
    assert server.ranges[-1] == "bytes=150000-"


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written"):
        get(server.url(serve()), to=tmp_path / "file" / "folder")


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.3)  # so that the second surely comes while the first is at work
        serve()(handler)

    code = (
        "import sys, pathlib; from objemb_lib.data.download import fetch; print('up', flush=True); "
        "sys.stdin.readline(); "
        "fetch([sys.argv[1]], pathlib.Path(sys.argv[2]), sys.argv[3], progress=False)"
    )
    args = [sys.executable, "-c", code, server.url(slow), str(tmp_path / "file.bin"), SHA]
    pipe, root = subprocess.PIPE, Path(__file__).parents[2]
    both = [subprocess.Popen(args, cwd=root, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "up\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "file.bin").read_bytes() == BODY and len(server.seen) == 1


def test_progress_bar_counts_resumed_bytes(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pooch.get_logger().setLevel("INFO")
    pooch.get_logger().addHandler(caplog.handler)  # it stands outside logging's tree
    (tmp_path / "file.bin.part").write_bytes(BODY[:100_000])
    get(server.url(serve()), to=tmp_path, progress=True)
    pooch.get_logger().removeHandler(caplog.handler)
    shown = capsys.readouterr().err
    assert "file.bin" in shown and "400k/400k" in shown and not caplog.records


# unpack -----------------------------------------------------------------------------------

FILES = {"top/a.txt": b"alpha" * 50, "top/sub/b.png": BODY[:3000], "top/empty": b""}


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def make_tar(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}") as pack:
        folder = tarfile.TarInfo("top")
        folder.type = tarfile.DIRTYPE
        pack.addfile(folder)
        for info in others:
            pack.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o4755
            pack.addfile(info, io.BytesIO(content))
    return path


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("top/", b"")
        for name, content in files.items():
            pack.writestr(name, content)
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    return make_zip(path, files) if path.suffix == ".zip" else make_tar(path, files)


def tree(folder: Path) -> dict[str, bytes]:
    """Files by name; follows no link, and fails on anything that is neither file nor folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        assert not path.is_symlink()
        if not path.is_dir():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


FORMATS = pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.zip"])


@FORMATS
def test_unpacks_all(tmp_path: Path, name: str) -> None:
    files = download.unpack(make(tmp_path / name, FILES), tmp_path / "out")
    assert files == [tmp_path / "out" / inside for inside in FILES]
    assert tree(tmp_path / "out") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "out"]
    mask = current_umask()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert files[0].stat().st_mode & 0o7777 == 0o666 & ~mask


@FORMATS
def test_unpacks_the_chosen_beside_what_was_there(tmp_path: Path, name: str) -> None:
    kept = tmp_path / "out" / "top" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"mine")
    (kept.parent / "a.txt").write_bytes(b"old")
    archive = make(tmp_path / name, FILES)
    files = download.unpack(archive, tmp_path / "out", lambda inside: inside.endswith(".txt"))
    assert files == [tmp_path / "out" / "top" / "a.txt"]
    assert tree(tmp_path / "out") == {"top/kept": b"mine", "top/a.txt": FILES["top/a.txt"]}


EVIL = ["../evil", "top/../../evil", "/tmp/objemb-evil", "..\\evil", "C:\\evil", "C:evil", "\\evil"]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_refuses_paths_outside(tmp_path: Path, name: str, evil: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    archive = make(home / name, FILES | {evil: b"evil"})
    before = tree(tmp_path)
    with pytest.raises(DownloadError, match="outside") as caught:
        download.unpack(archive, home / "out")
    assert str(archive) in str(caught.value) and evil.rsplit("\\")[-1] in str(caught.value)
    assert tree(tmp_path) == before and not (home / "out").exists()
    assert not Path("/tmp/objemb-evil").exists()
    # Left out by choice, it does no harm.
    assert len(download.unpack(archive, home / "out", FILES.__contains__)) == len(FILES)


@pytest.mark.parametrize(
    "entry",
    [
        link("top/out", "../../secret"),
        link("top/out", "/etc/passwd"),
        link("top/in", "a.txt"),
        link("top/hard", "../secret", tarfile.LNKTYPE),
        link("top/fifo", "", tarfile.FIFOTYPE),
        link("top/device", "", tarfile.CHRTYPE),
    ],
    ids=lambda entry: f"{entry.type!r} {entry.linkname}",
)
def test_refuses_links_and_devices(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    archive = make_tar(tmp_path / "a.tar.gz", FILES, entry)
    with pytest.raises(DownloadError, match=f"{entry.name}.*link or device"):
        download.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    download.unpack(archive, tmp_path / "out", FILES.__contains__)
    assert tree(tmp_path / "out") == FILES


def test_refuses_a_file_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    trap = link("top/door", str(outside))
    archive = make_tar(tmp_path / "a.tar.gz", {"top/door/evil": b"evil"}, trap)
    with pytest.raises(DownloadError):
        download.unpack(archive, tmp_path / "out")
    download.unpack(archive, tmp_path / "out", lambda name: name.endswith("evil"))
    assert tree(outside) == {} and tree(tmp_path / "out") == {"top/door/evil": b"evil"}


def test_refuses_links_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("top/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        pack.writestr(info, "../../secret")
    with pytest.raises(DownloadError, match="top/link"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")


@FORMATS
def test_refuses_bombs(tmp_path: Path, name: str) -> None:
    archive = make(tmp_path / name, FILES | {"top/bomb": bytes(5_000_000)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(DownloadError, match="more than 1000000 bytes"):
        download.unpack(archive, tmp_path / "out", max_bytes=1_000_000)
    assert not (tmp_path / "out").exists()
    total = sum(map(len, FILES.values())) + 5_000_000
    assert len(download.unpack(archive, tmp_path / "out", max_bytes=total)) == 4


@FORMATS
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_refuses_cut_archives(tmp_path: Path, name: str, share: float) -> None:
    archive = make(tmp_path / name, FILES)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DownloadError, match="damaged or cut short") as caught:
        download.unpack(archive, tmp_path / "out")
    assert str(archive) in str(caught.value) and "delete it" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_checksum_at_the_end_is_read(tmp_path: Path) -> None:
    plain = make(tmp_path / "a.tar.gz", FILES).read_bytes()
    padded = bytearray(gzip.compress(gzip.decompress(plain) + bytes(1_000_000)))
    padded[-8] ^= 1  # gzip's CRC, far behind the end of the tar
    archive = tmp_path / "b.tar.gz"
    archive.write_bytes(padded)
    with pytest.raises(DownloadError, match="CRC"):
        download.unpack(archive, tmp_path / "out")


@settings(max_examples=150, deadline=None)
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
        download.unpack(archive, folder / "out")
    except DownloadError as error:
        assert str(archive) in str(error) and not (folder / "out").exists()
    else:  # a bit that bears no content, such as a time
        held = tree(folder / "out")
        assert set(held.values()) <= set(FILES.values())
        assert name == "a.zip" or held == FILES  # a zip's list of names has no checksum
    assert {path.name for path in folder.iterdir()} <= {name, "out"}


def test_unpack_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_bytes(b"mine")
    archive = make(tmp_path / "a.tar.gz", FILES)
    fill_disk_after(monkeypatch, download, 1000)
    with pytest.raises(DownloadError, match="No space left.*\n.*free space"):
        download.unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {"kept": b"mine"}


def test_unpack_without_archive(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="absent.zip"):
        download.unpack(tmp_path / "absent.zip", tmp_path / "out")


# debian_package ---------------------------------------------------------------------------

APT = """#!/bin/sh
for last; do :; done
[ "$last" = bird-photos ] || { echo "E: Unable to locate package $last" >&2; exit 100; }
echo "W: Download is performed unsandboxed as root" >&2
echo "${CONTENT:-photo}" > "${last}_1.0_all.deb"
"""
DPKG = """#!/bin/sh
[ "$1" = -x ] && [ "$(cat "$2")" = photo ] || { echo "dpkg-deb: error: no archive" >&2; exit 2; }
mkdir -p "$3/usr/share" && cp "$2" "$3/usr/share/bird"
"""


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in {"apt-get": APT, "dpkg-deb": DPKG}.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tools


def test_debian_package(debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    assert download.debian_package("bird-photos", Path("root")) == Path("root")
    assert tree(home) == {"root/usr/share/bird": b"photo\n"}


@pytest.mark.parametrize(
    ("package", "content", "reason"),
    [
        ("unicorns", "photo", "E: Unable to locate package unicorns"),
        ("bird-photos", "half", "dpkg-deb: error: no archive"),
    ],
)
def test_debian_package_that_fails(
    debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, package: str, content: str, reason: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("CONTENT", content)
    home = tmp_path / "home"
    home.mkdir()
    with caplog.at_level(logging.INFO, "objemb"):
        assert download.debian_package(package, home / "root") is None
    assert reason in caplog.text and list(home.iterdir()) == []


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_not_debian(
    debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, missing: str,
) -> None:  # fmt: skip
    (debian / missing).unlink()
    monkeypatch.setenv("PATH", str(debian))
    with caplog.at_level(logging.INFO, "objemb"):
        assert download.debian_package("bird-photos", tmp_path / "root") is None
    assert missing in caplog.text and not (tmp_path / "root").exists()


@pytest.mark.skipif(os.environ.get("OBJEMB_NETWORK_TESTS") != "1", reason="fetches 47 MB")
def test_real_debian_package(tmp_path: Path) -> None:
    root = download.debian_package("mate-backgrounds", tmp_path / "root")
    if root is None:
        pytest.skip("no apt, or no package lists, here")
    assert len(list(root.glob("usr/share/backgrounds/mate/nature/*.jpg"))) >= 5


# atomic -----------------------------------------------------------------------------------


def test_atomic_writes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    assert cache.atomic_write_text(path, "zwölf\r\n→\n") == path
    assert path.read_bytes() == "zwölf\r\n→\n".encode()
    cache.atomic_write_bytes(path, b"\x00second")
    assert path.read_bytes() == b"\x00second"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
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


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, PermissionError(13, "no")])
def test_atomic_path_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"old")
    expected = error if isinstance(error, type) else type(error)
    with pytest.raises(expected), cache.atomic_path(path) as temp:
        temp.write_bytes(b"half")
        raise error
    assert tree(tmp_path) == {"table": b"old"}


def test_atomic_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"old")
    fill_disk_after(monkeypatch, cache, 10)
    with pytest.raises(ObjembError, match="disk is full") as caught:
        cache.atomic_write_bytes(path, BODY)
    assert str(path) in str(caught.value) and "Free some space" in str(caught.value)
    assert tree(tmp_path) == {"table": b"old"}
