"""A server of files: the page of a search, its index, pictures and originals, and nothing else.

``python -m objemb_lib.show.serve FOLDER``, which :mod:`app` starts: it needs no network itself.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import shutil
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from urllib.parse import urlsplit

import numpy as np

from objemb_lib.config import DataError, ObjembError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.show.pictures import LARGE, SMALL, THUMBNAIL, original, picture

SIDES = (SMALL, THUMBNAIL, LARGE)
PHOTOGRAPH = re.compile(rf"/({'|'.join(map(str, SIDES))}|original)/([0-9]{{1,9}})(?:\.jpg)?")
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".json": "application/json",
         ".jpg": "image/jpeg", ".wasm": "application/wasm", ".mjs": "text/javascript"}  # fmt: skip
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",  # other pages cannot show the photographs
}
AT_ONCE = threading.Semaphore(2)  # photographs that are made smaller: each takes memory


class Server(ThreadingHTTPServer):
    """Serves one index at one address, once :meth:`show` has said which.

    Args:
        host: an address of this machine; loopback is heard by nobody else. port: 0 is any free one.
    Raises:
        DataError: nobody can listen there.
    """

    daemon_threads = True
    server_bind = TCPServer.server_bind  # HTTPServer's asks the network for a name
    allow_reuse_address = os.name == "posix"  # elsewhere two servers could share a port

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            remedy = "Choose another with --port, or 0 for any that is free."
            raise DataError(f"port {port} of {host} cannot be used: {reason}", remedy) from error

    def show(self, folder: Path) -> None:
        """Serve what :func:`pages.write_folder` wrote."""
        told = json.loads((folder / "served.json").read_text("utf-8"))
        unknown = np.full(len(told["files"]), -1)
        self.dataset = ImageDataset("served", "all", Path(told["root"]), told["files"], unknown,
                                    crops=told["crops"])  # fmt: skip
        self.folder, name = folder, folder.name  # browsers may keep what has this name
        self.files = {f"/{file}": folder / file for file in ("page.js", "front.css")}
        self.files |= {"/": folder / "index.html"}
        for part in ("index.json", *told["parts"]):
            self.files[f"/{name}/{part}"] = folder / part
        for path in Path(told["engine"]).iterdir() if told["engine"] else ():
            self.files[f"/{name}/engine/{path.name}"] = path

    @property
    def address(self) -> str:
        """Where browsers find it; of a server on all addresses, the one that others see."""
        host, port = self.server_address[:2]
        return f"http://{seen_by_others() if host == '0.0.0.0' else host}:{port}/"

    @property
    def hosted(self) -> bool:
        """Whether other machines may reach it."""
        return not ipaddress.ip_address(self.server_address[0]).is_loopback

    def handle_error(self, *_: object) -> None:
        """A browser that went away is no error of ours."""


def seen_by_others() -> str:
    """This machine's own address in its network; loopback where it is in none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nobody's; nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD by what :class:`Server` knows; a path never becomes a file's name."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or small files wait 40 ms for the browser's receipt
    timeout = 60  # seconds, after which a silent browser is let go
    server: Server

    def do_GET(self) -> None:
        """Send a file, or say that there is none."""
        path = urlsplit(self.path).path
        if not self._meant():
            return self.send_error(403)
        if path in self.server.files:
            file = self.server.files[path]
            return self._send(TYPES.get(file.suffix, "application/octet-stream"), file)
        try:
            kind, content = self._photograph(path.removeprefix(f"/{self.server.folder.name}"))
        except (KeyError, OSError, ObjembError):
            return self.send_error(404)
        self._send(kind, content)

    do_HEAD = do_GET

    def _meant(self) -> bool:
        """Whether the browser asked for this machine: a page elsewhere may have a name of its own
        for our address."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        try:
            return bool(ipaddress.ip_address(host))
        except ValueError:
            return host in ("localhost", socket.gethostname().lower())

    def _photograph(self, path: str) -> tuple[str, bytes | Path]:
        """Type and content of a picture or an original. Raises KeyError: there is none."""
        found = PHOTOGRAPH.fullmatch(path)
        if not found or int(found[2]) >= len(self.server.dataset):
            raise KeyError(path)
        kind, n = found[1], int(found[2])
        with AT_ONCE:
            if kind == "original":
                return original(self.server.dataset, n)
            made = picture(self.server.dataset, n, int(kind), self.server.folder / kind)
        return TYPES[".jpg"], made

    def _send(self, kind: str, content: bytes | Path) -> None:
        ours = isinstance(content, bytes)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if ours else content.stat().st_size))
        kept = self.path.startswith(f"/{self.server.folder.name}/")
        self.send_header("Cache-Control", "private, max-age=86400" if kept else "no-cache")
        self.end_headers()
        if self.command == "HEAD":
            return
        if ours:
            self.wfile.write(content)
        else:
            with content.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    def end_headers(self) -> None:
        """With what keeps a page to itself."""
        for name, value in SAFE.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def tell(address: str, hosted: bool) -> None:
    """Say where the search is; to other machines, by a picture for telephones, too."""
    print(f"The search is at {address} until you press Ctrl+C.", flush=True)
    if hosted:
        import segno

        print("Everybody in this network can see these photographs there.")
        segno.make(address, micro=False).terminal(compact=True)


def main() -> int:
    """Serve a folder that :func:`pages.write_folder` wrote."""
    parser = argparse.ArgumentParser(prog="python -m objemb_lib.show.serve", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    asked = parser.parse_args()
    try:
        with Server(asked.host, asked.port) as server:
            server.show(asked.folder)
            tell(server.address, server.hosted)
            if not asked.no_browser:
                webbrowser.open(server.address)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
    except ObjembError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
