"""Fetch a file once, check its bytes, unpack it; half a file never bears the final name.

pooch checks hashes and puts the checked file in place; our downloader adds what a classroom's
network needs: resuming, patience with a busy server, mirrors.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import IO

import pooch
import requests
from filelock import FileLock
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry

from objemb_lib import __version__
from objemb_lib.config import DownloadError, ObjembError

CHUNK = 1 << 16  # bytes; what a cut connection loses at most
TIMEOUT = (10, 30)  # seconds: to connect, between two packets
BUSY = {429, 500, 502, 503, 504}  # HTTP answers that may pass
AGENT = f"objemb/{__version__} (a course on object embeddings)"  # some hosts refuse the nameless
TRIES = 4  # requests in a row that bring no new byte before a source is given up
BACKOFF = 1.0  # seconds before the second try; doubles
RETRY_AFTER_CAP = 30.0  # seconds: the longest wait a server can ask of us
SPACE_MARGIN = 64 << 20  # bytes that stay free

log = logging.getLogger("objemb")
_sleep = time.sleep  # tests put a recorder here


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 lower-case hex digits."""
    return pooch.file_hash(os.fspath(path))


def fetch(
    urls: Sequence[str],
    dest: Path,
    sha256: str | None,
    size: int | None = None,
    mirror: str | None = None,
    progress: bool = True,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Fetch one file unless ``dest`` already holds it; safe for several processes at once.

    A transfer that was cut is resumed from ``<dest>.part``, now or in the next call.

    Args:
        urls: http(s) addresses of the same bytes, tried in order.
        dest: where the file goes.
        sha256: hex digest that the bytes must have, or ``md5:`` and that one, where only it was
            ever published; None where no digest was: ``check`` then decides.
        size: length in bytes, where known: disk space is then checked first. Where the server
            states a length, it is checked against that.
        mirror: folder or URL tried before ``urls``, as ``<mirror>/<dest.name>``; pass
            ``settings.mirror()`` to honour ``OBJEMB_MIRROR``.
        progress: show a bar.
        check: reads the file before it gets its name; raises an ObjembError if it is not right.
    Returns:
        ``dest``.
    Raises:
        ValueError: neither a digest nor a check.
        DownloadError: no source gave the right bytes (each is listed with its reason), or the
            disk is full.
    """
    if sha256 is None and check is None:
        raise ValueError(f"{dest}: bytes that nothing can check")
    dest = Path(dest)
    sources = ([f"{mirror.rstrip('/')}/{dest.name}"] if mirror else []) + list(urls)
    try:
        if holds(dest, sha256):
            return dest
        dest.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(dest.with_name(f".{dest.name}.lock")):
            if not holds(dest, sha256):  # another process may have fetched it meanwhile
                transfer = Transfer(dest.with_name(f"{dest.name}.part"), size, progress, check)
                require_space(dest, max((size or 0) - transfer.have, 0))
                _try_each(sources, dest, sha256, transfer)
    except OSError as error:
        remedy = "Free some space or set OBJEMB_DATA to another folder, then run again."
        raise DownloadError(f"{dest}: cannot be written ({error})", remedy) from error
    return dest


def holds(file: Path, digest: str | None) -> bool:
    """Whether ``file`` has the ``digest`` of :func:`fetch`, or is there if that is None."""
    if digest is None or not file.exists():
        return file.exists()
    kind, _, value = digest.rpartition(":")
    return pooch.file_hash(os.fspath(file), alg=kind or "sha256") == value.lower()


def require_space(dest: Path, missing: int) -> None:
    """Raise DownloadError unless the disk of ``dest`` has room for ``missing`` more bytes."""
    needed = missing * 1.1 + SPACE_MARGIN
    place = next(folder for folder in (dest, *dest.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if missing and free < needed:
        problem = f"{dest}: needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise DownloadError(problem, "Free some space, or set OBJEMB_DATA to another disk.")


def _try_each(sources: Sequence[str], dest: Path, sha256: str | None, transfer: Transfer) -> None:
    pooch.get_logger().setLevel("WARNING")  # the bar says it already
    known = {"known_hash": sha256, "fname": dest.name, "path": dest.parent}
    put = partial(pooch.retrieve, downloader=transfer, **known)
    tried = []
    for source in sources:
        try:
            try:
                put(source)
            except ValueError:  # wrong bytes; they, and the .part, are gone by now
                if not transfer.resumed:
                    raise
                put(source)  # the old half was another file's: once more from the start
            return
        except (GiveUp, ValueError) as error:
            tried.append(f"\n  - {source}: {error}")
    raise DownloadError(
        f"{dest.name} could not be fetched. Tried:{''.join(tried) or ' nothing, no address given'}",
        "Check the network and run again (a cut download resumes), or use a copy you have: "
        "`--source FOLDER` with the unpacked files, `--mirror DIR_OR_URL` (or OBJEMB_MIRROR) "
        f"with a folder or server that holds {dest.name}. See data/README.md.",
    )


class GiveUp(Exception):
    """This source will not give the file, for the reason in the message."""


class Gone(GiveUp):
    """The server answered that it has no such file, or will not show it."""


class _TryAgain(Exception):
    """This source may give it later. Args: the reason; seconds to wait, None for the back-off."""


@dataclass
class Transfer:
    """A pooch downloader: fills ``part``, from where it ends if the server can."""

    part: Path
    size: int | None
    progress: bool
    check: Callable[[Path], object] | None = None
    resumed: bool = False  # bytes of an earlier request were built upon
    tag: str | None = None  # the server's name for the content, where it looks like an MD5

    @property
    def have(self) -> int:
        """Bytes that lie in ``part``."""
        return self.part.stat().st_size if self.part.exists() else 0

    def __call__(self, source: str, output_file: str, _pooch: object) -> None:
        """Put ``source`` (a URL or a path) into ``output_file``, whose hash pooch then checks."""
        if source.startswith(("http://", "https://")):
            self.download(source)
        else:
            self._copy(Path(source).expanduser())
        if self.check:
            try:
                self.check(self.part)
            except ObjembError as error:
                self.part.unlink()
                raise ValueError(error.problem) from error
        os.replace(self.part, output_file)

    def _copy(self, source: Path) -> None:
        if not (source.is_file() and os.access(source, os.R_OK)):
            raise GiveUp("no such file, or not readable")
        with open(source, "rb") as file:
            self._save(iter(partial(file.read, CHUNK), b""), "wb")

    def download(self, url: str) -> None:
        most, failures = self.have, 0
        self.resumed = most == self.size  # whole, but killed before it got its name?
        while self.have != self.size:
            try:
                return self._request(url)
            except _TryAgain as error:
                # Only new bytes restart the count: a server that ignores Range brings old ones.
                failures = 0 if self.have > most else failures + 1
                most = max(most, self.have)
                reason, wait = error.args
                if failures >= TRIES:
                    raise GiveUp(f"{reason}, {TRIES} times; {self.have} bytes kept") from error
                _sleep(BACKOFF * 2 ** max(failures - 1, 0) if wait is None else wait)

    def _request(self, url: str) -> None:
        """One request. Raises _TryAgain, GiveUp, or ValueError for a wrong length."""
        headers = {"User-Agent": AGENT}
        headers["Accept-Encoding"] = "identity"  # else offsets count compressed bytes
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
        try:
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                self._judge(response)
                if self.size is None:
                    require_space(self.part, int(response.headers.get("Content-Length") or 0))
                partly = response.status_code == 206
                self.resumed |= partly
                chunks = response.raw.stream(CHUNK, decode_content=False)
                self._save(chunks, "ab" if partly else "wb")
        except (requests.RequestException, HTTPError) as error:
            cause = error.args[0] if error.args else error
            if isinstance(cause, MaxRetryError):  # no such host, refused, no route, bad certificate
                raise GiveUp(str(cause.reason or cause)) from error
            if isinstance(error, ValueError):  # not a URL
                raise GiveUp(str(error)) from error
            raise _TryAgain(f"connection cut ({cause})", None) from error

    def _judge(self, response: requests.Response) -> None:
        answer = f"HTTP {response.status_code} {response.reason}"
        if response.status_code == 416 and self.have:
            self.part.unlink()  # it is no part of what lies there: afresh
            raise _TryAgain(answer, 0)
        if response.status_code in BUSY:
            wait = None
            with suppress(KeyError, HTTPError):  # absent, or neither seconds nor a date
                asked = Retry().parse_retry_after(response.headers["Retry-After"])
                wait = min(asked, RETRY_AFTER_CAP)
            raise _TryAgain(answer, wait)
        if response.status_code not in (200, 206):
            raise Gone(answer)
        tag = response.headers.get("ETag", "").strip('"')
        self.tag = tag if re.fullmatch("[0-9a-f]{32}", tag) else None

    def _save(self, chunks: Iterable[bytes], mode: str) -> None:
        start = self.have if mode == "ab" else 0
        look = {"desc": self.part.stem, "unit": "B", "unit_scale": True, "initial": start}
        bar = tqdm(total=self.size, disable=not self.progress, **look)
        with open(self.part, mode) as file, bar:
            for chunk in chunks:
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > (self.size or float("inf")):
                    break  # wrong already: fetch no more of it
        if self.size is not None and (have := self.have) != self.size:
            self.part.unlink()
            raise ValueError(f"{have} bytes or more, expected {self.size}")


def unpack(
    archive: Path,
    dest: Path,
    members: Callable[[str], bool] | None = None,
    max_bytes: int = 8 << 30,
) -> list[Path]:
    """Unpack a tar.gz, tar.xz, tar.bz2 or zip; ``dest`` appears when all of it is out.

    Only plain files are made. A chosen link or device is refused: ``tarfile``'s own ``data``
    filter, which lets inner links pass, was circumvented through them (CVE-2025-4517).
    Where ``dest`` exists, the files are moved into it one by one.

    Args:
        archive: the archive.
        dest: folder to unpack into.
        members: picks by name inside the archive; default all.
        max_bytes: the most the files may hold together, against decompression bombs.
    Returns:
        The files' paths in ``dest``, in the archive's order.
    Raises:
        DownloadError: damaged, cut short, unsafe or too large, or the disk is full; none of it
            has reached ``dest``.
    """
    archive, dest = Path(archive), Path(dest)
    try:
        with _stage_for(dest) as stage:
            files = _extract(archive, stage, members or (lambda name: True), max_bytes)
            _move_into(stage, dest)
    except DownloadError:
        raise
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        problem = f"{archive}: cannot be unpacked ({type(error).__name__}: {error})"
        remedy = "It is damaged or cut short: delete it, then run again to fetch it anew."
        if getattr(error, "errno", None) not in (None, errno.EINVAL):  # the system's, no parser's
            remedy = f"Check {dest.parent} and its free space, then run again."
        raise DownloadError(problem, remedy) from error
    return [dest / file for file in files]


@contextmanager
def _stage_for(dest: Path) -> Iterator[Path]:
    """An empty folder on ``dest``'s disk, removed afterwards unless moved away."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{dest.name}-", dir=dest.parent.resolve()) as temp:
        stage = Path(temp, "stage")  # the outer folder's mode would lock other users out
        stage.mkdir()
        yield stage


def _extract(
    archive: Path, stage: Path, members: Callable[[str], bool], max_bytes: int
) -> list[Path]:
    files: dict[Path, None] = {}  # a set that keeps the order
    room = max_bytes

    def refuse(what: str) -> DownloadError:
        return DownloadError(f"{archive}: {what}", "Get it from its official address.")

    for name, plain, opened in _entries(archive):
        if not members(name):
            continue
        inside = PureWindowsPath(name)  # knows both slashes and drives
        if inside.anchor or ".." in inside.parts or not plain:
            raise refuse(f"{name!r} is a link or device, or leads outside the folder")
        target = stage.joinpath(*inside.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened() as source, open(target, "wb") as file:
            while chunk := source.read(CHUNK):  # counted here: sizes in headers can lie
                room -= len(chunk)
                if room < 0:
                    raise refuse(f"holds more than {max_bytes} bytes")
                file.write(chunk)
        files[target.relative_to(stage)] = None
    return list(files)


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
        while pack.fileobj.read(CHUNK):
            pass  # to the end, where the checksum is


def _move_into(stage: Path, dest: Path) -> None:
    if not dest.exists():
        os.replace(stage, dest)
        return
    for path in sorted(stage.rglob("*")):
        target = dest / path.relative_to(stage)
        if path.is_dir() and not path.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(path, target)


def debian_package(name: str, dest: Path) -> Path | None:
    """Fetch a Debian package with apt, which checks its signature, and unpack it; no root needed.

    Args:
        name: the package.
        dest: folder that becomes the package's root (``dest/usr/share/…``).
    Returns:
        ``dest``, or None where apt or the package cannot be had: the logger "objemb" says why at
        level INFO.
    """
    dest = Path(dest)
    get = ["apt-get", "-q", "-o", "Acquire::http::Timeout=20", "download", name]
    with _stage_for(dest) as stage:
        if not _run(get, stage.parent):
            return None
        packages = [str(file) for file in stage.parent.glob("*.deb")]
        if not _run(["dpkg-deb", "-x", *packages, str(stage)], stage.parent):
            return None
        _move_into(stage, dest)
    return dest


def _run(command: list[str], folder: Path) -> bool:
    """Whether ``command`` succeeds in ``folder``; logs its last words if it does not."""
    env = os.environ | {"LC_ALL": "C"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        subprocess.run(
            command, cwd=folder, env=env, check=True, timeout=1800, errors="replace", **pipes
        )
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, "stdout", "") or str(error)).strip().splitlines()
        log.info("%s: %s", " ".join(command), words[-1] if words else error)
        return False
    return True
