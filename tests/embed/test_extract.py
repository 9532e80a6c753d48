"""Regions and extraction: a slow second implementation, and caches that break in every way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torchvision.ops import roi_align

from objemb_lib import cache, config
from objemb_lib.config import CacheError, DataError, ImageError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.images import load_image
from objemb_lib.embed import extract as room
from objemb_lib.embed import pooling
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import Extraction, ExtractOptions, extract
from objemb_lib.embed.regions import WHOLE, Region, crop, model_input, roi
from objemb_lib.embed.trunks import Stage, Trunk, load_trunk

CPU = torch.device("cpu")
SIZE, PART, N = 32, 4, 10  # three parts, the last one shorter
SPOC, MAC = ("head", "spoc"), ("stage1", "mac")


class Tiny(nn.Module):
    """Two convolutions; says how many images it was shown (probes of other sizes apart)."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.two = nn.Conv2d(5, 7, 3, stride=2, padding=1)

    def forward_intermediates(self, x: Tensor, *_: object, **only: bool) -> object:
        Tiny.seen += len(x) * (x.shape[-1] == SIZE)
        first = self.one(x).relu()
        return [first] if only else (self.two(first), [first])


def tiny(seed: int = 0) -> Trunk:
    torch.manual_seed(seed)
    stages = [Stage("stage1", 5, 2), Stage("head", 7, 4)]
    return Trunk("tiny", Tiny(), stages, (0.5,) * 3, (0.25,) * 3, "random").eval()


def photographs(folder: Path, n: int = N) -> ImageDataset:
    """``n`` small pictures with a box each; made where they are not there yet."""
    folder.mkdir(exist_ok=True)
    files = [f"{i:02d}.png" for i in range(n)]
    for i, file in enumerate(files):
        if not (folder / file).exists():
            coarse = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize((60 + i, 50), Image.Resampling.BICUBIC)
            smooth.save(folder / file)
    boxes = [np.array([[i, 2, i + 30, 33]], np.float32) for i in range(n)]
    return ImageDataset("small", "test", folder, files, np.arange(n) % 3, boxes=boxes)


@pytest.fixture(autouse=True)
def small_parts(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PART", PART)


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    return photographs(tmp_path / "photographs")


@pytest.fixture
def seen() -> Callable[[], int]:
    """``seen()``: images that were sent through the trunk since it was last asked."""

    def count() -> int:
        images, Tiny.seen = Tiny.seen, 0
        return images

    count()
    return count


def quick(data: ImageDataset, wanted: tuple = (SPOC,), trunk: Trunk | None = None, **how) -> dict:
    region = how.pop("region", WHOLE)
    options = ExtractOptions(**{"size": SIZE, "progress": False} | how)
    return extract(data, trunk or tiny(), wanted, region, options)


def cached(tmp_path: Path, pattern: str = "*.safetensors") -> list[Path]:
    return sorted((tmp_path / "cache" / "embeddings").glob(f"*/{pattern}"))


# --- regions ------------------------------------------------------------------------------


def slow_widen(box: tuple, margin: float, size: tuple[int, int]) -> np.ndarray:
    """Which pixels a crop keeps, asked one by one: those that overlap the widened box."""
    x0, y0, x1, y1 = box
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    columns = [x for x in range(size[0]) if x + 1 > x0 - dx and x < x1 + dx]
    rows = [y for y in range(size[1]) if y + 1 > y0 - dy and y < y1 + dy]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize(
    ("box", "margin"),
    [
        ((10, 10, 20, 30), 0.25),
        ((0, 2, 10, 12), 0.5),  # past the left edge
        ((30, 20, 48, 40), 0.5),  # past the right and the lower edge
        ((10.4, 5.5, 20.2, 9.9), 0.0),  # parts of pixels
        ((47, 39, 48, 40), 0.0),  # a pixel in the corner
    ],
)
def test_a_crop_holds_the_box_and_no_trace_of_what_is_beside_it(box: tuple, margin: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)
    x0, y0, x1, y1 = slow_widen(box, margin, (48, 40))
    cut = Image.fromarray(noise[y0:y1, x0:x1])
    expected = np.asarray(cut.resize((24, 24), Image.Resampling.BICUBIC))
    assert (model_input(Image.fromarray(noise), 24, np.array(box), margin) == expected).all()


# --- the numbers --------------------------------------------------------------------------


def slow_vectors(
    data: ImageDataset, trunk: Trunk, region: str, size: int
) -> dict[tuple[str, str], np.ndarray]:
    """One image after another, the trunk as it was loaded, poolings by hand."""
    found: dict = {}
    for i, file in enumerate(data.files):
        image = load_image(Path(data.root) / file)
        if region == "crop":
            image = image.crop(tuple(int(side) for side in data.boxes[i][0]))
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float64) / 255
        pixels = (pixels - trunk.mean.view(3).numpy()) / trunk.std.view(3).numpy()
        given = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
        with torch.no_grad():
            head, maps = trunk.network.forward_intermediates(given)
        named = dict(zip(trunk.stages, [*maps, head]))
        for stage in ("stage3", "head"):
            if region == "RoI":
                box = data.boxes[i][:1] * size / np.tile(image.size, 2)
                scale = 1 / trunk.stages[stage].stride
                named[stage] = roi_align(named[stage], [torch.from_numpy(box).float()], 7, scale,
                                         sampling_ratio=2, aligned=True)  # fmt: skip
            one = named[stage][0].numpy().astype(np.float64)
            gem = ((one.clip(1e-6) ** 3).mean(axis=(1, 2))) ** (1 / 3)
            for name, vector in (("spoc", one.mean(axis=(1, 2))), ("mac", one.max(axis=(1, 2))),
                                 ("gem", gem)):  # fmt: skip
                found.setdefault((stage, name), []).append(vector)
    return {pair: np.stack(vectors) for pair, vectors in found.items()}


