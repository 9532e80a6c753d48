"""mini-battles: photographs of objects cut out and pasted into other photographs.

A small PS-Battles (Heller, Rossetto, Schuldt 2018) with exact ground truth, built on the
learner's own machine from freely licensed photographs: 234 cut-outs (Tux Paint's stamps) and
40 backgrounds. Three splits, in 256 x 256 pixels:

``train``   118 objects x 13 scenes = 1,534: for fitting (whitening, detectors, students)
``battle``  116 other objects x 7 scenes = 812: the object lies small in another photograph
``clean``   the same 116 objects x 6 = 696: the object lies large on a calm background

Objects and backgrounds of ``train`` never appear in ``battle`` or ``clean``. A battle scene
has one main object and up to two distractors of the same pool. No two scenes of a main object
have the same background. Every random choice of a scene comes from the version, split and
number, so that scenes can be made in any order, on any number of threads.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tarfile
import tempfile
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageFilter
from pycocotools import mask as coco_mask
from tqdm.auto import tqdm
from tqdm.contrib.concurrent import thread_map

from objemb_lib import config
from objemb_lib.cache import atomic_path, atomic_write_text
from objemb_lib.config import DataError, DownloadError, ImageError
from objemb_lib.data.archives import MANIFEST, build_folder, sha256_file, unpack, write_manifest
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import check_split
from objemb_lib.data.images import load_image

NAME = "mini-battles"
VERSION, SEED = "2", 0
STREAM = f"{NAME} {VERSION} {SEED}"  # what every random choice begins from
SIZE = 256
LISTS = Path(__file__).parent
REFERENCE = LISTS / "mini_battles_reference.json"
REBUILD = f"Build it again: python data/download.py build {NAME} --force"
PACKAGES = {  # collection -> the Debian package that has its photographs
    "objects": "tuxpaint-stamps-default",
    "mate-backgrounds": "mate-backgrounds",
    "lomiri-wallpapers-16.04": "lomiri-wallpapers-16.04",
}  # the others (skimage, sklearn, matplotlib) are Python packages


class Split(NamedTuple):
    """Which half of objects and backgrounds a split draws from, and how many scenes an object."""

    pool: str
    scenes_per_object: int


SPLITS = {"train": Split("train", 13), "battle": Split("test", 7), "clean": Split("test", 6)}


def objects() -> tuple[dict, ...]:
    """The reviewed list of cut-outs: path, sha256, category, name, split."""
    return _listed("objects")


def backgrounds() -> tuple[dict, ...]:
    """The reviewed list of backgrounds: collection, path, sha256, licence, author, split."""
    return _listed("backgrounds")


@functools.cache
def _listed(name: str) -> tuple[dict, ...]:
    with open(LISTS / f"mini_battles_{name}.csv", newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def categories() -> list[str]:
    """Names of the coarse categories, in order of their number."""
    return sorted({row["category"] for row in objects()})


# --- one scene ---------------------------------------------------------------------------


@functools.cache
def _cutout(raw: Path, path: str) -> Image.Image:
    """A stamp as RGBA, trimmed to what can be seen."""
    with Image.open(raw / "objects" / path) as file:
        image = file.convert("RGBA")
    return image.crop(image.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())


@functools.cache
def _background(file: Path) -> Image.Image:
    """A background as RGB, its short side 384 pixels."""
    image = load_image(file)
    scale = 384 / min(image.size)
    return image.resize([max(384, round(s * scale)) for s in image.size], Image.LANCZOS)


def _crop_of(photo: Image.Image, rng: Random) -> Image.Image:
    """A random square of a photograph, at scene size, mirrored half of the time."""
    side = rng.uniform(0.6, 1.0) * min(photo.size)
    x, y = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((SIZE, SIZE), Image.BICUBIC, box=(x, y, x + side, y + side))
    return crop.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _recolour(image: Image.Image, edits: dict) -> Image.Image:
    """Brightness, contrast, saturation and hue of an RGBA picture; its alpha stays."""
    rgb, alpha = image.convert("RGB"), image.getchannel("A")
    rgb = ImageEnhance.Brightness(rgb).enhance(edits["brightness"])
    rgb = ImageEnhance.Contrast(rgb).enhance(edits["contrast"])
    rgb = ImageEnhance.Color(rgb).enhance(edits["saturation"])
    hue, saturation, value = rgb.convert("HSV").split()
    hue = hue.point(lambda h: (h + edits["hue"]) % 256)
    rgb = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    rgb.putalpha(alpha)
    return rgb


class Edits(NamedTuple):
    """How far a split's edits go: bounds of what :func:`_edit` draws."""

    tilt: float  # degrees either way
    warp: float  # how far a corner moves inwards, as a part of the sides: another viewpoint
    light: float  # brightness and contrast, from 1 - light to 1 + light
    saturation: tuple[float, float]
    hue: int  # either way, of 256
    detail: float  # at most so few pixels of its longest side survive


