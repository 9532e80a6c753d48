"""The server of the app: what it gives, to whom, and what it keeps."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from PIL import Image
from tiny_gallery import coloured, retriever

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.show import serve
from objemb_lib.show.pages import index_of, write_folder
from objemb_lib.show.serve import Server
from objemb_lib.show.widgets import ObjectSearch

STRANGE = "..%2f <b>ü 日本\u202e#?.png"


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    """Three photographs, one of a name that is no address; beside them a file that nobody shows."""
    folder = tmp_path / "photos"
    folder.mkdir()
    data = coloured(folder)
    (folder / "b.png").rename(folder / STRANGE)
    (folder / "secret.png").write_bytes((folder / "a.png").read_bytes())
    parts = {name: getattr(data, name) for name in ("labels", "label_names", "boxes", "box_labels")}
    return ImageDataset("strange", "all", folder, ["a.png", STRANGE, "c.png"], **parts)


@pytest.fixture
def ask(data: ImageDataset, tmp_path: Path) -> Iterator:
    with Server() as server:
        index = index_of(ObjectSearch(retriever(data)))
        write_folder(index, tmp_path / "index")
        server.show(tmp_path / "index")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        to = HTTPConnection(*server.server_address[:2])

        def ask(path: str, how: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
            to.request(how, path, headers=headers)
            answer = to.getresponse()
            return answer, answer.read()

        yield ask
        to.close()
        server.shutdown()


def test_the_page_its_index_and_its_photographs_are_given(ask, data) -> None:
    page, text = ask("/")
    assert page.status == 200 and b"Find the same thing" in text
    assert json.loads(ask("/index/index.json")[1])["names"] == list(data.names)
    assert ask("/index/0.bin")[0].headers["Content-Length"] == str(5 * 16 + 5 * 3 + 3 * 19)
    small, picture = ask("/index/160/1.jpg")
    assert small.headers["Content-Type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture)).size == tuple(data.sizes()[1])
    own, content = ask("/index/original/1")
    assert content == (data.root / STRANGE).read_bytes()
    assert own.headers["Content-Type"] == "image/png"
    head, nothing = ask("/index/original/1", "HEAD")
    assert head.headers["Content-Length"] == str(len(content)) and not nothing


@pytest.mark.parametrize("path", [
    "/secret.png", "/served.json", "/index/served.json", "/index/secret.png",
    "/index/../photos/secret.png", "/..%2fphotos%2fsecret.png",
    "/index/original/3", "/index/original/-1", "/index/original/a.png", "/index/160/%31.jpg",
    "/index/161/1.jpg", "//etc/passwd", "/index", "/front/", "/index/160/../../serve.py",
])  # fmt: skip
def test_nothing_else_is_given(ask, path) -> None:
    answer, said = ask(path)
    assert answer.status == 404 and b"PNG" not in said


def test_only_browsers_that_ask_this_machine_are_answered(ask) -> None:
    """A page elsewhere whose name leads to our address is no visitor."""
    assert ask("/", Host="elsewhere.example")[0].status == 403
    assert ask("/", Host="localhost:8866")[0].status == 200
    assert ask("/", Host="[::1]:8866")[0].status == 200
    for how in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask("/index/index.json", how)[0].status == 501


@pytest.mark.parametrize("path", ["/", "/index/160/0.jpg", "/nothing"])
def test_a_page_asks_no_other_host_and_no_other_page_shows_it(ask, path) -> None:
    headers = ask(path)[0].headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "//" not in policy and "*" not in policy
    assert "unsafe-inline" not in policy and "frame-ancestors 'none'" in policy
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_photograph_that_went_away_is_missing_and_no_more(ask, data) -> None:
    (data.root / "c.png").unlink()
    assert ask("/index/480/2.jpg")[0].status == ask("/index/original/2")[0].status == 404
    assert ask("/index/480/0.jpg")[0].status == 200


def test_others_are_let_in_by_an_address_and_a_picture_of_it(monkeypatch, capsys) -> None:
    pytest.importorskip("segno")
    monkeypatch.setattr(serve, "seen_by_others", lambda: "192.168.1.5")
    for host, seen in (("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)):
        with Server(host) as server:
            serve.tell(server.address, server.hosted)
        said = capsys.readouterr().out
        assert ("http://192.168.1.5:" in said) is ("█" in said) is seen
        assert ("Everybody in this network" in said) is seen


def test_a_server_loads_no_network() -> None:
    """What twenty visitors ask for are files."""
    loaded = "import sys, objemb_lib.show.serve; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
