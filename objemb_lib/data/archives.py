"""Benchmarks that come as archives: from a user's folder, a mirror, or their own address.

Every archive is checked against its published digest; one for which none was ever published, by
reading it. What a build made is known by its ``manifest.json``, which is written last.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from objemb_lib import config
from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import download
from objemb_lib.data.folder import list_images
from objemb_lib.data.harvest import PER_SECOND, Wanted, download_urls
from objemb_lib.data.images import check_images

MANIFEST = "manifest.json"
LINKS = "links.json"


@dataclass(frozen=True)
class Archive:
    """One file of a benchmark.

    Args:
        file: its name.
        urls: its public addresses; none where all are gone.
        digest: SHA-256, or ``md5:`` and that one; None where none is published.
        size: bytes, where published.
        into: folder of the data set that it goes to.
        flat: whether its files leave their folders.
        members: which of its files are taken, by name.
        check: reads it where it has no digest; see :func:`download.fetch`.
    """

    file: str
    urls: tuple[str, ...] = ()
    digest: str | None = None
    size: int | None = None
    into: str = "."
    flat: bool = False
    members: Callable[[str], bool] = lambda name: True
    check: Callable[[Path], object] | None = None

    @property
    def packed(self) -> bool:
        return self.file.endswith((".tgz", ".tar.gz", ".tar", ".zip"))


@dataclass(frozen=True)
class DistillConfig:
    """How a benchmark is built.

    Args:
        name: the data set, and its folder.
        releases: the same images in different archives; the first is taken of which the user
            has a file, else the first of all.
        count: images of a split that lie in a folder. counts: how many there must be.
        gone: said where the archives have no public address any more.
        tidy: takes away what an archive holds beyond the benchmark.
    """

    name: str
    releases: tuple[tuple[Archive, ...], ...]
    count: Callable[[str, Path], int]
    counts: dict[str, int]
    gone: str = ""
    tidy: Callable[[Path], None] = lambda folder: None

    def build(
        self,
        root: Path | None = None,
        source: Path | None = None,
        mirror: str | None = None,
        progress: bool = True,
    ) -> Path:
        """Fetch, check, unpack and count; safe for several processes at once.

        Args:
            root: folder of data sets; default :func:`config.data_root`.
            source: folder that has the archives already; they are read where they lie.
            mirror: folder or URL that may have them.
        Returns:
            the data set's folder, which appears whole or not at all.
        Raises:
            DownloadError: an archive cannot be had, or has other bytes.
            DataError: images are missing in it; or a folder of the data set's name is there
                that was not built here.
        """
        root = Path(root or config.data_root())
        folder = root / self.name
        root.mkdir(parents=True, exist_ok=True)
        before = _built_at(folder)
        with FileLock(root / f".{self.name}.lock"):
            if _built_at(folder) not in (None, before):  # by another process meanwhile
                return folder
            if folder.exists() and not (folder / MANIFEST).exists():
                raise DataError(
                    f"{folder} is there already, but was not built here",
                    f"Use it as it is, as {self.name}:{folder}; or move it away and build again.",
                )
            release = self._release(source, mirror)
            downloads = root / f".downloads-{self.name}"
            _require_space(root, release, downloads, source)
            for stale in root.glob(f".{self.name}-*"):  # a killed build's
                shutil.rmtree(stale)
            files = [obtain(a, downloads, source, mirror, progress, self.gone) for a in release]
            with TemporaryDirectory(prefix=f".{self.name}-", dir=root) as work:
                made = Path(work) / self.name
                for archive, file in zip(release, files):
                    _put(archive, file, made)
                self.tidy(made)
                found = {split: self.count(split, made) for split in self.counts}
                if found != self.counts:
                    raise DataError(
                        f"{self.name}: {found} images in its archives, {self.counts} are official",
                        "Get the archives again.",
                    )
                finish(made, {"files": len(list_images(made)), "splits": found,
                              "archives": {a.file: a.digest for a in release}})  # fmt: skip
                _swap(made, folder, Path(work) / "old")
            shutil.rmtree(downloads, ignore_errors=True)
        return folder

    def _release(self, source: Path | None, mirror: str | None) -> tuple[Archive, ...]:
        """The first release that ``source`` or a mirror's folder has a file of, else the first."""
        places = [Path(p).expanduser() for p in (source, mirror) if p and "://" not in str(p)]
        for release in self.releases:
            if any((place / a.file).exists() for a in release for place in places):
                return release
        return self.releases[0]

    def verify(self, root: Path | None = None, progress: bool = True) -> list[str]:
        """Decode every image; see :func:`verify`."""
        return verify(self.name, root, progress)


