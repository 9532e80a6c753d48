"""Milvus Lite, a local file, answers as the index in memory does; what cannot work is said."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from objemb_lib.config import DataError
from objemb_lib.data.mini_battles import mini_battles
from objemb_lib.embed.boxes import Boxes, true_boxes
from objemb_lib.embed.extract import ExtractOptions, Objects, extract_objects
from objemb_lib.embed.regions import Region
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.milvus import MilvusIndex
from objemb_lib.search.objects import ObjectIndex

pytest.importorskip("pymilvus", reason="`make extras` brings it")
pytest.importorskip("milvus_lite", reason="`make extras` brings it")
PAIR, META = ("stage4", "spoc"), {"trunk": "lite0"}


@pytest.fixture(scope="module")
def real() -> tuple[Objects, list[str], list[str]]:
    """Some hundred real objects of battle scenes, their files, and the category of each."""
    data = mini_battles("battle").subset(range(0, 812, 8))
    region, options = Region(true_boxes(data)), ExtractOptions(cache=False, progress=False)
    found = extract_objects(data, load_trunk(), [PAIR], {"true": region}, options)
    names = [data.category_names[c] if c >= 0 else "" for c in np.concatenate(data.box_categories)]
    return found["true"], list(data.files), names


@pytest.fixture(scope="module")
def filled(real, tmp_path_factory) -> MilvusIndex:
    objects, files, categories = real
    place = tmp_path_factory.mktemp("milvus") / "objects.db"
    index = MilvusIndex(112, place, meta=META)
    index.add(objects, PAIR, files, "battle", categories)
    return index


def part_of(objects: Objects, images: range) -> Objects:
    """The objects of some images in a row."""
    rows = np.isin(objects.image, images)
    where = Boxes("part", objects.where.boxes[images.start : images.stop])
    vectors = {pair: v[rows] for pair, v in objects.vectors.items()}
    return Objects(vectors, where)


def made(vectors: np.ndarray) -> Objects:
    """One object an image, with the given vectors."""
    where = Boxes("made", [np.array([[0, 0, 5, 5]])] * len(vectors))
    return Objects({PAIR: vectors}, where)


def assert_same(found, expected) -> None:
    assert [(m.image, m.file, m.box) for m in found] == [(m.image, m.file, m.box) for m in expected]
    np.testing.assert_allclose([m.score for m in found], [m.score for m in expected], atol=2e-6)


def test_it_answers_as_the_index_in_memory(real, filled) -> None:
    objects, files, _ = real
    memory = ObjectIndex(112)
    memory.add(objects, PAIR, files)
    assert len(filled) == len(memory) > 200
    for row in range(0, len(objects), 9):
        vector, own = objects.vectors[PAIR][row], {files[objects.image[row]]}
        assert_same(filled.search(vector, 8), memory.search(vector, 8))
        assert_same(filled.search(vector, 5, without=own), memory.search(vector, 5, without=own))
    every = memory.search(objects.vectors[PAIR][0], 10_000)  # more than there are
    assert_same(filled.search(objects.vectors[PAIR][0], 10_000), every)


def test_what_is_added_twice_is_there_once(real, filled, tmp_path) -> None:
    objects, files, categories = real
    before = filled.search(objects.vectors[PAIR][3], 20)
    filled.add(objects, PAIR, files, "battle", categories)
    assert len(filled) == len(objects)
    assert_same(filled.search(objects.vectors[PAIR][3], 20), before)
    parts = MilvusIndex(112, tmp_path / "parts.db")
    for some in (range(40, len(files)), range(0, 50)):  # the other order, overlapping
        parts.add(part_of(objects, some), PAIR, files[some.start : some.stop], "battle",
                  numbers=some)  # fmt: skip
    assert len(parts) == len(objects)
    assert_same(parts.search(objects.vectors[PAIR][3], 20), before)


def test_a_batch_that_failed_half_way_is_completed_by_adding_again(
    real, tmp_path, monkeypatch
) -> None:
    from pymilvus.exceptions import MilvusException

    objects, files, _ = real
    monkeypatch.setattr("objemb_lib.search.milvus.BATCH", 100)
    index = MilvusIndex(112, tmp_path / "objects.db")
    whole, calls = index.client.upsert, []

    def fails_at_the_second(*args: object, **kwargs: object) -> dict:
        calls.append(1)
        if len(calls) == 2:
            raise MilvusException(message="lost connection")
        return whole(*args, **kwargs)

    monkeypatch.setattr(index.client, "upsert", fails_at_the_second)
    with pytest.raises(DataError, match="lost connection"):
        index.add(objects, PAIR, files)
    assert len(index) == 100
    index.add(objects, PAIR, files)
    assert len(index) == len(objects)


def test_data_sets_and_categories_are_searched_alone(real, filled, tmp_path) -> None:
    objects, files, categories = real
    mixed = MilvusIndex(112, tmp_path / "mixed.db")
    mixed.add(objects, PAIR, files, "battle", categories)
    mixed.add(objects, PAIR, [f"other/{f}" for f in files], 'a "quoted" name')
    assert len(mixed) == 2 * len(objects)
    vector = objects.vectors[PAIR][0]
    alone = mixed.search(vector, 200, data_set="battle")
    assert_same(alone, filled.search(vector, 200))
    others = mixed.search(vector, 200, data_set='a "quoted" name')
    assert [m.file for m in others] == [f"other/{m.file}" for m in alone]
    category = max(set(categories) - {""}, key=categories.count)
    right = {files[i] for i, name in zip(objects.image, categories) if name == category}
    few = mixed.search(vector, 200, data_set="battle", category=category)
    assert {m.file for m in few} == right and 0 < len(few) < len(alone)
    assert mixed.search(vector, 3, data_set="no such") == []


def test_images_are_taken_out(real, tmp_path) -> None:
    objects, files, _ = real
    index = MilvusIndex(112, tmp_path / "objects.db")
    index.add(objects, PAIR, files, "battle")
    index.remove(files[:30], "another")
    assert len(index) == len(objects)
    index.remove(files[:30], "battle")
    assert len(index) == int((objects.image >= 30).sum())
    assert not set(files[:30]) & {m.file for m in index.search(objects.vectors[PAIR][0], 100)}


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
index.add(made(vectors), PAIR, [str(i) for i in range(len(vectors))])
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_added_is_there_and_only_one_has_the_file(
    real, filled, tmp_path
) -> None:
    vectors, place = real[0].vectors[PAIR], str(tmp_path / "objects.db")
    np.save(tmp_path / "vectors.npy", vectors)
    command = [sys.executable, "-c", OTHER_PROCESS, filled.uri, place, tmp_path / "vectors.npy"]
    here = str(Path(__file__).parent)
    path = {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    other = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
    assert other.returncode == -signal.SIGKILL, other.stderr
    assert "Milvus Lite serves one process" in other.stdout
    index = MilvusIndex(112, place, meta=META)
    assert len(index) == len(vectors)
    assert index.search(vectors[5], 1)[0].file == "5"


ENDING_PROCESS = """
import sys, time
from objemb_lib.search.milvus import MilvusIndex
MilvusIndex(112, sys.argv[1])
print("open", flush=True)
time.sleep(2)
"""


def test_a_file_that_a_process_still_has_is_waited_for(tmp_path, caplog) -> None:
    place = str(tmp_path / "objects.db")
    command = [sys.executable, "-c", ENDING_PROCESS, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        assert len(MilvusIndex(112, place)) == 0
        assert other.poll() is not None or other.wait(10) == 0
    assert "Failed to start" not in caplog.text


def test_what_is_no_database_is_named_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("objemb_lib.search.milvus.time.sleep", lambda _: pytest.fail("waited"))
    place = tmp_path / "objects.db"
    place.write_text("a file of something else")
    with pytest.raises(DataError, match=r"objects\.db\) failed: .*File exists") as caught:
        MilvusIndex(112, str(place))
    assert "local file, its path" in caught.value.remedy and place.read_text().startswith("a file")


def test_a_collection_of_another_model_is_refused(filled) -> None:
    with pytest.raises(DataError, match="not 112 of {'trunk': 'lite2'}"):
        MilvusIndex(112, filled.uri, meta={"trunk": "lite2"})
    with pytest.raises(DataError, match="112 dimensions of {'trunk': 'lite0'}, not 320"):
        MilvusIndex(320, filled.uri, meta=META)
    assert MilvusIndex(112, filled.uri).meta == META
    filled.client.create_collection("foreign", dimension=112)
    with pytest.raises(DataError, match="not made here"):
        MilvusIndex(112, filled.uri, "foreign")


def test_an_approximate_index_is_a_word_away(real, filled, tmp_path) -> None:
    objects, files, _ = real
    graph = {"index_type": "HNSW", "M": 16, "efConstruction": 100}
    index = MilvusIndex(112, tmp_path / "graph.db", index=graph, ask={"ef": 64})
    index.add(objects, PAIR, files, "battle")
    (built,) = index.client.list_indexes("objects")
    assert index.client.describe_index("objects", built)["index_type"] == "HNSW"
    vector = objects.vectors[PAIR][0]
    assert_same(index.search(vector, 3), filled.search(vector, 3))


@pytest.mark.parametrize(
    "vectors, words",
    [
        (np.ones((2, 5)), "for .* of 112 dimensions"),
        (np.stack([np.ones(112), np.full(112, np.nan)]), r"\[1\] are zero or not finite"),
        (np.stack([np.zeros(112), np.ones(112)]), r"\[0\] are zero or not finite"),
    ],
)
def test_vectors_that_cannot_be_compared_change_nothing(filled, vectors, words) -> None:
    before = len(filled)
    with pytest.raises(DataError, match=words):
        filled.add(made(vectors.astype(np.float32)), PAIR, ["x.png", "y.png"])
    assert len(filled) == before
    with pytest.raises(DataError, match="zero or not finite|dimensions"):
        filled.search(vectors[0] if not vectors[0].all() or len(vectors[0]) == 5 else vectors[1], 3)


def test_what_else_cannot_work_is_said(filled, tmp_path) -> None:
    one = made(np.ones((1, 112), np.float32))
    with pytest.raises(DataError, match="2 files for 1 images"):
        filled.add(one, PAIR, ["x.png", "y.png"])
    with pytest.raises(DataError, match="2 categories for 1 objects"):
        filled.add(one, PAIR, ["x.png"], categories=["a", "b"])
    for k in (0, 20_000):
        with pytest.raises(DataError, match="Use k from 1"):
            filled.search(np.ones(112), k)
    with pytest.raises(DataError, match="is empty"):
        MilvusIndex(112, tmp_path / "empty.db").search(np.ones(112), 3)


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
