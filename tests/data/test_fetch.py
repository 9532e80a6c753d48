"""Downloads that go wrong in every way a classroom has seen, against a server on this machine."""

from __future__ import annotations

import email.utils
import hashlib
import json
import shutil
import socket
import time
from pathlib import Path

import pytest
from local_server import BODY, SHA, Act, Server, serve, status, whole

from objemb_lib.config import DownloadError, ObjembError
from objemb_lib.data import fetch
from objemb_lib.data.archives import sha256_file
from objemb_lib.data.fetch import Remote

pytestmark = pytest.mark.usefixtures("naps")
WRONG = bytes(reversed(BODY))
SERVERS_OWN = {"digest": "", "size": None}  # no list says what the bytes are


def get(url: str, to: Path, mirror: str | None = None, check=None, **known: object) -> Path:
    remote = Remote("file.bin", url, **{"digest": SHA, "size": len(BODY)} | known)
    return fetch.fetch(remote, to, mirror=mirror, check=check)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def offset(asked: str | None) -> int:
    assert asked is not None and asked.startswith("bytes=") and asked.endswith("-")
    return int(asked[6:-1])


def test_fetches_once_and_never_asks_again(server: Server, tmp_path: Path) -> None:
    url = server.url(serve())
    file = get(url, tmp_path / "new" / "folder")
    assert file == tmp_path / "new" / "folder" / "file.bin" and file.read_bytes() == BODY
    assert sha256_file(file) == SHA
    before = file.stat().st_mtime_ns
    assert get(url, file.parent) == file
    assert len(server.seen) == 1 and file.stat().st_mtime_ns == before
    file.write_bytes(WRONG)  # damaged since
    assert get(url, file.parent).read_bytes() == BODY and visible(file.parent) == ["file.bin"]


# Cut connections --------------------------------------------------------------------------


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    url = server.url(serve(cut=150_000), serve(cut=100_000, reset=True), serve())
    assert get(url, tmp_path).read_bytes() == BODY and visible(tmp_path) == ["file.bin"]
    first, second, third = server.ranges
    assert first is None and 0 < offset(second) <= 150_000 and offset(second) < offset(third)


def test_the_next_call_resumes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="connection cut"):
        get(server.url(serve(cut=200_000), serve(cut=0)), tmp_path)
    assert visible(tmp_path) == ["file.bin.part"]
    server.seen.clear()
    assert get(server.url(serve()), tmp_path).read_bytes() == BODY
    assert len(server.seen) == 1 and offset(server.ranges[0]) > 100_000


@pytest.mark.parametrize("then", [whole(), status(416)], ids=["ignores Range", "refuses Range"])
def test_a_server_without_range(server: Server, tmp_path: Path, then: Act) -> None:
    url = server.url(whole(cut=200_000), then, whole())
    assert get(url, tmp_path).read_bytes() == BODY
    assert offset(server.ranges[1]) > 0


@pytest.mark.parametrize("cuts", [[200_000], [200_000, 300_000]], ids=["same", "varying"])
def test_cuts_without_range_end(server: Server, tmp_path: Path, cuts: list[int]) -> None:
    """Each second one looks like progress."""
    with pytest.raises(DownloadError, match="connection cut"):
        get(server.url(*[whole(cut=cut) for cut in cuts * 10]), tmp_path)
    assert len(server.seen) <= fetch.TRIES + 2


@pytest.mark.parametrize("length", [1, 100_000, len(BODY), len(BODY) + 9])
def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path, length: int) -> None:
    (tmp_path / "file.bin.part").write_bytes((WRONG * 2)[:length])
    assert get(server.url(serve()), tmp_path).read_bytes() == BODY
    assert server.ranges[-1] is None


def test_a_whole_part_needs_no_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY)  # killed just before the last rename
    assert get(server.url(status(500)), tmp_path).read_bytes() == BODY
    assert not server.seen


# Wrong bytes ------------------------------------------------------------------------------


def test_wrong_bytes_are_named_and_removed(server: Server, tmp_path: Path) -> None:
    url = server.url(serve(WRONG))
    with pytest.raises(DownloadError) as caught:
        get(url, tmp_path)
    for part in (url, SHA, hashlib.sha256(WRONG).hexdigest(), "--mirror", "data/README.md"):
        assert part in str(caught.value)
    assert visible(tmp_path) == [] and len(server.seen) == 1


@pytest.mark.parametrize(
    "act",
    [serve(BODY[:-1]), serve(BODY * 20), serve(b""), whole(length=len(BODY) - 1)],
    ids=["short", "long", "empty", "claims less"],
)
@pytest.mark.parametrize("digest", [SHA, ""], ids=["digest", "only its length"])
def test_wrong_length(server: Server, tmp_path: Path, act: Act, digest: str) -> None:
    with pytest.raises(DownloadError, match=f"expected {len(BODY)}"):
        get(server.url(act), tmp_path, digest=digest)
    assert visible(tmp_path) == []


