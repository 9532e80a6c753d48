"""A server on this machine that follows a script: cuts, lies, refuses, redirects."""

from __future__ import annotations

import hashlib
import io
import random
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = random.Random(0).randbytes(400_000)
SHA = hashlib.sha256(BODY).hexdigest()
Act = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Range"]))
        acts = self.server.script[self.path]
        (acts.pop(0) if len(acts) > 1 else acts[0])(self)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass

    def head(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def serve(
    body: bytes = BODY, cut: int | None = None, reset: bool = False, **headers: object
) -> Act:
    """Serve with Range; send only the first ``cut`` bytes of the answer if given."""

    def act(handler: Handler) -> None:
        asked = handler.headers["Range"]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and start >= len(body):
            return handler.head(416, Content_Range=f"bytes */{len(body)}")
        rest, span = body[start:], f"bytes {start}-{len(body) - 1}/{len(body)}"
        about = {"Content_Length": len(rest), "Content_Range": span} | headers
        handler.head(206 if asked else 200, **about)
        handler.wfile.write(rest[:cut])
        if reset:  # RST instead of FIN: the Wi-Fi that went away
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.connection.close()

    return act


def whole(body: bytes = BODY, cut: int | None = None, length: int | None = None) -> Act:
    """Serve without Range; ``length`` is what the header claims."""

    def act(handler: Handler) -> None:
        handler.head(200, Content_Length=len(body) if length is None else length)
        handler.wfile.write(body[:cut])

    return act


def status(code: int, **headers: object) -> Act:
    return lambda handler: handler.head(code, Content_Length=0, **headers)


class Server(ThreadingHTTPServer):
    script: dict[str, list[Act]]
    seen: list[tuple[str, str | None]]

    def url(self, *acts: Act, path: str = "/file.bin") -> str:
        self.script[path] = list(acts)
        return f"http://127.0.0.1:{self.server_port}{path}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.seen]

    def handle_error(self, *args: object) -> None:
        pass  # clients that hang up are part of the play


def archive(name: str, files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    """A zip or a tar, as its name says, of a folder "top", ``others`` and ``files``."""
    raw = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as pack:
            pack.writestr("top/", b"")
            for path, content in files.items():
                pack.writestr(path, content)
        return raw.getvalue()
    kind = name.rpartition(".")[2].replace("tgz", "gz")
    with tarfile.open(fileobj=raw, mode=f"w:{kind}") as pack:
        folder = tarfile.TarInfo("top")
        folder.type = tarfile.DIRTYPE
        for info in (folder, *others):
            pack.addfile(info)
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), 0o4755
            pack.addfile(info, io.BytesIO(content))
    return raw.getvalue()
