"""Fetch a file once and check its bytes; half a file never bears the final name.

``registry.csv`` has every file's address, digest and length. pooch checks digests and puts the
checked file in place; our downloader under it adds what a classroom's network needs: it resumes.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pooch
import requests
from pooch.hashes import hash_matches
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from objemb_lib import __version__
from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DownloadError, ObjembError
from objemb_lib.data.archives import write_manifest

REGISTRY = Path(__file__).with_name("registry.csv")
CHUNK = 1 << 16  # bytes; what a cut connection loses at most
TIMEOUT = (10, 30)  # seconds: to connect, between two packets
AGENT = f"objemb/{__version__} (a course on object embeddings)"  # some hosts refuse the nameless
GONE = {404, 410}  # the only answers that are final
BUSY = {408, 425, 429, *range(500, 600)}  # these may pass within seconds
TRIES = 4  # requests in a row that bring no new byte before a place is given up
BACKOFF = 0.5  # seconds; doubles with each
RETRY_AFTER_CAP = 30.0  # seconds: the longest wait a server can ask of us
SPACE_MARGIN = 64 << 20  # bytes that stay free

AT_ONCE = 8  # links that are asked at the same time
PER_SECOND = 4.0  # requests to one server
SILENCE = 5  # unanswered requests in a row before a server is left alone for this run
SAVE_EVERY = 500  # files between two reports, for a run that is killed

pooch.get_logger().setLevel("WARNING")  # the bar says it already
_sleep = time.sleep  # tests put a recorder here

Check = Callable[[Path], object]


class Remote(NamedTuple):
    """A file to be had: a line of the registry, or of a list of links.

    Args:
        file: its name, or its path in the data set. url: its public address; empty where only a
            mirror may have it.
        digest: SHA-256, or ``md5:`` and that one; empty where none was ever published: then the
            length that is stated decides, and whoever reads the file.
        size: in bytes, where published.
        into: folder of the data set that an archive is unpacked into. members: which of its
            files are taken, as a shell's pattern.
    """

    file: str
    url: str = ""
    digest: str = ""
    size: int | None = None
    into: str = ""
    members: str = "*"


def registry(collection: str) -> list[Remote]:
    """The files of a data set, or of a collection of photographs."""
    with REGISTRY.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("collection") == collection]
    return [Remote(**row | {"size": int(row["size"] or 0) or None}) for row in rows]


def fetch(
    remote: Remote,
    folder: Path,
    check: Check | None = None,
    source: Path | None = None,
    mirror: str | None = None,
) -> Path:
    """One file, fetched into ``folder`` unless it is there or in ``source``; returns its place.

    A transfer that was cut is resumed from ``<file>.part``, now or in the next call.

    Args:
        source: a user's folder. An archive in it is checked and used where it lies.
        mirror: folder or URL tried before the public address, as ``<mirror>/<file>``.
        check: reads the file before it gets its name; raises an ObjembError if it is not right.
    Raises:
        DownloadError: no place gave the right bytes (each is listed with its reason).
        OSError: the disk is full or cannot be written.
    """
    dest, lying = folder / remote.file, Path(source or folder).expanduser() / remote.file
    if source and lying.is_file():
        if not lying.name.endswith((".tgz", ".zip")):
            mirror = str(lying.parent)
        elif hash_matches(lying, remote.digest or None):  # too large to be copied
            return lying
        else:
            raise DownloadError(f"{lying}: not the official archive's bytes", "Get it again.")
    places = [f"{mirror.rstrip('/')}/{remote.file}"] if mirror else []
    places += [remote.url] if remote.url else []
    download, tried = Downloader(dest, remote.size, check), []
    while places:
        place = places.pop(0)
        try:
            pooch.retrieve(place, remote.digest or None, dest.name, folder, downloader=download)
            return dest
        except (GiveUp, ValueError) as error:
            tried.append(f"\n  - {place}: {error}")
            if download.resumed and isinstance(error, ValueError):
                places.insert(0, place)  # the old half was another file's: now from the start
    raise DownloadError(
        f"{dest.name} could not be fetched. Tried:{''.join(tried)}",
        "Check the network and run again (a cut download resumes), or use a copy you have: "
        "`--source FOLDER` with the files, `--mirror DIR_OR_URL` (or OBJEMB_MIRROR) with a "
        f"folder or server that holds {dest.name}. See data/README.md.",
    )


def require_space(dest: Path, missing: int) -> None:
    """Raise DownloadError unless the disk of ``dest`` has room for ``missing`` more bytes."""
    place = next(folder for folder in (dest, *dest.absolute().parents) if folder.is_dir())
    needed, free = missing * 1.1 + SPACE_MARGIN, shutil.disk_usage(place).free
    if missing > 0 and free < needed:
        problem = f"{dest}: needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise DownloadError(problem, "Free some space, or set OBJEMB_DATA to another disk.")


class GiveUp(Exception):
    """This source does not give the file now, for the reason in the message."""


class Gone(GiveUp):
    """The source answered that it has no such file."""


class Patience(Retry):
    """urllib3's retries, in which no server can make us wait for longer than we would."""

    def parse_retry_after(self, retry_after: str) -> float:
        return min(super().parse_retry_after(retry_after), RETRY_AFTER_CAP)