def test_without_a_digest_the_file_is_read_before_it_gets_its_name(
    server: Server, tmp_path: Path
) -> None:
    def check(file: Path) -> None:
        assert file.name == "file.bin.part"
        if file.read_bytes() != BODY:
            raise ObjembError(f"{file.name} is no list")

    with pytest.raises(DownloadError, match="is no list"):
        get(server.url(whole(b"<html>")), tmp_path, check=check, **SERVERS_OWN)
    assert visible(tmp_path) == []
    url = server.url(serve(cut=100), serve())
    assert get(url, tmp_path, check=check, **SERVERS_OWN).read_bytes() == BODY


# Servers and mirrors ----------------------------------------------------------------------


IN_AN_HOUR = email.utils.formatdate(time.time() + 3600, usegmt=True)


@pytest.mark.parametrize(
    ("code", "after", "wait"),
    [
        (429, "7", 7),
        (503, "9999", fetch.RETRY_AFTER_CAP),
        # Its own name: xdist's workers must agree on it, and they start at different seconds.
        pytest.param(503, IN_AN_HOUR, fetch.RETRY_AFTER_CAP, id="503-date"),
        (408, None, None),
        (500, None, None),
    ],
)
def test_a_busy_server_is_waited_for(
    server: Server, tmp_path: Path, naps: list[float], code: int, after: str | None, wait: float
) -> None:
    busy = status(code, **({"Retry_After": after} if after else {}))
    assert get(server.url(busy, serve()), tmp_path).read_bytes() == BODY
    assert naps == ([wait] if wait else [])


@pytest.mark.parametrize("kind", ["folder", "folder/", "URL"])
def test_the_mirror_comes_first(server: Server, tmp_path: Path, kind: str) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "file.bin").write_bytes(BODY)
    mirror = f"{tmp_path}/mirror{kind.removeprefix('folder')}"
    if kind == "URL":
        mirror = server.url(serve(), path="/class/file.bin").removesuffix("file.bin")
    public = server.url(status(404), path="/public")
    assert get(public, tmp_path / "data", mirror).read_bytes() == BODY
    assert [path for path, _ in server.seen] == ["/class/file.bin"] * (kind == "URL")


@pytest.mark.parametrize("content", [None, "folder", WRONG, b"short"])
def test_a_bad_mirror_is_passed_over(server: Server, tmp_path: Path, content: object) -> None:
    if content == "folder":
        (tmp_path / "mirror" / "file.bin").mkdir(parents=True)
    elif content is not None:
        (tmp_path / "mirror").mkdir()
        (tmp_path / "mirror" / "file.bin").write_bytes(content)
    mirror = str(tmp_path / "mirror")
    file = get(server.url(serve()), tmp_path / "data", mirror)
    assert file.read_bytes() == BODY
    file.unlink()
    with pytest.raises(DownloadError, match=rf"{mirror}(.|\n)*HTTP 404"):
        get(server.url(status(404)), tmp_path / "data", mirror)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]) -> None:
    def no_names(*args: object, **options: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    with pytest.raises(DownloadError, match=r"data\.invalid") as caught:
        get("https://data.invalid/file.bin", tmp_path)
    for part in ("--source FOLDER", "--mirror DIR_OR_URL", "OBJEMB_MIRROR", "data/README.md"):
        assert part in caught.value.remedy
    assert naps == [] and visible(tmp_path) == []


# The disk ---------------------------------------------------------------------------------


def test_free_space_is_checked_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = fetch.shutil.disk_usage(tmp_path)._replace(free=1_150_000_000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    url = server.url(status(404))
    with pytest.raises(DownloadError, match=r"needs 1167 MB, 1150 MB are free"):
        get(url, tmp_path, size=1_000_000_000)  # 1.1 times that, and 64 MiB
    assert not server.seen and visible(tmp_path) == []
    with pytest.raises(DownloadError, match="HTTP 404"):
        get(url, tmp_path, size=980_000_000)


# The registry, and apt --------------------------------------------------------------------


def test_every_line_of_the_registry_can_be_fetched_and_checked() -> None:
    rows = [row.split(",") for row in fetch.REGISTRY.read_text().splitlines()[1:]]
    assert len({row[1] for row in rows}) == len(rows) > 15
    for collection in {row[0] for row in rows}:
        for remote in fetch.registry(collection):
            kind, _, digest = remote.digest.rpartition(":")
            assert not digest or len(bytes.fromhex(digest)) == {"": 32, "md5": 16}[kind]
            assert digest or collection in ("roxford5k", "rparis6k", "ps-battles")
            assert remote.url.startswith("http") and remote.url.endswith(f"/{remote.file}")


APT = """#!/bin/sh
for last; do :; done
[ "$last" = bird-photos ] && echo photo > "${last}_1.0_all.deb"
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/share" && cp "$2" "$3/usr/share/bird"
"""


@pytest.mark.parametrize("package", ["bird-photos", "unicorns"])
@pytest.mark.parametrize("missing", ["", "apt-get", "dpkg-deb"])
def test_a_debian_package_is_unpacked_or_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, missing: str
) -> None:
    for name, script in {"apt-get": APT, "dpkg-deb": DPKG}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755 if name != missing else 0)
    for name in ("sh", "mkdir", "cp"):
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    root = fetch.debian_package(package, tmp_path / "root")
    if package == "bird-photos" and not missing:
        assert (root / "usr/share/bird").read_text() == "photo\n"
    else:
        assert root is None


