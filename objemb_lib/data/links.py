"""Fetch very many small files from very many servers, politely, and remember what is gone.

Links die: of a list from 2018 many lead nowhere. What a server says is gone, and what arrives with
other bytes, is written into a report, so that a second run neither asks nor waits for it again;
all else is asked again. A file that is there is not touched.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from pooch.hashes import hash_matches
from tqdm.auto import tqdm

from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DownloadError
from objemb_lib.data import fetch
from objemb_lib.data.archives import write_manifest

REPORT = "links.json"
PER_SECOND = 4.0  # requests to one server
SILENCE = 5  # unanswered requests in a row before a server is left alone for this run
SAVE_EVERY = 500  # files between two reports, for a run that is killed


def download_urls(
    folder: Path,
    wanted: Sequence[fetch.Remote],
    retry_dead: bool = False,
    per_second: float = PER_SECOND,
    workers: int = 8,
    progress: bool = True,
    check: fetch.Check | None = None,
) -> Path:
    """Fetch what is not there yet and still at its address; then write the manifest.

    Args:
        folder: gets the files. Its ``links.json`` says of each link that is dead, or failed this
            time, why; one run at a time may use it.
        wanted: those without a digest are held to the MD5 in Amazon S3's ETag, where there is one.
        retry_dead: ask dead links again.
        per_second: most requests to one server. workers: files fetched at the same time.
        check: reads a file before it gets its name; raises an ObjembError if it is not right.
    Returns:
        ``folder``.
    Raises:
        DownloadError: no room on the disk, or no server answered at all.
        OSError: the disk is full or cannot be written.
    """
    report = folder / REPORT
    before = json.loads(report.read_text())["dead"] if report.exists() and not retry_dead else {}
    missing = [one for one in wanted if not (folder / one.file).exists()]
    dead = {one.url: before[one.url] for one in missing if one.url in before}
    asked = [one for one in missing if one.url not in dead]
    here, failed = len(wanted) - len(missing), {}
    fetch.require_space(folder, sum(one.size or 0 for one in asked))
    hosts = {urlsplit(one.url).netloc: Host(1 / per_second) for one in asked}
    save = lambda: atomic_write_text(report, json.dumps({"dead": dead, "failed": failed}, indent=1))  # noqa: E731
    with ThreadPoolExecutor(workers) as pool:
        get = lambda one: hosts[urlsplit(one.url).netloc].get(one, folder, check)  # noqa: E731
        done = pool.map(get, asked)
        try:
            for n, (kind, why) in enumerate(tqdm(done, total=len(asked), disable=not progress)):
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

    def get(self, one: fetch.Remote, folder: Path, check: fetch.Check | None) -> tuple[str, str]:
        """Fetch a file; "here", "dead" or "failed", and why."""
        if self.silent >= SILENCE:
            return "failed", "its server does not answer"
        with self.lock:
            now = time.monotonic()
            wait = max(self.turn - now, 0)
            self.turn = now + wait + self.gap
        if wait:
            fetch._sleep(wait)

        def right(part: Path) -> None:
            hash_matches(part, one.digest or download.md5 or None, strict=True)
            if check:
                check(part)

        dest = folder / one.file
        dest.parent.mkdir(parents=True, exist_ok=True)
        download = fetch.Downloader(dest, one.size, False, right)
        download.part.unlink(missing_ok=True)  # small files: an old half may be another file's
        try:
            download(one.url, dest)
            found = "here", ""
        except fetch.Gone as error:
            found = "dead", str(error)
        except fetch.GiveUp as error:
            self.silent += 1
            return "failed", str(error)
        except ValueError as error:
            found = "dead", f"other bytes: {error}"
        self.silent = 0
        return found