class Downloader:
    """What pooch takes as ``downloader=``: goes on where ``<dest>.part`` ends, if the server can.

    ``dest`` is the final place; the others as for :func:`fetch`.
    """

    def __init__(self, dest: Path, size: int | None, check: Check | None, bar: bool = True) -> None:
        self.part = dest.with_name(f"{dest.name}.part")
        self.size, self.check, self.bar = size, check, bar
        self.resumed = False  # an earlier call's bytes were built upon
        self.session = requests.Session()
        patience = Patience(
            TRIES, connect=0, status_forcelist=BUSY, backoff_factor=BACKOFF, raise_on_status=False
        )
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=patience))

    @property
    def have(self) -> int:
        """Bytes that lie in ``part``."""
        return self.part.stat().st_size if self.part.exists() else 0

    def __call__(self, place: str, output_file: str | Path, _pooch: object = None) -> None:
        """Put ``place`` (a URL or a path) into ``output_file``, whose digest pooch then checks.

        Raises GiveUp: it is not to be had there; ValueError: not the right bytes.
        """
        self.resumed = self.have > 0
        require_space(self.part, (self.size or 0) - self.have)
        if place.startswith(("http://", "https://")):
            self.download(place)
        elif (file := Path(place).expanduser()).is_file():
            shutil.copyfile(file, self.part)
        else:
            raise (Gone if file.parent.is_dir() else GiveUp)("no such file")
        try:
            if self.size not in (None, self.have):
                raise ValueError(f"{self.have} bytes or more, expected {self.size}")
            if self.check:
                self.check(self.part)
        except (ValueError, ObjembError) as error:
            self.part.unlink()
            raise ValueError(getattr(error, "problem", None) or str(error)) from error
        os.replace(self.part, output_file)

    def download(self, url: str) -> None:
        """Fill ``part``; a connection that is cut is taken up again while it brings new bytes."""
        most, failures = self.have, 0
        while self.size is None or self.have < self.size:
            try:
                return self._request(url)
            except HTTPError as error:
                # Only new bytes restart the count: a server that ignores Range brings old ones.
                failures = 0 if self.have > most else failures + 1
                most = max(most, self.have)
                if failures == TRIES:
                    kept = f"{self.have} bytes kept"
                    raise GiveUp(f"connection cut ({error}), {TRIES} times; {kept}") from error
                _sleep(BACKOFF * 2**failures)

    def _request(self, url: str) -> None:
        # Not compressed, else offsets count other bytes.
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
        if start := self.have:
            headers["Range"] = f"bytes={start}-"
        try:
            answer = self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
        except requests.RequestException as error:
            cause = error.args[0] if error.args else error
            raise GiveUp(str(getattr(cause, "reason", cause))) from error
        with answer:
            said = f"HTTP {answer.status_code} {answer.reason}"
            if answer.status_code == 416 and start:
                self.part.unlink()  # it is no part of what lies there: afresh
                raise HTTPError(said)
            if answer.status_code not in (200, 206):
                raise Gone(said) if answer.status_code in GONE else GiveUp(said)
            start = start if answer.status_code == 206 else 0
            shown = tqdm(total=self.size, desc=self.part.stem, unit="B", unit_scale=True,
                         initial=start, disable=not self.bar)  # fmt: skip
            with open(self.part, "ab" if start else "wb") as file, shown:
                for chunk in answer.raw.stream(CHUNK, decode_content=False):
                    shown.update(file.write(chunk))
                    if file.tell() > (self.size or float("inf")):
                        break  # wrong already: fetch no more of it


