"""Fetch very many small files from very many servers, politely, and remember what is gone.

Links die: of a list from 2018 many lead nowhere. What a server says is gone, and what arrives with
other bytes, is written into a report, so that a second run neither asks nor waits for it again;
what merely did not answer is asked again. A file that is there is not touched.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DownloadError, ObjembError
from objemb_lib.data import download

WORKERS = 8
PER_SECOND = 4.0  # requests to one server
HOST_FAILURES = 3  # unanswered requests in a row before a server is left alone for this run
SAVE_EVERY = 500  # files between two reports, for a run that is killed


@dataclass(frozen=True)
class Wanted:
    """One file.

    Args:
        url: its address. dest: where it goes.
        sha256: of its bytes; None where no list has it: the MD5 in Amazon S3's ETag, where
            the server gives one, and ``check`` then decide.
        size: in bytes, where known.
        check: reads the file before it gets its name; raises an ObjembError if it is not right.
    """

    url: str
    dest: Path
    sha256: str | None = None
    size: int | None = None
    check: Callable[[Path], object] | None = None


@dataclass
class Harvest:
    """What a run found.

    Args:
        here: files that are there, fetched now or before.
        dead: address -> why it will not be asked again.
        failed: address -> why it did not work this time.
    """

    here: int = 0
    dead: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        total = self.here + len(self.dead) + len(self.failed)
        why = Counter(reason.split(":")[0] for reason in self.dead.values()).most_common(3)
        most = "".join(f", {n:,} {reason}" for reason, n in why)
        return (
            f"{self.here:,} of {total:,} files are here; {len(self.dead):,} links are dead{most}; "
            f"{len(self.failed):,} did not answer and are asked again by the next run"
        )


def download_urls(
    wanted: Sequence[Wanted],
    report: Path,
    retry_dead: bool = False,
    workers: int = WORKERS,
    per_second: float = PER_SECOND,
    progress: bool = True,
) -> Harvest:
    """Fetch what is not there yet; every file is checked before it gets its name.

    Args:
        report: JSON of a :class:`Harvest`, read and written; one run at a time may use it.
        retry_dead: ask dead links again.
        workers: files fetched at the same time. per_second: most requests to one server.
    Raises:
        DownloadError: the disk is full or cannot be written, or no server answered at all.
    """
    found = Harvest()
    before = {} if retry_dead else read_report(report).dead
    missing = []
    for one in wanted:
        if one.dest.exists():
            found.here += 1
        elif one.url in before:
            found.dead[one.url] = before[one.url]
        else:
            missing.append(one)
    download.require_space(report, sum(one.size or 0 for one in missing))
    for folder in {one.dest.parent for one in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    run = _Run(found, report, per_second)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(missing), disable=not progress) as shown,
    ):
        jobs = [pool.submit(run.fetch, one) for one in missing]
        try:
            for n, job in enumerate(jobs, 1):
                job.result()
                shown.update()
                if n % SAVE_EVERY == 0:
                    run.save()
        except BaseException:  # Ctrl-C or a full disk: nothing more is begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            run.save()
    if missing and not found.here and not found.dead:
        raise DownloadError(
            f"none of {len(missing):,} files could be fetched; the first: "
            f"{next(iter(found.failed.items()))}",
            "Check the network, then run again.",
        )
    return found


def read_report(report: Path) -> Harvest:
    """The report of an earlier run; an empty one if there is none.

    Raises:
        DownloadError: it is damaged.
    """
    if not report.exists():
        return Harvest()
    try:
        return Harvest(**json.loads(report.read_text()))
    except (ValueError, TypeError) as error:
        raise DownloadError(f"{report}: not a report ({error})", "Delete it.") from error


class _Run:
    """What the threads of one harvest share."""

    def __init__(self, found: Harvest, report: Path, per_second: float) -> None:
        self.found, self.report, self.gap = found, report, 1 / per_second
        self.lock = threading.Lock()
        self.next_turn: dict[str, float] = {}
        self.silent: Counter[str] = Counter()

    def fetch(self, one: Wanted) -> None:
        host = urlsplit(one.url).netloc
        if self.silent[host] >= HOST_FAILURES:
            with self.lock:
                self.found.failed[one.url] = f"{host} does not answer"
            return
        self._wait(host)
        try:
            _fetch(one)
        except (download.Gone, ValueError) as error:
            kind = "" if isinstance(error, download.Gone) else "other bytes: "
            with self.lock:
                self.silent[host] = 0
                self.found.dead[one.url] = f"{kind}{error}"
        except download.GiveUp as error:
            with self.lock:
                self.silent[host] += 1
                self.found.failed[one.url] = str(error)
        except OSError as error:
            remedy = "Free some space or set OBJEMB_DATA to another folder, then run again."
            raise DownloadError(f"{one.dest}: cannot be written ({error})", remedy) from error
        else:
            with self.lock:
                self.silent[host] = 0
                self.found.here += 1

    def _wait(self, host: str) -> None:
        with self.lock:
            now = time.monotonic()
            turn = max(now, self.next_turn.get(host, now))
            self.next_turn[host] = turn + self.gap
        if turn > now:
            download._sleep(turn - now)

    def save(self) -> None:
        with self.lock:
            text = json.dumps(vars(self.found), indent=1)
        atomic_write_text(self.report, text + "\n")


def _fetch(one: Wanted) -> None:
    """Raises GiveUp, or ValueError where the bytes are not those wanted."""
    transfer = download.Transfer(one.dest.with_name(f"{one.dest.name}.part"), one.size, False)
    try:
        _checked(one, transfer)
    except ValueError:
        if not transfer.resumed:
            raise
        _checked(one, transfer)  # the old half was another file's: once more from the start
    os.replace(transfer.part, one.dest)


def _checked(one: Wanted, transfer: download.Transfer) -> None:
    transfer.resumed = False
    transfer.download(one.url)
    digest = one.sha256 or (f"md5:{transfer.tag}" if transfer.tag else None)
    try:
        if not download.holds(transfer.part, digest):
            raise ValueError("another digest")
        if one.check:
            one.check(transfer.part)
    except (ValueError, ObjembError) as error:
        transfer.part.unlink(missing_ok=True)
        raise ValueError(getattr(error, "problem", None) or str(error)) from error
