"""Index: both backends against a slow search, ties, refusals, files."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objemb_lib import index as index_room
from objemb_lib.errors import DataError, ObjembError
from objemb_lib.index import Index

BOTH = pytest.mark.parametrize("backend", ["torch", "faiss"])


def vectors(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def filled(n: int = 50, dim: int = 8, backend: str = "torch", ids=None) -> Index:
    made = Index(dim, backend, meta={"trunk": "toy"})
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


@BOTH
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_matches_slow_search_ties_too(backend, n, q, dim, k, seed):
    """Small whole numbers: inner products are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    gallery, queries = (rng.integers(-2, 3, (m, dim)).astype(np.float32) for m in (n, q))
    ids = rng.permutation(1000)[:n]
    made = Index(dim, backend)
    made.add(gallery, ids)
    scores, found = made.search(queries, k)
    expected_scores, expected = slow_search(gallery, ids, queries, k)
    assert scores.dtype == np.float32 and found.dtype == np.int64
    assert found.shape == (q, min(k, n))
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(found, expected)


def test_backends_agree_across_chunks(monkeypatch):
    monkeypatch.setattr(index_room, "CHUNK_BYTES", 4 * 500 * 7)  # seven queries at a time
    queries = vectors(40, 64, seed=1)
    (a, a_ids), (b, b_ids) = (filled(500, 64, way).search(queries, 9) for way in ("torch", "faiss"))
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_array_equal(a_ids, b_ids)


@BOTH
def test_equal_photographs_come_in_order_of_id(backend):
    """The same vector many times: the cut at k keeps the smallest ids."""
    made = Index(8, backend)
    made.add(np.repeat(vectors(1), 20, axis=0), np.arange(20)[::-1])
    assert made.search(vectors(1), 5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_auto_measures_once_and_only_for_big_problems(monkeypatch):
    asked = []
    monkeypatch.setattr(index_room, "fastest_backend", lambda: asked.append(1) or "faiss")
    made = filled(backend="auto")
    made.search(vectors(3), 2)
    assert asked == []
    monkeypatch.setattr(index_room, "WORTH_MEASURING", 50 * 50 * 8)
    monkeypatch.setattr(index_room, "MANY", 50)
    made.search(vectors(49), 1)
    assert asked == []
    used = []
    real = index_room.WAYS["faiss"]
    monkeypatch.setitem(index_room.WAYS, "faiss", lambda *a: used.append(1) or real(*a))
    _, ids = made.search(vectors(50), 1)
    assert asked == [1] and used == [1]
    assert ids[:, 0].tolist() == list(range(50))


@pytest.fixture
def unmeasured():
    index_room.fastest_backend.cache_clear()
    yield
    index_room.fastest_backend.cache_clear()


@pytest.mark.parametrize("slow, expected", [("faiss", "torch"), ("torch", "faiss")])
def test_the_faster_way_is_chosen_once(monkeypatch, unmeasured, slow, expected):
    """On a clock that only the two ways move."""
    clock = [0.0]

    def timed(name):
        def way(*_):
            clock[0] += 3 if name == slow else 2

        return way

    monkeypatch.setattr(index_room, "WAYS", {name: timed(name) for name in index_room.WAYS})
    monkeypatch.setattr(index_room.time, "perf_counter", lambda: clock[0])
    assert index_room.fastest_backend() == expected
    total = clock[0]
    assert index_room.fastest_backend() == expected and clock[0] == total


def test_ids_continue_over_several_adds():
    made = filled(5)
    made.add(vectors(3, seed=1))
    made.add(vectors(1, seed=2), [70])
    assert len(made) == 9
    assert made.search(vectors(3, seed=1), 1)[1].tolist() == [[5], [6], [7]]
    assert made.search(vectors(1, seed=2), 1)[1].tolist() == [[70]]


def test_no_queries_give_no_rows():
    scores, ids = filled().search(np.zeros((0, 8)), 3)
    assert scores.shape == ids.shape == (0, 3)


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((2, 7)), r"shape \(2, 7\) for an index of 8"),
        (np.zeros(8), r"shape \(8,\)"),
        (np.full((1, 8), np.nan), "NaN"),
        (np.full((1, 8), np.inf), "NaN"),
    ],
)
def test_bad_vectors_are_refused_and_nothing_is_added(bad, message):
    made = filled()
    for call in (lambda: made.add(bad), lambda: made.search(bad, 1)):
        with pytest.raises(DataError, match=message):
            call()
    assert len(made) == 50


@pytest.mark.parametrize(
    "ids, message",
    [([7, 7], "twice"), ([3, 60], "twice"), ([1], "one integer id"), ([0.5, 1.5], "integer")],
)
def test_bad_ids_are_refused_and_nothing_is_added(ids, message):
    made = filled()
    with pytest.raises(DataError, match=message):
        made.add(vectors(2), ids)
    assert len(made) == 50 and made.search(vectors(50), 1)[1].max() == 49


def test_search_needs_vectors_and_a_count():
    with pytest.raises(DataError, match="of 0 vectors"):
        Index(8).search(vectors(1), 1)
    with pytest.raises(DataError, match="search for 0"):
        filled().search(vectors(1), 0)
    with pytest.raises(DataError, match="auto, torch, faiss"):
        Index(8, backend="annoy")


@BOTH
def test_saved_and_loaded_finds_the_same_and_can_grow(tmp_path, backend):
    path = tmp_path / "Café.index"
    made = filled(ids=np.arange(100, 150), backend=backend)
    made.save(path)
    loaded = Index.load(path, backend)
    queries = vectors(5, seed=4)
    for a, b in zip(made.search(queries, 4), loaded.search(queries, 4)):
        np.testing.assert_array_equal(a, b)
    assert loaded.meta == {"trunk": "toy"} and len(loaded) == 50
    with pytest.raises(DataError, match="twice"):
        loaded.add(queries[:1], [100])
    loaded.add(queries)  # by default from len(loaded), so 50 to 54
    assert loaded.search(queries, 1)[1].ravel().tolist() == list(range(50, 55))
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_an_empty_index_can_be_saved(tmp_path):
    Index(8).save(tmp_path / "a.index")
    loaded = Index.load(tmp_path / "a.index")
    loaded.add(vectors(2))
    assert loaded.search(vectors(2), 1)[1].tolist() == [[0], [1]]


def test_plain_faiss_reads_the_file(tmp_path):
    filled().save(tmp_path / "a.index")
    plain = faiss.read_index(str(tmp_path / "a.index"))
    assert plain.search(vectors(3), 1)[1].ravel().tolist() == [0, 1, 2]


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "a.index"
    with pytest.raises(DataError, match="a.index"):
        Index.load(path)
    filled().save(path)
    whole = path.read_bytes()
    header = b"\xff" + whole[1:]
    for content in (b"", whole[:-1], whole[:300], whole[300:], header, b"no index" * 50):
        path.write_bytes(content)
        with pytest.raises(DataError, match="a.index"):
            Index.load(path)


def test_another_kind_of_index_is_refused(tmp_path, monkeypatch):
    """Its scores would be distances: smaller is better."""
    path = tmp_path / "a.index"
    made = filled()
    made._store = faiss.IndexIDMap(faiss.IndexFlatL2(8))
    made.save(path)
    with pytest.raises(DataError, match="exact inner-product"):
        Index.load(path)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.index"
    filled().save(path)
    large = filled(5000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(ObjembError, match="a.index"):
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(Index.load(path)) == 50 and len(list(tmp_path.iterdir())) == 1
