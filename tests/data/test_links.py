"""Many links, of which many are dead, against a server on this machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from local_server import BODY, SHA, Server, serve, status, whole

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import links
from objemb_lib.data.fetch import Remote

pytestmark = pytest.mark.usefixtures("naps")
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
    links.download_urls(folder, files, progress=False, **options)
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


def test_a_host_that_does_not_answer_is_left_alone(server: Server, tmp_path: Path) -> None:
    silent = [Remote(f"{i}", f"{SILENT}/{i}", SHA) for i in range(9)]
    _, _, failed = run(silent + wanted(server, good=[serve()]), tmp_path, workers=1)
    left = [why for why in failed.values() if why == "its server does not answer"]
    assert len(failed) == 9 and len(left) == 9 - links.SILENCE


def test_without_a_network_nothing_is_called_dead(tmp_path: Path) -> None:
    silent = [Remote(f"{i}", f"{SILENT}/{i}", SHA) for i in range(3)]
    with pytest.raises(DownloadError, match="none of 3 files"):
        run(silent, tmp_path)
    assert json.loads((tmp_path / "links.json").read_text())["dead"] == {}


def test_one_server_is_asked_at_a_pace(
    server: Server, tmp_path: Path, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links.time, "monotonic", lambda: 100.0)  # nothing takes any time
    files = wanted(server, **{f"f{i}": [serve()] for i in range(5)})
    run(files, tmp_path, per_second=2)
    assert sorted(naps) == [0.5, 1.0, 1.5, 2.0]


def test_where_no_list_has_the_digest_the_servers_own_is_held(
    server: Server, tmp_path: Path
) -> None:
    tag = hashlib.md5(BODY).hexdigest()
    server.url(serve(ETag=f'"{tag}"'), path="/right")
    server.url(whole(BODY[:-1]), path="/short")
    server.url(serve(ETag=f'"{"0" * 32}"'), path="/other")
    multipart = server.url(serve(ETag=f'"{tag[:-2]}-2"'), path="/multipart")

    def complete(file: Path) -> None:
        if file.stat().st_size != len(BODY):
            raise DataError(f"{file.name} is cut")

    names = ("right", "short", "other", "multipart")
    base = multipart.rpartition("/")[0]
    made, dead, _ = run(
        [Remote(name, f"{base}/{name}") for name in names], tmp_path, check=complete
    )
    assert set(dead) == {"short", "other"} and made["files"] == 2
    assert not list(tmp_path.glob("*.part"))


def test_an_old_half_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (one,) = wanted(server, file=[serve()])
    (tmp_path / one.file).parent.mkdir()
    (tmp_path / "images/file.part").write_bytes(bytes(1000))
    assert run([one], tmp_path)[0]["files"] == 1 and (tmp_path / one.file).read_bytes() == BODY
