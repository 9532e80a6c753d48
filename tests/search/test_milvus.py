"""What only Milvus does: objects twice, filters, processes, servers (test_objects: the rest)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_gallery import PAIR, made

from objemb_lib.config import DataError
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.boxes import true_boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.milvus import MilvusIndex
from objemb_lib.search.objects import ObjectIndex

pytest.importorskip("pymilvus", reason="`make extras` brings it")
pytest.importorskip("milvus_lite", reason="`make extras` brings it")
REAL, META = ("stage4", "spoc"), {"trunk": "lite0"}


@pytest.fixture(scope="module")
def real() -> tuple[Objects, list[str], list[str]]:
    """Some hundred real objects of battle scenes, their files, and the category of each."""
    data = mini_battles("battle").subset(range(0, 812, 8))
    region, options = Region(true_boxes(data)), ExtractOptions(cache=False, progress=False)
    found = extract_objects(data, load_trunk(), [REAL], {"true": region}, options)
    names = [data.category_names[c] if c >= 0 else "" for c in np.concatenate(data.box_categories)]
    return found["true"], list(data.files), names


@pytest.fixture(scope="module")
def filled(real, tmp_path_factory) -> MilvusIndex:
    objects, files, categories = real
    place = tmp_path_factory.mktemp("milvus") / "objects.db"
    index = MilvusIndex(112, place, meta=META, data_set="battle")
    index.add(objects, REAL, files, categories)
    return index


def assert_same(found, expected) -> None:
    assert [(m.image, m.file, m.box) for m in found] == [(m.image, m.file, m.box) for m in expected]
    np.testing.assert_allclose([m.score for m in found], [m.score for m in expected], atol=2e-6)


def test_it_answers_as_the_index_in_memory(real, filled) -> None:
    objects, files, _ = real
    memory = ObjectIndex(112)
    memory.add(objects, REAL, files)
    assert len(filled) == len(memory) > 200 and filled.files == memory.files
    for row in range(0, len(objects), 9):
        vector, own = objects.vectors[REAL][row], {files[objects.image[row]]}
        assert_same(filled.search(vector, 8), memory.search(vector, 8))
        assert_same(filled.search(vector, 5, without=own), memory.search(vector, 5, without=own))
        for one, other in zip(
            *(index.of_images([objects.image[row]])[0] for index in (filled, memory))
        ):
            np.testing.assert_allclose(one, other, atol=1e-6)
    every = memory.search(objects.vectors[REAL][0], 10_000)  # more than there are
    assert_same(filled.search(objects.vectors[REAL][0], 10_000), every)


def test_what_is_added_twice_is_there_once_and_keeps_its_number(real, filled, milvus) -> None:
    objects, files, categories = real
    before = filled.search(objects.vectors[REAL][3], 20)
    filled.add(objects, REAL, files, categories)
    assert len(filled) == len(objects) and filled.files == files
    assert_same(filled.search(objects.vectors[REAL][3], 20), before)
    index, two = milvus(3), made([[[1, 0, 0]], [[0, 1, 0]]])
    index.add(two, PAIR, ["b", "c"], numbers=[1, 2])  # workers' parts come in any order
    index.add(two, PAIR, ["a", "b"], numbers=[0, 1])
    index.add(two, PAIR, ["c", "d"])
    assert index.files == ["a", "b", "c", "d"] and len(index) == 4


def test_a_batch_that_failed_half_way_is_completed_by_adding_again(
    real, milvus, monkeypatch
) -> None:
    from pymilvus.exceptions import MilvusException

    objects, files, _ = real
    monkeypatch.setattr("objemb_lib.search.milvus.BATCH", 100)
    index = milvus(112)
    whole, calls = index.client.upsert, []

    def fails_at_the_second(*args: object, **kwargs: object) -> dict:
        calls.append(1)
        if len(calls) == 2:
            raise MilvusException(message="lost connection")
        return whole(*args, **kwargs)

    monkeypatch.setattr(index.client, "upsert", fails_at_the_second)
    with pytest.raises(DataError, match="lost connection"):
        index.add(objects, REAL, files)
    assert len(index) == 100
    index.add(objects, REAL, files)
    assert len(index) == len(objects) and index.files == files  # also over several pages


def test_data_sets_and_categories_are_searched_alone(real, filled) -> None:
    objects, files, categories = real
    vector = objects.vectors[REAL][0]
    alone = filled.search(vector, 200)
    other = MilvusIndex(112, filled.uri, data_set='a "quoted" name')
    assert len(other) == 0 and other.files == []
    with pytest.raises(DataError, match="is empty"):
        other.search(vector, 3)
    other.add(objects, REAL, [f"other/{f}" for f in files])
    assert len(filled) == len(other) == len(objects)
    assert_same(filled.search(vector, 200), alone)
    assert [m.file for m in other.search(vector, 200)] == [f"other/{m.file}" for m in alone]
    both = other.search(vector, 2, everywhere=True, without=[f"other/{f}" for f in files[1:]])
    own = {m.file.removeprefix("other/") for m in both}  # a copy of a photograph counts once
    assert len(own) == 2 and files[0] in own
    category = max(set(categories) - {""}, key=categories.count)
    right = {files[i] for i, name in zip(objects.image, categories) if name == category}
    few = filled.search(vector, 200, category=category)
    assert {m.file for m in few} == right and 0 < len(few) < len(alone)
    other.remove(other.files)
    assert len(other) == 0 and len(filled) == len(objects)


OTHER_PROCESS = """
import os, sys, numpy as np
from objemb_lib.config import DataError
from test_milvus import MilvusIndex, made, PAIR, META
taken, own, vectors = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
try:
    MilvusIndex(112, taken, timeout=1)
