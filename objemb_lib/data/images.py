"""Any picture a user may own -> one upright 8-bit RGB image, or an error that says what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from tqdm.contrib.concurrent import thread_map  # tqdm.auto's bar over a thread pool

from objemb_lib.config import ImageError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif")
    + (".ppm", ".pgm", ".pbm")
)
MAX_PIXELS = 200_000_000  # 0.8 GB decoded: Pillow keeps four bytes for an RGB pixel
MAX_SIDE = 4096

# Only these: Pillow also knows formats that start other programs (EPS) or hold no photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")
Image.init()  # registers every format once, at import, so that threads never race to do it

_COPY_AGAIN = "Copy or download it again, or remove it."
_UPRIGHT = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
_FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)  # white in floats, 8-, 10-, 12-, 14-, 16-bit


def load_image(
    path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Image.Image:
    """Read an image file as upright 8-bit RGB, whatever it was.

    EXIF rotation is applied; greyscale, palette and CMYK become RGB; transparency is laid on
    white; of an animation the first frame is taken. Greyscale of more than 8 bits is scaled, not
    clipped: white is the smallest common full scale (8, 10, 12, 14, 16 bits, or 1.0 in floats)
    that holds the brightest pixel, or that pixel itself. Safe to call from several threads.

    Args:
        path: JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or PNM file (by content, not by suffix).
        max_pixels: refuse images with more pixels than this.
        max_side: longer images are reduced to this many pixels, as :func:`fit_within` says;
            JPEGs while decoding, so that they never take their full memory.
    Returns:
        The image, decoded, its file closed.
    Raises:
        ImageError: naming the file and the remedy, when it is missing, a folder, unreadable,
            empty, no image, damaged, cut off or too large.
    """
    return _load(Path(path), max_pixels, max_side)[0]


def fit_within(size: tuple[int, int], max_side: int = MAX_SIDE) -> tuple[int, int]:
    """The size (width, height) that :func:`load_image` gives an upright image of ``size``.

    >>> fit_within((640, 480)), fit_within((20_000, 10_000)), fit_within((20_000, 1))
    ((640, 480), (4096, 2048), (4096, 1))
    """
    shrink = min(1.0, max_side / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def image_size(path: str | os.PathLike[str]) -> tuple[tuple[int, int], bool]:
    """The upright (width, height), and whether it is stored so; reads the header only.

    Raises:
        ImageError: as :func:`load_image`, as far as the header shows it.
    """
    with _opened(Path(path)) as image:
        size, orientation = image.size, _orientation(image)
        if image.format == "TIFF":  # Pillow turns the size too, at one time or another
            size = image.tag_v2[256], image.tag_v2[257]
        turned = _UPRIGHT.get(orientation) in _ON_ITS_SIDE
        return size[::-1] if turned else size, orientation not in _UPRIGHT


def measure_images(
    paths: Sequence[str | os.PathLike[str]], progress: bool = True
) -> list[tuple[int, int] | ImageError]:
    """For each path: the upright (width, height) stored in it, or why it cannot be used.

    Every image is decoded, on a thread pool: only that finds a file that was cut off.
    """
    jobs = {"max_workers": min(8, os.cpu_count() or 1), "disable": not progress}
    return thread_map(_measure, paths, desc="Checking images", unit="image", **jobs)


def check_images(
    paths: Sequence[str | os.PathLike[str]], progress: bool = True
) -> tuple[list[Path], list[ImageError]]:
    """Sort files into usable images and errors that name the rest, by decoding each one."""
    found = measure_images(paths, progress)
    errors = [size for size in found if isinstance(size, ImageError)]
    return [Path(p) for p, size in zip(paths, found) if not isinstance(size, ImageError)], errors


def _measure(path: str | os.PathLike[str]) -> tuple[int, int] | ImageError:
    try:  # the small side lets JPEG skip most of the work, yet every byte is read
        return _load(Path(path), MAX_PIXELS, max_side=256)[1]
    except ImageError as error:
        return error


def _load(path: Path, max_pixels: int, max_side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The image, and the upright size it had before it was reduced to ``max_side``."""
    with _opened(path) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                f"{path}: {width} x {height} = {width * height:,} pixels, "
                f"more than the limit of {max_pixels:,}",
                "Shrink it, or pass a larger max_pixels if the memory is there (4 bytes a pixel).",
            )
        return _decode(image, max_side)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, its header read; whatever goes wrong until it is closed is an ImageError."""
    try:
        with path.open("rb") as file:
            yield _open(path, file)
    except ImageError:
        raise
    except FileNotFoundError as error:
        remedy = f"Check the spelling; relative paths start at {Path.cwd()}."
        raise ImageError(f"{path}: no such file", remedy) from error
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: too large to decode ({error})", "Shrink it.") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        if path.is_dir():  # Windows reports a folder as a lack of permission
            raise ImageError(f"{path}: a folder, not an image", "Name one image in it.") from error
        if isinstance(error, PermissionError):
            remedy = "Change its permissions."
            raise ImageError(f"{path}: no permission to read it", remedy) from error
        raise ImageError(f"{path}: damaged or cut off ({error})", _COPY_AGAIN) from error


def _open(path: Path, file: BinaryIO) -> Image.Image:
    """``Image.open``, less its size limit.

    That limit warns and raises before ours does, and both it and Python's warning filters are
    one for the whole process: changing them for the time of a call is not safe between threads.
    """
    start = file.read(16)
    if not start:
        raise ImageError(f"{path}: empty (0 bytes)", _COPY_AGAIN)
    for name in _FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory and accepts and accepts(start) is True:
            file.seek(0)
            return factory(file, str(path))
    raise ImageError(
        f"{path}: not an image of a kind that can be read here",
        "Convert it to JPEG or PNG (HEIC and raw files too), or remove it.",
    )


def _decode(image: Image.Image, max_side: int) -> tuple[Image.Image, tuple[int, int]]:
    size = image.size
    drafted = max(size) > max_side and image.draft(None, fit_within(size, max_side))
    image.load()
    if not drafted:
        size = image.size  # TIFF turns itself upright while it loads
    method = _UPRIGHT.get(_orientation(image))
    image = _to_rgb(image)
    if method is not None:
        image = image.transpose(method)
        size = size[::-1] if method in _ON_ITS_SIDE else size
    if image.size != (fit := fit_within(size, max_side)):
        image = image.resize(fit, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return image, size


def _orientation(image: Image.Image) -> int:
    # Not ImageOps.exif_transpose: it copies upright images, and fails where EXIF is damaged.
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits, integer or float, as 8 bits. Pillow's own would clip."""
    values = np.asarray(image, dtype=np.float32)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    darkest, brightest = values.min(), values.max()
    if darkest < 0:  # no common scale has negative values: stretch what there is
        values -= darkest
        white = brightest - darkest
    else:
        scales = _FULL_SCALES if image.mode == "F" else _FULL_SCALES[1:]
        white = next((scale for scale in scales if brightest <= scale), brightest)
    values *= 255.0 / white
    return Image.fromarray(np.rint(values).astype(np.uint8))
