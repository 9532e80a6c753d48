"""Where the photographs come from: every route gives the same bytes, and says when it cannot."""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import download, mini_battles, sources
from objemb_lib.data.download import sha256_file

pytest_plugins = ("tiny_battles",)
FILES = {"birds/wren.png": b"a wren", "seas/île.jpg": b"an island"}
ARCHIVE = "photos-1.0.tar.gz"
APT = """#!/bin/sh
for last; do :; done
cp "$FAKE_ARCHIVE/$last.deb" . || exit 100
"""
DPKG = """#!/bin/sh
[ "$1" = -x ] && tar -xf "$2" -C "$3"
"""


class Origin:
    """A collection of two photographs, and every place where it can lie; none does yet."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.wanted = {}
        for path, data in FILES.items():
            write(place / "upstream" / "photos-1.0" / "pictures" / path, data)
            self.wanted[path] = sha256_file(place / "upstream/photos-1.0/pictures" / path)
        write(place / "upstream" / "photos-1.0" / "README", b"not asked for")
        (place / "archives").mkdir()
        with tarfile.open(place / "archives" / ARCHIVE, "w:gz") as tar:
            tar.add(place / "upstream" / "photos-1.0", "photos-1.0")
        archive = place / "archives" / ARCHIVE
        self.collection = sources.Collection(
            "photos",
            # The route "installed package" looks below /, where tests may not write.
            ("photos-1.0/pictures", "usr/share/photos", str(place / "installed").lstrip("/")),
            package="photos",
            url=f"http://127.0.0.1:9/{ARCHIVE}",
            sha256=sha256_file(archive),
            size=archive.stat().st_size,
        )
        (place / "tools").mkdir()
        patch.setenv("PATH", f"{place / 'tools'}{os.pathsep}/usr/bin{os.pathsep}/bin")
        patch.setenv("FAKE_ARCHIVE", str(place))
        for name, script in {"apt-get": APT, "dpkg-deb": DPKG}.items():
            write(place / "tools" / name, script.encode()).chmod(0o755)

    def gather(self, **options: object) -> dict[str, Path]:
        work = self.place / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        collection = options.pop("collection", self.collection)
        return sources.gather(collection, self.wanted, self.place / "dl", work, **options)

    def install(self, data: bytes | None = None) -> Path:
        """Put the photographs where an installed package has them; with ``data``, others."""
        for path, right in FILES.items():
            write(self.place / "installed" / path, right if data is None else data)
        return self.place / "installed"

    def debian_archive(self, data: bytes | None = None) -> None:
        """Let the archive of the distribution have the package."""
        tree = self.place / "deb" / "usr" / "share" / "photos"
        for path, right in FILES.items():
            write(tree / path, right if data is None else data)
        with tarfile.open(self.place / "photos.deb", "w") as tar:
            tar.add(self.place / "deb" / "usr", "usr")


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(found: dict[str, Path]) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in found.items()}


@pytest.fixture
def origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Origin:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(download, "_sleep", lambda seconds: None)
    caplog.set_level(logging.INFO, "objemb")
    return Origin(tmp_path, monkeypatch)


# The routes -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["", "photos-1.0/pictures", "usr/share/photos"])
def test_a_folder_of_the_users_in_any_layout(origin: Origin, tmp_path: Path, layout: str) -> None:
    shutil.copytree(tmp_path / "upstream/photos-1.0/pictures", tmp_path / "mine" / layout)
    assert read(origin.gather(source=tmp_path / "mine")) == FILES


def test_the_installed_package(origin: Origin) -> None:
    place = origin.install()
    found = origin.gather()
    assert read(found) == FILES and all(place in file.parents for file in found.values())


def test_the_distributions_package(origin: Origin) -> None:
    origin.debian_archive()
    assert read(origin.gather()) == FILES


def test_the_upstream_archive(origin: Origin, serve_folder: Callable[[Path], str]) -> None:
    address = f"{serve_folder(origin.place / 'archives')}/{ARCHIVE}"
    found = origin.gather(collection=replace(origin.collection, url=address))
    assert read(found) == FILES
    unpacked = [f.name for f in (origin.place / "work").rglob("*") if f.is_file()]
    assert sorted(unpacked) == ["wren.png", "île.jpg"]  # 215 MB are not unpacked for a few


@pytest.mark.parametrize("kind", ["folder", "URL"])
def test_a_mirror_of_the_upstream_archive(origin: Origin, serve_folder, kind: str) -> None:
    archives = origin.place / "archives"
    mirror = str(archives) if kind == "folder" else serve_folder(archives)
    assert read(origin.gather(mirror=mirror)) == FILES


def test_a_python_package(monkeypatch: pytest.MonkeyPatch, origin: Origin, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "upstream/photos-1.0/pictures", tmp_path / "lib/photolib/data")
    write(tmp_path / "lib/photolib/__init__.py", b"raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    collection = sources.Collection("photos", ("data",), python="photolib")
    assert read(origin.gather(collection=collection)) == FILES


def test_the_order_of_the_routes(
    origin: Origin, caplog: pytest.LogCaptureFixture, serve_folder: Callable[[Path], str]
) -> None:
    """All of them have the files; take the first away, then the next, and so on."""
    address = f"{serve_folder(origin.place / 'archives')}/{ARCHIVE}"
    collection = replace(origin.collection, url=address)
    origin.install()
    origin.debian_archive()
    shutil.copytree(origin.place / "archives", origin.place / "mirror")
    places = {"source": origin.place / "upstream", "mirror": str(origin.place / "mirror")}
    taken = []
    for remove in ("upstream", "installed", "mirror", "photos.deb", None):
        caplog.clear()
        shutil.rmtree(origin.place / "dl", ignore_errors=True)  # nothing is left of the last time
        assert read(origin.gather(collection=collection, **places)) == FILES
        taken += [r.args[1] for r in caplog.records if r.msg.startswith("%s: %s (")]
        if remove == "upstream":
            del places["source"]
        elif remove:
            place = origin.place / remove
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert taken == [
        "folder given by --source", "installed package", "mirror's archive",
        "distribution's package", "upstream archive",
    ]  # fmt: skip


def test_with_a_mirror_the_distribution_is_not_asked(origin: Origin) -> None:
    """A classroom without internet would wait for its answer."""
    asked = origin.place / "asked"
    write(origin.place / "tools" / "apt-get", f"#!/bin/sh\ntouch '{asked}'\nexit 1\n".encode())
    assert read(origin.gather(mirror=str(origin.place / "archives"))) == FILES
    assert not asked.exists()


@pytest.mark.parametrize("kind", ["folder", "URL"])
def test_a_mirror_without_the_archive_leads_to_the_next_route(
    origin: Origin, serve_folder: Callable[[Path], str], kind: str
) -> None:
    (origin.place / "empty").mkdir()
    empty = origin.place / "empty"
    origin.debian_archive()
    assert read(origin.gather(mirror=str(empty) if kind == "folder" else serve_folder(empty)))


def test_a_folder_without_all_files_leads_to_the_next_route(origin: Origin) -> None:
    (origin.place / "upstream/photos-1.0/pictures/birds/wren.png").unlink()
    origin.install()
    assert read(origin.gather(source=origin.place / "upstream")) == FILES


# Wrong bytes, and nothing at all ----------------------------------------------------------


def test_wrong_bytes_in_the_users_folder_are_named(origin: Origin) -> None:
    origin.install()  # even if another route would do: the user named this one
    bad = write(origin.place / "upstream/photos-1.0/pictures/birds/wren.png", b"a bren")
    with pytest.raises(DataError) as caught:
        origin.gather(source=origin.place / "upstream")
    assert str(bad) in caught.value.problem and caught.value.remedy


def test_an_installed_package_of_another_release_is_passed_over(
    origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    origin.install(b"the wren of another release")
    origin.debian_archive(b"and another")
    assert read(origin.gather(mirror=str(origin.place / "archives"))) == FILES
    assert str(origin.place / "installed") in caplog.text and "trying elsewhere" in caplog.text


def test_wrong_bytes_in_a_python_package_are_named(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, tmp_path: Path
) -> None:
    write(tmp_path / "lib/photolib/__init__.py", b"")
    for path in FILES:
        write(tmp_path / "lib/photolib/data" / path, b"of a newer release")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    with pytest.raises(DataError, match="photolib/data/birds/wren.png"):
        origin.gather(collection=sources.Collection("photos", ("data",), python="photolib"))


def test_when_nothing_works_the_options_are_named(origin: Origin) -> None:
    with pytest.raises(DownloadError) as caught:
        origin.gather()
    text = str(caught.value)
    assert ARCHIVE in text and "--source" in text and "--mirror" in text


def test_when_nothing_works_the_mirror_and_the_address_are_named(origin: Origin) -> None:
    with pytest.raises(DownloadError) as caught:
        origin.gather(mirror=str(origin.place / "empty"))
    problem = caught.value.problem
    assert f"{origin.place / 'empty'}/{ARCHIVE}" in problem and origin.collection.url in problem


def test_an_archive_without_the_files_is_no_route(origin: Origin) -> None:
    (origin.place / "empty").mkdir()
    with tarfile.open(origin.place / "empty" / ARCHIVE, "w:gz") as tar:
        tar.add(origin.place / "upstream/photos-1.0/README", "photos-1.0/README")
    changed = replace(
        origin.collection, sha256=sha256_file(origin.place / "empty" / ARCHIVE), size=0
    )
    with pytest.raises(DownloadError, match="photos(.|\n)*--source(.|\n)*--mirror"):
        origin.gather(collection=replace(changed, size=None), mirror=str(origin.place / "empty"))


@pytest.mark.parametrize("remains", [False, True], ids=["absent", "an empty folder remains"])
def test_a_missing_python_package_is_named(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, tmp_path: Path, remains: bool
) -> None:
    if remains:  # of a package that was half removed
        (tmp_path / "lib" / "photolib").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path / "lib")
    with pytest.raises(DownloadError, match="Install the package photolib(.|\n)*--source"):
        origin.gather(collection=sources.Collection("photos", ("data",), python="photolib"))


# The real ones ----------------------------------------------------------------------------


def test_every_listed_collection_is_known() -> None:
    for row in mini_battles.backgrounds():
        assert row["collection"] in sources.COLLECTIONS
    for collection in sources.COLLECTIONS.values():
        assert collection.python or (collection.package and collection.size > 10**7)
        assert collection.python or collection.url.startswith("https://")


def listed(name: str) -> dict[str, str]:
    rows = mini_battles.backgrounds()
    return {b["path"]: b["sha256"] for b in rows if b["collection"] == name}


@pytest.mark.parametrize("name", [n for n, c in sources.COLLECTIONS.items() if c.python])
def test_installed_python_packages_hold_the_listed_bytes(name: str, tmp_path: Path) -> None:
    found = sources.gather(sources.COLLECTIONS[name], listed(name), tmp_path, tmp_path)
    assert set(found) == set(listed(name)) and len(found) >= 1


@pytest.mark.skipif(os.environ.get("OBJEMB_NETWORK_TESTS") != "1", reason="fetches 16 MB")
def test_the_real_debian_package_holds_the_listed_bytes(tmp_path: Path) -> None:
    collection = sources.COLLECTIONS["lomiri-wallpapers-16.04"]
    root = download.debian_package(collection.package, tmp_path / "root")
    if root is None:
        pytest.skip("no apt, or no package lists, here")
    folder = sources.find(collection, root, listed(collection.name))
    assert folder and len(sources.check(folder, listed(collection.name))) == 13
