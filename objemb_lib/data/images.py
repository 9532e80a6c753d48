"""Any picture a user may own -> one upright 8-bit RGB image, or an error that says what to do."""

from __future__ import annotations

import io
import mimetypes
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile
from tqdm.contrib.concurrent import thread_map  # tqdm.auto's bar over a thread pool

from objemb_lib.config import ImageError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .pjpeg .pjp .mpo .png .apng .webp .avif .tif .tiff .bmp .gif .ppm .pgm "
    ".pbm .pnm".split()
)
HEIC_SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
_RAW = "a camera's raw file"  # most are TIFFs within: Pillow would read the thumbnail
_RAW_SUFFIXES = (
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .raw .rwl .x3f .iiq "
    ".3fr .fff .erf .mrw .mef .mos .kdc .dcr .gpr".split()
)
_BY_SUFFIX = dict.fromkeys(HEIC_SUFFIXES, "HEIC") | dict.fromkeys(_RAW_SUFFIXES, _RAW) | {
    ".jxl": "JPEG XL", ".jxr": "JPEG XR", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000",
    ".jpx": "JPEG 2000", ".psd": "Photoshop", ".exr": "OpenEXR", ".tga": "Targa",
}  # fmt: skip
MAX_PIXELS = 200_000_000  # 0.8 GB decoded: Pillow keeps four bytes for an RGB pixel
MAX_SIDE = 4096

# Only these: Pillow also knows formats that start other programs (EPS) or hold no photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")
Image.init()  # registers every format once, at import, so that threads never race to do it

_COPY_AGAIN = "Copy or download it again, or remove it."
_START = 64  # bytes that tell a file's kind
_MAGIC = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF",
    b"MM\0*": "TIFF", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"8BPS": "Photoshop",
    b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"FUJIFILMCCD-RAW": _RAW,
}  # fmt: skip
_OTHER_TYPES = ("text/", "video/", "audio/", "application/json")
_REFUSED = re.compile("unknown pixel mode|(un|not yet )supported|cannot handle|not available", re.I)
_UPRIGHT = {  # EXIF orientation -> what makes the image upright; from 5 on it lies on its side
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)  # white in floats, 8-, 10-, 12-, 14-, 16-bit


def load_image(path: str | os.PathLike[str], max_side: int = MAX_SIDE) -> Image.Image:
    """Read an image file as upright 8-bit RGB, whatever it was.

    EXIF rotation is applied; greyscale, palette and CMYK become RGB; transparency is laid on
    white; of an animation the first frame is taken. Greyscale of more than 8 bits is scaled, not
    clipped: white is the smallest common full scale (8, 10, 12, 14, 16 bits, or 1.0 in floats)
    that holds the brightest pixel, or that pixel itself. Safe to call from several threads.

    Args:
        path: JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or PNM file (by content, not by suffix), or
            HEIC where pillow-heif is installed.
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
        method = _UPRIGHT.get(_orientation(image))  # now: a TIFF turns itself while it loads
        image = _to_rgb(image)
        if method is not None:
            image = image.transpose(method)
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

    Raises ImageError: as :func:`load_image`, as far as the header shows it.
    """
    with _opened(Path(path)) as image:
        return _upright_size(image), _orientation(image) == 1


def measure_images(
    paths: Sequence[str | os.PathLike[str]], progress: bool = True
) -> list[tuple[int, int] | ImageError]:
    """For each path: the upright (width, height) stored in it, or why it cannot be used.

    Every image is decoded, on a thread pool: only that finds a file that was cut off.
    """
    seen = inspect_images(paths, progress)
    return [one if isinstance(one, ImageError) else one[0] for one in seen]


def inspect_images(
    paths: Sequence[str | os.PathLike[str]], progress: bool = True
) -> list[tuple[tuple[int, int], int] | ImageError]:
    """As :func:`measure_images`, the size with its EXIF orientation, 1 to 8."""

    def measure(path: str | os.PathLike[str]) -> tuple[tuple[int, int], int] | ImageError:
        try:
            load_image(path, max_side=256)  # JPEG skips most of the work, yet reads every byte
            with _opened(Path(path)) as image:
                return _upright_size(image), _orientation(image)
        except ImageError as error:
            return error

    jobs = {"max_workers": min(8, os.cpu_count() or 1), "disable": not progress}
    return thread_map(measure, paths, desc="Checking images", unit="image", **jobs)


