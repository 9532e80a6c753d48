"""JupyterLab or the app on loopback, and Chromium looking at it: what the browser tests share."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import pytest

from objemb_lib.show.engine import RUNTIME

PROJECT = Path(__file__).resolve().parents[1]
SCREENSHOTS = PROJECT / "runs" / "screenshots"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update",
         "--disable-dev-shm-usage", "--host-resolver-rules=MAP room.test 127.0.0.1")  # fmt: skip
HERE = ("127.0.0.1", "room.test")  # the second as a phone in a room sees it: no secure context
PATIENCE = 120  # seconds: a kernel on a busy machine imports slowly

needs_runtime = pytest.mark.skipif(not RUNTIME.is_dir(), reason="no onnxruntime-web here: make web")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium here: apt install chromium (or your system's like)"
)


def notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells."""
    code = [nbformat.v4.new_code_cell(source) for source in cells]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), path)
    return path


@contextmanager
def server(folder: Path, command: list[str], status: str) -> Iterator[str]:
    """JupyterLab or the app on a free port; ``{port}`` in the command. Yields its address.

    Its settings are its own, in ``folder``: those of whoever runs the tests play no part.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {name: str(folder / name.lower()) for name in
              ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
               "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}  # fmt: skip
    paths = [str(PROJECT), str(PROJECT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | places | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [part.format(port=port) for part in command],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        base = f"http://127.0.0.1:{port}"
        try:
            _wait_for(base + status, process, folder / "server.log")
            yield base
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no server at {address}:\n{log.read_text()[-2000:]}")


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """JupyterLab over a folder."""
    wanted = {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in wanted.items():
        file = folder / "jupyterlab_settings_dir" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    options = ["--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port={port}",
               "--allow-root", "--IdentityProvider.token=",
               "--LabApp.expose_app_in_browser=True"]  # fmt: skip
    with server(folder, [sys.executable, "-m", "jupyter", "lab", *options], "/api/status") as base:
        yield base


class Watched:
    """A page, and what went wrong in it: errors of its console, requests to other hosts."""

    def __init__(self, page) -> None:
        self.page, self.errors, self.outside = page, [], []
        page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._note)
        page.set_default_timeout(PATIENCE * 1000)

    def _note(self, request) -> None:
        address = urlparse(request.url)
        if address.scheme not in ("data", "blob") and address.hostname not in HERE:
            self.outside.append(request.url)

    def run_all(self, base: str, name: str) -> None:
        """Open a notebook in JupyterLab and run its cells."""
        self.page.goto(f"{base}/lab/tree/{name}?reset")
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
            "?.status === 'idle'"
        )
        run = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
        assert self.page.evaluate(run), self.page.locator(".jp-OutputArea").all_inner_texts()

    def screenshot(self, name: str, of: str = "") -> None:
        """Keep a picture for somebody to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        seen = self.page.locator(of).first if of else self.page
        seen.screenshot(path=SCREENSHOTS / f"{name}.png")

    def is_accessible(self, of: str | dict = "html") -> None:
        """axe finds nothing serious in a part of the page (a selector, or axe's own context)."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, context=of).response["violations"]
        grave = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not grave, [(one["id"], [node["html"][:200] for node in one["nodes"]][:5])
                           for one in grave]  # fmt: skip

    @contextmanager
    def phone(self) -> Iterator[Watched]:
        """A page of the same browser on a screen for fingers."""
        seen = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
        context = self.page.context.browser.new_context(**seen)
        yield Watched(context.new_page())
        context.close()

    def swipe(self, x: float, y: float, by: float) -> None:
        """A finger goes up or down."""
        finger = self.page.context.new_cdp_session(self.page)
        for kind, far in (("touchStart", 0), ("touchMove", 0.5), ("touchMove", 1), ("touchEnd", 1)):
            points = [] if kind == "touchEnd" else [{"x": x, "y": y + far * by}]
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def check(self) -> None:
        """Nothing went wrong, nobody outside was asked."""
        assert not self.errors + self.outside, self.errors + self.outside


@contextmanager
def chromium(width: int = 1280, height: int = 1000) -> Iterator[Watched]:
    """A page of a fresh browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        try:
            yield Watched(browser.new_page(viewport={"width": width, "height": height}))
        finally:
            browser.close()
