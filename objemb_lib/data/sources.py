"""Where the raw photographs of mini-battles come from, and the proof that they are the same.

Every collection can arrive by several routes; each used file is checked against the sha256 in
our reviewed lists, so that all routes yield the same bytes. The routes, in order: a folder the
user names, the installed package, the upstream archive from a classroom's mirror, the
distribution's package fetched and unpacked without root, the upstream archive over HTTPS. The
mirror comes before all that needs the internet: a classroom without it would wait for each.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import download

log = logging.getLogger("objemb")


@dataclass(frozen=True)
class Collection:
    """One origin of photographs.

    Args:
        name: key in our lists.
        prefixes: where the listed paths start: in the upstream archive, in the package.
        package: Debian package, or None.
        python: Python package that ships the files, or None.
        url, sha256, size: upstream archive.
    """

    name: str
    prefixes: tuple[str, ...]
    package: str | None = None
    python: str | None = None
    url: str = ""
    sha256: str = ""
    size: int = 0


COLLECTIONS = {
    c.name: c
    for c in (
        Collection(
            "tuxpaint-stamps",
            ("tuxpaint-stamps-2022.06.04/stamps", "usr/share/tuxpaint/stamps", "stamps"),
            package="tuxpaint-stamps-default",
            url="https://downloads.sourceforge.net/project/tuxpaint/tuxpaint-stamps/2022-06-04/"
            "tuxpaint-stamps-2022.06.04.tar.gz",
            sha256="842065576fae554358e00e51d71a492616a6490b12b592228067477c287a0bf8",
            size=215_615_180,
        ),
        Collection(
            "mate-backgrounds",
            ("mate-backgrounds-1.26.0", "usr/share/backgrounds/mate"),
            package="mate-backgrounds",
            url="https://pub.mate-desktop.org/releases/1.26/mate-backgrounds-1.26.0.tar.xz",
            sha256="e7f9b33bf0c2476ba7b4e4067c86f64a58c8d3ea4f6a6424b3de2d9ee7922eb0",
            size=46_660_340,
        ),
        Collection(
            "lomiri-wallpapers-16.04",
            ("lomiri-wallpapers-20.04.0/16.04", "usr/share/backgrounds"),
            package="lomiri-wallpapers-16.04",
            url="https://gitlab.com/ubports/development/core/lomiri-wallpapers/-/archive/20.04.0/"
            "lomiri-wallpapers-20.04.0.tar.gz",
            sha256="d7cd7784fd43656f42fd73d31a147002091d9de6b125f2e319bac379f55b7f7a",
            size=29_908_663,
        ),
        Collection("skimage", ("data",), python="skimage"),
        Collection("sklearn", ("datasets/images",), python="sklearn"),
        Collection("matplotlib", ("mpl-data/sample_data",), python="matplotlib"),
    )
}


def find(collection: Collection, root: Path, paths: Iterable[str]) -> Path | None:
    """The folder below ``root`` that holds all ``paths``, or None."""
    for prefix in ("", *collection.prefixes):
        if all((root / prefix / path).is_file() for path in paths):
            return root / prefix
    return None


def check(folder: Path, wanted: dict[str, str]) -> dict[str, Path]:
    """``{path: file}``, each with the sha256 that is ``wanted``. Raises DataError, naming it."""
    for path, expected in wanted.items():
        if download.sha256_file(folder / path) != expected:
            raise DataError(
                f"{folder / path} is not the file this course uses (its sha256 differs)",
                "Delete it, or install another copy of its package, and build again.",
            )
    return {path: folder / path for path in wanted}


def gather(
    collection: Collection,
    wanted: dict[str, str],
    downloads: Path,
    work: Path,
    source: Path | None = None,
    mirror: str | None = None,
) -> dict[str, Path]:
    """Files of one collection, by the first route that has them.

    Args:
        wanted: ``{path in the collection: sha256}``.
        downloads: folder that keeps archives, so that a cut download resumes.
        work: folder for unpacked archives; may be deleted afterwards.
        source: the user's folder, tried first.
        mirror: folder or URL that may hold the upstream archive, tried before public addresses.
    Returns:
        ``{path: file}``.
    Raises:
        DataError: a file with other bytes in ``source``, or in the last route that has it.
        DownloadError: no route worked.
    """
    wrong, missed = None, []
    for name, route in _routes(collection, wanted, downloads, work, source, mirror):
        try:
            root = route()
        except DownloadError as error:
            log.info("%s: not by %s: %s", collection.name, name, error.problem)
            missed.append(error)
            continue
        folder = find(collection, root, wanted) if root else None
        if not folder:
            continue
        log.info("%s: %s (%s)", collection.name, name, folder)
        try:
            return check(folder, wanted)
        except DataError as error:
            if root == source:
                raise
            log.warning("%s; trying elsewhere", error.problem)  # another release of the package
            wrong = error
    if missed:  # what the mirror and the public address said
        raise DownloadError("\n".join(e.problem for e in missed), missed[-1].remedy)
    raise wrong or DownloadError(
        f"{collection.name}: no route has its {len(wanted)} files",
        f"Install the package {collection.package or collection.python}, or name a folder that "
        "holds them with --source, or a mirror with --mirror (see data/README.md).",
    )


def _routes(collection, wanted, downloads, work, source, mirror):  # noqa: ANN202 - see gather
    """The routes in order, as ``(name, function that returns a folder or None)``."""
    if source:
        yield "folder given by --source", lambda: source
    if collection.python:
        spec = importlib.util.find_spec(collection.python)
        yield "Python package", lambda: Path(spec.origin).parent if spec and spec.origin else None
        return
    yield "installed package", lambda: Path("/")
    archive = downloads / collection.url.rsplit("/", 1)[-1]
    unpacked = work / collection.name

    def fetched(urls: list[str], mirror: str | None = None) -> Path:
        file = download.fetch(urls, archive, collection.sha256, collection.size, mirror=mirror)
        names = set(wanted)
        download.unpack(file, unpacked, lambda m: any(m.endswith("/" + n) for n in names))
        return unpacked

    def packaged() -> Path | None:
        return download.debian_package(collection.package, work / f"{collection.name}-deb")

    if mirror:
        yield "mirror's archive", lambda: fetched([], mirror)
    yield "distribution's package", packaged
    yield "upstream archive", lambda: fetched([collection.url])
