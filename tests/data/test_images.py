"""Any picture becomes upright 8-bit RGB, or an error that names the file and the remedy."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, features

from objemb_lib.config import ImageError
from objemb_lib.data import images
from objemb_lib.data.folder import folder
from objemb_lib.data.images import (
    fit_within,
    image_size,
    load_image,
    measure_images,
)


def pixels(path: Path, **options) -> np.ndarray:
    image = load_image(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def picture(size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Smooth, so that JPEG keeps it; each corner has its own colour, so that no turn keeps it."""
    corners = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 30]]], np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


# ---- kinds of image ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_plain_modes_keep_their_pixels(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    picture().convert(mode).save(path)
    assert np.array_equal(pixels(path), np.asarray(picture().convert(mode).convert("RGB")))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_lossy_kinds_stay_close(tmp_path: Path, suffix: str) -> None:
    if suffix != ".jpg" and not features.check(suffix[1:]):
        pytest.skip(f"this Pillow has no {suffix}")
    path = tmp_path / f"a{suffix}"
    picture().save(path, quality=95)
    assert np.abs(pixels(path) - np.asarray(picture())).mean() < 6


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, name: str) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red.save(tmp_path / name, quality=95)
    if name == "a.jpg":  # the kind that Photoshop writes: inks stored upside down
        assert b"Adobe" in (tmp_path / name).read_bytes()
    assert np.abs(pixels(tmp_path / name) - [255, 0, 0]).max() < 8


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (3, 1), (0, 0, 0, 0))  # hidden black, half a red, full blue
    half.putpixel((1, 0), (255, 0, 0, 128))
    half.putpixel((2, 0), (0, 0, 255, 255))
    half.save(tmp_path / "rgba.png")
    expected = np.array([[255, 255, 255], [255, 127, 127], [0, 0, 255]])
    assert np.abs(pixels(tmp_path / "rgba.png")[0] - expected).max() <= 1

    half.convert("LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0, 0].tolist() == [255, 255, 255]
    assert np.ptp(pixels(tmp_path / "la.png")[0], axis=1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["palette.gif", "palette.png", "key.png", "alphas.png"])
def test_transparency_that_no_channel_holds(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "key.png":  # one colour of an RGB image is declared transparent
        image = Image.new("RGB", (2, 1), (9, 9, 9))
        image.putpixel((1, 0), (200, 0, 0))
        image.save(path, transparency=(9, 9, 9))
    else:
        image = Image.new("P", (2, 1))
        image.putpalette([9, 9, 9, 200, 0, 0])
        image.putpixel((1, 0), 1)
        image.save(path, transparency=bytes([0, 255]) if kind == "alphas.png" else 0)
    assert pixels(path).tolist() == [[[255, 255, 255], [200, 0, 0]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 65535])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str, white: int) -> None:
    ramp = np.linspace(0, white, 256).round().astype(np.uint16)[None]
    Image.fromarray(ramp).save(tmp_path / name)
    assert np.abs(pixels(tmp_path / name)[0, :, 0] - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([0, 0.5, 1]), [0, 128, 255]),  # the usual float image
        (np.float32([0, 0.1, 0.2]), [0, 26, 51]),  # dark stays dark
        (np.float32([0, 100, 200]), [0, 100, 200]),  # 8-bit values kept as floats
        (np.float32([-1, 0, 1]), [0, 128, 255]),  # negative: stretched from end to end
        (np.float32([np.nan, np.inf, 1]), [0, 0, 255]),
        (np.float32([0, 5e5, 1e6]), [0, 128, 255]),  # no common full scale: its own maximum
        (np.int32([0, 32768, 65535]), [0, 128, 255]),
        (np.int32([0, 0, 0]), [0, 0, 0]),
    ],
)
def test_32_bit_grey_is_scaled(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    Image.fromarray(values[None]).save(tmp_path / "a.tif")
    assert np.abs(pixels(tmp_path / "a.tif")[0, :, 0] - expected).max() <= 1


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    picture().save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "named.jpg")
    assert np.array_equal(pixels(tmp_path / "named.jpg"), np.asarray(picture()))


# ---- rotation ------------------------------------------------------------------------------

STORED = {  # EXIF orientation -> how the upright picture lies in the file (EXIF 2.3, 4.6.4)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),  # the camera lay on its side: turn clockwise to see it upright
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("size", [(40, 30), (30, 40), (611, 403)])  # the last is reduced, drafted
def test_exif_rotation(tmp_path: Path, orientation: int, suffix: str, size: tuple) -> None:
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](np.asarray(picture(size))))
    Image.fromarray(stored).save(path, exif=exif, quality=95)
    assert measure_images([path], progress=False) == [size]
    assert image_size(path) == (size, orientation == 1)  # the header knows it, too
    expected = np.asarray(picture(size).resize(fit_within(size, 256)))
    got = pixels(path, max_side=256)
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 4


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff no such offset")
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n       4\nnot hexadecimal")
    picture().save(tmp_path / "a.png", pnginfo=text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pixels(tmp_path / "a.jpg").shape == (30, 40, 3)
        assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(picture()))