@pytest.mark.parametrize("region", ["whole image", "crop", "RoI"])
@pytest.mark.parametrize("cache", [True, False])
def test_the_fast_way_gives_the_numbers_of_the_plain_loop(data, region, cache) -> None:
    trunk = load_trunk()
    slow = slow_vectors(data, trunk, region, size=64)
    looked = {"whole image": WHOLE, "crop": crop(data), "RoI": roi(data)}[region]
    fast = quick(data, list(slow), trunk, region=looked, size=64, cache=cache)
    assert list(fast) == list(slow)
    for pair, vectors in slow.items():
        assert fast[pair].dtype == np.float32 and fast[pair].shape == vectors.shape
        apart = np.linalg.norm(fast[pair] - vectors, axis=1) / np.linalg.norm(vectors, axis=1)
        assert apart.max() < 1e-4, pair
        nearest = np.linalg.norm(vectors[:, None] - vectors[None], axis=2) + 1e9 * np.eye(N)
        assert nearest.min() > 1e-2 * np.linalg.norm(vectors, axis=1).max()  # they do differ


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same(data, seen, monkeypatch) -> None:
    usual = quick(data, (SPOC, MAC), cache=False, batch_size=3)
    real, sizes = Tiny.forward_intermediates, []

    def full(self: Tiny, x: Tensor) -> tuple:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, x)

    monkeypatch.setattr(Tiny, "forward_intermediates", full)
    with pytest.warns(UserWarning, match="out of memory: 2 images at once"):
        found = quick(data, (SPOC, MAC), batch_size=4)
    for pair in (SPOC, MAC):
        np.testing.assert_allclose(found[pair], usual[pair], rtol=1e-5, atol=1e-6)
    tried = [n for n in sizes if n != 1]  # bar the probes of one image
    assert tried == [4] + [2] * 5  # parts of 4, 4 and 2 images: learnt once


def test_reading_ahead_for_an_accelerator_gives_the_same_batches(data, monkeypatch) -> None:
    batches = [range(i, i + 1) for i in range(N)]
    run = Extraction(data, tiny(), (roi(data),), ExtractOptions(SIZE, 1))
    for n in (1, 2, N):  # fewer than are read ahead, too
        read = {}
        for kind in ("cpu", "cuda"):
            monkeypatch.setattr(config, "device", lambda kind=kind: torch.device(kind))
            read[kind] = list(run.read(batches[:n]))
        for ahead, now in zip(read["cuda"], read["cpu"], strict=True):
            (pixels, boxes, _), (same_pixels, same_boxes, _) = ahead, now
            assert torch.equal(pixels, same_pixels) and len(boxes) == len(pixels)
            for some, same in zip(boxes, same_boxes, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(some, same, strict=True))