BATTLE_EDITS = Edits(25, 0.0, 0.25, (0.6, 1.3), 9, SIZE)
CLEAN_EDITS = Edits(45, 0.25, 0.45, (0.2, 1.6), 20, 40)


class Layer(NamedTuple):
    """One pasted object: its RGBA picture, the top-left corner, and what was done to it."""

    cutout: dict
    image: Image.Image
    corner: tuple[int, int]
    edits: dict

    def opaque(self) -> int:
        """How many of its pixels hide what lies under them."""
        return np.count_nonzero(np.asarray(self.image.getchannel("A")) > 127)

    def coverage(self) -> np.ndarray:
        """``(SIZE, SIZE)`` boolean: where it hides what lies under it."""
        canvas = Image.new("L", (SIZE, SIZE))
        canvas.paste(self.image.getchannel("A"), self.corner)
        return np.asarray(canvas) > 127


def _edit(raw: Path, cutout: dict, rng: Random, side: float, bounds: Edits) -> tuple:
    """A cut-out as it will be pasted, its longest side about ``side``, and the edits."""
    image = _cutout(raw, cutout["path"])
    edits = {
        "scale": round(side / max(image.size), 4),
        "mirror": rng.random() < 0.5,
        "angle": round(rng.uniform(-bounds.tilt, bounds.tilt), 2),
        "warp": [round(rng.uniform(0, bounds.warp), 3) for _ in range(8)],
        "brightness": round(rng.uniform(1 - bounds.light, 1 + bounds.light), 3),
        "contrast": round(rng.uniform(1 - bounds.light, 1 + bounds.light), 3),
        "saturation": round(rng.uniform(*bounds.saturation), 3),
        "hue": rng.randint(-bounds.hue, bounds.hue),
        "detail": round(rng.uniform(bounds.detail, SIZE)),
        "blur": round(rng.uniform(0.4, 1.2), 2) if rng.random() < 0.25 else 0.0,
    }
    image = _resize(image, min(side, edits["detail"]))
    image = _resize(_warp(image, edits["warp"]), side)
    if edits["mirror"]:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    image = _recolour(image.rotate(edits["angle"], Image.BICUBIC, expand=True), edits)
    return image.filter(ImageFilter.GaussianBlur(edits["blur"])), edits


def _resize(image: Image.Image, side: float) -> Image.Image:
    """``image`` with a longest side of ``side`` pixels."""
    scale = side / max(image.size)
    return image.resize([max(1, round(s * scale)) for s in image.size], Image.LANCZOS)


