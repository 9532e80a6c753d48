"""Photographs for a browser: small pictures, made once, and the files themselves."""

from __future__ import annotations

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
        image = dataset.image(i)
        image.thumbnail((side, side))
        with atomic_path(path, durable=False) as temp:
            temp.write_bytes(encoded(image, 85))
    return path


def encoded(image: Image.Image, quality: int = 95) -> bytes:
    """An image as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