def test_bf16_is_near_and_cached_apart(data: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    full = quick(data)[SPOC]
    monkeypatch.setenv("OBJEMB_PRECISION", "bf16")
    half = quick(data)[SPOC]
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_unknown_names_are_said_before_any_work(data: ImageDataset, seen, tmp_path: Path) -> None:
    for pair, known in ((("stage9", "spoc"), "stage1"), (("head", "median"), "mac")):
        with pytest.raises(KeyError, match=f"(stage9|median).*{known}"):
            quick(data, (SPOC, pair))
    with pytest.raises(DataError, match="(?s)fp61.*bf16"):
        quick(data, precision="fp61")
    assert seen() == 0 and not (tmp_path / "cache").exists()


# --- the cache ----------------------------------------------------------------------------


def test_one_more_pooling_computes_only_that_and_another_call_nothing(data, seen, tmp_path) -> None:
    first = quick(data)[SPOC]
    assert seen() == N
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pooling.POOLINGS, "spoc", None)  # cannot be pooled again
        both = quick(data, (SPOC, MAC))
    assert seen() == N and np.array_equal(both[SPOC], first)
    again = quick(data, (SPOC, MAC, SPOC))  # asked twice, given once
    assert seen() == 0 and list(again) == [SPOC, MAC]
    assert all(np.array_equal(again[pair], both[pair]) for pair in both)
    assert [p.name for p in cached(tmp_path)] == ["head-spoc.safetensors", "stage1-mac.safetensors"]


def test_whatever_decides_the_numbers_has_a_cache_of_its_own(data, seen, tmp_path) -> None:
    usual = quick(data)[SPOC]
    other_trunk, brighter = tiny(seed=1), tiny()
    brighter.mean += 0.1
    regions = [crop(data), roi(data), Region(true_boxes(data), "pixels", context=0.2)]
    seen()
    for how in ({"trunk": other_trunk}, {"trunk": brighter}, *({"region": r} for r in regions)):
        assert not np.allclose(quick(data, **how)[SPOC], usual), how
        assert seen() == N, how
    assert not np.allclose(quick(data, size=2 * SIZE)[SPOC], usual)
    Image.new("RGB", (50, 50), "green").save(tmp_path / "photographs" / "03.png")
    changed = quick(photographs(tmp_path / "photographs"))[SPOC]  # same names, other content
    assert seen() == N
    assert not np.allclose(changed[3], usual[3]) and np.allclose(changed[4], usual[4])
    assert np.array_equal(quick(data)[SPOC], usual)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-5], lambda raw: raw[: 8 + int.from_bytes(raw[:8], "little")],
               lambda raw: b"", lambda raw: b"<html>" * 99],
    ids=["cut off", "header only", "empty", "a web page"],
)  # fmt: skip
def test_a_damaged_file_is_computed_again_with_a_warning(damage, data, seen, tmp_path) -> None:
    first = quick(data, (SPOC, MAC))
    seen()
    (file,) = cached(tmp_path, "head-spoc.*")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=r"head-spoc\.safetensors is damaged"):
        again = quick(data, (SPOC, MAC))
    assert seen() == N
    assert all(np.array_equal(again[pair], first[pair]) for pair in first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(quick(data)[SPOC], first[SPOC])  # mended for good


@pytest.mark.parametrize("said", [{"version": "0"}, None])
def test_a_file_of_other_settings_is_refused(said, data: ImageDataset, tmp_path: Path) -> None:
    quick(data)
    (file,) = cached(tmp_path)
    save_file(load_file(file), file, metadata=said)
    with pytest.raises(CacheError, match=r"head-spoc\.safetensors.*other settings"):
        quick(data)
    assert file.exists()  # not ours to delete


def test_cache_false_neither_writes_nor_reads(data: ImageDataset, seen, tmp_path: Path) -> None:
    quick(data, cache=False)
    assert not (tmp_path / "cache").exists()
    right = quick(data)[SPOC]
    (file,) = cached(tmp_path)
    file.write_bytes(b"")
    seen()
    assert np.array_equal(quick(data, cache=False)[SPOC], right)
    assert seen() == N and file.read_bytes() == b""


# --- what goes wrong on the way -----------------------------------------------------------


def test_an_unreadable_image_is_named_and_whole_parts_before_it_are_kept(
    data: ImageDataset, seen, tmp_path: Path
) -> None:
    whole = quick(data, cache=False)[SPOC]
    bad = tmp_path / "photographs" / "09.png"  # in the third part
    good = bad.read_bytes()
    bad.write_bytes(good[:40])
    with pytest.raises(ImageError, match=r"09\.png"):
        quick(data)
    first, second = cached(tmp_path)
    assert first.name == "head-spoc.part-0000000.safetensors"
    bad.write_bytes(good)  # `data` remembers the content it was made of: the key is the same
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "PART", 2)  # never joined to a table of the wrong length
        with pytest.raises(CacheError, match="part-0000000"):
            quick(data)
    second.write_bytes(second.read_bytes()[:-5])
    seen()
    with pytest.warns(UserWarning, match="part-0000004.* is damaged"):
        assert np.array_equal(quick(data)[SPOC], whole)
    assert seen() == N - PART
    assert [p.name for p in cached(tmp_path)] == ["head-spoc.safetensors"]


