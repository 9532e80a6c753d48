"""Extraction on Ray Data: the vectors of one process, whatever is lost on the way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.boxes import Boxes, true_boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.milvus import FAILED, MilvusIndex
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.ray import _Keeper, _ray, _Worker, ray_extract, read_parts

pytest.importorskip("ray.data", reason="`make extras` brings it")
PAIR, PART = ("stage4", "spoc"), 4


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return mini_battles("battle").subset(range(0, 110, 5))


@pytest.fixture(scope="module")
def alone(data) -> Objects:
    """The vectors of one process."""
    region, options = Region(true_boxes(data)), ExtractOptions(cache=False, progress=False)
    return extract_objects(data, load_trunk(), [PAIR], {"true": region}, options)["true"]


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for all tests: it takes seconds to start."""
    here = {
        "RAY_worker_niceness": "0",  # nice workers wait for everybody on a busy machine
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),  # to find this file
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        with _ray(None, 2):
            yield


def load_true(log: Path | None = None, kill_at: str = "") -> tuple:
    """What a worker loads; notes that it did, and dies once, at a certain file."""
    if log is not None:
        (log / f"load-{os.getpid()}").touch()

    def look(some: ImageDataset):
        if kill_at in some.files and not (log / "killed").exists():
            (log / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Region(true_boxes(some))

    return load_trunk(), look


def assert_alike(found: Objects, expected: Objects) -> None:
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    scale = np.abs(expected.vectors[PAIR]).max()
    np.testing.assert_allclose(found.vectors[PAIR], expected.vectors[PAIR], atol=1e-5 * scale)


def test_a_lost_worker_costs_nothing_and_what_is_done_is_not_done_again(
    ray_here, data, alone, tmp_path
) -> None:
    log, place = tmp_path / "log", tmp_path / "parts"
    log.mkdir()
    keep(data, place, (0, 4))  # a run that was killed after two parts
    done = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    load = partial(load_true, log, data.files[9])
    opened = partial(MilvusIndex, 112, str(tmp_path / "objects.db"))
    files = ray_extract(data, load, PAIR, place, opened, part=PART, workers=2)
    assert (log / "killed").exists()
    loads = len(list(log.glob("load-*")))
    assert loads in (2, 3)  # one worker anew; the other may have come too late to do anything
    assert len(files) == 6 and {p: p.stat().st_mtime_ns for p in done} == done
    found = read_parts(place)
    assert found.files == list(data.files) and found.broken == {}
    assert_alike(found.objects, alone)

    ray_extract(data, load, PAIR, place, part=PART)  # nothing to do: nothing is loaded
    assert len(list(log.glob("load-*"))) == loads

    late, memory = alone.image >= 8, ObjectIndex(112)
    boxes = Boxes("true", alone.where.boxes[8:])
    memory.add(Objects({PAIR: alone.vectors[PAIR][late]}, boxes), PAIR, data.files[8:])
    index = opened()
    assert len(index) == late.sum() and index.files == [""] * 8 + list(data.files[8:])
    for vector in alone.vectors[PAIR][::7]:
        here, there = memory.search(vector, 5), index.search(vector, 5)
        assert [(m.image, m.file, m.box) for m in there] == [
            (m.image + 8, m.file, m.box) for m in here
        ]


class SlowIndex:
    """Fails once, as a busy server does; notes how many parts are made and not taken yet."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def add(self, *_: object, **__: object) -> None:
        if not (self.log / "failed").exists():
            (self.log / "failed").touch()
            raise DataError(f"MilvusIndex {FAILED}lost connection")
        made, kept = (len(list(self.log.glob(f"{what}-*"))) for what in ("made", "kept"))
        time.sleep(0.2)
        (self.log / f"kept-{kept}").write_text(str(made - kept))


def test_a_slow_index_holds_the_workers_back_and_is_tried_again(
    ray_here, data, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("objemb_lib.search.ray.WAITING", 100_000)
    log = tmp_path / "log"
    log.mkdir()

    def load() -> tuple:
        def look(some: ImageDataset) -> Region:
            (log / f"made-{Path(some.files[0]).stem}").touch()
            return Region(true_boxes(some))

        return load_trunk(), look

    ray_extract(data, load, PAIR, tmp_path / "parts", partial(SlowIndex, log), part=1, workers=1)
    ahead = [int(path.read_text()) for path in log.glob("kept-*")]
    assert (log / "failed").exists()
    assert len(ahead) == len(data) and max(ahead) <= 8, ahead


def test_an_index_that_fails_is_named(ray_here, data, tmp_path) -> None:
    one = data.subset(range(4))
    with pytest.raises(DataError, match="vectors of shape .* of 5 dimensions"):
        ray_extract(one, load_true, PAIR, tmp_path, partial(MilvusIndex, 5, str(tmp_path / "x.db")),
                    workers=1)  # fmt: skip
    assert not list(tmp_path.glob("part-*"))  # what the index does not have is not done


# --- without Ray ---------------------------------------------------------------------------


def key_of(data: ImageDataset, part: int = PART) -> dict[str, str]:
    return {"data": data.fingerprint, "stage": PAIR[0], "pooling": PAIR[1], "size": "256",
            "part": str(part)}  # fmt: skip


def keep(data: ImageDataset, folder: Path, starts=(0,), load=load_true, part: int = PART) -> list:
    """What Ray does with some parts, in this process."""
    worker, keeper = _Worker(data, load, key_of(data, part), folder), _Keeper(folder, None)
    return [keeper(worker({"start": start})) for start in starts]


def test_broken_images_are_left_out_and_named(data, alone, tmp_path) -> None:
    for file in data.files[:6]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.root / file, tmp_path / file)
    (tmp_path / data.files[1]).write_bytes(b"no image")
    for file in data.files[4:6]:  # all of the second part
        Image.new("RGB", (9, 9)).save(tmp_path / file)
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:60])
    few = ImageDataset(data.name, data.split, tmp_path, data.files[:6], data.labels[:6],
                       boxes=data.boxes[:6])  # fmt: skip
    assert keep(few, tmp_path / "parts", (0, 4)) == [{"broken": 1}, {"broken": 2}]
    found = read_parts(tmp_path / "parts")
    assert found.files == [data.files[i] for i in (0, 2, 3)]
    assert found.numbers.tolist() == [0, 2, 3] and found.objects.image.max() == 2
    assert set(found.broken) == {data.files[i] for i in (1, 4, 5)}
    assert data.files[1] in found.broken[data.files[1]]
    np.testing.assert_allclose(
        found.objects.vectors[PAIR],
        alone.vectors[PAIR][np.isin(alone.image, [0, 2, 3])],
        rtol=1e-4, atol=1e-3,
    )  # fmt: skip


def test_a_folder_of_other_settings_is_refused(data, tmp_path) -> None:
    keep(data, tmp_path)
    for changed, words in (
        ({"dataset": data.subset(range(8))}, "another data"),
        ({"pair": ("head", "spoc")}, "another stage"),
        ({"size": 128}, "another size"),
        ({"part": 8}, "another part"),
    ):
        asked = {"dataset": data, "load": load_true, "pair": PAIR, "folder": tmp_path,
                 "part": PART} | changed  # fmt: skip
        with pytest.raises(DataError, match=words):
            ray_extract(**asked)
    worker = _Worker(data, load_true, key_of(data) | {"trunk": "another"}, tmp_path)
    with pytest.raises(DataError, match="another trunk"):
        worker({"start": 4})


def test_damaged_and_foreign_files_are_named(data, tmp_path) -> None:
    with pytest.raises(DataError, match="has no part"):
        read_parts(tmp_path)
    keep(data, tmp_path, (0, 4))
    path = tmp_path / "part-000000000004.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=f"{path.name} is damaged.*\n.*Delete it"):
        read_parts(tmp_path)
    (tmp_path / "part-000000000000.parquet").unlink()
    with pytest.raises(DataError, match=f"{path.name} is damaged"):
        ray_extract(data, load_true, PAIR, tmp_path, part=PART)
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(DataError, match="did not write"):
        read_parts(tmp_path)


def test_a_cluster_that_is_not_there_is_named(data, tmp_path) -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(DataError, match=f"no Ray at {address}.*refused"):
        ray_extract(data, load_true, PAIR, tmp_path, address=address)


@pytest.mark.parametrize("package", ["ray.data", "pyarrow.parquet"])
def test_without_the_package_the_command_is_named(data, tmp_path, monkeypatch, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r'pip install "objemb\[scale\]"'):
        ray_extract(data, load_true, PAIR, tmp_path)
