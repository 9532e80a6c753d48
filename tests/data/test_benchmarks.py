"""Benchmarks built from archives in their official layout, which a server here lies about."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from local_server import Server, archive, serve
from PIL import Image
from scipy.io import savemat

from objemb_lib.config import DataError, DownloadError
from objemb_lib.data import benchmarks, fetch
from objemb_lib.data.catalogue import DATASETS, load_splits

pytestmark = [
    pytest.mark.usefixtures("naps"),
    pytest.mark.filterwarnings("ignore:.*images of .* are here"),
]
Files = dict[str, bytes]
Small = Callable[..., None]


def picture(seed: int = 0, suffix: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, suffix)
    return raw.getvalue()


def text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def matlab(**content: object) -> bytes:
    raw = io.BytesIO()
    savemat(raw, content)
    return raw.getvalue()


def car_notes(*rows: tuple) -> np.ndarray:
    kinds = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O"), ("class", "O")]
    name = "fname" if "/" not in rows[0][-1] else "relative_im_path"
    return np.array(list(rows), [*kinds, (name, "O")])


CUB = {
    "CUB_200_2011.tgz": archive("x.tgz", {
        "attributes.txt": b"left out",
        "CUB_200_2011/images.txt": text("1 001.bird_1/a.jpg", "2 150.bird_150/b.jpg"),
        "CUB_200_2011/image_class_labels.txt": text("1 1", "2 150"),
        "CUB_200_2011/bounding_boxes.txt": text("1 1 2 30 20", "2 0 0 40 30"),
        "CUB_200_2011/classes.txt": text(*(f"{i} {i:03}.bird_{i}" for i in range(1, 201))),
        "CUB_200_2011/images/001.bird_1/a.jpg": picture(1),
        "CUB_200_2011/images/150.bird_150/b.jpg": picture(2),
    }),
    "segmentations.tgz": archive("x.tgz", {
        "segmentations/001.bird_1/a.png": picture(3, "PNG"),
        "segmentations/150.bird_150/b.png": picture(4, "PNG"),
    }),
}  # fmt: skip
CAR_NAMES = np.array([f"model {i}" for i in range(1, 197)], object)
CARS = {
    "car_ims.tgz": archive("x.tgz", {"car_ims/000001.jpg": picture(1),
                                    "car_ims/000002.jpg": picture(2)}),
    "cars_annos.mat": matlab(class_names=CAR_NAMES, annotations=car_notes(
        (1, 1, 40, 30, 5, "car_ims/000001.jpg"), (1, 1, 40, 30, 99, "car_ims/000002.jpg"))),
}  # fmt: skip
SOP = {
    "Stanford_Online_Products.zip": archive("x.zip", {
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
    "annotations_trainval2017.zip": archive("x.zip", {
        "annotations/instances_train2017.json": coco_notes("1.jpg"),
        "annotations/instances_val2017.json": coco_notes("2.jpg"),
        "annotations/captions_train2017.json": b"left out",
    }),
    "train2017.zip": archive("x.zip", {"train2017/1.jpg": picture(1)}),
    "val2017.zip": archive("x.zip", {"val2017/2.jpg": picture(2)}),
}  # fmt: skip


def truth(city: str) -> bytes:
    gnd = {"bbx": [0, 0, 30, 20], "easy": np.array([0]), "hard": np.array([1]), "junk": [2]}
    names = [f"{city}_{i}" for i in range(3)]
    return pickle.dumps({"imlist": names, "qimlist": [f"{city}_9"], "gnd": [gnd]}, protocol=2)


def photographs(city: str, *numbers: int) -> Files:
    return {f"{city}/deep/{city}_{i}.jpg": picture(i) for i in numbers}


DAMAGED = {"louvre/deep/louvre_7.jpg": b"no image, and not listed"}
OXFORD = {"gnd_roxford5k.pkl": truth("keble"),
          "oxbuild_images-v1.tgz": archive("x.tgz", photographs("keble", 0, 1, 2, 9))}  # fmt: skip
PARIS = {"gnd_rparis6k.pkl": truth("louvre"),
         "paris_1-v1.tgz": archive("x.tgz", photographs("louvre", 0, 1)),
         "paris_2-v1.tgz": archive("x.tgz", photographs("louvre", 2, 9) | DAMAGED)}  # fmt: skip
BUILDS = dict(cub=CUB, cars=CARS, sop=SOP, coco=COCO, roxford5k=OXFORD, rparis6k=PARIS)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``small(server)``: the registry has the digests, sizes and places of the files above."""

    def use(server: Server | None = None) -> None:
        rows = ["collection,file,digest,size,into,members,url"]
        for name, files in BUILDS.items():
            for real in fetch.registry(name):
                raw = files[real.file]
                kind = "md5:" if real.digest.startswith("md5:") else ""
                digest = kind + hashlib.new(kind.rstrip(":") or "sha256", raw).hexdigest()
                url = server.url(serve(raw), path=f"/{real.file}") if server else ""
                known = (digest if real.digest else "", str(len(raw)) if real.size else "")
                rows.append(",".join((name, real.file, *known, real.into, real.members, url)))
        (tmp_path / "registry.csv").write_text("\n".join(rows))
        monkeypatch.setattr(fetch, "REGISTRY", tmp_path / "registry.csv")

    return use


