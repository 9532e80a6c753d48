"""Progress bars: alive on a terminal and in a notebook, short in a log."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from objemb_lib.data import download, images
from objemb_lib import progress

STEPS = 10


class Terminal(io.StringIO):
    """A stderr that redraws."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["log", "terminal"])
def put_stderr(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], io.StringIO]:
    """Call it in the test: pytest puts its own stderr in place after the fixtures ran."""

    def put() -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", request.param())
        return sys.stderr

    return put


def redraws(stderr: io.StringIO) -> int:
    return stderr.getvalue().count("%|")


def wait(_: object) -> tuple[int, int]:
    time.sleep(0.12)  # longer than tqdm waits between two redraws of its own accord
    return 1, 1


def expect(stderr: io.StringIO) -> None:
    """In a log the first and the last state; on a terminal most of those between."""
    assert "100%" in stderr.getvalue()
    if isinstance(stderr, Terminal):
        assert redraws(stderr) > 3
    else:
        assert redraws(stderr) <= 2


def test_a_log_is_not_flooded(put_stderr) -> None:
    stderr = put_stderr()
    for step in progress.bar(range(STEPS), "walking", unit="step"):
        wait(step)
    assert "walking" in stderr.getvalue() and f"{STEPS}/{STEPS}" in stderr.getvalue()
    expect(stderr)


def test_checking_images_does_not_flood_a_log(put_stderr, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_measure", wait)
    monkeypatch.setattr(images.os, "cpu_count", lambda: 1)
    stderr = put_stderr()
    assert images.measure_images(["photo.jpg"] * STEPS) == [(1, 1)] * STEPS
    expect(stderr)


def test_a_download_does_not_flood_a_log(put_stderr, tmp_path: Path) -> None:
    stderr = put_stderr()

    def packets():
        for number in range(STEPS):
            wait(number)
            yield b"x" * 100

    download.Transfer(tmp_path / "film.part", 100 * STEPS, True)._save(packets(), "wb")
    expect(stderr)


def test_a_long_job_still_speaks_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.3)
    for step in progress.bar(range(STEPS)):
        wait(step)
    assert redraws(sys.stderr) > 2


def test_disabled_is_silent(put_stderr) -> None:
    stderr = put_stderr()
    assert list(progress.bar(range(3), "walking", disable=True)) == [0, 1, 2]
    assert stderr.getvalue() == ""


def test_a_notebook_is_no_log(put_stderr, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    put_stderr()
    assert not progress.in_log()
