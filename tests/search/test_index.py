"""Index: exact against a slow search, families against exact, removal, refusals, files."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objemb_lib.config import DataError
from objemb_lib.search import index as room
from objemb_lib.search.index import Index, provenance, recall
from objemb_lib.search.rerank import rerank


def vectors(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def filled(n: int = 50, dim: int = 8, ids=None) -> Index:
    made = Index(dim, meta={"trunk": "toy"})
    made.add(vectors(n, dim), ids)
    return made


def slow_search(gallery, ids, queries, k):
    """Sort everything by falling score, then by id, one query at a time."""
    found = []
    for query in queries:
        scores = [float(np.dot(row, query)) for row in gallery]
        found.append(sorted(zip([-s for s in scores], ids))[:k])
    table = np.array(found, dtype=object).reshape(len(queries), -1, 2)
    return -table[..., 0].astype(np.float32), table[..., 1].astype(np.int64)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_matches_slow_search_ties_too(n, q, dim, k, seed):
    """Small whole numbers: inner products are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    gallery, queries = (rng.integers(-2, 3, (m, dim)).astype(np.float32) for m in (n, q))
    gallery[~gallery.any(axis=1)] = queries[~queries.any(axis=1)] = 1  # zeros are refused
    ids = rng.permutation(1000)[:n]
    made = Index(dim)
    made.add(gallery, ids)
    scores, found = made.search(queries, k)
    expected_scores, expected = slow_search(gallery, ids, queries, k)
    assert scores.dtype == np.float32 and found.dtype == np.int64
    assert found.shape == (q, min(k, n))
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(found, expected)


def test_the_same_is_found_a_few_vectors_and_queries_at_a_time(monkeypatch):
    made, queries = filled(500, 64), vectors(40, 64, seed=1)
    scores, ids = made.search(queries, 9)
    monkeypatch.setattr(room, "AT_ONCE", 7)
    monkeypatch.setattr(room, "SCORES", 7 * 30)
    some, same = made.search(queries, 9)
    np.testing.assert_allclose(some, scores, atol=1e-6)
    np.testing.assert_array_equal(same, ids)


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((2, 7)),
        np.ones(8),
        np.full((1, 8), np.nan),
        np.full((1, 8), np.inf),
        np.eye(9, 8),
        np.full((1, 8), 1e300),
        np.ones((1, 8), complex),
        np.full((1, 8), "a"),
        [[1], [1, 2]],
    ],
)
def test_bad_vectors_are_refused_and_nothing_is_added(bad):
    made = filled()
    for call in (lambda: made.add(bad), lambda: made.search(bad, 1)):
        with pytest.raises(DataError, match="vectors|ranked"):
            call()
    assert len(made) == 50


@pytest.mark.parametrize("ids", [[70, 70], [3, 60], [-1, 60], [1], [0.5, 1.5]], ids=str)
def test_bad_ids_are_refused_and_nothing_is_added(ids):
    made = filled()
    with pytest.raises(DataError, match="ids"):
        made.add(vectors(2), ids)
    assert len(made) == 50 and made.search(vectors(50), 1)[1].max() == 49


def test_search_needs_vectors_and_a_count_but_no_queries():
    with pytest.raises(DataError, match="of 0 vectors"):
        Index(8).search(vectors(1), 1)
    with pytest.raises(DataError, match="search for 0"):
        filled().search(vectors(1), 0)
    scores, ids = filled().search(np.zeros((0, 8)), 3)
    assert scores.shape == ids.shape == (0, 3)


# --- files --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 50])
def test_saved_and_loaded_finds_the_same_and_can_grow(tmp_path, n):
    path, queries = tmp_path / "Café.index", vectors(5, seed=4)
    made = filled(n, ids=np.arange(100, 100 + n))
    made.save(path, more=np.eye(3))
    loaded = Index.load(path)
    assert loaded.meta == {"trunk": "toy"} and len(loaded) == n
    assert room.read_tables(path)["more"].tolist() == np.eye(3).tolist()
    if n:
        for a, b in zip(made.search(queries, 4), loaded.search(queries, 4)):
            np.testing.assert_array_equal(a, b)
        with pytest.raises(DataError, match="twice"):
            loaded.add(queries[:1], [100])
        plain = faiss.read_index(str(path))  # faiss itself reads the file
        np.testing.assert_array_equal(plain.search(queries, 1)[1], made.search(queries, 1)[1])
    loaded.add(queries)  # by default after the highest id
    first = 150 if n else 0
    assert loaded.search(queries, 1)[1].ravel().tolist() == list(range(first, first + 5))
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_broken_files_and_those_of_distances_are_named(tmp_path):
    path = tmp_path / "a.index"
    with pytest.raises(DataError, match=r"a\.index"):
        Index.load(path)
    made = filled()
    made.save(path)
    whole = path.read_bytes()
    header = b"\xff" + whole[1:]
    for content in (b"", whole[:-1], whole[:300], whole[300:], header, b"no index" * 50):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.index"):
            Index.load(path)
    graph = Index(8, factory="HNSW8")
    graph.add(vectors(2))
    faiss.copy_array_to_vector(np.array([0, -1]), graph._store.id_map)  # as removal once did
    graph.save(path)
    with pytest.raises(DataError, match="hides vectors"):
        Index.load(path)
    made._store = faiss.IndexIDMap(faiss.IndexFlatL2(8))  # smaller is better there
    made.save(path)
    with pytest.raises(DataError, match="distances"):
        Index.load(path)