def debian_package(name: str, dest: Path) -> Path | None:
    """Fetch a Debian package with apt, which checks its signature, and unpack it; no root needed.

    Returns ``dest``, a new folder that becomes the package's root (``dest/usr/share/…``), or None
    where apt or the package cannot be had.
    """
    dest.mkdir()
    get = f"apt-get -q -o Acquire::http::Timeout=20 download {name} && dpkg-deb -x ./*.deb ."
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["sh", "-c", get], cwd=dest, check=True, timeout=1800, capture_output=True)
        return dest
    return None


# --- very many links -------------------------------------------------------------------------


def download_urls(
    folder: Path,
    wanted: Sequence[Remote],
    retry_dead: bool = False,
    per_second: float = PER_SECOND,
    check: Check | None = None,
) -> Path:
    """Fetch what is not there yet and still at its address, then write the manifest; returns
    ``folder``.

    Args:
        folder: gets the files. Its ``links.json`` says why a link is dead (gone, or of other bytes:
            no later run asks it) or failed this time; one run at a time may use it.
        wanted: files in it, with their addresses. One that is there is not touched.
        per_second: most requests to one server.
        check: reads a file before it gets its name; raises an ObjembError if it is not right.
    Raises:
        DownloadError: no room on the disk, or no server answered at all.
        OSError: the disk is full or cannot be written.
    """
    report = folder / "links.json"
    before = json.loads(report.read_text())["dead"] if report.exists() and not retry_dead else {}
    missing = [one for one in wanted if not (folder / one.file).exists()]
    dead = {one.url: before[one.url] for one in missing if one.url in before}
    asked = [one for one in missing if one.url not in dead]
    here, failed = len(wanted) - len(missing), {}
    require_space(folder, sum(one.size or 0 for one in asked))
    hosts = {urlsplit(one.url).netloc: Host(1 / per_second) for one in asked}
    save = lambda: atomic_write_text(report, json.dumps({"dead": dead, "failed": failed}, indent=1))  # noqa: E731
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = pool.map(lambda one: hosts[urlsplit(one.url).netloc].get(one, folder, check), asked)
        try:
            for n, (kind, why) in enumerate(tqdm(done, total=len(asked))):
                here += kind == "here"
                {"dead": dead, "failed": failed, "here": {}}[kind][asked[n].url] = why
                if n % SAVE_EVERY == 0:
                    save()
        finally:
            save()
    if failed and not here and not dead:
        first = next(iter(failed.items()))
        problem = f"none of {len(asked):,} files could be fetched; the first: {first}"
        raise DownloadError(problem, "Check the network, then run again.")
    print(f"{folder.name}: {here:,} of {len(wanted):,} files are here; {len(dead):,} links are "
          f"dead; {len(failed):,} did not answer and are asked again by the next run")  # fmt: skip
    return write_manifest(folder, {"files": here, "dead": len(dead), "unanswered": len(failed)})


class Host:
    """A server, asked by several threads at a pace, until it stays silent."""

    def __init__(self, gap: float) -> None:
        self.gap, self.turn, self.silent = gap, 0.0, 0
        self.lock = threading.Lock()

    def get(self, one: Remote, folder: Path, check: Check | None) -> tuple[str, str]:
        """Fetch a file; "here", "dead" or "failed", and why."""
        if self.silent >= SILENCE:
            return "failed", "its server does not answer"
        with self.lock:
            now = time.monotonic()
            wait = max(self.turn - now, 0)
            self.turn = now + wait + self.gap
        if wait:
            _sleep(wait)
        dest = folder / one.file
        download = Downloader(dest, one.size, check, bar=False)
        download.part.unlink(missing_ok=True)  # small files: an old half may be another file's
        try:
            pooch.retrieve(one.url, one.digest or None, dest.name, dest.parent, downloader=download)
            found = "here", ""
        except Gone as error:
            found = "dead", str(error)
        except GiveUp as error:
            self.silent += 1
            return "failed", str(error)
        except ValueError as error:
            found = "dead", f"other bytes: {error}"
        self.silent = 0
        return found
