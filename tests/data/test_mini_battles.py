"""mini-battles: the reviewed lists, the built data, and builds that go wrong."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from objemb_lib import config
from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import fetch, mini_battles
from objemb_lib.data.archives import sha256_file
from objemb_lib.data.dataset import ImageDataset

if TYPE_CHECKING:
    from tiny_battles import Tiny

pytest_plugins = ("tiny_battles",)
NAME = mini_battles.NAME
README = config.PROJECT / "data" / "README.md"


# The reviewed lists -----------------------------------------------------------------------


def test_lists_are_large_and_every_file_is_pinned_once() -> None:
    objects, backgrounds = mini_battles.objects(), mini_battles.backgrounds()
    assert len(objects) >= 200 and len(backgrounds) >= 30
    assert len(mini_battles.categories()) == 12
    hashes = [row["sha256"] for row in (*objects, *backgrounds)]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
    assert len(set(hashes)) == len(hashes), "the same photograph twice: the splits could share it"
    assert len({o["path"] for o in objects}) == len(objects)
    assert len({(b["collection"], b["path"]) for b in backgrounds}) == len(backgrounds)
    names = Counter(o["name"] for o in objects)
    assert not [name for name, count in names.items() if count > 1]
    for rows in (objects, backgrounds):  # the two halves
        assert {row["split"] for row in rows} == {"train", "test"}
    known = {(o["category"], o["split"]) for o in objects}
    assert known == set(itertools.product(mini_battles.categories(), ("train", "test")))


def test_readme_credits_every_background() -> None:
    text = README.read_text(encoding="utf-8")
    for row in mini_battles.backgrounds():
        assert "| {path} | {author} | {licence} | {collection} |".format(**row) in text
        assert row["author"].strip() and row["licence"].strip()


# The built data ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits(mini_battles_built: Path) -> dict[str, ImageDataset]:
    return {s: mini_battles.mini_battles(s) for s in mini_battles.SPLITS}


@pytest.fixture(scope="module")
def cocos(mini_battles_built: Path) -> dict[str, dict]:
    files = {s: mini_battles_built / "annotations" / f"{s}.json" for s in mini_battles.SPLITS}
    return {split: json.loads(file.read_text()) for split, file in files.items()}


def test_splits_are_large_and_every_query_has_five_relevant_images(
    splits: dict[str, ImageDataset],
) -> None:
    assert [len(splits[split]) for split in ("train", "battle", "clean")] == [1534, 812, 696]
    for data in splits.values():
        assert len(set(data.files)) == len(data.queries) and data.image(0).size == (256, 256)
        assert min(data.relevant(q).sum() for q in data.queries) >= 5


def test_train_shares_no_object_and_no_background_with_the_tests(cocos: dict[str, dict]) -> None:
    shown = {s: {a["object_id"] for a in coco["annotations"]} for s, coco in cocos.items()}
    behind = {s: {i["background"] for i in coco["images"]} for s, coco in cocos.items()}
    for split in ("battle", "clean"):
        assert not shown["train"] & shown[split]
        assert not behind["train"] & behind[split]
    assert len(behind["train"]) > 10 and len(behind["battle"]) > 10  # all of them are in use
    for coco in cocos.values():  # no object stands twice in front of one background
        ground = {i["id"]: i["background"] for i in coco["images"]}
        mains = [a for a in coco["annotations"] if a["role"] == "main"]
        assert len({(a["object_id"], ground[a["image_id"]]) for a in mains}) == len(ground)


def test_annotations_are_coco(mini_battles_built: Path, cocos: dict[str, dict]) -> None:
    for split, raw in cocos.items():
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(mini_battles_built / "annotations" / f"{split}.json")
        assert len(coco.getImgIds()) == len(raw["images"])
        assert len({a["id"] for a in raw["annotations"]}) == len(raw["annotations"])
        assert len(coco.getCatIds()) == 12
        assert all((mini_battles_built / image["file_name"]).is_file() for image in raw["images"])
        for number in coco.getImgIds()[:40]:
            for found in coco.loadAnns(coco.getAnnIds(number)):
                mask = coco.annToMask(found)
                y, x = np.nonzero(mask)
                box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
                assert mask.shape == (256, 256) and found["bbox"] == box
                assert found["area"] == mask.sum() > 0


def test_main_object_comes_first_and_is_well_visible(cocos: dict[str, dict]) -> None:
    for split, coco in cocos.items():
        for _, group in itertools.groupby(coco["annotations"], lambda a: a["image_id"]):
            main, *others = group
            assert main["role"] == "main" and len(others) <= (0 if split == "clean" else 2)
            assert all(other["role"] == "distractor" for other in others)
            assert len({a["object_id"] for a in (main, *others)}) == 1 + len(others)
            assert main["visible"] >= (0.6 if split != "clean" else 0.3)


# One scene --------------------------------------------------------------------------------


@pytest.fixture
def raw(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The gathered photographs of the tiny mini-battles."""
    kept = tmp_path / "kept"
    compose = mini_battles._compose_all
    keep = lambda raw, *args: (shutil.copytree(raw, kept), compose(raw, *args))  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(mini_battles, "_compose_all", keep)
        tiny.build(tmp_path / "data")
    return kept