def obtain(
    archive: Archive,
    downloads: Path,
    source: Path | None = None,
    mirror: str | None = None,
    progress: bool = True,
    gone: str = "",
) -> Path:
    """The checked file: where it lies in ``source``, else fetched from ``mirror`` or its address.

    Raises:
        DownloadError: other bytes, or no source has it. DataError: ``source`` is no folder.
    """
    if source and not Path(source).expanduser().is_dir():
        raise DataError(f"the source {source} is not a folder", "Check --source.")
    lying = source and Path(source).expanduser() / archive.file
    if lying and lying.is_file() and archive.packed:  # too large to be copied
        if not download.holds(lying, archive.digest):
            raise DownloadError(
                f"{lying} has other bytes than the official archive", "Get it again."
            )
        return lying
    if lying and lying.is_file():
        mirror = str(lying.parent)
    elif not archive.urls and not mirror:
        raise DownloadError(f"{archive.file} has no public address any more", gone)
    check = archive.check or (None if archive.digest else read_through)
    dest = downloads / archive.file
    return download.fetch(archive.urls, dest, archive.digest, archive.size, mirror, progress, check)


def read_through(archive: Path) -> None:
    """Read a compressed tar to its end, where its checksum is. Raises DownloadError if it fails."""
    try:
        with tarfile.open(archive, "r:*") as pack:
            for _ in pack:
                pass
            while pack.fileobj.read(download.CHUNK):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DownloadError(f"{archive}: damaged ({error})", "Get it again.") from error


def _require_space(
    root: Path, release: tuple[Archive, ...], downloads: Path, source: Path | None
) -> None:
    """Room for what is fetched and for what comes out of it: photographs hardly shrink."""
    needed = 0
    for archive in release:
        there = [place / archive.file for place in (downloads, source) if place]
        fetched = archive.size or 0
        needed += fetched * (1 if any(file.exists() for file in there) else 2)
    download.require_space(root, needed)


def _put(archive: Archive, file: Path, made: Path) -> None:
    """Unpack (or copy) one archive into the data set that is being made."""
    target = made / archive.into
    if not archive.packed:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / archive.file)
        return
    most = 4 * file.stat().st_size + (1 << 30)
    if not archive.flat:
        download.unpack(file, target, archive.members, most)
        return
    with TemporaryDirectory(dir=made.parent) as work:
        out = download.unpack(file, Path(work) / "all", archive.members, most)
        target.mkdir(parents=True, exist_ok=True)
        for path in out:
            path.replace(target / path.name)


def finish(folder: Path, about: dict) -> Path:
    """Write the manifest, by which a built data set is known; returns the folder."""
    atomic_write_text(folder / MANIFEST, json.dumps(about, indent=1) + "\n")
    return folder


def fetch_links(
    folder: Path,
    wanted: Sequence[Wanted],
    retry_dead: bool = False,
    per_second: float = PER_SECOND,
    progress: bool = True,
) -> Path:
    """Fetch what is still at its address, say how much that is, and write the manifest.

    ``links.json`` in the folder says of each dead link why; see :func:`harvest.download_urls`.
    """
    found = download_urls(
        wanted, folder / LINKS, retry_dead, per_second=per_second, progress=progress
    )
    print(f"{folder.name}: {found}")
    dead, unanswered = len(found.dead), len(found.failed)
    return finish(folder, {"files": found.here, "dead": dead, "unanswered": unanswered})


def _built_at(folder: Path) -> int | None:
    manifest = folder / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.exists() else None


def _swap(made: Path, folder: Path, old: Path) -> None:
    if folder.exists():
        folder.replace(old)
    made.replace(folder)


def verify(name: str, root: Path | None = None, progress: bool = True) -> list[str]:
    """Decode every image of the built data set ``name`` and count them.

    Returns:
        empty: there is no other build to differ from.
    Raises:
        DataError: not built, or an image is missing or damaged, naming the first.
    """
    folder = Path(root or config.data_root()) / name
    try:
        stated = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder}: {name} is not built", f"python data/download.py build {name}"
        ) from error
    good, broken = check_images([folder / file for file in list_images(folder)], progress)
    if broken or len(good) != stated:
        first = broken[0].problem if broken else f"{stated - len(good):,} are missing"
        raise DataError(
            f"{folder}: {len(good):,} of {stated:,} images can be read; {first}",
            f"python data/download.py build {name} --force",
        )
    return []
