"""Revisited Oxford and Paris: the three protocols, copies of a part, pickles that would do harm."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objemb_lib.config import DataError
from objemb_lib.data.catalogue import load_splits
from objemb_lib.data.landmarks import read_truth, roxford5k, rparis6k
from objemb_lib.measure.metrics import evaluate_scores

pytestmark = pytest.mark.filterwarnings("ignore:.*images of .* are here")
Write = Callable[..., Path]
IMAGES = ["all_souls_000001", "all_souls_000002", "magdalen_000001", "magdalen_000002", "noise_1"]
QUERIES = ["all_souls_000013", "magdalen_000007"]
GND = [
    {"bbx": [4.0, 3.0, 24.4, 23.0], "easy": np.array([0]), "hard": np.array([1]), "junk": [2]},
    {"bbx": np.array([0, 0, 40, 30]), "easy": np.array([], int), "hard": [3], "junk": [2, 4]},
]


def copy_of(root: Path, make_image: Write, name: str = "roxford5k", protocol: int = 2) -> Path:
    """A made-up copy: five images, two queries, in the official layout."""
    for i, one in enumerate(IMAGES + QUERIES):
        make_image(root / name / "jpg" / f"{one}.jpg", seed=i)
    content = {"imlist": IMAGES, "qimlist": QUERIES, "gnd": GND}
    file = root / name / f"gnd_{name}.pkl"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return root / name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_truth_is_read(tmp_path: Path, make_image: Write, protocol: int) -> None:
    root = copy_of(tmp_path, make_image, protocol=protocol)
    truth = read_truth(root / "gnd_roxford5k.pkl")
    assert (truth.images, truth.queries) == (IMAGES, QUERIES)
    assert truth.boxes.tolist() == [[4, 3, 24.4, 23], [0, 0, 40, 30]]
    assert truth.judged[1]["junk"].tolist() == [2, 4] and not len(truth.judged[1]["easy"])


def test_pickles_of_old_numpy_are_read(tmp_path: Path, make_image: Write) -> None:
    """The published files name numpy.core, which NumPy 2 calls numpy._core."""
    file = copy_of(tmp_path, make_image) / "gnd_roxford5k.pkl"
    raw = file.read_bytes()
    assert b"numpy._core.multiarray" in raw
    file.write_bytes(raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert read_truth(file).images == IMAGES


def test_the_three_protocols_by_hand(tmp_path: Path, make_image: Write) -> None:
    root = copy_of(tmp_path, make_image)
    expected = {  # relevant and junk of each query
        "easy": [([0], [1, 2]), ([], [2, 3, 4])],
        "medium": [([0, 1], [2]), ([3], [2, 4])],
        "hard": [([1], [0, 2]), ([3], [2, 4])],
    }
    for split, answers in expected.items():
        data = roxford5k(split, root)
        assert data.queries.tolist() == [5, 6] and data.gallery.tolist() == [0, 1, 2, 3, 4]
        for query, (relevant, junk) in zip(data.queries, answers):
            assert np.flatnonzero(data.relevant(query)).tolist() == relevant
            assert np.flatnonzero(data.junk(query)).tolist() == junk
        assert data.protocol == "revisited"
    assert data.label_names == ["all_souls", "magdalen"]
    assert data.labels.tolist() == [0, 0, -1, 1, -1, 0, 1]
    whole = Image.open(root / "jpg" / f"{QUERIES[0]}.jpg")  # queries are cut to their box
    assert np.array_equal(data.image(5), whole.crop((4, 3, 24, 23)))
    assert data.image(0).size == (40, 30)


def test_it_is_scored_as_published(tmp_path: Path, make_image: Write) -> None:
    """The query without easy images is left out; junk in the first place does not count."""
    data = roxford5k("easy", copy_of(tmp_path, make_image))
    found = evaluate_scores(np.array([[3.0, 5.0, 4.0, 2.0, 3.5]] * 2), data)
    assert found.n_skipped == 1
    # ranking 1 2 4 0 3; junk 1 and 2 out: 4 0 3; image 0 is second
    assert found.mean("mAP") == pytest.approx((0 + 1 / 2) / 2)
    assert (found.mean("P@1"), found.mean("P@5")) == (0, 1 / 2)


def test_a_part_keeps_the_truth_of_what_is_there(tmp_path: Path, make_image: Write) -> None:
    root = copy_of(tmp_path, make_image)
    (root / "jpg" / f"{IMAGES[0]}.jpg").unlink()
    (root / "jpg" / f"{QUERIES[0]}.jpg").unlink()
    with pytest.warns(UserWarning, match="5 of the 5,063 images of roxford5k"):
        data = roxford5k("medium", root)
    assert data.name == "roxford5k (part)" and data.gallery.tolist() == [0, 1, 2, 3]
    assert data.queries.tolist() == [4]
    assert [data.files[i] for i in np.flatnonzero(data.relevant(4))] == ["jpg/magdalen_000002.jpg"]
    assert np.flatnonzero(data.junk(4)).tolist() == [1, 3]
    for one in QUERIES[1:]:
        (root / "jpg" / f"{one}.jpg").unlink()
    with pytest.raises(DataError, match="no queries"):
        roxford5k("medium", root)


def test_each_city_is_tuned_on_the_other(tmp_path: Path, make_image: Write) -> None:
    root = copy_of(tmp_path, make_image)
    with pytest.raises(DataError, match="Use easy or medium"):
        roxford5k("all", root)
    with pytest.raises(DataError, match="rparis6k"):
        load_splits(f"roxford5k:{root}")
    copy_of(tmp_path, make_image, "rparis6k")
    train, tests = load_splits(f"roxford5k:{root}")
    assert (train.name, train.split) == ("rparis6k (part)", "medium")
    assert list(tests) == ["hard", "medium", "easy"]
    assert rparis6k("train", tmp_path / "rparis6k").root == root


class Harm:
    """What an attacker's pickle would run when it is loaded."""

    def __init__(self, run: Callable, *arguments: object) -> None:
        self.run, self.arguments = run, arguments

    def __reduce__(self) -> tuple:
        return self.run, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_something_is_refused(tmp_path: Path, protocol: int) -> None:
    file, trace = tmp_path / "gnd_roxford5k.pkl", tmp_path / "it was here"
    code = f"import os; os.mkdir({str(trace)!r})"
    harmful = [(os.mkdir, [str(trace)]), (exec, [code]), (eval, ["__import__('os').mkdir('x')"]),
               (getattr, [np.ndarray, "tofile"]), (np.load, ["x"]), (bytes, [1 << 40])]  # fmt: skip
    for run, arguments in harmful:
        content = {"imlist": [], "qimlist": [], "gnd": Harm(run, *arguments)}
        file.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(DataError, match="ground truth"):
            read_truth(file)
    assert not trace.exists()


def changed(**parts: object) -> bytes:
    return pickle.dumps({"imlist": IMAGES, "qimlist": QUERIES, "gnd": GND} | parts)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"<html>moved</html>", "gnd"),
        (changed()[:-20], "gnd"),
        (pickle.dumps([1, 2]), "gnd"),
        (changed(gnd=GND[:1]), "1 boxes for 2 queries"),
        (changed(gnd=[{**GND[0], "easy": [5]}, GND[1]]), "not listed"),
        (changed(gnd=[{**GND[0], "bbx": [0, 0, 1]}, GND[1]]), "gnd"),
        (changed(imlist=["../../etc/passwd", *IMAGES[1:]]), "passwd"),
    ],
)
def test_other_files_are_named(tmp_path: Path, raw: bytes, says: str) -> None:
    file = tmp_path / "gnd_roxford5k.pkl"
    file.write_bytes(raw)
    with pytest.raises(DataError, match=says):
        read_truth(file)