FULL = "No space left on device"


@pytest.mark.parametrize("full", [OSError(errno.ENOSPC, FULL), SafetensorError(FULL)])
def test_a_full_disk_is_a_cache_error_and_keeps_what_there_is(
    full: Exception, data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = cache.save_file, []

    def fills_up(*args: object, **how: object) -> None:
        written.append(args)
        if len(written) > 1:
            raise full
        real(*args, **how)

    monkeypatch.setattr(cache, "save_file", fills_up)
    with pytest.raises(CacheError, match="No space left"):
        quick(data)
    folder = cached(tmp_path)[0].parent
    left = {path.name for path in folder.iterdir()} - {"lock"}
    assert left == {"head-spoc.part-0000000.safetensors"}


def test_a_cache_that_cannot_be_made_says_so(data, seen, tmp_path, monkeypatch) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "a file" / "cache"))
    with pytest.raises(CacheError, match="(?s)a file.*cannot be written.*OBJEMB_CACHE"):
        quick(data)
    assert seen() == 0


# --- several processes --------------------------------------------------------------------


def child(what: str, folder: str) -> None:
    """Runs in another process: an extraction that is killed, or begins together with another."""
    place, room.PART, shown = Path(folder), PART, Tiny.forward_intermediates
    data = photographs(place / "photographs")
    if what == "killed":
        write = room.Store.write

        def write_once(*args: object) -> None:
            write(*args)
            os._exit(7)  # as a kill: nothing is cleaned up

        room.Store.write = write_once
        quick(data)
    (place / what).touch()
    other = place / ("b" if what == "a" else "a")
    deadline = time.monotonic() + 60
    while not other.exists() and time.monotonic() < deadline:
        time.sleep(0.01)

    def slowly(self: Tiny, x: Tensor) -> tuple:
        time.sleep(0.05)  # so that the other one meets the lock
        return shown(self, x)

    Tiny.forward_intermediates = slowly
    vectors = quick(data)[SPOC]
    print(Tiny.seen, vectors.tobytes().hex())


def start(what: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "import sys, test_extract; test_extract.child(*sys.argv[1:])",
         what, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_run_goes_on_where_it_stopped(data: ImageDataset, seen, tmp_path: Path) -> None:
    whole = quick(data, cache=False)[SPOC]
    process = start("killed", tmp_path)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 7, error
    assert [p.name for p in cached(tmp_path)] == ["head-spoc.part-0000000.safetensors"]
    seen()
    assert np.array_equal(quick(data)[SPOC], whole)
    assert seen() == N - PART
    assert [p.name for p in cached(tmp_path)] == ["head-spoc.safetensors"]


def test_two_processes_at_once_compute_once(data: ImageDataset, tmp_path: Path) -> None:
    whole = quick(data, cache=False)[SPOC]
    both = [start(what, tmp_path) for what in ("a", "b")]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], [error for _, error in answers]
    shown, vectors = zip(*(out.splitlines()[-1].split() for out, _ in answers))
    assert sorted(map(int, shown)) == [0, N]  # one computed, the other waited for it
    assert set(vectors) == {whole.tobytes().hex()}
    assert [p.name for p in cached(tmp_path)] == ["head-spoc.safetensors"]
    assert "waiting for it" in str(answers)