@pytest.mark.parametrize("split", ["train", "battle", "clean"])
def test_a_scene_is_the_same_alone_and_after_others(raw: Path, split: str) -> None:
    alone = mini_battles.compose(raw, split, 2)
    for number in (0, 1, 2):
        after = mini_battles.compose(raw, split, number)
    assert after == alone
    assert mini_battles.compose(raw, split, 1)[0] != alone[0]


def test_masks_of_a_scene_never_overlap(raw: Path) -> None:
    for split, number in itertools.product(("train", "battle"), range(6)):
        jpeg, _, found = mini_battles.compose(raw, split, number)
        assert Image.open(io.BytesIO(jpeg)).size == (256, 256)
        assert np.sum([coco_mask.decode(one["segmentation"]) for one in found], 0).max() == 1
        pool = [o for o in mini_battles.objects() if o["split"] == mini_battles.SPLITS[split].pool]
        assert mini_battles.objects()[found[0]["object_id"]] is pool[number // 2]
        assert 0.6 <= found[0]["visible"] <= 1


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """``mask`` wider by so many pixels on every side; narrower where ``by`` is negative."""
    kind = ImageFilter.MaxFilter if by > 0 else ImageFilter.MinFilter
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.filter(kind(2 * abs(by) + 1))) > 127


@pytest.mark.parametrize("split", ["battle", "clean"])
def test_the_mask_is_where_the_object_is(raw: Path, tmp_path: Path, split: str) -> None:
    """Paint the main object black, then white: only its mask may change, and all of it must."""
    for number in range(6 if split == "battle" else 3):
        _, _, (main, *_) = mini_battles.compose(raw, split, number)
        mask, images = coco_mask.decode(main["segmentation"]) > 0, []
        for shade in (0, 255):
            copy = tmp_path / f"{split}{number}-{shade}"
            shutil.copytree(raw, copy)
            stamp = copy / "objects" / mini_battles.objects()[main["object_id"]]["path"]
            alpha = Image.open(stamp).getchannel("A")
            flat = Image.new("L", alpha.size, shade)
            Image.merge("RGBA", (flat, flat, flat, alpha)).save(stamp)
            jpeg, *_ = mini_battles.compose(copy, split, number)
            images.append(np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), int))
        changed = abs(images[1] - images[0])
        core = grown(mask, -3)
        assert core.any() and (changed[core] > 60).mean() > 0.99
        assert not changed[~grown(mask, 18)].any()  # JPEG's blocks spread it a little


