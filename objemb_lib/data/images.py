"""Any picture a user may own -> one upright 8-bit RGB image, or an error that says what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from tqdm.contrib.concurrent import thread_map  # tqdm.auto's bar over a thread pool

from objemb_lib.config import ImageError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .pjpeg .pjp .mpo .png .apng .webp .avif .tif .tiff .bmp .gif .ppm .pgm "
    ".pbm .pnm .heic .heics .heif .heifs .hif".split()
)
# What is a photograph, too, but of a kind that Pillow does not read, or whose thumbnail it would.
OTHER_SUFFIXES = frozenset(
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .raw .rwl .x3f .iiq "
    ".3fr .fff .erf .mrw .mef .mos .kdc .dcr .gpr .jxl .jxr .jp2 .j2k .jpx .psd .exr .tga".split()
)
MAX_PIXELS = 200_000_000  # 0.8 GB decoded: Pillow keeps four bytes for an RGB pixel
MAX_SIDE = 4096

# Only these: Pillow also knows formats that start other programs (EPS) or hold no photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "HEIF")
Image.init()  # registers every format once, at import, so that threads never race to do it
pillow_heif.register_heif_opener()
# Texts beside a PNG's pixels, as the recipes of generated pictures: Pillow refuses a megabyte.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 28

_COPY_AGAIN = "Copy or download it again, or remove it."
_CONVERT = "Convert it to 8-bit JPEG or PNG, or remove it."
_REFUSED = re.compile("unknown pixel mode|(un|not yet )supported|cannot handle|not available", re.I)
_FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)  # white in floats, 8-, 10-, 12-, 14-, 16-bit


def load_image(path: str | os.PathLike[str], max_side: int = MAX_SIDE) -> Image.Image:
    """Read an image file as upright 8-bit RGB, whatever it was.

    EXIF rotation is applied; greyscale, palette and CMYK become RGB; transparency is laid on
    white; of an animation the first frame is taken. Greyscale of more than 8 bits is scaled, not
    clipped: white is the smallest common full scale (8, 10, 12, 14, 16 bits, or 1.0 in floats)
    that holds the brightest pixel, or that pixel itself. Safe to call from several threads.

    Args:
        path: JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP, GIF or PNM file, by content, not by suffix.
        max_side: longer images are reduced to this many pixels, as :func:`fit_within` says;
            JPEGs while decoding, so that they never take their full memory.
    Raises:
        ImageError: naming the file and the remedy, when it is missing, a folder, unreadable,
            empty, no image, of a kind that Pillow does not read, damaged, cut off or has more than
            :data:`MAX_PIXELS`.
    """
    with _opened(Path(path)) as image:
        fit = fit_within(_upright_size(image), max_side)
        if max(fit) < max(image.size):
            image.draft(None, fit_within(image.size, max_side))
        image.load()
        if _orientation(image) != 1:  # asked now: a TIFF turns itself while it loads
            with suppress(Exception):  # it writes EXIF, too, which may be damaged
                ImageOps.exif_transpose(image, in_place=True)
        image = _to_rgb(image)
        if image.size != fit:
            image = image.resize(fit, Image.Resampling.LANCZOS, reducing_gap=2.0)
        return image


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
        return _upright_size(image), _orientation(image) == 1


def measure_images(
    paths: Sequence[str | os.PathLike[str]], progress: bool = True
) -> list[tuple[int, int] | ImageError]:
    """For each path: the upright (width, height) stored in it, or why it cannot be used.

    Every image is decoded, on a thread pool: only that finds a file that was cut off.
    """

    def measure(path: str | os.PathLike[str]) -> tuple[int, int] | ImageError:
        try:
            load_image(path, max_side=256)  # JPEG skips most of the work, yet reads every byte
            return image_size(path)[0]
        except ImageError as error:
            return error

    jobs = {"max_workers": min(8, os.cpu_count() or 1), "disable": not progress}
    return thread_map(measure, paths, desc="Checking images", unit="image", **jobs)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, its header read; whatever goes wrong until it is closed is an ImageError.

    ``Image.open`` less its size limit, which warns and raises before ours does: both it and
    Python's warning filters are one for the whole process, and no thread may change them.
    """
    name = "image"
    try:
        with path.open("rb") as file:
            start = file.read(16)
            if not start:
                raise ImageError(f"{path}: empty (0 bytes)", _COPY_AGAIN)
            for name in _FORMATS:
                factory, accepts = Image.OPEN.get(name, (None, None))
                if accepts and accepts(start) is True:
                    break
            else:
                raise ImageError(f"{path}: not an image that can be read here", _CONVERT)
            file.seek(0)
            image = factory(file, str(path))
            if np.prod(image.size) > MAX_PIXELS:
                problem = f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}"
                raise ImageError(f"{path}: {problem}", "Shrink it.")
            yield image
    except ImageError:
        raise
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        if isinstance(error, OSError) and error.errno:  # the system's, not a decoder's
            problem = f"{path}: cannot be read ({error.strerror})"
            remedy = f"Check its name and permissions; relative paths start at {Path.cwd()}."
            raise ImageError(problem, remedy) from error
        if isinstance(error, MemoryError):
            raise ImageError(f"{path}: too large for the free memory", "Shrink it.") from error
        if _REFUSED.search(str(error)):
            problem = f"{path}: a kind of {name} that cannot be read here ({error})"
            raise ImageError(problem, _CONVERT) from error
        raise ImageError(f"{path}: damaged or cut off ({error})", _COPY_AGAIN) from error


def _orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF counts: from 5 on the image lies on its side."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if orientation in range(1, 9) else 1
    except Exception:  # damaged
        return 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Of an image that is not loaded yet."""
    size = image.size
    if image.format == "TIFF":  # Pillow turns the size too, at one time or another
        size = image.tag_v2[256], image.tag_v2[257]
    return size[::-1] if _orientation(image) >= 5 else size


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
    values = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    darkest, scales = values.min(), _FULL_SCALES if image.mode == "F" else _FULL_SCALES[1:]
    if darkest < 0:  # no common scale has negative values: stretch what there is
        values, scales = values - darkest, ()
    white = next((scale for scale in scales if values.max() <= scale), values.max())
    return Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))
