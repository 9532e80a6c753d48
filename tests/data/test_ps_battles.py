"""PS-Battles: its lists, its split, and a build in which many links are dead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from local_server import Act, Server, serve, status, whole

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import benchmarks, ps_battles
from objemb_lib.data.catalogue import load_splits
from objemb_lib.measure.metrics import evaluate_scores

pytestmark = pytest.mark.usefixtures("naps")
ORIGINAL = "id url end hash filesize score author link timestamp width height".split()
PHOTOSHOP = ["id", "original", *ORIGINAL[1:]]
TRAIN, TEST = ["c", "d"], ["e", "f"]  # by the hash of the id
Pictures = Callable[[str], Path]


@pytest.fixture
def pictures(make_image: Callable[..., Path], tmp_path: Path) -> Pictures:
    return lambda name: make_image(tmp_path / "pictures" / f"{name}.jpg", seed=sum(name.encode()))


def row(columns: list[str], picture: Path, **values: str) -> str:
    raw = picture.read_bytes()
    known = {"hash": hashlib.sha256(raw).hexdigest(), "filesize": len(raw), "end": "jpg"} | values
    return "\t".join(str(known.get(column, "0")) for column in columns) + "\n"


def write_lists(folder: Path, pictures: Pictures, server: Server | None = None, **acts: list[Act]):
    """Four originals with two photoshops each; ``acts`` say what the server does for a name."""
    lists = {"originals": "\t".join(ORIGINAL) + "\n", "photoshops": "\t".join(PHOTOSHOP) + "\n"}
    for one in TRAIN + TEST:
        for name, kind in (
            (one, "originals"),
            (f"{one}1", "photoshops"),
            (f"{one}2", "photoshops"),
        ):
            picture = pictures(name)
            act = acts.get(name, [serve(picture.read_bytes())])
            url = server.url(*act, path=f"/{name}") if server else f"http://gone/{name}"
            columns = ORIGINAL if kind == "originals" else PHOTOSHOP
            lists[kind] += row(columns, picture, id=name, url=url, original=one)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in lists.items():
        (folder / f"{kind}.tsv").write_text(text)


def test_the_real_list_is_read(real_photographs: Path) -> None:
    rows = ps_battles.read_list(real_photographs / "ps_battles" / "originals.tsv")
    assert len(rows) == 500 and rows.id[0] == "10092l"
    assert rows.url[0] == "http://i.imgur.com/qHxM2.jpg"
    halves = [sum(ps_battles._in_split(one, s) for one in rows.id) for s in ("train", "test")]
    assert sum(halves) == 500 and abs(halves[0] - 250) < 50


def test_what_is_alive_is_built_and_scored(
    server: Server, tmp_path: Path, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    removed = whole(b"this picture was removed")
    write_lists(tmp_path / "lists", pictures, server, e2=[status(404)], f=[removed], c1=[removed])
    build = {"source": tmp_path / "lists"}
    folder = ps_battles.build(tmp_path / "data", **build)
    assert folder == tmp_path / "data" / "ps-battles"
    assert "9 of 12 files are here; 3 links are dead" in capsys.readouterr().out
    assert json.loads((folder / "manifest.json").read_text()) == {
        "files": 9, "dead": 3, "unanswered": 0}  # fmt: skip
    train, tests = load_splits(f"ps-battles:{folder}")
    test = tests["test"]
    assert sorted(train.label_names) == TRAIN and sorted(test.label_names) == ["e"]
    assert [test.files[i] for i in test.queries] == ["photoshops/e/e1.jpg"]  # f's are orphans
    assert [train.files[i] for i in train.gallery] == ["originals/c.jpg", "originals/d.jpg"]
    assert train.labels[train.queries].tolist() == [0, 1, 1]
    found = evaluate_scores(np.array([[2.0, 1], [2, 1], [1, 2]]), train)
    assert found.protocol == "photoshop to original"
    assert found.mean("R@1") == pytest.approx(2 / 3) and found.mean("mAP") == pytest.approx(5 / 6)
    assert benchmarks.verify("ps-battles", tmp_path / "data") == []

    server.seen.clear()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.jpg")}
    ps_battles.build(tmp_path / "data", **build)
    assert server.seen == []  # neither what is there nor what is dead
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.jpg")}
    ps_battles.build(tmp_path / "data", retry_dead=True, **build)
    assert sorted(path for path, _ in server.seen) == ["/c1", "/e2", "/f"]


def test_a_list_that_is_a_page_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = server.url(whole(b"<html>rate limited</html>"), path="/originals.tsv")
    header = "collection,file,digest,size,into,members,url\n"
    (tmp_path / "registry.csv").write_text(f"{header}ps-battles,originals.tsv,,,,*,{page}\n")
    monkeypatch.setattr("objemb_lib.data.fetch.REGISTRY", tmp_path / "registry.csv")
    with pytest.raises(DownloadError, match="has no columns"):
        ps_battles.build(tmp_path)
    assert not (tmp_path / "ps-battles" / "originals.tsv").exists()


def test_both_official_layouts_are_read(tmp_path: Path, pictures: Pictures) -> None:
    write_lists(tmp_path, pictures)
    for name, place in (("e", "originals"), ("e1", "photoshops"), ("e2", "photoshops/e")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        pictures(name).rename(tmp_path / place / f"{name}.jpg")
    assert len(ps_battles.ps_battles("test", tmp_path).queries) == 2
    with pytest.raises(DataError, match="no photoshop with its original in train"):
        ps_battles.ps_battles("train", tmp_path)


@pytest.mark.parametrize(
    ("change", "value"),
    [("id", "../../evil"), ("id", "..\\evil"), ("end", "jpg/../x"), ("original", "../evil"),
     ("hash", "short"), ("filesize", "many"), ("filesize", "")],
)  # fmt: skip
def test_rows_that_lead_elsewhere_are_refused(
    tmp_path: Path, pictures: Pictures, change: str, value: str
) -> None:
    columns, file = PHOTOSHOP, tmp_path / "photoshops.tsv"
    values = {"id": "a1", "original": "a"} | {change: value}
    file.write_text("\t".join(columns) + "\n" + row(columns, pictures("a1"), **values))
    with pytest.raises(DataError, match="line 2"):
        ps_battles.read_list(file)
