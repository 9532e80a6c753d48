"""What is on this disk: digests, archives safely unpacked, folders that appear whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import IO

from filelock import FileLock

from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DownloadError

MANIFEST = "manifest.json"  # written last: by it a built data set is known


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 lower-case hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unpack(archive: Path, dest: Path, members: Callable[[str], bool] | None = None) -> Path:
    """Unpack a zip or a tar of any compression into ``dest``, a temporary folder; returns it.

    Only plain files are made. A chosen link or device is refused: ``tarfile``'s own ``data``
    filter, which Python 3.10 may lack, lets inner links pass and was circumvented through them
    (CVE-2025-4517). The archive is read to its end, where its checksum is.

    Args:
        dest: what was made in it before an error stays.
        members: picks by name inside the archive; default all.
    Raises:
        DownloadError: damaged, cut short or unsafe.
        OSError: the disk is full or cannot be written.
    """
    try:
        for name, plain, opened in _entries(archive):
            if members and not members(name):
                continue
            inside = PureWindowsPath(name)  # knows both slashes and drives
            if inside.anchor or ".." in inside.parts or not plain:
                raise ValueError(f"{name!r} is a link or device, or leads outside the folder")
            target = dest.joinpath(*inside.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened() as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file)
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        if getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise  # the system's, no parser's
        problem = f"{archive}: cannot be unpacked ({type(error).__name__}: {error})"
        remedy = "It is damaged or cut short: delete it, then run again to fetch it anew."
        raise DownloadError(problem, remedy) from error
    return dest


def _entries(archive: Path) -> Iterator[tuple[str, bool, Callable[[], IO[bytes]]]]:
    """Name, whether a plain file, and opener of everything in an archive that is no folder."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as pack:
            for info in pack.infolist():
                if not info.is_dir():
                    link = stat.S_ISLNK(info.external_attr >> 16)
                    yield info.filename, not link, partial(pack.open, info)
        return
    with tarfile.open(archive, "r:*") as pack:
        for info in pack:
            if not info.isdir():
                yield info.name, info.isfile(), partial(pack.extractfile, info)
        while pack.fileobj.read(1 << 16):
            pass  # to the end, where the checksum is


def write_manifest(folder: Path, about: dict) -> Path:
    """Say that a data set is complete, and what is in it; returns the folder."""
    atomic_write_text(folder / MANIFEST, json.dumps(about, indent=1))
    return folder


def build_folder(root: Path, name: str, make: Callable[[Path, Path], object]) -> Path:
    """``root/name``, made whole or not at all; one there already stays until the new is complete.

    Of several processes at once one makes it; the others wait and take what it made.

    Args:
        make: ``make(folder, downloads)`` fills an empty folder, the manifest last. What it
            fetches into ``downloads`` outlives a kill, so that a cut download resumes.
    """
    final, downloads = root / name, root / f".downloads-{name}"
    built_at = lambda: m.stat().st_mtime_ns if (m := final / MANIFEST).is_file() else None  # noqa: E731
    root.mkdir(parents=True, exist_ok=True)
    before = built_at()
    with FileLock(root / f".{name}.lock"):  # the system lets go of it when the process dies
        if built_at() not in (None, before):  # by another process, while this one waited
            return final
        for left in root.glob(f".{name}-*"):  # by a build that was killed
            if (left / "old").exists() and not final.exists():  # between the two renames below
                os.replace(left / "old", final)
            shutil.rmtree(left, ignore_errors=True)
        # Not in its place: a kill leaves a folder that no reader takes for the data set.
        with TemporaryDirectory(prefix=f".{name}-", dir=root) as work:
            made = Path(work, name)
            made.mkdir()
            make(made, downloads)
            if final.exists():
                os.replace(final, Path(work, "old"))
            os.replace(made, final)
        shutil.rmtree(downloads, ignore_errors=True)
    return final