def _warp(image: Image.Image, corners: list[float]) -> Image.Image:
    """Seen from elsewhere: each corner of the picture taken from further inside it.

    The picture is first given a transparent border, so that nothing is cut off.
    """
    if not any(corners):
        return image
    w, h = (2 * s for s in image.size)
    framed = Image.new("RGBA", (w, h))
    framed.paste(image, ((w - image.width) // 2, (h - image.height) // 2))
    a, b, c, d, e, f, g, i = corners
    quad = (a * w, b * h, c * w, h - d * h, w - e * w, h - f * h, w - g * w, i * h)
    framed = framed.transform((w, h), Image.QUAD, quad, Image.BICUBIC)
    return framed.crop(framed.getchannel("A").getbbox())


def _place(raw: Path, cutout: dict, rng: Random, longest: tuple[float, float]) -> Layer:
    """A main object or distractor somewhere in a battle scene, at least 80 % inside it."""
    native = max(_cutout(raw, cutout["path"]).size)
    side = min(rng.uniform(*longest) * SIZE, 1.6 * native)  # small stamps are not blown up
    image, edits = _edit(raw, cutout, rng, side, BATTLE_EDITS)
    over = [round(0.1 * s) for s in image.size]
    corner = tuple(rng.randint(*sorted((-o, SIZE - s + o))) for o, s in zip(over, image.size))
    return Layer(cutout, image, corner, edits)


def _battle_layers(raw: Path, main: dict, pool: list[dict], rng: Random) -> list[Layer]:
    """Layers from back to front; at least 60 % of the main object stays visible."""
    main_layer = _place(raw, main, rng, (0.30, 0.65))
    free, layers = main_layer.coverage(), [main_layer]
    for other in rng.sample([o for o in pool if o is not main], rng.choice((0, 1, 1, 2))):
        layer = _place(raw, other, rng, (0.25, 0.50))
        left = free & ~layer.coverage()  # of the main object, were this one in front
        if rng.random() < 0.5 and np.count_nonzero(left) >= 0.6 * main_layer.opaque():
            free, layers = left, [*layers, layer]
        else:
            layers = [layer, *layers]
    return layers


def _behind(split: str, number: int) -> dict:
    """The background of a scene: another one for each scene of an object.

    Else a vector of the photograph behind it would find the object again.
    """
    rule = SPLITS[split]
    which, scene = divmod(number, rule.scenes_per_object)
    there = [b for b in backgrounds() if b["split"] == rule.pool]
    rng = Random(f"{STREAM} {split} backgrounds of {which}")
    every = rng.sample(there, len(there))
    return every[scene % len(every)]  # fewer backgrounds than scenes: only in small tests


def compose(raw: Path, split: str, number: int) -> tuple[bytes, dict, list[dict]]:
    """Scene ``number`` of a split, from the gathered photographs in the folder ``raw``.

    Returns:
        JPEG bytes; COCO's record of the image; COCO's annotations (their boxes are ``x, y, w, h``),
        without ids, the main object first. Masks hold only what is visible.
    """
    rng = Random(f"{STREAM} {split} {number}")
    rule = SPLITS[split]
    pool = [o for o in objects() if o["split"] == rule.pool]
    main = pool[number // rule.scenes_per_object]
    behind = _behind(split, number)
    canvas = _crop_of(_background(raw / behind["collection"] / behind["path"]), rng)
    if split == "clean":
        canvas = canvas.filter(ImageFilter.GaussianBlur(24))
        canvas = Image.blend(canvas, Image.new("RGB", canvas.size, "white"), rng.uniform(0.2, 0.8))
        # The object is about as long as the frame, edited harder than in a battle.
        image, edits = _edit(raw, main, rng, rng.uniform(0.85, 1.25) * SIZE, CLEAN_EDITS)
        corner = tuple((SIZE - s) // 2 + rng.randint(-20, 20) for s in image.size)
        layers = [Layer(main, image, corner, edits)]
    else:
        layers = _battle_layers(raw, main, pool, rng)
    for layer in layers:
        canvas.paste(layer.image, layer.corner, layer.image)
    hidden, annotations = np.zeros((SIZE, SIZE), bool), []
    for layer in reversed(layers):  # from front to back: what is in front hides
        cover = layer.coverage()
        mask, hidden = cover & ~hidden, hidden | cover
        if mask.any():
            annotations.append(_annotation(layer, mask, layer.cutout is main))
    annotations.sort(key=lambda one: one["role"] != "main")
    quality, file = rng.randint(55, 92), io.BytesIO()
    canvas.save(file, "JPEG", quality=quality)
    pixels = pixels_hash(Image.open(file).convert("RGB"))
    record = {"id": number, "file_name": f"{split}/{number:05d}.jpg", "width": SIZE, "height": SIZE,
              "background": behind["path"], "quality": quality, "pixels": pixels}  # fmt: skip
    return file.getvalue(), record, annotations


def _annotation(layer: Layer, mask: np.ndarray, main: bool) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "category_id": categories().index(layer.cutout["category"]) + 1,
        "object_id": objects().index(layer.cutout),
        "role": "main" if main else "distractor",
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "segmentation": {"size": [SIZE, SIZE], "counts": rle["counts"].decode()},
        "iscrowd": 0,
        "visible": round(np.count_nonzero(mask) / layer.opaque(), 4),
        "edits": layer.edits,
    }


def pixels_hash(image: Image.Image) -> str:
    """First 16 hex digits of the sha256 of an image's size and decoded RGB pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:16]


# --- the whole data set ------------------------------------------------------------------


def build(root: Path | None = None, source: Path | None = None, mirror: str | None = None) -> Path:
    """Build mini-battles, about half a minute on two cores once the photographs are there; returns
    its folder, see :func:`archives.build_folder`.

    Args:
        root: folder of data sets; default :func:`config.data_root`.
        source: folder that has the photographs, see :func:`gather`.
        mirror: folder or URL that has the packed data set, or the upstream archives.
    Raises:
        DownloadError, DataError: the photographs cannot be had, or are others.
        OSError: the disk is full or cannot be written; what was built before is untouched.
    """

    def make(made: Path, downloads: Path) -> None:
        if mirror and (copy := _from_mirror(mirror, made.parent / "mirror")):
            if _read(copy, MANIFEST).get("version") == VERSION:
                verify(copy.parent)
                made.rmdir()
                os.replace(copy, made)
                return
            tqdm.write(f"{NAME}: the mirror's is of another version; building it here")
        wanted = {"objects": {o["path"]: o["sha256"] for o in objects()}}
        for row in backgrounds():
            wanted.setdefault(row["collection"], {})[row["path"]] = row["sha256"]
        for name, files in tqdm(wanted.items(), "photographs"):
            gather(name, files, made.parent / "raw" / name, downloads, source, mirror)
        _compose_all(made.parent / "raw", made)

    return build_folder(Path(root or config.data_root()), NAME, make)


def _compose_all(raw: Path, made: Path) -> None:
    """Every scene, the annotations, thumbnails of the photographs, and the manifest."""
    jobs, splits = [], {}
    for split, rule in SPLITS.items():
        (made / split).mkdir()
        count = rule.scenes_per_object * sum(o["split"] == rule.pool for o in objects())
        jobs += [(split, number) for number in range(count)]

    def write(job: tuple[str, int]) -> tuple[dict, list[dict]]:
        jpeg, record, annotations = compose(raw, *job)
        (made / record["file_name"]).write_bytes(jpeg)
        return record, annotations

    # Threads are enough: Pillow works without Python's lock.
    scenes = thread_map(write, jobs, max_workers=os.cpu_count(), desc=NAME, unit="scene")
    for split in SPLITS:
        coco = _coco(split, [scene for job, scene in zip(jobs, scenes) if job[0] == split])
        atomic_write_text(made / "annotations" / f"{split}.json", json.dumps(coco))
        splits[split] = {"images": len(coco["images"]), "sha256": _digest(coco)}
    small = {  # copies of every listed photograph, for looking at
        "objects": (_cutout(raw, o["path"]) for o in objects()),
        "backgrounds": (_background(raw / b["collection"] / b["path"]) for b in backgrounds()),
    }
    for kind, images in small.items():
        (made / kind).mkdir()
        for number, image in enumerate(images):
            image.thumbnail((96, 96))
            image.save(made / kind / f"{number:03d}.png")
    _cutout.cache_clear()  # they are small now, and would fill the memory
    _background.cache_clear()
    write_manifest(made, {"name": NAME, "version": VERSION, "seed": SEED, "size": SIZE,
                          "splits": splits, "pillow": PIL.__version__})  # fmt: skip


def _coco(split: str, scenes: list[tuple[dict, list[dict]]]) -> dict:
    """The COCO-format file of one split, with our extra fields."""
    every = [(record["id"], one) for record, many in scenes for one in many]
    keys = ("name", "category", "path")
    return {
        "info": {"description": f"{NAME}/{split}", "version": VERSION, "seed": SEED},
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories(), 1)],
        "objects": [{"id": i, **{k: o[k] for k in keys}} for i, o in enumerate(objects())],
        "images": [record for record, _ in scenes],
        "annotations": [{"id": n, "image_id": i, **one} for n, (i, one) in enumerate(every, 1)],
    }


def _digest(coco: dict) -> str:
    """Hash over all annotations of a split, which hold the hashes of its pixels."""
    return hashlib.sha256(json.dumps(coco, sort_keys=True).encode()).hexdigest()


# --- a classroom's copy ------------------------------------------------------------------


def pack(dest: Path, root: Path | None = None) -> Path:
    """Write ``dest/mini-battles.tar``, which does not tell who made it.

    Raises as :func:`verify`: what is not built, or damaged, is not passed on.
    """

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    verify(root)
    folder = Path(root or config.data_root()) / NAME
    with atomic_path(dest / f"{NAME}.tar") as temporary, tarfile.open(temporary, "w") as tar:
        tar.add(folder, NAME, filter=anonymous)
    return dest / f"{NAME}.tar"


def _from_mirror(mirror: str, work: Path) -> Path | None:
    """What :func:`pack` wrote into a mirror (a folder or URL), unpacked in the new folder ``work``.

    Returns its folder, to be verified; None where it cannot be had. Raises DownloadError: it is
    damaged.
    """
    from objemb_lib.data import fetch  # here: it loads what downloads

    try:
        archive = fetch.fetch(fetch.Remote(f"{NAME}.tar"), work, mirror=mirror)
    except DownloadError as error:
        tqdm.write(f"{error.problem}\nBuilding it here.")
        return None
    return unpack(archive, work) / NAME


# --- where the photographs come from -----------------------------------------------------


def gather(
    collection: str,
    wanted: dict[str, str],
    raw: Path,
    downloads: Path,
    source: Path | None = None,
    mirror: str | None = None,
) -> None:
    """Copy files ``{path: sha256}`` of a collection into ``raw``, from the first place that has the
    right bytes.

    The places: the user's folder; the Python package, for a collection that one ships; apt, where
    there is one and no mirror; the upstream archive from the mirror or its public address, which
    ``downloads`` keeps. Raises DataError: no place has them; DownloadError: nor can the archive be
    had.
    """
    # Beside raw: what a kill leaves of the unpacked archives is then put away.
    with tempfile.TemporaryDirectory(dir=raw.parent.parent) as work:
        for place in _places(collection, wanted, downloads, Path(work), source, mirror):
            if folder := find(place, wanted):
                for path in wanted:
                    (raw / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / path, raw / path)
                return
    raise DataError(
        f"{collection}: its {len(wanted)} files, as this course uses them, are nowhere to be had",
        "Name a folder that has them with --source, or a mirror with --mirror: see data/README.md.",
    )


def _places(collection, wanted, downloads, work, source, mirror):  # noqa: ANN202 - see gather
    """Folders to look into, each made when it is asked for."""
    from objemb_lib.data import fetch  # here: it loads what downloads

    if source:
        yield Path(source)
    if collection not in PACKAGES:
        yield Path(importlib.util.find_spec(collection).origin).parent
        return
    if not mirror and (package := fetch.debian_package(PACKAGES[collection], work / "package")):
        yield package
    (remote,) = fetch.registry(collection)
    names = tuple(f"/{path}" for path in wanted)
    archive = fetch.fetch(remote, downloads, mirror=mirror)
    yield unpack(archive, work / "archive", lambda member: member.endswith(names))


def find(root: Path, wanted: dict[str, str]) -> Path | None:
    """The folder somewhere below ``root`` that has all files ``{path: sha256}``."""
    first = Path(next(iter(wanted)))
    for hit in root.rglob(first.name):
        folder = hit.parents[len(first.parts) - 1]
        files = {folder / path: digest for path, digest in wanted.items()}
        if all(f.is_file() and sha256_file(f) == digest for f, digest in files.items()):
            return folder
    return None


# --- reading it back ---------------------------------------------------------------------


def _read(folder: Path, name: str) -> dict:
    """A JSON file of the built data set. Raises DataError, which says what to do."""
    if not folder.is_dir():
        problem = f"mini-battles is not in {folder.parent}"
        raise DataError(problem, f"Build it, two minutes: python data/download.py build {NAME}")
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / name} cannot be read: {error!r}", REBUILD) from error


def verify(root: Path | None = None) -> list[str]:
    """Decode every image and compare the scenes with the manifest.

    Returns the splits whose content differs from the reference build of this course: empty on
    machines like ours; another image library may round a pixel differently. Raises DataError:
    absent or damaged, naming the first bad file.
    """
    folder = Path(root or config.data_root()) / NAME
    stated = _read(folder, MANIFEST)["splits"]
    for split in SPLITS:
        coco = _read(folder, f"annotations/{split}.json")
        if _digest(coco) != stated[split]["sha256"]:
            raise DataError(f"{folder}/annotations/{split}.json is not what was built", REBUILD)
        for record in tqdm(coco["images"], f"verify {split}", leave=False):
            file = folder / record["file_name"]
            try:
                if pixels_hash(load_image(file)) != record["pixels"]:
                    raise DataError(f"{file} has other pixels than when it was built", REBUILD)
            except ImageError as error:
                raise DataError(error.problem, REBUILD) from error
    for kind in ("objects", "backgrounds"):
        selection(kind, root)
    reference = json.loads(REFERENCE.read_text())["splits"]
    return [split for split in SPLITS if stated[split] != reference.get(split)]


def selection(kind: str, root: Path | None = None) -> list[Image.Image]:
    """Thumbnails of the listed ``objects`` (RGBA) or ``backgrounds``, in the order of their list.

    Raises DataError: not built, or some are missing or damaged.
    """
    folder = Path(root or config.data_root()) / NAME
    _read(folder, MANIFEST)
    count = len(objects() if kind == "objects" else backgrounds())
    try:
        return [Image.open(folder / kind / f"{n:03d}.png").copy() for n in range(count)]
    except OSError as error:
        raise DataError(f"{folder / kind} is incomplete: {error}", REBUILD) from error


def mini_battles(split: str, root: Path | None = None) -> ImageDataset:
    """One split as an :class:`ImageDataset`; every image is a query against all others.

    ``labels`` are object numbers, ``extra[i]`` holds background, JPEG quality and, under
    ``"layers"``, each object's role, edits and visible part.

    Raises DataError: not built, damaged, or no such split.
    """
    check_split(NAME, split, tuple(SPLITS))
    folder = Path(root or config.data_root()) / NAME
    stated, coco = _read(folder, MANIFEST), _read(folder, f"annotations/{split}.json")
    notes = sorted(coco["annotations"], key=itemgetter("image_id"))  # else as they were
    layers = [list(many) for _, many in groupby(notes, itemgetter("image_id"))]
    column = lambda key: [np.array([one[key] for one in many]) for many in layers]  # noqa: E731
    categories, numbers, boxes = column("category_id"), column("object_id"), column("bbox")
    return ImageDataset(
        NAME, split, folder, tuple(record["file_name"] for record in coco["images"]),
        labels=[many[0] for many in numbers],
        label_names=tuple(o["name"] for o in coco["objects"]),
        categories=[many[0] - 1 for many in categories],
        category_names=tuple(c["name"] for c in coco["categories"]),
        boxes=tuple(np.hstack([b[:, :2], b[:, :2] + b[:, 2:]], dtype=np.float32) for b in boxes),
        box_labels=tuple(numbers),
        box_categories=tuple(many - 1 for many in categories),
        masks=tuple([one["segmentation"] for one in many] for many in layers),
        content=stated["splits"][split]["sha256"],
        extra=tuple({**r, "layers": many} for r, many in zip(coco["images"], layers)),
    )  # fmt: skip
