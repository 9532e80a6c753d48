"""Visual words: tf-idf by hand and by a slow second way, real photographs found again, refusals."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from math import log
from pathlib import Path

import cv2
import faiss
import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_scenes import scenes

from objemb_lib.attend import visual_words as room
from objemb_lib.attend.visual_words import (
    Vocabulary,
    bag_of_visual_words,
    describe,
    inverse_document_frequency,
    root_sift,
)
from objemb_lib.config import DataError, ImageError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.images import load_image
from objemb_lib.measure.metrics import evaluate

TRAIN = ("astronaut.png", "coins.png", "grass.png", "motorcycle_left.png", "page.png")
# With texture: on a smooth sky (rocket.jpg) SIFT finds too little to know it again.
TEST = ("camera.png", "chelsea.png", "coffee.png", "china.jpg", "flower.jpg")


def photograph(name: str, side: int = 256) -> Image.Image:
    """A photograph that scikit-image or scikit-learn ships, its longer side ``side`` pixels."""
    place = Path(str(files("skimage"))) / "data" / name
    if not place.exists():
        place = Path(str(files("sklearn"))) / "datasets" / "images" / name
    return ImageOps.contain(load_image(place), (side, side))


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor="gray")


def dataset(folder: Path, images: list[Image.Image], labels=None, boxes=()) -> ImageDataset:
    folder.mkdir(exist_ok=True)
    names = [f"{i}.png" for i in range(len(images))]
    for name, image in zip(names, images):
        image.save(folder / name)
    labels = np.arange(len(images)) if labels is None else labels
    return ImageDataset("photos", folder.name, folder, names, labels, boxes=boxes)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return dataset(tmp_path_factory.mktemp("words") / "train", [photograph(n) for n in TRAIN])


@pytest.fixture
def pairs(tmp_path: Path) -> ImageDataset:
    """Photographs, each with a copy turned by another angle."""
    originals = [photograph(name) for name in TEST]
    copies = [rotated(photograph(name), 35 + 50 * i) for i, name in enumerate(TEST)]
    return dataset(tmp_path / "test", originals + copies, list(range(len(TEST))) * 2)


def clouds(images: int = 12, dim: int = 5, seed: int = 0) -> list[np.ndarray]:
    """Random descriptors; one image has none."""
    rng = np.random.default_rng(seed)
    many = rng.integers(1, 30, images) * (np.arange(images) != 3)
    return [rng.standard_normal((n, dim)).astype(np.float32) for n in many]


def with_three_words() -> Vocabulary:
    """Words at 0, 10 and 20 on a line: as many points as words are the words themselves."""
    vocabulary = Vocabulary(3).fit([np.float32([[0], [10], [20]])])
    order = np.argsort(vocabulary.centres[:, 0])
    vocabulary.centres = np.ascontiguousarray(vocabulary.centres[order])
    assert vocabulary.centres[:, 0].tolist() == [0, 10, 20]
    return vocabulary


def on_the_line(*values: float) -> np.ndarray:
    return np.float32(values).reshape(-1, 1)


def test_tf_idf_by_hand():
    vocabulary = with_three_words()
    train = [on_the_line(1, -1, 11), on_the_line(0, 19), on_the_line(2), on_the_line()]
    counts = vocabulary.counts(train)
    assert counts.tolist() == [[2, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0]]
    vocabulary.idf = inverse_document_frequency(counts)
    np.testing.assert_allclose(vocabulary.idf, [log(4 / 3), log(4), log(4)], rtol=1e-6)
    # Two of the frequent word, one each of the rare ones.
    expected = np.array([2 * log(4 / 3), log(4), log(4)])
    found = vocabulary([on_the_line(3, 4, 12, 25)])
    np.testing.assert_allclose(found, [expected / np.linalg.norm(expected)], rtol=1e-5)


def test_same_as_a_slow_second_way():
    descriptors = clouds()
    vocabulary = Vocabulary(words=7).fit(descriptors)
    nearest = [[int(np.linalg.norm(vocabulary.centres - d, axis=1).argmin()) for d in image]
               for image in descriptors]  # fmt: skip
    images_with = Counter(word for words in nearest for word in set(words))
    assert len(images_with) == 7
    for words, row in zip(nearest, vocabulary(descriptors)):
        weights = {w: n / len(words) * log(12 / images_with[w]) for w, n in Counter(words).items()}
        norm = sum(v * v for v in weights.values()) ** 0.5
        expected = [weights.get(w, 0) / norm if norm else 0 for w in range(7)]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_more_images_than_are_looked_up_at_once(monkeypatch):
    descriptors = clouds()
    vocabulary = Vocabulary(words=7).fit(descriptors)
    together = vocabulary.counts(descriptors)
    monkeypatch.setattr(room, "IMAGES_AT_ONCE", 1)  # image 3, without descriptors, stands alone
    assert np.array_equal(vocabulary.counts(descriptors), together)
    assert vocabulary.counts([]).shape == (0, 7)


def test_words_lie_where_the_descriptors_do():
    rng = np.random.default_rng(0)
    blobs = rng.permutation(np.repeat([0.0, 50.0, 90.0], 40)) + rng.uniform(-1, 1, 120)
    centres = Vocabulary(6).fit([blobs.reshape(-1, 1)]).centres[:, 0]
    assert all(min(abs(centres - middle)) < 1.5 for middle in (0, 50, 90))


def test_the_seed_decides_the_words():
    descriptors = clouds(images=60)
    first, again, other = (Vocabulary(20, seed).fit(descriptors) for seed in (1, 1, 2))
    assert np.array_equal(first.centres, again.centres) and np.array_equal(first.idf, again.idf)
    assert not np.array_equal(first.centres, other.centres)


def test_words_are_learnt_on_one_thread_and_the_others_given_back(monkeypatch):
    """On large data, too slow for a test, another number of threads gave other words."""
    seen = []

    def failing(*_: object) -> None:
        seen.append(faiss.omp_get_max_threads())
        raise RuntimeError("stopped")

    before = faiss.omp_get_max_threads()
    monkeypatch.setattr(faiss.Kmeans, "train", failing)
    faiss.omp_set_num_threads(3)
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            Vocabulary(2).fit([on_the_line(1, 2, 3)])
        assert seen == [1] and faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_root_sift_compares_like_the_hellinger_kernel():
    image = photograph("chelsea.png", 128)
    raw = cv2.SIFT_create().detectAndCompute(np.asarray(image.convert("L")), None)[1]
    shares = raw.astype(np.float64) / raw.sum(axis=1, keepdims=True)
    kernel = [[np.sqrt(a * b).sum() for b in shares[:20]] for a in shares[:20]]
    ours = root_sift(image)
    assert ours.shape == (len(raw), 128) and ours.dtype == np.float32 and len(raw) > 20
    np.testing.assert_allclose(ours[:20] @ ours[:20].T, kernel, atol=1e-5)


def test_turned_copies_find_their_photographs(train, pairs):
    vectors = bag_of_visual_words(pairs, train, words=200, cache=False, progress=False)
    assert vectors.shape == (10, 200) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert evaluate(vectors, pairs).mean("R@1") == 1


def test_a_box_says_where_to_look(train, tmp_path):
    """Things pasted on one shared background: found by their boxes, not by whole images."""
    images, boxes = [], []
    for turn in (0, 90):
        for i, name in enumerate(TEST):
            image = photograph("brick.png" if turn == i % 2 * 90 else "gravel.png")
            thing = rotated(photograph(name, 150), turn)
            image.paste(thing, (20 + 5 * i, 10))
            images.append(image)
            boxes.append(
                np.float32([[20 + 5 * i, 10, 20 + 5 * i + thing.width, 10 + thing.height]])
            )
    pasted = dataset(tmp_path / "pasted", images, list(range(len(TEST))) * 2, boxes)
    found = {}
    words = Vocabulary(200).fit(describe(train, progress=False))
    for crop in (False, True):
        vectors = words(describe(pasted, crop, longer_side=256, progress=False))
        found[crop] = evaluate(vectors, pasted).mean("R@1")
    assert found[True] == 1 > found[False]


def test_a_crop_is_the_box_of_the_first_object_and_keeps_its_shape(tmp_path):
    image = photograph("coffee.png")
    box = np.float32([[30.5, 10, 130, 60.2], [0, 0, 200, 100]])
    (found,) = describe(dataset(tmp_path / "one", [image], boxes=[box]), True, 200, progress=False)
    expected = root_sift(image.crop((30, 10, 130, 61)).resize((200, 102), Image.BICUBIC))
    assert len(expected) > 10 and np.array_equal(found, expected)


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 5), (5, 5, 6, 6), (-9, -9, -3, -3), (300, 200, 400, 300), (0, 0, 1, 150)],
    ids=["empty", "one pixel", "outside, before", "outside, behind", "one pixel wide"],
)
def test_tiny_and_outlying_boxes_are_images_without_words(box, tmp_path):
    one = dataset(tmp_path / "one", [photograph("coffee.png")], boxes=[np.float32([box])])
    (found,) = describe(one, True, progress=False)
    assert found.shape[1:] == (128,)
    vector = Vocabulary(3).fit([np.eye(128, dtype=np.float32)])([found])
    assert vector.shape == (1, 3) and np.isfinite(vector).all()


def test_an_image_without_key_points_has_a_zero_vector_and_can_be_ranked(train, tmp_path):
    plain = Image.new("RGB", (90, 60), "white")
    images = [plain, photograph("coffee.png"), plain, rotated(photograph("coffee.png"), 90)]
    some = dataset(tmp_path / "some", [*images, Image.new("RGB", (1, 1))], [0, 1, 0, 1, 2])
    assert [len(d) > 0 for d in describe(some, progress=False)] == [False, True, False, True, False]
    vectors = bag_of_visual_words(some, train, words=50, cache=False, progress=False)
    assert vectors.any(axis=1).tolist() == [False, True, False, True, False]
    # All gallery images score 0: in their own order, image 0's twin comes second of four.
    scores = evaluate(vectors, some, metrics=["R@1", "mAP"])
    np.testing.assert_allclose(scores.values["mAP"], [1 / 2, 1, 1, 1, np.nan])


def test_words_that_every_image_has_tell_nothing():
    assert not Vocabulary(1).fit([on_the_line(1), on_the_line(2)])([on_the_line(1)]).any()


def test_the_cache_is_read_and_only_for_the_same_settings(train, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    few = pairs.subset(range(4))
    first = bag_of_visual_words(few, train, words=30, progress=False)
    assert np.array_equal(first, bag_of_visual_words(few, train, words=30, cache=False))
    with monkeypatch.context() as patch:
        patch.setattr(room, "root_sift", None)  # computing anything again fails
        assert np.array_equal(bag_of_visual_words(few, train, words=30), first)
        others = [(few, train, False, 31, 0), (few, train, False, 30, 1), (few, few, False, 30, 0),
                  (pairs.subset(range(3)), train, False, 30, 0)]  # fmt: skip
        for other in others:
            with pytest.raises(TypeError, match="not callable"):
                bag_of_visual_words(*other, progress=False)
    assert not np.array_equal(bag_of_visual_words(few, train, words=30, seed=1), first)


def test_unusable_images_regions_and_sizes_are_named(train, tmp_path):
    with pytest.raises(DataError, match=r"0\.png has no box"):
        describe(train, True, progress=False)
    with pytest.raises(DataError, match="at least 1"):
        describe(train, longer_side=0)
    broken = scenes(tmp_path / "scenes")
    (tmp_path / "scenes" / "2.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"2\.png: empty"):
        describe(broken, progress=False)


def test_bad_descriptors_are_refused_with_the_way_out():
    with pytest.raises(DataError, match="at least 1 word"):
        Vocabulary(0)
    with pytest.raises(DataError, match="not fitted"):
        Vocabulary(3)([on_the_line(1)])
    with pytest.raises(DataError, match="3 words fitted on 2 descriptors"):
        Vocabulary(3).fit([on_the_line(1), on_the_line(2), on_the_line()])
    for wrong in ([], [on_the_line(1, 2, 3), np.ones((2, 2))], [np.ones(3)]):
        with pytest.raises(DataError, match="one array"):
            Vocabulary(1).fit(wrong)
    vocabulary = with_three_words()
    with pytest.raises(DataError, match=r"Pass one array \(n, 1\)"):
        vocabulary([np.ones((2, 128))])
    for bad in (np.nan, np.inf):
        with pytest.raises(DataError, match="those of image 1"):
            vocabulary([on_the_line(1), on_the_line(1, bad)])