def has_image_suffix(path: Path) -> bool:
    """Whether a file is called as the images that can be read here."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix in HEIC_SUFFIXES and reads_heic())


def reads_heic() -> bool:
    """Whether pillow-heif is installed; from then on Pillow reads HEIC."""
    try:
        import pillow_heif
    except ImportError:
        return False
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener()
    return True


def left_out(path: Path) -> ImageError | None:
    """Why a file without an image's suffix is not read; None if it is no photograph at all."""
    by_name, known = _BY_SUFFIX.get(path.suffix.lower()), mimetypes.guess_type(path.name)[0] or ""
    if path.suffix == ".icloud":  # .a.jpg.icloud stands for a.jpg
        photograph = Path(path.stem).suffix.lower() in {*IMAGE_SUFFIXES, *_BY_SUFFIX}
        return ImageError(f"{path}: still in iCloud", "Download it.") if photograph else None
    try:
        if not stat.S_ISREG(path.stat().st_mode) or known.startswith(_OTHER_TYPES):
            return None  # a pipe would keep us waiting
        with path.open("rb") as file:
            kind = _kind(file.read(_START))
    except OSError as error:  # also a link to nothing
        problem = f"{path}: cannot be read ({error.strerror})"
        return ImageError(problem, "Bring back what it is a link to, or its permissions.")
    if kind in _FORMATS and by_name != _RAW:
        return ImageError(f"{path}: {kind} by another suffix", f"Rename it, as .{kind.lower()}.")
    kind = by_name or kind
    return None if kind in ("", "a film") else _unread(path, kind)


def _unread(path: Path, kind: str) -> ImageError:
    """The error of a file of a kind that is none of ours."""
    problem = f"{kind}, which cannot be read here" if kind else "not an image"
    remedy = "pip install pillow-heif, or convert it to JPEG." if kind == "HEIC" else (
        "Convert it to JPEG or PNG, or remove it.")  # fmt: skip
    return ImageError(f"{path}: {problem}", remedy)


def _kind(start: bytes) -> str:
    """What the first bytes of a file say that it is; nothing where they say nothing."""
    if start[4:8] == b"ftyp":
        end = min(int.from_bytes(start[:4], "big"), len(start))
        brands = {start[8:12], *(start[i : i + 4] for i in range(16, end, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        heic = {*b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split()}
        return "HEIC" if brands & heic else _RAW if b"crx " in brands else "a film"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


class _Png(PngImageFile):
    """Its pixels, however large the texts and the colour profile beside them: of these Pillow
    reads one megabyte, else it refuses the picture, and its limit is the whole process's."""

    def _open(self) -> None:
        try:
            super()._open()
        except ValueError:
            self.fp.seek(0)
            self.fp = io.BytesIO(_without_texts(self.fp.read()))
            super()._open()

    def load_end(self) -> None:
        with suppress(ValueError):  # texts behind the pixels
            super().load_end()


def _without_texts(png: bytes) -> bytes:
    kept, place = [png[:8]], 8
    while place < len(png):  # length, name, content, checksum
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, its header read; whatever goes wrong until it is closed is an ImageError.

    ``Image.open`` less its size limit, which warns and raises before ours does: both it and
    Python's warning filters are one for the whole process, and no thread may change them.
    """
    kind = name = "image"
    try:
        if path.is_fifo():  # would keep us waiting
            raise ImageError(f"{path}: a pipe, not an image", "Remove it.")
        with path.open("rb") as file:
            start = file.read(_START)
            if not start:
                raise ImageError(f"{path}: empty (0 bytes)", _COPY_AGAIN)
            kind = _kind(start)
            formats = ("HEIF",) * reads_heic() if kind == "HEIC" else _FORMATS
            for name in formats:
                factory, accepts = Image.OPEN.get(name, (None, None))
                if accepts and accepts(start[:16]) is True:
                    break
            else:
                raise _unread(path, kind)
            file.seek(0)
            image = (_Png if name == "PNG" else factory)(file, str(path))
            if np.prod(image.size) > MAX_PIXELS:
                problem = f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}"
                raise ImageError(f"{path}: {problem}", "Shrink it.")
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        remedy = f"Check the spelling; relative paths start at {Path.cwd()}."
        raise ImageError(f"{path}: no such file", remedy) from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        if path.is_dir():  # Windows reports a folder as a lack of permission
            raise ImageError(f"{path}: a folder, not an image", "Name one image in it.") from error
        if isinstance(error, PermissionError):
            remedy = "Change its permissions."
            raise ImageError(f"{path}: no permission to read it", remedy) from error
        if isinstance(error, MemoryError):
            raise ImageError(f"{path}: too large for the free memory", "Shrink it.") from error
        if isinstance(error, OSError) and error.errno:  # the system's, not a decoder's
            remedy = "Look after the disk or the connection that it is on."
            raise ImageError(f"{path}: cannot be read ({error.strerror})", remedy) from error
        cause = error.__cause__  # of a TIFF's compression that Pillow does not know: its number
        number = str(cause) if isinstance(cause, KeyError) else ""
        unknown = number.isdecimal() and not 250 < int(number) < 30_000  # those are tags
        if unknown or _REFUSED.search(str(error)):
            problem = f"{path}: a kind of {kind or name} that cannot be read here ({error})"
            raise ImageError(problem, "Convert it to 8-bit JPEG or PNG, or remove it.") from error
        raise ImageError(f"{path}: damaged or cut off ({error})", _COPY_AGAIN) from error


def _orientation(image: Image.Image) -> int:
    # Not ImageOps.exif_transpose: it copies upright images, and fails where EXIF is damaged.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if orientation in _UPRIGHT else 1
    except Exception:
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
