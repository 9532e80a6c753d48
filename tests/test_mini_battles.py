"""mini-battles: the lists, the scenes, building, verifying, reading back."""

import json
import os

import numpy as np
import PIL
import pytest
from PIL import Image, ImageDraw

from objemb_lib import settings
from objemb_lib.datasets import mini_battles as mb
from objemb_lib.datasets import packed, sources
from objemb_lib.download import sha256_file
from objemb_lib.errors import DataError, DownloadError


@pytest.fixture(scope="module")
def splits():
    """The built data set; `make test` builds it first."""
    if not (settings.data_root() / mb.NAME).is_dir():
        pytest.skip("mini-battles is not built: python data/download.py build mini-battles")
    return {split: mb.mini_battles(split) for split in mb.SPLITS}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Six drawn stamps and two drawn backgrounds in place of the lists; returns their folder."""
    source = tmp_path / "photographs"
    stamps, photos = [], []
    for number in range(6):
        image = Image.new("RGBA", (120, 100))
        colour = (40 * number, 255 - 40 * number, 90, 255)
        ImageDraw.Draw(image).ellipse((5, 5, 90 + 5 * number, 80), fill=colour)
        stamps.append(_listed(source / "stamps", f"s{number}.png", image, number % 2))
        stamps[-1] |= {"category": f"kind {number // 2}", "name": f"stamp {number}"}
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 255, (400, 500, 3), np.uint8)
        photo = _listed(source / "nature", f"b{number}.png", Image.fromarray(noise), number)
        photos.append({"collection": "mate-backgrounds", "licence": "", "author": ""} | photo)
        photos[-1]["path"] = "nature/" + photos[-1]["path"]
    monkeypatch.setattr(mb, "objects", lambda: tuple(stamps))
    monkeypatch.setattr(mb, "backgrounds", lambda: tuple(photos))
    counts = {"train": mb.Split("train", 3), "battle": mb.Split("test", 2)}
    monkeypatch.setattr(mb, "SPLITS", counts | {"clean": mb.Split("test", 2)})
    yield source
    mb._cutout.cache_clear()
    mb._background.cache_clear()


def _listed(folder, name, image, half):
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    split = "test" if half else "train"
    return {"path": name, "sha256": sha256_file(folder / name), "split": split}


# --- the lists ---------------------------------------------------------------------------


def test_lists_are_long_enough_and_their_halves_disjoint():
    objects, grounds = mb.objects(), mb.backgrounds()
    assert len(objects) >= 200 and len(grounds) >= 30 and len(mb.categories()) == 12
    for listed in (objects, grounds):
        hashes = [row["sha256"] for row in listed]
        assert len(set(hashes)) == len(hashes)
        assert all(len(h) == 64 and set(h) <= set("0123456789abcdef") for h in hashes)
        assert {row["split"] for row in listed} == {"train", "test"}
    assert len({o["name"] for o in objects}) == len(objects)
    for category in mb.categories():
        halves = {o["split"] for o in objects if o["category"] == category}
        assert halves == {"train", "test"}, category


def test_data_readme_credits_every_background():
    readme = (settings.PROJECT / "data" / "README.md").read_text(encoding="utf-8")
    assert mb.attributions() in readme


# --- the built data set ------------------------------------------------------------------


def test_sizes_and_relevant_images(splits):
    assert len(splits["train"]) >= 1500
    assert len(splits["battle"]) >= 800
    assert len(splits["clean"]) >= 400
    for split in ("battle", "clean"):
        data = splits[split]
        assert min(data.relevant(q).sum() for q in data.queries) >= 5


def test_nothing_of_train_is_in_the_test_splits(splits):
    def seen(*names):
        layers = [layer for n in names for e in splits[n].extra for layer in e["layers"]]
        grounds = {e["background"] for n in names for e in splits[n].extra}
        return {layer["object_id"] for layer in layers}, grounds

    for ours, theirs in zip(seen("train"), seen("battle", "clean")):
        assert ours and theirs and not ours & theirs


def test_boxes_masks_and_roles_agree(splits):
    battle = splits["battle"]
    for i in range(0, len(battle), 40):
        layers = battle.extra[i]["layers"]
        assert [layer["role"] for layer in layers[:1]] == ["main"]
        assert all(layer["role"] == "distractor" for layer in layers[1:])
        assert layers[0]["visible"] >= 0.6
        assert layers[0]["object_id"] == battle.labels[i]
        for k, (x0, y0, x1, y1) in enumerate(battle.boxes[i]):
            rows, columns = np.nonzero(battle.mask(i, k))
            found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert found == (x0, y0, x1, y1)
            assert len(rows) == layers[k]["area"]


def test_an_image_that_shows_the_object_as_a_distractor_is_junk(splits):
    battle = splits["battle"]
    image = next(i for i, labels in enumerate(battle.box_labels) if len(labels) > 1)
    query = int(np.flatnonzero(battle.labels == battle.box_labels[image][1])[0])
    assert battle.junk(query)[image] and not battle.relevant(query)[image]


def test_the_annotations_are_coco(splits, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(splits["clean"].root / "annotations" / "clean.json"))
    capsys.readouterr()
    assert len(coco.imgs) == len(splits["clean"])
    one = coco.anns[1]
    assert coco.annToMask(one).sum() == one["area"]
    assert coco.cats[one["category_id"]]["name"] in mb.categories()


def test_the_built_data_is_intact(splits):
    differing = mb.verify(progress=False)
    if json.loads(mb.REFERENCE.read_text())["pillow"] == PIL.__version__:
        assert not differing  # the same library: pixel for pixel the reference


# --- building ----------------------------------------------------------------------------


def test_a_scene_depends_on_its_number_and_the_seed_only(small, tmp_path):
    raw = tmp_path / "raw"
    mb.gather_raw(raw, tmp_path / "downloads", small, None, progress=False)
    alone, _ = mb.compose(raw, "battle", 1, seed=0)
    mb.compose(raw, "battle", 0, seed=0)
    again, scene = mb.compose(raw, "battle", 1, seed=0)
    assert alone == again
    assert mb.compose(raw, "battle", 1, seed=1)[0] != alone
    main = scene["layers"][0]
    assert main["object"]["name"] == "stamp 1" and main["visible"] >= 0.6


def test_one_process_or_two_build_the_same(small, tmp_path):
    manifests = []
    for workers in (1, 2):
        folder = mb.build(tmp_path / str(workers), source=small, workers=workers, progress=False)
        manifests.append(json.loads((folder / "manifest.json").read_text()))
    assert manifests[0] == manifests[1]
    assert manifests[0]["splits"]["train"]["images"] == 9


def test_a_failed_build_keeps_the_old_data_and_leaves_no_half(small, tmp_path, monkeypatch):
    root = tmp_path / "data"
    folder = mb.build(root, source=small, workers=1, progress=False)
    before = (folder / "manifest.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mb, "_coco", full)
    with pytest.raises(DataError, match="No space left"):
        mb.build(root, seed=5, source=small, workers=1, progress=False)
    assert (folder / "manifest.json").read_bytes() == before
    assert not [p for p in root.iterdir() if p.is_dir() and p.name.startswith(f".{mb.NAME}-")]


def test_a_build_puts_away_what_a_killed_one_left(small, tmp_path):
    stale = tmp_path / f".{mb.NAME}-abc"
    stale.mkdir()
    (stale / "half").write_bytes(b"x" * 1000)
    mb.build(tmp_path, source=small, workers=1, progress=False)
    assert not stale.exists()


def test_a_wrong_photograph_is_named(small, tmp_path):
    (small / "stamps" / "s2.png").write_bytes(b"another picture")
    with pytest.raises(DataError, match="s2.png.*sha256"):
        mb.build(tmp_path / "data", source=small, workers=1, progress=False)
    assert not (tmp_path / "data" / mb.NAME).exists()


def test_a_source_that_is_no_folder_is_refused_before_any_download(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        mb.build(tmp_path, source=tmp_path / "typo", progress=False)


# --- verifying ---------------------------------------------------------------------------


@pytest.fixture
def built(small, tmp_path):
    return mb.build(tmp_path / "built", source=small, workers=1, progress=False)


def _change_pixel(folder):
    image = Image.open(folder / "battle" / "00001.jpg").convert("RGB")
    image.putpixel((3, 3), (255, 0, 255))
    image.save(folder / "battle" / "00001.jpg", quality=95)


def _truncate(folder):
    file = folder / "battle" / "00001.jpg"
    file.write_bytes(file.read_bytes()[:-900])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_change_pixel, "00001.jpg"),
        (_truncate, "00001.jpg"),
        (lambda f: os.remove(f / "battle" / "00001.jpg"), "00001.jpg"),
        (lambda f: (f / "annotations" / "clean.json").write_text("{}"), "clean.json"),
        (lambda f: os.remove(f / "annotations" / "clean.json"), "clean.json"),
        (lambda f: os.remove(f / "manifest.json"), "manifest.json"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json"),
    ],
)
def test_damage_is_named_with_what_to_do(built, damage, named):
    damage(built)
    with pytest.raises(DataError) as error:
        mb.verify(built.parent, progress=False)
    assert named in error.value.problem and "--force" in error.value.remedy


def test_intact_but_not_the_reference_is_said(built):
    assert mb.verify(built.parent, progress=False) == ["train", "battle", "clean"]


def test_not_built_and_unknown_split(tmp_path):
    with pytest.raises(DataError, match="not in") as error:
        mb.mini_battles("battle", tmp_path)
    assert "data/download.py build" in error.value.remedy
    with pytest.raises(DataError, match="no split"):
        mb.mini_battles("test", tmp_path)


# --- sources and mirrors -----------------------------------------------------------------


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """A collection of one file and an upstream archive that holds it; no package installed."""
    import tarfile

    tree = tmp_path / "tree" / "things-1.0" / "pictures"
    tree.mkdir(parents=True)
    (tree / "a.txt").write_text("the right bytes")
    archive = tmp_path / "mirror" / "things-1.0.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree.parent, "things-1.0")
    collection = sources.Collection(
        "things",
        ("things-1.0/pictures", "usr/share/things-of-nobody"),
        package="things",
        url="http://127.0.0.1:9/things-1.0.tar.gz",
        sha256=sha256_file(archive),
        size=archive.stat().st_size,
    )
    monkeypatch.setattr(sources.download, "debian_package", lambda name, dest: None)
    monkeypatch.setattr(sources.download, "_sleep", lambda seconds: None)
    return collection, {"a.txt": sha256_file(tree / "a.txt")}, tmp_path


def _get(origin, **options):
    collection, wanted, root = origin
    options = {"source": None, "mirror": None} | options
    return sources.gather(collection, wanted, root / "downloads", root / "work", **options)


def test_every_route_yields_the_same_bytes(origin, monkeypatch):
    root = origin[2]

    def unpacked(name, dest):
        to = dest / "usr/share/things-of-nobody"
        to.mkdir(parents=True)
        (to / "a.txt").write_text("the right bytes")
        return dest

    by_source = _get(origin, source=root / "tree")
    by_archive = _get(origin, mirror=str(root / "mirror"))
    monkeypatch.setattr(sources.download, "debian_package", unpacked)
    by_package = _get(origin)
    texts = {found["a.txt"].read_text() for found in (by_source, by_archive, by_package)}
    assert texts == {"the right bytes"}
    assert len({found["a.txt"] for found in (by_source, by_archive, by_package)}) == 3


def test_the_source_given_comes_before_the_package(origin, monkeypatch):
    def never(*_):
        raise AssertionError("asked for a package though --source has the file")

    monkeypatch.setattr(sources.download, "debian_package", never)
    assert _get(origin, source=origin[2] / "tree")["a.txt"].exists()


def test_no_route_names_the_options(origin):
    with pytest.raises(DownloadError) as error:
        _get(origin)
    assert "--source" in str(error.value) and "--mirror" in str(error.value)


def test_a_packed_copy_is_the_same_data(built, tmp_path):
    first = packed.pack(built, tmp_path / "mirror").read_bytes()
    assert packed.pack(built, tmp_path / "mirror").read_bytes() == first
    copy = mb.build(tmp_path / "other", mirror=str(tmp_path / "mirror"), progress=False)
    assert (copy / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()
    assert mb.verify(copy.parent, progress=False) == mb.verify(built.parent, progress=False)


def test_a_tampered_copy_is_not_installed(built, tmp_path):
    archive = packed.pack(built, tmp_path / "mirror")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DownloadError, match="mini-battles.tar"):
        mb.build(tmp_path / "other", mirror=str(tmp_path / "mirror"), progress=False)
    assert not (tmp_path / "other" / mb.NAME).exists()


def test_a_mirror_without_the_data_set_is_passed_over(small, tmp_path):
    (tmp_path / "mirror").mkdir()
    mirror = str(tmp_path / "mirror")
    folder = mb.build(tmp_path / "data", source=small, mirror=mirror, workers=1, progress=False)
    assert folder.is_dir()


def test_a_mirror_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DownloadError, match="not a folder"):
        mb.build(tmp_path, mirror=str(tmp_path / "typo"), progress=False)