except DataError as error:
    print(error.remedy, flush=True)
index = MilvusIndex(112, own, meta=META)
index.add(made(vectors[:, None].tolist()), PAIR, [str(i) for i in range(len(vectors))])
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_added_is_there_and_only_one_has_the_file(
    real, filled, tmp_path
) -> None:
    vectors, place = real[0].vectors[REAL], str(tmp_path / "objects.db")
    np.save(tmp_path / "vectors.npy", vectors)
    command = [sys.executable, "-c", OTHER_PROCESS, filled.uri, place, tmp_path / "vectors.npy"]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    other = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert other.returncode == -signal.SIGKILL, other.stderr
    assert "Milvus Lite serves one process" in other.stdout
    index = MilvusIndex(112, place, meta=META)
    assert len(index) == len(vectors)
    assert index.search(vectors[5], 1)[0].file == "5"


def test_a_collection_of_another_model_is_refused(filled, tmp_path) -> None:
    with pytest.raises(DataError, match="its trunk is 'lite0', not 'lite2'"):
        MilvusIndex(112, filled.uri, meta={"trunk": "lite2"})
    with pytest.raises(DataError, match="its dimensions is '112', not '320'"):
        MilvusIndex(320, filled.uri, meta=META)
    assert MilvusIndex(112, filled.uri).meta == META
    filled.client.create_collection("foreign", dimension=112)
    with pytest.raises(DataError, match="not made here"):
        MilvusIndex(112, filled.uri, "foreign")
    (tmp_path / "place.json").write_text("[]")
    with pytest.raises(DataError, match="names no collection"):
        MilvusIndex.load(tmp_path / "place.json")


def test_an_approximate_index_is_a_word_away(real, filled, milvus) -> None:
    objects, files, _ = real
    index = milvus(112, index={"index_type": "HNSW", "M": 16}, ask={"ef": 64}, data_set="battle")
    index.add(objects, REAL, files)
    (built,) = index.client.list_indexes(index.collection)
    assert index.client.describe_index(index.collection, built)["index_type"] == "HNSW"
    vector = objects.vectors[REAL][0]
    assert_same(index.search(vector, 3), filled.search(vector, 3))


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(DataError, match=f"{uri}.*\n.*Check that the server runs"):
        MilvusIndex(112, uri, timeout=1)


def test_without_the_package_the_command_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(DataError, match=r'pip install "objemb\[scale\]"'):
        MilvusIndex(112)