def left(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if not p.name.endswith(".lock"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("name", BUILDS)
def test_each_benchmark_is_built_from_its_archives(
    name: str, server: Server, small: Small, root: Path
) -> None:
    small(server)
    folder = DATASETS[name].build()
    assert folder == root / name and left(root) == [name]  # no archives, no temporary files
    assert {path for path, _ in server.seen} == {f"/{file}" for file in BUILDS[name]}
    made = json.loads((folder / "manifest.json").read_text())
    assert set(made["archives"]) == set(BUILDS[name]) and DATASETS[name].built()
    assert DATASETS[name].verify() == []
    assert not list(folder.rglob("._*")) and not list(folder.rglob("*left out*"))
    if name == "roxford5k":  # its training images are Paris
        DATASETS["rparis6k"].build()
    if name != "rparis6k":
        train, tests = load_splits(name)
        names = [{d.label_names[lab] for lab in d.labels if lab >= 0} for d in
                 (train, *tests.values())]  # fmt: skip
        assert all(names) and not names[0] & set.union(*names[1:])


OTHERS = [("car_ims.tgz", "not the official"), ("cars_annos.mat", "could not be fetched")]


@pytest.mark.parametrize(("other", "says"), OTHERS)
def test_files_of_a_folder_are_checked_and_used(
    small: Small, tmp_path: Path, root: Path, other: str, says: str
) -> None:
    small()
    place = tmp_path / "archives"
    place.mkdir()
    for name, raw in CARS.items():
        (place / name).write_bytes(raw + b"x" * (name == other))
    with pytest.raises(DownloadError, match=rf"{other}.*{says}"):
        benchmarks.build("cars", source=place)
    assert not (root / "cars").exists()
    (place / other).write_bytes(CARS[other])
    benchmarks.build("cars", source=place)
    assert load_splits("cars").tests["test"].labels.tolist() == [98]
    assert left(place) == sorted(CARS) and left(root) == ["cars"]  # theirs are untouched


# No digest was ever published of these:
LIES = [("gnd_roxford5k.pkl", pickle.dumps(print), "refused"),
        ("oxbuild_images-v1.tgz", OXFORD["oxbuild_images-v1.tgz"][:-6], "expected"),
        ("paris_1-v1.tgz", PARIS["paris_1-v1.tgz"][:-6], "cannot be unpacked")]  # fmt: skip


@pytest.mark.parametrize(("file", "raw", "says"), LIES)
def test_what_no_digest_guards_is_read(
    server: Server, small: Small, root: Path, file: str, raw: bytes, says: str
) -> None:
    small(server)
    server.url(serve(raw), path=f"/{file}")
    name = "rparis6k" if "paris" in file else "roxford5k"
    with pytest.raises(DownloadError, match=says):
        benchmarks.build(name)
    assert not (root / name).exists()


def test_missing_images_are_counted(
    server: Server, small: Small, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARIS, "paris_1-v1.tgz", archive("x.tgz", photographs("louvre", 1)))
    small(server)
    with pytest.raises(DataError, match="1 images are not in its archives, as louvre_0"):
        benchmarks.build("rparis6k")
    assert not (root / "rparis6k").exists()


def test_a_folder_of_the_users_is_never_replaced(server: Server, small: Small, root: Path) -> None:
    small(server)
    (root / "cub").mkdir(parents=True)
    (root / "cub" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="was not built here") as caught:
        benchmarks.build("cub")
    assert f"cub:{root / 'cub'}" in caught.value.remedy and server.seen == []


def test_damage_is_found_and_mended_by_building_again(
    server: Server, small: Small, root: Path
) -> None:
    small(server)
    with pytest.raises(DataError, match="cub is not built"):
        benchmarks.verify("cub")
    image = benchmarks.build("cub") / "CUB_200_2011/images/001.bird_1/a.jpg"
    image.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"3 of 4 images can be read.*a\.jpg"):
        benchmarks.verify("cub")
    benchmarks.build("cub")
    assert benchmarks.verify("cub") == []
    image.unlink()
    with pytest.raises(DataError, match="1 are missing"):
        benchmarks.verify("cub")
