"""Extraction on Ray: the vectors of one process, whatever is lost on the way."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search import ray as room
from objemb_lib.search.milvus import MilvusIndex
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.ray import ray_extract, read_parts

ray = pytest.importorskip("ray", reason="`make extras` brings it")
PAIR, PART = ("stage4", "spoc"), 4
extracted = partial(ray_extract, pair=PAIR, part=PART)


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # nice ones wait for everybody on a busy machine
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        with ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False):
            yield


def load_true(log: Path, kill_at: str = "", wrong: bool = False) -> tuple:
    """What a worker loads; notes what it does, and dies once, at a certain file."""
    (log / f"load-{os.getpid()}").touch()

    def look(some: ImageDataset) -> Region:
        (log / f"made-{Path(some.files[0]).stem}").touch()
        if kill_at in some.files and not (log / "killed").exists():
            (log / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Region(true_boxes(some.subset([0]) if wrong else some))

    return load_trunk(), look


@pytest.fixture
def in_process(ray_here, monkeypatch) -> None:
    """What workers do, without waiting for them."""
    one_by_one = lambda worker, todo, *_: map(room._Worker(*worker).part, todo)  # noqa: E731
    monkeypatch.setattr(room, "_tables", one_by_one)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


def test_a_lost_worker_costs_nothing_and_what_is_done_is_not_done_again(
    ray_here, data, alone, log, tmp_path
) -> None:
    place, load = tmp_path / "parts", partial(load_true, log, data.files[9])
    index = MilvusIndex(112, tmp_path / "objects.db")
    files = extracted(data, load, folder=place, index=index, workers=2)
    assert (log / "killed").exists() and len(files) == 6
    assert len(list(log.glob("load-*"))) in (2, 3)  # the second may have come too late
    found = read_parts(place)
    assert found.files == index.files == list(data.files) and found.broken == {}
    for part in ("image", "boxes"):
        np.testing.assert_array_equal(getattr(found.objects, part), getattr(alone, part))
    right, scale = alone.vectors[PAIR], np.abs(alone.vectors[PAIR]).max()
    np.testing.assert_allclose(found.objects.vectors[PAIR], right, atol=1e-5 * scale)
    memory = ObjectIndex(112)
    memory.add(alone, PAIR, data.files)
    for vector in right[::7]:
        here, there = memory.search(vector, 5), index.search(vector, 5)
        assert [(m.image, m.file, m.box) for m in there] == [(m.image, m.file, m.box) for m in here]

    for file in files[1:3]:
        file.unlink()
    kept = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    shutil.rmtree(log)
    log.mkdir()
    extracted(data, load, folder=place, index=index, workers=1)
    assert {path.stem for path in log.glob("made-*")} == {
        f"made-{Path(data.files[n]).stem}" for n in (4, 8)
    }
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and len(index) == len(alone)


def test_a_slow_index_holds_the_workers_back(ray_here, data, log, tmp_path) -> None:
    ahead = []

    def add(*_: object, **__: object) -> None:
        time.sleep(0.2)
        ahead.append(len(list(log.glob("made-*"))) - len(ahead))

    slow = SimpleNamespace(add=add)
    load = partial(load_true, log)
    ray_extract(data, load, PAIR, tmp_path / "parts", slow, part=1, workers=1)
    assert len(ahead) == len(data) and max(ahead) <= 2, ahead


def test_what_fails_is_named_and_not_done(ray_here, data, log, tmp_path) -> None:
    one, load = data.subset(range(4)), partial(load_true, log)
    with pytest.raises(DataError, match="vectors of shape .* of 5 dimensions"):
        extracted(one, load, folder=tmp_path, index=MilvusIndex(5, tmp_path / "x.db"))
    with pytest.raises(DataError, match="are not of"):
        extracted(one, partial(load, wrong=True), folder=tmp_path)
    assert not list(tmp_path.glob("part-*"))


def test_broken_images_are_left_out_and_named(in_process, data, alone, log, tmp_path) -> None:
    for file in data.files[:6]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.root / file, tmp_path / file)
    for i in (1, 4, 5):  # also all of the second part
        (tmp_path / data.files[i]).write_bytes((data.root / data.files[i]).read_bytes()[:60])
    few = ImageDataset(data.name, data.split, tmp_path, data.files[:6], data.labels[:6],
                       boxes=data.boxes[:6])  # fmt: skip
    with pytest.warns(UserWarning, match="3 images"):
        extracted(few, partial(load_true, log), folder=tmp_path)
    found = read_parts(tmp_path)
    assert found.files == [data.files[i] for i in (0, 2, 3)]
    assert found.numbers.tolist() == [0, 2, 3] and found.objects.image.max() == 2
    assert set(found.broken) == {data.files[i] for i in (1, 4, 5)}
    assert data.files[1] in found.broken[data.files[1]]
    right = alone.vectors[PAIR][np.isin(alone.image, [0, 2, 3])]
    np.testing.assert_allclose(found.objects.vectors[PAIR], right, rtol=1e-4, atol=1e-3)


def test_folders_of_other_settings_and_damaged_files_are_named(
    in_process, data, log, tmp_path
) -> None:
    few, load = data.subset(range(8)), partial(load_true, log)
    with pytest.raises(DataError, match="has no part"):
        read_parts(tmp_path)
    path = extracted(few, load, folder=tmp_path)[1]
    for changed, words in (
        ({"dataset": data}, "another data"),
        ({"pair": ("head", "spoc")}, "another stage"),
        ({"size": 128}, "another size"),
        ({"part": 8}, "another part"),
    ):
        with pytest.raises(DataError, match=words):
            extracted(**{"dataset": few, "load": load, "folder": tmp_path} | changed)
    path.unlink()
    other = lambda: (load_trunk(pretrained=False), load()[1])  # noqa: E731
    with pytest.raises(DataError, match="another trunk"):
        extracted(few, other, folder=tmp_path)
    first = tmp_path / "part-000000000000.parquet"
    first.write_bytes(first.read_bytes()[:-30])
    for read in (lambda: read_parts(tmp_path), lambda: extracted(few, load, folder=tmp_path)):
        with pytest.raises(DataError, match=f"{first.name} is damaged.*\n.*Delete it"):
            read()
    pd.DataFrame({"a": [1]}).to_parquet(first)
    with pytest.raises(DataError, match="not ray_extract's"):
        read_parts(tmp_path)


@pytest.mark.parametrize("package", ["ray.util", "pyarrow.parquet"])
def test_without_the_package_the_command_is_named(data, log, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r'pip install "objemb\[scale\]"'):
        extracted(data, partial(load_true, log), folder=tmp_path)
