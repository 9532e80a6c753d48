"""Photographs for a browser: small pictures, made once, and the files themselves."""

from __future__ import annotations

import base64
import io
import mimetypes
from pathlib import Path

from PIL import Image

from objemb_lib.cache import atomic_path
from objemb_lib.data.dataset import ImageDataset

SMALL, THUMBNAIL, LARGE = 160, 480, 1600  # pixels of the longer side: in lists, answers, alone
SHOWN = ("image/jpeg", "image/png", "image/webp", "image/gif")  # what every browser shows


def original(dataset: ImageDataset, i: int) -> tuple[str, bytes]:
    """Type and content of a photograph's file, as JPEG where browsers would not show it."""
    kind = mimetypes.guess_type(dataset.files[i])[0]
    if kind in SHOWN and not dataset.crops:
        return kind, (Path(dataset.root) / dataset.files[i]).read_bytes()
    return "image/jpeg", encoded(dataset.image(i))


def picture(dataset: ImageDataset, i: int, side: int, folder: str | Path) -> Path:
    """A photograph as JPEG of at most ``side`` pixels: ``folder/i.jpg``."""
    path = Path(folder) / f"{i}.jpg"
    if not path.exists():
        with atomic_path(path, durable=False) as temp:
            temp.write_bytes(encoded(dataset.image(i), 85, side))
    return path


def address(image: Image.Image, side: int, quality: int = 85) -> str:
    """An image as a data address, as JPEG of at most ``side`` pixels."""
    return f"data:image/jpeg;base64,{base64.b64encode(encoded(image, quality, side)).decode()}"


def encoded(image: Image.Image, quality: int = 95, side: int | None = None) -> bytes:
    """An image as JPEG; it is made smaller, if a longest ``side`` in pixels is given."""
    if side:
        image.thumbnail((side, side))
    image.save(file := io.BytesIO(), "JPEG", quality=quality)
    return file.getvalue()