# ---- files that cannot be used -------------------------------------------------------------


def encoded(kind: str, size: tuple[int, int] = (24, 16)) -> bytes:
    data = io.BytesIO()
    picture(size).save(data, kind)
    return data.getvalue()


KINDS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
BROKEN = {  # content -> what is said
    None: "no such file",
    "": "a folder, not an image",
    b"": "empty",
    b"<html>404 not found</html>": "not an image",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "not an image",  # or Ghostscript starts
    b"\xff\xd8\xff\xe0\0\x10JFIF": "damaged or cut off",
} | dict.fromkeys(KINDS, "damaged or cut off")  # half of their bytes


def broken_file(path: Path, content: bytes | str | None) -> Path:
    if content in KINDS:
        Image.fromarray(NOISE).save(path, content)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(("content", "phrase"), BROKEN.items())
def test_broken_files_name_themselves_and_the_remedy(tmp_path: Path, content, phrase: str) -> None:
    path = broken_file(tmp_path / "a.jpg", content)
    with pytest.raises(ImageError, match=rf"a\.jpg: {phrase}") as caught:
        load_image(path)
    assert caught.value.remedy
    (measured,) = measure_images([path], progress=False)  # the quick check agrees
    assert isinstance(measured, ImageError) and phrase in measured.problem
    if content not in KINDS:  # nor is there a header
        with pytest.raises(ImageError, match=rf"a\.jpg: {phrase}"):
            image_size(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([encoded(kind) for kind in KINDS]), st.data())
def test_damaged_bytes_raise_nothing_but_image_errors(
    tmp_path: Path, data: bytes, draw: st.DataObject
) -> None:
    damaged = bytearray(data[: draw.draw(st.integers(0, len(data)))])
    for _ in range(draw.draw(st.integers(0, 4)) if damaged else 0):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    path = tmp_path / "damaged.img"
    path.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd EXIF and TIFF tags
        for read in (load_image, image_size):
            try:
                read(path)
            except ImageError as error:
                assert str(path) in error.problem


# ---- sound files, which Pillow or this one of it does not read -------------------------------


MUCH = zlib.compress(bytes(1_100_000))


@pytest.mark.parametrize("behind", [False, True])  # the pixels
@pytest.mark.parametrize("chunks", [
    [(b"zTXt", b"prompt\0\0" + MUCH)],
    [(b"iTXt", b"workflow\0\1\0\0\0" + MUCH)],
    [(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(1_000_000)))] * 70,
    [],
])  # fmt: skip
def test_a_png_with_much_beside_its_pixels(tmp_path: Path, chunks: list, behind: bool) -> None:
    """Pillow#8363, #2445, STAMP#76: over a megabyte of text, or of colour profile."""
    info, exif, profile = (
        PngImagePlugin.PngInfo(),
        Image.Exif(),
        b"" if chunks else bytes(1_100_000),
    )
    exif[0x0112] = 6
    for name, content in chunks:
        info.add(name, content, after_idat=behind)
    picture().save(tmp_path / "a.png", exif=exif, pnginfo=info, icc_profile=profile)
    upright = np.asarray(picture().transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(pixels(tmp_path / "a.png"), upright)
    assert measure_images([tmp_path / "a.png"], progress=False) == [(30, 40)]


def tiff(samples: int, bits: int, kind: int, compression: int = 1) -> bytes:
    """A sound TIFF of 4 x 4 pixels; ``kind``: 1 unsigned, 2 signed, 3 float."""
    tags = {256: 4, 257: 4, 258: bits, 259: compression, 262: 2 if samples == 3 else 1,
            277: samples, 278: 4, 279: 16 * samples * bits // 8, 339: kind}  # fmt: skip
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4 + 200
    data = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, value in sorted(tags.items()):
        many = samples if tag in (258, 339) and samples <= 2 else 1
        data += struct.pack("<HHIHH", tag, 3, many, value, value if many == 2 else 0)
    return data.ljust(tags[273], b"\0") + bytes(tags[279])


@pytest.mark.parametrize(
    "content", [tiff(3, 32, 3), tiff(5, 16, 1), tiff(3, 32, 1), tiff(1, 16, 3), tiff(1, 64, 3),
                tiff(1, 8, 1, compression=50_002)],
)  # fmt: skip
def test_a_tiff_of_another_kind_is_not_damaged(tmp_path: Path, content: bytes) -> None:
    """Pillow#3984, #2485, labelme#1812: of floats, of five bands, compressed as JPEG XL."""
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.tif: a kind of TIFF(.|\n)*Convert") as caught:
        load_image(tmp_path / "a.tif")
    assert "damaged" not in str(caught.value)


FTYP = {"heic": "HEIC", "mif1": "HEIC", "mif1heic": "HEIC", "isom": "a film", "qt  ": "a film",
        "crx ": "a camera's raw file"}  # fmt: skip


@pytest.mark.parametrize(("content", "kind"), [
    *((b"ftyp" + b[:4].encode() + bytes(4) + b[4:].encode(), kind) for b, kind in FTYP.items()),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"8BPS", "Photoshop"),
])  # fmt: skip
@pytest.mark.usefixtures("without_heif")
def test_another_kind_under_an_image_s_name_is_named(tmp_path: Path, content, kind) -> None:
    if content.startswith(b"ftyp"):
        content = struct.pack(">I", len(content) + 4) + content
    (tmp_path / "a.jpg").write_bytes(content + bytes(99))
    with pytest.raises(ImageError, match=rf"a\.jpg: {kind}, which") as caught:
        load_image(tmp_path / "a.jpg")
    assert ("pip install pillow-heif" in caught.value.remedy) == (kind == "HEIC")


@pytest.mark.parametrize("name", ["a.HEIC", "a.jpg"])
def test_heic_is_read_where_pillow_heif_is(tmp_path: Path, name: str) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(picture((64, 48))).save(tmp_path / "a.heic", quality=-1)  # without loss
    (tmp_path / "a.heic").rename(tmp_path / name)
    near = np.abs(pixels(tmp_path / name).astype(int) - np.asarray(picture((64, 48))))
    assert near.mean() <= 4  # its colours are kept at half the size
    assert folder(tmp_path, progress=False).files == (name,)


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(5, "Input/output error"), "Input/output error"), (MemoryError(), "memory")],
)
def test_what_the_system_says_is_no_damage(tmp_path: Path, monkeypatch, error, words) -> None:
    def fail(*_: object) -> None:
        raise error

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_to_rgb", fail)
    with pytest.raises(ImageError, match=words) as caught:
        load_image(tmp_path / "a.png")
    assert "damaged" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: a pipe"):
        load_image(tmp_path / "a.jpg")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:  # chmod does not stop root, who runs many CIs
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(ImageError, match=r"a\.jpg: no permission(.|\n)*permissions"):
        load_image(tmp_path / "a.jpg")


