"""Where the photographs come from, and copies of the built data: every route, same bytes."""

import tarfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from objemb_lib.datasets import mini_battles as mb
from objemb_lib.datasets import packed, sources
from objemb_lib.download import sha256_file
from objemb_lib.errors import DownloadError


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Six drawn stamps and two drawn backgrounds in place of the lists; returns their folder."""
    source = tmp_path / "photographs"
    stamps, photos = [], []
    for number in range(6):
        image = Image.new("RGBA", (120, 100))
        colour = (40 * number, 255 - 40 * number, 90, 255)
        ImageDraw.Draw(image).ellipse((5, 5, 90 + 5 * number, 80), fill=colour)
        stamps.append(_listed(source / "stamps", f"s{number}.png", image, number % 2))
        stamps[-1] |= {"category": f"kind {number // 2}", "name": f"stamp {number}"}
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 255, (400, 500, 3), np.uint8)
        photo = _listed(source / "nature", f"b{number}.png", Image.fromarray(noise), number)
        photos.append({"collection": "mate-backgrounds", "licence": "", "author": ""} | photo)
        photos[-1]["path"] = "nature/" + photos[-1]["path"]
    monkeypatch.setattr(mb, "objects", lambda: tuple(stamps))
    monkeypatch.setattr(mb, "backgrounds", lambda: tuple(photos))
    counts = {"train": mb.Split("train", 3), "battle": mb.Split("test", 2)}
    monkeypatch.setattr(mb, "SPLITS", counts | {"clean": mb.Split("test", 2)})
    yield source
    mb._cutout.cache_clear()
    mb._background.cache_clear()


def _listed(folder, name, image, half):
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    split = "test" if half else "train"
    return {"path": name, "sha256": sha256_file(folder / name), "split": split}


@pytest.fixture
def built(small, tmp_path):
    return mb.build(tmp_path / "built", source=small, workers=1, progress=False)


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """A collection of one file and an upstream archive that holds it; no package installed."""
    tree = tmp_path / "tree" / "things-1.0" / "pictures"
    tree.mkdir(parents=True)
    (tree / "a.txt").write_text("the right bytes")
    archive = tmp_path / "mirror" / "things-1.0.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree.parent, "things-1.0")
    collection = sources.Collection(
        "things",
        ("things-1.0/pictures", "usr/share/things-of-nobody"),
        package="things",
        url="http://127.0.0.1:9/things-1.0.tar.gz",
        sha256=sha256_file(archive),
        size=archive.stat().st_size,
    )
    monkeypatch.setattr(sources.download, "debian_package", lambda name, dest: None)
    monkeypatch.setattr(sources.download, "_sleep", lambda seconds: None)
    return collection, {"a.txt": sha256_file(tree / "a.txt")}, tmp_path


def _get(origin, **options):
    collection, wanted, root = origin
    options = {"source": None, "mirror": None} | options
    return sources.gather(collection, wanted, root / "downloads", root / "work", **options)


def test_every_route_yields_the_same_bytes(origin, monkeypatch):
    root = origin[2]

    def unpacked(name, dest):
        to = dest / "usr/share/things-of-nobody"
        to.mkdir(parents=True)
        (to / "a.txt").write_text("the right bytes")
        return dest

    by_source = _get(origin, source=root / "tree")
    by_archive = _get(origin, mirror=str(root / "mirror"))
    monkeypatch.setattr(sources.download, "debian_package", unpacked)
    by_package = _get(origin)
    texts = {found["a.txt"].read_text() for found in (by_source, by_archive, by_package)}
    assert texts == {"the right bytes"}
    assert len({found["a.txt"] for found in (by_source, by_archive, by_package)}) == 3


def test_the_source_given_comes_before_the_package(origin, monkeypatch):
    def never(*_):
        raise AssertionError("asked for a package though --source has the file")

    monkeypatch.setattr(sources.download, "debian_package", never)
    assert _get(origin, source=origin[2] / "tree")["a.txt"].exists()


def test_no_route_names_the_options(origin):
    with pytest.raises(DownloadError) as error:
        _get(origin)
    assert "--source" in str(error.value) and "--mirror" in str(error.value)


def test_a_packed_copy_is_the_same_data(built, tmp_path):
    first = packed.pack(built, tmp_path / "mirror").read_bytes()
    assert packed.pack(built, tmp_path / "mirror").read_bytes() == first
    copy = mb.build(tmp_path / "other", mirror=str(tmp_path / "mirror"), progress=False)
    assert (copy / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()
    assert mb.verify(copy.parent, progress=False) == mb.verify(built.parent, progress=False)


def test_a_tampered_copy_is_not_installed(built, tmp_path):
    archive = packed.pack(built, tmp_path / "mirror")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DownloadError, match="mini-battles.tar"):
        mb.build(tmp_path / "other", mirror=str(tmp_path / "mirror"), progress=False)
    assert not (tmp_path / "other" / mb.NAME).exists()


def test_a_mirror_without_the_data_set_is_passed_over(small, tmp_path):
    (tmp_path / "mirror").mkdir()
    mirror = str(tmp_path / "mirror")
    folder = mb.build(tmp_path / "data", source=small, mirror=mirror, workers=1, progress=False)
    assert folder.is_dir()


def test_a_mirror_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DownloadError, match="not a folder"):
        mb.build(tmp_path, mirror=str(tmp_path / "typo"), progress=False)
