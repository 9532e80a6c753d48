"""Benchmarks built from archives in their official layout, which a server here lies about."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from local_server import Server, serve, status, whole
from PIL import Image
from scipy.io import savemat

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import archives, benchmarks, download
from objemb_lib.data.archives import Archive, DistillConfig
from objemb_lib.data.catalogue import DATASETS, load_splits
from objemb_lib.data.classes import cars

pytestmark = [
    pytest.mark.usefixtures("naps"),
    pytest.mark.filterwarnings("ignore:.*images of .* are here"),
]
Files = dict[str, bytes]


def picture(seed: int = 0, suffix: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, suffix)
    return raw.getvalue()


def text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def packed(name: str, files: Files) -> bytes:
    """An archive of the kind that its name says."""
    raw = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(raw, "w") as pack:
            for path, content in files.items():
                pack.writestr(path, content)
    else:
        with tarfile.open(fileobj=raw, mode="w:gz") as pack:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                pack.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def matlab(**content: object) -> bytes:
    raw = io.BytesIO()
    savemat(raw, content)
    return raw.getvalue()


def car_notes(*rows: tuple) -> np.ndarray:
    kinds = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O"), ("class", "O")]
    name = "fname" if "/" not in rows[0][-1] else "relative_im_path"
    return np.array(list(rows), [*kinds, (name, "O")])


CUB = {
    "CUB_200_2011.tgz": packed("x.tgz", {
        "attributes.txt": b"left out",
        "CUB_200_2011/images.txt": text("1 001.bird_1/a.jpg", "2 150.bird_150/b.jpg"),
        "CUB_200_2011/image_class_labels.txt": text("1 1", "2 150"),
        "CUB_200_2011/bounding_boxes.txt": text("1 1 2 30 20", "2 0 0 40 30"),
        "CUB_200_2011/classes.txt": text(*(f"{i} {i:03}.bird_{i}" for i in range(1, 201))),
        "CUB_200_2011/images/001.bird_1/a.jpg": picture(1),
        "CUB_200_2011/images/150.bird_150/b.jpg": picture(2),
    }),
    "segmentations.tgz": packed("x.tgz", {
        "segmentations/001.bird_1/a.png": picture(3, "PNG"),
        "segmentations/150.bird_150/b.png": picture(4, "PNG"),
    }),
}  # fmt: skip
CAR_NAMES = np.array([f"model {i}" for i in range(1, 197)], object)
CARS = {
    "car_ims.tgz": packed("x.tgz", {"car_ims/000001.jpg": picture(1),
                                    "car_ims/000002.jpg": picture(2)}),
    "cars_annos.mat": matlab(class_names=CAR_NAMES, annotations=car_notes(
        (1, 1, 40, 30, 5, "car_ims/000001.jpg"), (1, 1, 40, 30, 99, "car_ims/000002.jpg"))),
}  # fmt: skip
CARS_SPLIT = {
    "cars_train.tgz": packed("x.tgz", {"cars_train/00001.jpg": picture(1)}),
    "cars_test.tgz": packed("x.tgz", {"cars_test/00001.jpg": picture(2)}),
    "car_devkit.tgz": packed("x.tgz", {
        "devkit/cars_meta.mat": matlab(class_names=CAR_NAMES),
        "devkit/cars_train_annos.mat": matlab(annotations=car_notes((1, 1, 40, 30, 5, "00001.jpg"),
                                                                    (1, 1, 9, 9, 5, "none.jpg"))),
    }),
    "cars_test_annos_withlabels.mat": matlab(annotations=car_notes(
        (1, 1, 40, 30, 99, "00001.jpg"), (1, 1, 9, 9, 99, "none.jpg"))),
}  # fmt: skip
SOP = {
    "Stanford_Online_Products.zip": packed("x.zip", {
        "Stanford_Online_Products/Ebay_train.txt": text("image_id class_id super_class_id path",
                                                        "1 1 1 chair_final/1_0.JPG"),
        "Stanford_Online_Products/Ebay_test.txt": text("image_id class_id super_class_id path",
                                                       "2 2 1 chair_final/2_0.JPG"),
        "Stanford_Online_Products/chair_final/1_0.JPG": picture(1),
        "Stanford_Online_Products/chair_final/2_0.JPG": picture(2),
        "Stanford_Online_Products/._.DS_Store": b"junk",
        "__MACOSX/._x": b"junk",
    })
}  # fmt: skip


def coco_notes(name: str) -> bytes:
    square = [[5, 5, 39, 5, 39, 29, 5, 29]]
    notes = {"id": 1, "image_id": 1, "bbox": [0, 0, 40, 30], "iscrowd": 0, "segmentation": square}
    return json.dumps({
        "images": [{"id": 1, "file_name": name, "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}],
        "annotations": [{**notes, "category_id": 1}, {**notes, "id": 2, "category_id": 2}],
    }).encode()  # fmt: skip


COCO = {
    "annotations_trainval2017.zip": packed("x.zip", {
        "annotations/instances_train2017.json": coco_notes("1.jpg"),
        "annotations/instances_val2017.json": coco_notes("2.jpg"),
        "annotations/captions_train2017.json": b"left out",
    }),
    "train2017.zip": packed("x.zip", {"train2017/1.jpg": picture(1)}),
    "val2017.zip": packed("x.zip", {"val2017/2.jpg": picture(2)}),
}  # fmt: skip


def truth(city: str) -> bytes:
    gnd = {"bbx": [0, 0, 30, 20], "easy": np.array([0]), "hard": np.array([1]), "junk": [2]}
    names = [f"{city}_{i}" for i in range(3)]
    return pickle.dumps({"imlist": names, "qimlist": [f"{city}_9"], "gnd": [gnd]}, protocol=2)


def photographs(city: str, *numbers: int) -> Files:
    return {f"{city}/deep/{city}_{i}.jpg": picture(i) for i in numbers}


DAMAGED = {"louvre/deep/louvre_7.jpg": b"no image, and not listed"}
OXFORD = {"gnd_roxford5k.pkl": truth("keble"),
          "oxbuild_images-v1.tgz": packed("x.tgz", photographs("keble", 0, 1, 2, 9))}  # fmt: skip
PARIS = {"gnd_rparis6k.pkl": truth("louvre"),
         "paris_1-v1.tgz": packed("x.tgz", photographs("louvre", 0, 1)),
         "paris_2-v1.tgz": packed("x.tgz", photographs("louvre", 2, 9) | DAMAGED)}  # fmt: skip
PAIR = {"train": 1, "test": 1}
BUILDS = {  # the real recipe, an archive of a few images for each of its, and their number
    "cub": (benchmarks.CUB, CUB, PAIR),
    "cars": (benchmarks.CARS, CARS, PAIR),
    "sop": (benchmarks.SOP, SOP, PAIR),
    "coco": (benchmarks.COCO_2017, COCO, PAIR),
    "roxford5k": (benchmarks.OXFORD, OXFORD, {"medium": 4}),
    "rparis6k": (benchmarks.PARIS, PARIS, {"medium": 4}),
}


def small(
    recipe: DistillConfig, files: Files, counts: dict, server: Server | None = None
) -> DistillConfig:
    """The recipe with the digests and sizes of ``files``, at the addresses of ``server``."""

    def changed(archive: Archive) -> Archive:
        raw = files.get(archive.file, b"")
        kind = "md5:" if (archive.digest or "").startswith("md5:") else ""
        digest = kind + hashlib.new(kind.rstrip(":") or "sha256", raw).hexdigest()
        urls = (server.url(serve(raw), path=f"/{archive.file}"),) if server else ()
        return replace(archive, urls=urls, digest=digest if archive.digest else None,
                       size=len(raw) if archive.size else None)  # fmt: skip

    releases = tuple(tuple(map(changed, release)) for release in recipe.releases)
    return replace(recipe, releases=releases, counts=counts)


def left(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if not p.name.endswith(".lock"))


@pytest.mark.parametrize("name", BUILDS)
def test_each_benchmark_is_built_from_its_archives(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, files, counts = BUILDS[name]
    folder = small(recipe, files, counts, server).build(tmp_path, progress=False)
    assert folder == tmp_path / name and left(tmp_path) == [name]  # no archives, no temporary files
    assert {path for path, _ in server.seen} == {f"/{file}" for file in files}
    made = json.loads((folder / "manifest.json").read_text())
    assert made["splits"] == counts and set(made["archives"]) == set(files)
    assert archives.verify(name, tmp_path, progress=False) == []
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path))
    assert DATASETS[name].built()
    if name == "roxford5k":  # its training images are Paris
        small(*BUILDS["rparis6k"], server).build(tmp_path, progress=False)
    if name != "rparis6k":
        train, tests = load_splits(name)
        names = [{d.label_names[lab] for lab in d.labels if lab >= 0} for d in
                 (train, *tests.values())]  # fmt: skip
        assert all(names) and not names[0] & set.union(*names[1:])


def test_the_real_recipes_are_complete() -> None:
    """Digests are well-formed, addresses are there, and the catalogue knows each recipe."""
    for name, (recipe, files, _) in BUILDS.items():
        assert recipe.name == name
        listed = [a for release in recipe.releases for a in release]
        assert set(files) <= {a.file for a in listed}
        for archive in listed:
            kind, _, digest = (archive.digest or "md5:" + "0" * 32).rpartition(":")
            assert len(bytes.fromhex(digest)) == {"": 32, "md5": 16}[kind]
            assert archive.digest or archive.check or archive.packed
            assert archive.urls or recipe.gone
            assert all(url.endswith(f"/{archive.file}") for url in archive.urls[:1])
        assert DATASETS[name].build.__self__ is recipe


def test_cars_from_a_folder_of_archives_in_either_release(tmp_path: Path) -> None:
    for number, files in enumerate((CARS, CARS_SPLIT)):
        place, root = tmp_path / f"archives {number}", tmp_path / f"data {number}"
        place.mkdir()
        for name, raw in files.items():
            (place / name).write_bytes(raw)
        recipe = small(benchmarks.CARS, CARS | CARS_SPLIT, PAIR)
        folder = recipe.build(root, source=place, progress=False)
        assert cars("test", folder).labels.tolist() == [98]
        assert sorted(p.name for p in place.iterdir()) == sorted(files)  # untouched
        assert left(root) == ["cars"]


def test_cars_from_a_mirror(server: Server, tmp_path: Path) -> None:
    for name, raw in CARS.items():
        url = server.url(serve(raw), path=f"/mirror/{name}")
    recipe = small(benchmarks.CARS, CARS, PAIR)
    recipe.build(tmp_path, mirror=url.rpartition("/")[0], progress=False)
    assert left(tmp_path) == ["cars"]


def test_without_cars_the_message_says_what_to_do(tmp_path: Path) -> None:
    recipe = small(benchmarks.CARS, CARS, PAIR)
    with pytest.raises(DownloadError, match=r"car_ims\.tgz has no public address") as caught:
        recipe.build(tmp_path, progress=False)
    for word in ("--source FOLDER", "cars_train.tgz", "cars:FOLDER", "Stanford's servers"):
        assert word in caught.value.remedy


def test_a_placed_archive_with_other_bytes_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "archives"
    place.mkdir()
    (place / "car_ims.tgz").write_bytes(CARS["car_ims.tgz"] + b"x")
    with pytest.raises(DownloadError, match=r"car_ims\.tgz has other bytes"):
        small(benchmarks.CARS, CARS, PAIR).build(tmp_path / "data", source=place, progress=False)
    (place / "car_ims.tgz").write_bytes(CARS["car_ims.tgz"])
    (place / "cars_annos.mat").write_bytes(b"another file")
    with pytest.raises(DownloadError, match=r"cars_annos\.mat could not be fetched"):
        small(benchmarks.CARS, CARS, PAIR).build(tmp_path / "data", source=place, progress=False)
    assert left(tmp_path / "data") == [".downloads-cars"]


@pytest.mark.parametrize(
    ("acts", "says"),
    [
        ([status(404)], "HTTP 404"),
        ([whole(CUB["CUB_200_2011.tgz"][::-1])], "known hash"),
        ([whole(b"<html>log in</html>")], "expected"),
        ([status(503, Retry_After=1)], "HTTP 503"),
    ],
)
def test_a_server_that_fails_leaves_nothing(
    server: Server, tmp_path: Path, acts: list, says: str
) -> None:
    recipe = small(benchmarks.CUB, CUB, PAIR, server)
    server.url(*acts, path="/CUB_200_2011.tgz")
    with pytest.raises(DownloadError, match=says):
        recipe.build(tmp_path, progress=False)
    assert not (tmp_path / "cub").exists()


def test_a_cut_build_goes_on(server: Server, tmp_path: Path) -> None:
    """What was fetched before the second archive failed is not fetched again."""
    recipe = small(benchmarks.CUB, CUB, PAIR, server)
    good = serve(CUB["segmentations.tgz"])
    server.url(status(404), good, path="/segmentations.tgz")
    server.url(status(429, Retry_After=2), serve(CUB["CUB_200_2011.tgz"], cut=500),
               serve(CUB["CUB_200_2011.tgz"]), path="/CUB_200_2011.tgz")  # fmt: skip
    with pytest.raises(DownloadError, match="404"):
        recipe.build(tmp_path, progress=False)
    assert ("/CUB_200_2011.tgz", "bytes=500-") in server.seen
    server.seen.clear()
    recipe.build(tmp_path, progress=False)
    assert [path for path, _ in server.seen] == ["/segmentations.tgz"]


def test_truth_that_would_run_code_never_gets_its_name(server: Server, tmp_path: Path) -> None:
    recipe = small(benchmarks.OXFORD, OXFORD, {"medium": 4}, server)
    server.url(serve(pickle.dumps(print)), path="/gnd_roxford5k.pkl")
    with pytest.raises(DownloadError, match="refused"):
        recipe.build(tmp_path, progress=False)
    assert not list(tmp_path.rglob("gnd_roxford5k.pkl*"))


def test_an_archive_without_a_digest_is_read_to_its_end(server: Server, tmp_path: Path) -> None:
    recipe = small(benchmarks.PARIS, PARIS, {"medium": 4}, server)
    raw = bytearray(PARIS["paris_1-v1.tgz"])
    raw[-6] ^= 1  # in gzip's checksum
    server.url(serve(bytes(raw)), path="/paris_1-v1.tgz")
    with pytest.raises(DownloadError, match=r"paris_1-v1\.tgz could not be fetched"):
        recipe.build(tmp_path, progress=False)


def test_missing_images_are_counted(server: Server, tmp_path: Path) -> None:
    recipe = small(benchmarks.PARIS, PARIS, {"medium": 5}, server)
    with pytest.raises(DataError, match="'medium': 4} images in its archives"):
        recipe.build(tmp_path, progress=False)
    assert not (tmp_path / "rparis6k").exists()


def test_space_is_checked_before_anything_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(benchmarks.SOP, SOP, PAIR, server)
    big = replace(recipe.releases[0][0], size=10 << 30)
    usage = download.shutil.disk_usage(tmp_path)._replace(free=15 << 30)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="needs"):  # 10 to fetch, 10 to unpack
        replace(recipe, releases=((big,),)).build(tmp_path, progress=False)
    assert server.seen == []


def test_a_folder_of_the_users_is_never_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cub").mkdir()
    (tmp_path / "cub" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="was not built here") as caught:
        small(benchmarks.CUB, CUB, PAIR, server).build(tmp_path, progress=False)
    assert f"cub:{tmp_path / 'cub'}" in caught.value.remedy and server.seen == []


def test_building_again_replaces_what_was_built(server: Server, tmp_path: Path) -> None:
    recipe = small(benchmarks.CUB, CUB, PAIR, server)
    folder = recipe.build(tmp_path, progress=False)
    (folder / "CUB_200_2011" / "images" / "001.bird_1" / "a.jpg").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"3 of 4 images can be read.*a\.jpg"):
        archives.verify("cub", tmp_path, progress=False)
    (tmp_path / ".cub-killed" / "cub").mkdir(parents=True)  # what a kill leaves behind
    recipe.build(tmp_path, progress=False)
    assert archives.verify("cub", tmp_path, progress=False) == [] and left(tmp_path) == ["cub"]
    (folder / "CUB_200_2011" / "images" / "001.bird_1" / "a.jpg").unlink()
    with pytest.raises(DataError, match="1 are missing"):
        archives.verify("cub", tmp_path, progress=False)


def test_two_builds_fetch_once(server: Server, tmp_path: Path) -> None:
    recipe = small(benchmarks.CUB, CUB, PAIR, server)
    both = [threading.Thread(target=recipe.build, args=(tmp_path,), kwargs={"progress": False})
            for _ in range(2)]  # fmt: skip
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert archives.verify("cub", tmp_path, progress=False) == []
    assert sorted(path for path, _ in server.seen) == ["/CUB_200_2011.tgz", "/segmentations.tgz"]


def test_what_is_not_built_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cub is not built"):
        archives.verify("cub", tmp_path)