def test_an_index_refuses_another_model(tmp_path):
    toy, other_toy = (
        SimpleNamespace(name="toy", fingerprint=lambda w=w: w) for w in ("abc", "abd")
    )
    own = provenance(toy, 256, ("head", "gem"))
    made = Index(8, meta=own)
    made.add(vectors(3))
    made.save(tmp_path / "a.index")
    assert Index.load(tmp_path / "a.index", meta=own).meta == own
    for other, words in (
        (provenance(other_toy, 256, ("head", "gem")), "weights is 'abc', not 'abd'"),
        (own | {"margin": "0.1"}, "margin is None"),
    ):
        with pytest.raises(DataError, match=words):
            Index.load(tmp_path / "a.index", meta=other)


# --- families -----------------------------------------------------------------------------

FAMILIES = [  # factory, setting under which it looks at everything it has
    ("Flat", ""),
    ("SQ8", ""),
    ("PCA12,SQ8", ""),
    ("IVF4,Flat", "nprobe=4"),
    ("OPQ4,IVF4,PQ4x6", "nprobe=4"),
    ("HNSW8", "efSearch=400"),
]
EVERY = pytest.mark.parametrize("factory, hard", FAMILIES, ids=lambda word: word)
REMOVING = pytest.mark.parametrize("factory, hard", FAMILIES[:-1], ids=lambda word: word)


@functools.cache
def kept(factory: str, hard: str, n: int = 400, dim: int = 16) -> Index:
    """Training takes a second or two: once for all tests."""
    made = Index(dim, factory=factory, meta={"trunk": "toy"})
    made.train(vectors(n, dim))
    made.add(vectors(n, dim), 1000 + np.arange(n))
    return made.tune(hard) if hard else made


def trained(factory: str, hard: str = "") -> Index:
    """A copy that a test may change."""
    made = copy.copy(kept(factory, hard))
    made._take(faiss.deserialize_index(faiss.serialize_index(made._store)))
    return made


@EVERY
def test_every_family_finds_most_of_what_exact_search_finds(factory, hard):
    made, exact_one = trained(factory, hard), trained("Flat")
    queries = vectors(40, 16, seed=7)
    scores, ids = made.search(queries, 10)
    true_scores, true_ids = exact_one.search(queries, 10)
    share = recall(ids, true_ids)
    assert share == 1 if factory in ("Flat", "IVF4,Flat") else share > 0.4
    assert (np.diff(scores, axis=1) <= 0).all() and scores.dtype == np.float32
    np.testing.assert_allclose(scores, true_scores, atol=0.35)  # codes are coarse, not wrong
    first = rerank(queries, ids, exact_one, 10)[1][:, 0]
    assert (first == true_ids[:, 0]).mean() >= max(0.8, (ids[:, 0] == true_ids[:, 0]).mean())


@REMOVING
def test_what_is_removed_is_not_found_and_the_rest_keep_their_ids(tmp_path, factory, hard):
    made, x = trained(factory, hard), vectors(400, 16)
    before = made.vectors(np.array([1399, 1001]))
    made.remove(np.arange(1010, 1060))
    made.save(tmp_path / "a.index")
    for index in (made, Index.load(tmp_path / "a.index")):
        assert len(index) == 350
        _, ids = index.search(x, 350)
        assert not np.isin(ids, np.arange(1010, 1060)).any()
        top = index.search(x[60:], 20)[1]
        assert (top == np.arange(1060, 1400)[:, None]).any(axis=1).mean() > 0.95
        np.testing.assert_array_equal(index.vectors(np.array([1399, 1001])), before)
        with pytest.raises(DataError, match="1010"):
            index.vectors(np.array([1010]))
        with pytest.raises(DataError, match=r"no vectors of the ids \[1011\]"):
            index.remove([1001, 1011])
        assert len(index) == 350
        index.add(x[10:11], [1010])  # an id that was taken out is free again
        assert 1010 in index.search(x[10:11], 5)[1] and len(index) == 351


