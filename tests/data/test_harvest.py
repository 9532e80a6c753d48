"""Harvest: many links, of which many are dead, against a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from local_server import BODY, SHA, Server, serve, status, whole

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import download, harvest
from objemb_lib.data.harvest import Wanted

pytestmark = pytest.mark.usefixtures("naps")
REMOVED = b"The image you are requesting does not exist or is no longer available."


def wanted(server: Server, folder: Path, **acts: list) -> list[Wanted]:
    """One file a keyword, all of the bytes BODY."""
    return [
        Wanted(server.url(*act, path=f"/{name}"), folder / "images" / name, SHA, len(BODY))
        for name, act in acts.items()
    ]


def run(files: list[Wanted], folder: Path, **options: object) -> harvest.Harvest:
    return harvest.download_urls(files, folder / "links.json", progress=False, **options)


def paths(server: Server) -> list[str]:
    return sorted(path for path, _ in server.seen)


def test_what_is_alive_comes_and_what_is_dead_is_counted(server: Server, tmp_path: Path) -> None:
    moved = server.url(whole(REMOVED), path="/removed.png")
    files = wanted(
        server, tmp_path, good=[serve()], gone=[status(404)], forbidden=[status(403)],
        removed=[status(302, Location=moved)], swapped=[whole(bytes(reversed(BODY)))],
        busy=[status(503, Retry_After=3), serve()], cut=[serve(cut=1000), serve()],
        moved=[status(301, Location=server.url(serve(), path="/elsewhere"))],
    )  # fmt: skip
    found = run(files, tmp_path)
    images = tmp_path / "images"
    assert sorted(p.name for p in images.iterdir()) == ["busy", "cut", "good", "moved"]
    assert all(p.read_bytes() == BODY for p in images.iterdir())
    reasons = {url.rpartition("/")[2]: why for url, why in found.dead.items()}
    assert reasons["gone"] == "HTTP 404 Not Found"
    assert reasons["forbidden"].startswith("HTTP 403")
    assert reasons["removed"].startswith("other bytes: ")  # a page in the picture's place
    assert reasons["swapped"].startswith("other bytes: ")
    assert len(reasons) == 4 and found.here == 4 and not found.failed
    assert "4 of 8 files are here; 4 links are dead, 2 other bytes" in str(found)
    assert json.loads((tmp_path / "links.json").read_text()) == vars(found)


def test_a_second_run_asks_nothing(server: Server, tmp_path: Path) -> None:
    files = wanted(server, tmp_path, good=[serve()], gone=[status(404), serve()])
    first = run(files, tmp_path)
    server.seen.clear()
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "images").iterdir()}
    assert run(files, tmp_path) == first
    assert server.seen == []
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "images").iterdir()}
    again = run(files, tmp_path, retry_dead=True)
    assert paths(server) == ["/gone"] and again.here == 2 and not again.dead


def test_silence_is_not_death(server: Server, tmp_path: Path) -> None:
    """A server that is down today is asked again by the next run."""
    files = wanted(server, tmp_path, good=[serve()], down=[status(503)] * 5 + [serve()])
    found = run(files, tmp_path, workers=1)
    assert found.here == 1 and not found.dead
    assert [why.split(",")[0] for why in found.failed.values()] == ["HTTP 503 Service Unavailable"]
    assert "1 did not answer" in str(found)
    found = run(files, tmp_path)
    assert found.here == 2 and not found.failed


def test_a_host_that_does_not_answer_is_left_alone(server: Server, tmp_path: Path) -> None:
    files = wanted(server, tmp_path, good=[serve()])
    silent = [Wanted(f"http://127.0.0.1:9/{i}", tmp_path / f"{i}", SHA) for i in range(9)]
    found = run(silent + files, tmp_path, workers=1)
    assert found.here == 1 and len(found.failed) == 9
    left = [why for why in found.failed.values() if why == "127.0.0.1:9 does not answer"]
    assert len(left) == 9 - harvest.HOST_FAILURES


def test_without_a_network_nothing_is_called_dead(tmp_path: Path) -> None:
    silent = [Wanted(f"http://127.0.0.1:9/{i}", tmp_path / f"{i}", SHA) for i in range(3)]
    with pytest.raises(DownloadError, match="none of 3 files"):
        run(silent, tmp_path)
    assert json.loads((tmp_path / "links.json").read_text())["dead"] == {}


def test_one_server_is_asked_at_a_pace(
    server: Server, tmp_path: Path, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest.time, "monotonic", lambda: 100.0)  # nothing takes any time
    files = wanted(server, tmp_path, **{f"f{i}": [serve()] for i in range(5)})
    run(files, tmp_path, per_second=2)
    assert sorted(naps) == [0.5, 1.0, 1.5, 2.0]


def test_where_no_list_has_the_digest_the_servers_own_is_held(
    server: Server, tmp_path: Path
) -> None:
    tag = hashlib.md5(BODY).hexdigest()
    right = server.url(serve(ETag=f'"{tag}"'), path="/right")
    wrong = server.url(whole(BODY[:-1]), path="/short")
    other = server.url(serve(ETag=f'"{"0" * 32}"'), path="/other")
    multipart = server.url(serve(ETag=f'"{tag[:-2]}-2"'), path="/multipart")

    def complete(file: Path) -> None:
        if file.stat().st_size != len(BODY):
            raise DataError(f"{file.name} is cut")

    urls = (right, wrong, other, multipart)
    files = [Wanted(url, tmp_path / url.rpartition("/")[2], check=complete) for url in urls]
    found = run(files, tmp_path)
    assert {url.rpartition("/")[2] for url in found.dead} == {"short", "other"}
    assert found.here == 2
    assert not list(tmp_path.glob("*.part"))


def test_an_old_half_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (one,) = wanted(server, tmp_path, file=[serve()])
    one.dest.parent.mkdir()
    one.dest.with_name("file.part").write_bytes(bytes(1000))
    assert run([one], tmp_path).here == 1
    assert one.dest.read_bytes() == BODY and server.ranges == ["bytes=1000-", None]


def test_space_is_checked_before_the_first_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = download.shutil.disk_usage(tmp_path)._replace(free=50_000_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="50 MB are free"):
        run(wanted(server, tmp_path, good=[serve()]), tmp_path)
    assert server.seen == []


def test_a_full_disk_stops_the_run_and_keeps_the_report(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, dest: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(dest))

    files = wanted(server, tmp_path, gone=[status(404)], good=[serve()], more=[serve()])
    with monkeypatch.context() as patch:
        patch.setattr(harvest.os, "replace", full)
        patch.setattr(harvest, "atomic_write_text", lambda path, text: path.write_text(text))
        with pytest.raises(DownloadError, match="No space left"):
            run(files, tmp_path, workers=1)
    assert len(json.loads((tmp_path / "links.json").read_text())["dead"]) == 1
    assert run(files, tmp_path).here == 2


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "links.json").write_text("{")
    with pytest.raises(DownloadError, match=r"links\.json"):
        run([], tmp_path)