# Very many links --------------------------------------------------------------------------

REMOVED = b"The image you are requesting does not exist or is no longer available."
SILENT = "http://127.0.0.1:9"


def wanted(server: Server, **acts: list) -> list[Remote]:
    """One file a keyword, all of the bytes BODY."""
    return [
        Remote(f"images/{name}", server.url(*act, path=f"/{name}"), SHA, len(BODY))
        for name, act in acts.items()
    ]


def run(files: list[Remote], folder: Path, **options: object) -> tuple[dict, dict, dict]:
    """The manifest, and the reasons of dead and of failed links by their last part."""
    fetch.download_urls(folder, files, **options)
    report = json.loads((folder / "links.json").read_text())
    dead, failed = (
        {url.rpartition("/")[2]: why for url, why in report[k].items()} for k in ("dead", "failed")
    )
    return json.loads((folder / "manifest.json").read_text()), dead, failed


def paths(server: Server) -> list[str]:
    return sorted(path for path, _ in server.seen)


def test_what_is_alive_comes_and_what_is_dead_is_counted(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = server.url(whole(REMOVED), path="/removed.png")
    files = wanted(
        server, good=[serve()], gone=[status(404)], over=[status(410)],
        removed=[status(302, Location=moved)], swapped=[whole(bytes(reversed(BODY)))],
        busy=[status(503, Retry_After=3), serve()], cut=[serve(cut=1000), serve()],
        moved=[status(301, Location=server.url(serve(), path="/elsewhere"))],
    )  # fmt: skip
    made, dead, failed = run(files, tmp_path)
    images = tmp_path / "images"
    assert sorted(p.name for p in images.iterdir()) == ["busy", "cut", "good", "moved"]
    assert all(p.read_bytes() == BODY for p in images.iterdir())
    assert made == {"files": 4, "dead": 4, "unanswered": 0} and not failed
    assert dead["gone"] == "HTTP 404 Not Found" and dead["over"].startswith("HTTP 410")
    assert dead["removed"].startswith("other bytes: ")  # a page in the picture's place
    assert dead["swapped"].startswith("other bytes: ")
    assert "4 of 8 files are here; 4 links are dead" in capsys.readouterr().out


@pytest.mark.parametrize("code", [401, 403, 408, 418, 429, 451, 500, 503, 599])
def test_no_answer_but_gone_is_final(server: Server, tmp_path: Path, code: int) -> None:
    """Else a server that is busy, or in a bad mood, today would be gone for good."""
    files = wanted(server, good=[serve()], later=[status(code)])
    made, dead, failed = run(files, tmp_path)
    assert made == {"files": 1, "dead": 0, "unanswered": 1} and not dead
    assert failed["later"].startswith(f"HTTP {code}")
    server.url(serve(), path="/later")
    assert run(files, tmp_path)[0] == {"files": 2, "dead": 0, "unanswered": 0}


def test_a_second_run_asks_nothing(server: Server, tmp_path: Path) -> None:
    files = wanted(server, good=[serve()], gone=[status(404), serve()])
    first = run(files, tmp_path)
    server.seen.clear()
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "images").iterdir()}
    assert run(files, tmp_path) == first and server.seen == []
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "images").iterdir()}
    again = run(files, tmp_path, retry_dead=True)
    assert paths(server) == ["/gone"] and again == (
        {"files": 2, "dead": 0, "unanswered": 0},
        {},
        {},
    )


def test_a_host_that_does_not_answer_is_left_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "AT_ONCE", 1)
    silent = [Remote(f"{i}", f"{SILENT}/{i}", SHA) for i in range(9)]
    _, _, failed = run(silent + wanted(server, good=[serve()]), tmp_path)
    left = [why for why in failed.values() if why == "its server does not answer"]
    assert len(failed) == 9 and len(left) == 9 - fetch.SILENCE


def test_without_a_network_nothing_is_called_dead(tmp_path: Path) -> None:
    silent = [Remote(f"{i}", f"{SILENT}/{i}", SHA) for i in range(3)]
    with pytest.raises(DownloadError, match="none of 3 files"):
        run(silent, tmp_path)
    assert json.loads((tmp_path / "links.json").read_text())["dead"] == {}


def test_one_server_is_asked_at_a_pace(
    server: Server, tmp_path: Path, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch.time, "monotonic", lambda: 100.0)  # nothing takes any time
    files = wanted(server, **{f"f{i}": [serve()] for i in range(5)})
    run(files, tmp_path, per_second=2)
    assert sorted(naps) == [0.5, 1.0, 1.5, 2.0]


def test_an_old_half_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (one,) = wanted(server, file=[serve()])
    (tmp_path / one.file).parent.mkdir()
    (tmp_path / "images/file.part").write_bytes(bytes(1000))
    assert run([one], tmp_path)[0]["files"] == 1 and (tmp_path / one.file).read_bytes() == BODY