@EVERY
def test_from_disk_by_memory_mapping_it_finds_the_same_and_changes_nothing(tmp_path, factory, hard):
    made, path, queries = trained(factory, hard), tmp_path / "a.index", vectors(9, 16, seed=3)
    made.save(path)
    mapped = Index.load(path, mmap=True)
    for a, b in zip(made.search(queries, 7), mapped.search(queries, 7)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(mapped.vectors([1007]), made.vectors([1007]))
    assert repr(mapped) == repr(made)
    for change in (
        lambda: mapped.add(queries),
        lambda: mapped.remove([1007]),
        lambda: mapped.train(queries),
        lambda: mapped.save(path),
    ):
        with pytest.raises(DataError, match="without mmap"):
            change()
    made.save(path)  # a new file in its place does not disturb who reads the old one
    np.testing.assert_array_equal(mapped.search(queries, 7)[1], made.search(queries, 7)[1])


def test_lists_hold_too_few():
    """One list of four is read: what is not there has no id."""
    made = trained("IVF4,Flat", "nprobe=1")
    scores, ids = made.search(vectors(3, 16, seed=7), 400)
    assert ids.shape == (3, 400) and (ids[:, -1] == -1).all() and (ids[:, 0] >= 1000).all()
    assert (scores[ids == -1] == -np.inf).all() and np.isfinite(scores[ids >= 0]).all()


def test_a_sample_is_enough_to_train_and_the_same_seed_gives_the_same_index():
    found = []
    for seed in (0, 0, 1):
        made = Index(16, factory="IVF4,PQ4x4")
        made.train(vectors(2000, 16), at_most=300, seed=seed)
        made.add(vectors(500, 16))
        found.append(made.search(vectors(9, 16, seed=5), 5)[0])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    with pytest.raises(DataError, match="holds vectors already"):
        made.train(vectors(50, 16))
    with pytest.raises(DataError, match=r"train\(sample\)"):
        Index(16, factory="IVF4,Flat").add(vectors(9, 16))


def test_what_a_family_cannot_do_is_refused_and_changes_nothing():
    for factory in ("Flatt", "PQ3", "LSH"):
        with pytest.raises(RuntimeError):
            Index(16, factory=factory)
    graph = trained("HNSW8", "efSearch=400")
    with pytest.raises(DataError, match="HNSW8 cannot lose vectors"):
        graph.remove([1003])
    assert 1003 in graph.search(vectors(400, 16)[3:4], 1)[1] and len(graph) == 400


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 30), min_size=1)), max_size=12))
def test_adding_and_removing_in_any_order_leaves_what_a_dictionary_holds(steps):
    """All families that remove in their own way, beside a plain set."""
    x = vectors(31, 16)
    for factory, hard in (FAMILIES[0], FAMILIES[3]):
        made, held = Index(16, factory=factory), set()
        made.train(vectors(200, 16, seed=1))
        for adds, chosen in steps:
            ids = np.array(sorted(chosen - held if adds else chosen & held), int)
            (made.add(x[ids], ids) if adds else made.remove(ids))
            held = held | chosen if adds else held - chosen
        assert len(made) == len(held)
        if held:
            ids = (made.tune(hard) if hard else made).search(x, 31)[1]
            assert set(ids[ids >= 0].tolist()) <= held
            assert ids[sorted(held), 0].tolist() == sorted(held)


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF2,Flat", "HNSW4"])
def test_a_flipped_byte_in_a_file_is_found(tmp_path: Path, factory: str) -> None:
    """All over the file; what is left are dates and the like of the npz, which decide nothing."""
    path, x = tmp_path / "a.index", np.random.default_rng(0).standard_normal((80, 4))
    index = Index(4, {"trunk": "toy"}, factory)
    index.train(x)
    index.add(x)
    index.save(path, boxes=np.arange(9.0))
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        try:
            read = Index.load(path)
        except DataError as error:
            refused += str(path) in str(error)
            continue
        assert read.meta == index.meta
        np.testing.assert_array_equal(read.vectors(np.arange(80)), index.vectors(np.arange(80)))
    assert refused > 0.8 * len(whole) / 3


def test_a_mapped_index_is_not_read_to_be_checked_and_older_ones_are_believed(
    tmp_path: Path, monkeypatch
) -> None:
    path, index = tmp_path / "a.index", Index(3)
    index.add(np.eye(3))
    with monkeypatch.context() as patch:  # as before there were checksums
        patch.setattr(room, "_checksum", lambda *_: None)
        index.save(path)
    assert len(Index.load(path)) == 3
    index.save(path)
    monkeypatch.setattr(room, "_checksum", lambda *_: pytest.fail("read whole"))
    assert len(Index.load(path, mmap=True)) == 3
