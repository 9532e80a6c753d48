"""The app on somebody's own photographs: what is asked is answered, and computed once only."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from tiny_gallery import coloured, retriever

from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.objects import photograph
from objemb_lib.show import app, serve
from objemb_lib.show.widgets import ObjectSearch


@pytest.fixture
def photos(real_photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photographs of COCO, as the folder that the app searches; an empty cache."""
    place = tmp_path / "photos"
    place.mkdir()
    for file in sorted((real_photographs / "coco" / "val2017").glob("*.jpg"))[:3]:
        shutil.copy(file, place / f"holiday_{file.name}")  # by its own name it is known
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(app.PHOTOS, str(place))
    return place


def test_a_photograph_finds_itself_and_the_next_visitor_waits_for_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = app.gallery()
    assert [Path(file).name for file in gallery.files] == sorted(p.name for p in photos.iterdir())
    first = app.ways(gallery)
    assert [(way.network, way.boxes) for way in first] == [
        (network, boxes) for network in ("efficientnet_lite0", "fork")
        for boxes in ("proposer", "detected")
    ]  # fmt: skip
    for way in first:
        own = way.query_photograph(photograph(photos / gallery.files[1]))
        best = way.search(own, 0, 1, "box").matches[0]
        assert best.image == 1 and best.score > 0.99  # it was detected in a batch
        assert np.allclose(best.box, own.boxes[0], atol=4) and len(own.boxes) <= app.TOP + 1

    for what in ("own_boxes", "boxes_from"):
        monkeypatch.setattr(app, what, lambda *_, **__: pytest.fail("detected once more"))
    monkeypatch.setattr(app.Retriever, "build", lambda *_, **__: pytest.fail("embedded once more"))
    again = ObjectSearch(app.ways(gallery))
    (network, boxes) = (menu["value"] for menu in again.about["choices"])
    settings = {"network": network, "boxes": boxes}
    asked = again.objects(again.start["id"], settings)
    found = again.ask(asked["id"], asked["boxes"][0], "both", 8, settings)
    assert len(found["rows"][0]["matches"]) == 2


def test_a_transformer_can_stand_beside_the_student(photos: Path, monkeypatch) -> None:
    monkeypatch.setenv(app.TRUNK, "test_vit")
    monkeypatch.setattr(app, "load_trunk", lambda name: load_trunk(name, pretrained=False))
    gallery = app.gallery()
    way = next(way for way in app.ways(gallery) if way.network == "test_vit")
    own = way.query_photograph(photograph(photos / gallery.files[1]))
    assert way.search(own, 0, 1).matches[0].image == 1


def test_without_photographs_of_ones_own_the_student_searches_the_courses(
    photos, monkeypatch
) -> None:
    gallery = app.gallery()
    monkeypatch.delenv(app.PHOTOS)
    ways = [(way.network, way.boxes) for way in app.ways(gallery)]
    assert ways == [("student", "detected"), ("efficientnet_lite0", "detected")]


def test_boxes_beside_the_photographs_are_searched(photos: Path, monkeypatch) -> None:
    """A file of detections, named after it; another file is another index."""
    gallery = app.gallery()
    for k, corner in enumerate((10, 40)):
        boxes = [{"image_id": f, "bbox": [corner, 20, 60, 50], "score": 1} for f in gallery.files]
        file = photos.parent / "mine.json"
        file.write_text(json.dumps(boxes))
        monkeypatch.setenv(app.BOXES, str(file))
        mine = next(way for way in app.ways(gallery) if way.boxes == "mine")
        size = gallery.sizes()[0].tolist()  # the whole photograph stays in
        assert mine.query(0).boxes.tolist() == [[corner, 20, corner + 60, 70], [0, 0, *size]], k


def test_an_annotations_file_in_the_folder_gives_true_boxes(photos: Path) -> None:
    names = sorted(p.name for p in photos.iterdir())
    images = [{"id": k, "file_name": n, "width": 0, "height": 0} for k, n in enumerate(names)]
    for image in images:
        image["width"], image["height"] = Image.open(photos / image["file_name"]).size
    notes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [5, 5, 50, 40], "area": 2000,
              "iscrowd": 0} for k in range(3)]  # fmt: skip
    told = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cup"}]}
    (photos / "annotations.json").write_text(json.dumps(told))
    assert {way.boxes for way in app.ways(app.gallery())} == {"proposer", "detected", "true boxes"}


def test_a_taken_port_is_said_before_anything_is_computed(
    photos: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(app, "ways", lambda *_, **__: pytest.fail("computed"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 99999, -1):
            monkeypatch.setattr(sys, "argv", ["app", f"--port={port}"])
            assert app.main() == 1
            said = capsys.readouterr()
            assert f"port {port} of 127.0.0.1 cannot be used" in said.err and not said.out


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that searches by colour."""
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    way = retriever(coloured(tmp_path))
    monkeypatch.setattr(app, "ways", lambda *_, **__: [way])
    monkeypatch.setattr(app, "gallery", lambda: way.dataset)
    monkeypatch.setattr(os, "execv", lambda _, command: command)


def test_what_was_made_is_served_where_it_was_asked_for(search, monkeypatch, capsys) -> None:
    """Also where any free port will do; ``~`` is the home folder."""
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv(app.PHOTOS, "")
    monkeypatch.setattr(sys, "argv", ["app", "--photos=~/photos", "--port=0", "--no-browser"])
    command = app.main()
    opened = []
    monkeypatch.setattr(serve.webbrowser, "open", opened.append)
    monkeypatch.setattr(serve.Server, "serve_forever", _stop)
    monkeypatch.setattr(sys, "argv", [part for part in command[2:] if part != "--no-browser"])
    assert serve.main() == 0
    (address,) = opened
    assert address in capsys.readouterr().out and urlsplit(address).hostname == "127.0.0.1"
    assert f"--port={urlsplit(address).port}" in command
    assert os.environ[app.PHOTOS] == "/home/somebody/photos"


def _stop(server: serve.Server) -> None:
    assert server.files["/"].is_file()
    raise KeyboardInterrupt


@pytest.mark.parametrize("answer, written", [("n", False), ("", False), ("y", True)])
def test_one_file_is_written_only_if_that_is_meant(
    answer, written, search, tmp_path: Path, monkeypatch, capsys
) -> None:
    file = tmp_path / "search.html"
    monkeypatch.setattr("builtins.input", lambda _: answer)
    monkeypatch.setattr(sys, "argv", ["app", f"--export={file}"])
    assert app.main() == 0 and file.exists() is written
    assert "small pictures of 3 photographs" in capsys.readouterr().out


def test_where_nobody_can_be_asked_nothing_is_written(
    search, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    file = tmp_path / "search.html"
    monkeypatch.setattr(sys, "argv", ["app", f"--export={file}"])
    assert app.main() == 1 and not file.exists() and "--yes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["app", f"--export={file}", "--yes"])
    assert app.main() == 0 and file.exists()