# ---- size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_long_images_are_reduced(tmp_path: Path, name: str) -> None:
    picture((20_000, 60)).save(tmp_path / name)
    assert load_image(tmp_path / name).size == (4096, 12)
    assert load_image(tmp_path / name, max_side=500).size == (500, 2)
    got = np.asarray(load_image(tmp_path / name, max_side=500)).astype(int)
    assert np.abs(got - np.asarray(picture((20_000, 60)).resize((500, 2)))).mean() < 4


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    with pytest.raises(ImageError, match=r"a\.png: 40 x 30 pixels are more than 1,199"):
        load_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    assert load_image(tmp_path / "a.png").size == (40, 30)


def test_a_huge_jpeg_takes_little_memory_and_makes_no_noise(tmp_path: Path) -> None:
    """19,000 x 10,000: more than Pillow's own limit; whole, it would take 190 to 760 MB."""
    pytest.importorskip("resource")
    Image.new("L", (19_000, 10_000), 200).save(tmp_path / "huge.jpg")
    program = """
import resource, sys
from objemb_lib.data.images import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = load_image(sys.argv[1])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 2**20 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
print(*image.size, image.getpixel((0, 0))[0], (after - before) // unit)
"""
    command = [sys.executable, "-W", "error::UserWarning", "-c", program, tmp_path / "huge.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    width, height, grey, megabytes = map(int, done.stdout.split())
    assert (width, height, grey) == (4096, 2156, 200)
    assert megabytes < 150


# ---- threads, the process, real photographs ------------------------------------------------


def test_threads_agree_and_the_process_is_left_alone(tmp_path: Path) -> None:
    paths = []
    for i in range(24):
        paths.append(tmp_path / f"{i}.jpg")
        picture((300 + i, 200)).rotate(15 * i).save(paths[-1])
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    alone = [pixels(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(pixels, paths))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    assert before == after


def test_real_photographs_decode_as_pillow_alone_decodes_them(real_photographs: Path) -> None:
    paths = sorted((real_photographs / "coco" / "val2017").glob("*.jpg"))
    paths += sorted((real_photographs / "grocery").rglob("*.jpg"))[::25]
    assert len(paths) > 50
    for path in paths:
        with Image.open(path) as stored:
            expected = ImageOps.exif_transpose(stored).convert("RGB")
        assert load_image(path).tobytes() == expected.tobytes()
    sizes = [load_image(path).size for path in paths]
    assert measure_images(paths, progress=False) == sizes