# The whole build --------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def left_behind(root: Path) -> list[str]:
    """Everything in the folder of data sets but the data set and the lock."""
    return sorted(p.name for p in root.iterdir() if p.name not in (NAME, f".{NAME}.lock"))


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_build_makes_every_split_twice_the_same(
    tiny: Tiny, tiny_root: Path, tmp_path: Path
) -> None:
    data = {s: mini_battles.mini_battles(s, tiny_root) for s in ("train", "battle", "clean")}
    assert [len(d) for d in data.values()] == [6, 6, 3]
    assert data["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data["clean"].labels.tolist() == [3, 4, 5]
    assert [len(mini_battles.selection(k, tiny_root)) for k in ("objects", "backgrounds")] == [6, 4]
    assert left_behind(tiny_root) == []
    assert content(tiny.build(tmp_path / "again")) == content(tiny_root / NAME)


def test_a_build_that_fails_leaves_the_old_one(
    tiny: Tiny, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(tiny_root / NAME)
    monkeypatch.setattr(mini_battles, "pixels_hash", None)  # in the midst of a scene
    with pytest.raises(TypeError):
        tiny.build(tiny_root)
    assert content(tiny_root / NAME) == before and left_behind(tiny_root) == []


# verify and reading back ------------------------------------------------------------------


def one_pixel(file: Path) -> None:
    pixels = np.array(Image.open(file))
    pixels[100, 100] ^= 1
    Image.fromarray(pixels).save(file, "PNG")  # lossless: this pixel only


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def moved_box(file: Path) -> None:
    coco = json.loads(file.read_text())
    coco["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(coco))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("battle/00003.jpg", one_pixel),
        ("train/00004.jpg", cut_short),
        ("manifest.json", Path.unlink),
        ("annotations/battle.json", cut_short),
        ("annotations/train.json", moved_box),
        ("objects/004.png", Path.unlink),
    ],
)
def test_damage_is_named_with_its_remedy(
    tiny_root: Path, tiny_reference: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(tiny_root / NAME / name)
    read = [lambda: mini_battles.verify(tiny_root)]
    if name.endswith(".json") and damage != moved_box:
        read.append(lambda: mini_battles.mini_battles(Path(name).stem.replace("manifest", "train"),
                                                      tiny_root))  # fmt: skip
    if name.startswith("objects"):
        read = [lambda: mini_battles.selection("objects", tiny_root)]
    for one in read:
        with pytest.raises(DataError) as caught:
            one()
        assert name.removeprefix("objects/") in caught.value.problem
        assert "data/download.py build mini-battles --force" in caught.value.remedy


def test_absent_data_and_unknown_splits_say_what_to_do(tiny_root: Path, tmp_path: Path) -> None:
    for read in (mini_battles.verify, lambda root: mini_battles.mini_battles("battle", root)):
        with pytest.raises(DataError, match="download.py build mini-battles"):
            read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="train or battle or clean"):
        mini_battles.mini_battles("val", tiny_root)


# Where the photographs come from ----------------------------------------------------------


PHOTOS = {"birds/wren.png": b"a wren", "seas/île.jpg": b"an island"}
Gather = Callable[..., dict[str, bytes]]


def put(folder: Path, files: dict[str, bytes] = PHOTOS) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture
def gather(tmp_path: Path, naps: list, serve_folder, monkeypatch: pytest.MonkeyPatch) -> Gather:
    """``gather(source=, mirror=)`` -> the photographs of a collection, fetched anew.

    Its archive lies at its public address; apt has nothing.
    """
    public = tmp_path / "public" / "photos-1.0.tar.gz"
    public.parent.mkdir()
    with tarfile.open(public, "w:gz") as tar:
        tar.add(put(tmp_path / "upstream"), "photos-1.0/pictures")
    (tmp_path / "registry.csv").write_text(
        "collection,file,digest,size,into,members,url\n"
        f"photos,{public.name},{sha256_file(public)},{public.stat().st_size},,*,"
        f"{serve_folder(public.parent)}/{public.name}\n"
    )
    monkeypatch.setattr(fetch, "REGISTRY", tmp_path / "registry.csv")
    monkeypatch.setattr(fetch, "debian_package", lambda *args: None)
    monkeypatch.setitem(mini_battles.PACKAGES, "photos", "photos")
    wanted, runs = {p: sha256_file(tmp_path / "upstream" / p) for p in PHOTOS}, itertools.count()

    def run(**options: object) -> dict[str, bytes]:
        work = tmp_path / f"work {next(runs)}"
        work.mkdir()
        mini_battles.gather("photos", wanted, work / "raw/photos", work / "downloads", **options)
        return content(work / "raw/photos")

    return run


@pytest.mark.parametrize("layout", ["", "photos-1.0/pictures", "usr/share/photos"])
def test_a_folder_of_the_users_in_any_layout(gather: Gather, tmp_path: Path, layout: str) -> None:
    shutil.rmtree(tmp_path / "public")
    put(tmp_path / "mine" / layout)
    put(tmp_path / "mine" / "another", {"birds/wren.png": b"another wren"})
    assert gather(source=tmp_path / "mine") == PHOTOS


def test_mirror_package_and_public_address_in_their_order(
    gather: Gather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = put(tmp_path / "package" / "usr/share", PHOTOS | {"birds/wren.png": b"another"})
    monkeypatch.setattr(fetch, "debian_package", lambda *args: package)
    assert gather(source=package) == PHOTOS  # from upstream: the package is of another release
    (tmp_path / "public").rename(tmp_path / "mirror")
    put(package)
    assert gather() == PHOTOS  # from the package
    monkeypatch.setattr(fetch, "debian_package", lambda *args: pytest.fail("apt was asked"))
    assert gather(mirror=str(tmp_path / "mirror")) == PHOTOS  # a classroom need not wait for apt
    with pytest.raises(DownloadError, match="gone(.|\n)*photos-1.0.tar.gz(.|\n)*--source"):
        gather(mirror=str(tmp_path / "gone"))


def test_a_python_package_is_not_imported(
    gather: Gather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(mini_battles.PACKAGES, "photos")
    put(tmp_path / "lib/photos", {"__init__.py": b"raise RuntimeError('must not be imported')"})
    monkeypatch.syspath_prepend(tmp_path / "lib")
    with pytest.raises(DataError, match="photos: its 2 files(.|\n)*--source(.|\n)*--mirror"):
        gather()
    put(tmp_path / "lib/photos/data")
    assert gather() == PHOTOS


# A classroom's mirror ---------------------------------------------------------------------


@pytest.fixture
def mirror(tiny_root: Path, tmp_path: Path) -> Path:
    return mini_battles.pack(tmp_path / "mirror", tiny_root).parent


@pytest.mark.parametrize("kind", ["folder", "home", "URL"])
def test_a_copy_is_taken_from_everywhere(
    tiny: Tiny, tiny_root: Path, mirror: Path, serve_folder, kind: str, monkeypatch
) -> None:
    monkeypatch.setenv("HOME", str(mirror.parent))
    monkeypatch.setenv("USERPROFILE", str(mirror.parent))
    where = {"folder": str(mirror), "home": "~/mirror", "URL": f"{serve_folder(mirror)}/"}[kind]
    built = tiny.build(mirror.parent / "new", source=None, mirror=where)
    assert content(built) == content(tiny_root / NAME) and left_behind(built.parent) == []


def test_a_copy_does_not_tell_who_made_it(mirror: Path) -> None:
    with tarfile.open(mirror / f"{NAME}.tar") as copy:
        assert {(i.uid, i.gid, i.uname, i.gname, i.mtime) for i in copy} == {(0, 0, "", "", 0)}


@pytest.mark.parametrize("damage", [
    lambda raw: raw[: len(raw) // 2],
    lambda raw: b"<html>Please log in to the hotel's Wi-Fi</html>",
    lambda raw: raw.replace(b"\xff\xda", b"\xff\xdb", 1),  # in a scene
    lambda raw: raw.replace(b"IDAT", b"IDAX", 1),  # in a thumbnail
    lambda raw: raw.replace(b'"bbox": [', b'"bbox": [1', 1),
])  # fmt: skip
def test_a_damaged_copy_is_refused(tiny: Tiny, mirror: Path, tmp_path: Path, damage) -> None:
    archive = mirror / f"{NAME}.tar"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises((DownloadError, DataError)):
        tiny.build(tmp_path / "new", source=None, mirror=str(mirror))
    assert left_behind(tmp_path / "new") == [] and not (tmp_path / "new" / NAME).exists()


@pytest.mark.usefixtures("naps")
def test_a_mirror_without_it_or_with_another_version_is_passed_over(
    tiny: Tiny, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    tiny.build(tmp_path / "new", mirror="http://127.0.0.1:9/class")
    assert "could not be fetched" in capsys.readouterr().out
    monkeypatch.setattr(mini_battles, "VERSION", "3")
    assert manifest(tiny.build(tmp_path / "new", mirror=str(mirror)))["version"] == "3"
    assert "another version" in capsys.readouterr().out
