"""Visual words: tf-idf by hand and by a slow second way, real photographs found again, refusals."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from math import log
from pathlib import Path

import faiss
import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_scenes import scenes

from objemb_lib.attend import visual_words as room
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


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return dataset(tmp_path_factory.mktemp("words") / "train", [photograph(n) for n in TRAIN])


@pytest.fixture
def pairs(tmp_path: Path) -> ImageDataset:
    """Photographs, each with a copy turned by another angle."""
    originals = [photograph(name) for name in TEST]
    copies = [rotated(photograph(name), 35 + 50 * i) for i, name in enumerate(TEST)]
    return dataset(tmp_path / "test", originals + copies, list(range(len(TEST))) * 2)


def on_the_line(*values: float) -> np.ndarray:
    return np.float32(values).reshape(-1, 1)


def test_tf_idf_by_hand():
    """Words at 0, 10 and 20 on a line: as many points as words are the words themselves."""
    centres = np.sort(room.learn_words([on_the_line(0, 10), on_the_line(20)], 3), axis=0)
    assert centres[:, 0].tolist() == [0, 10, 20]
    train = [on_the_line(1, -1, 11), on_the_line(0, 19), on_the_line(2), on_the_line()]
    counts = room.count_words(train, centres)
    assert counts.tolist() == [[2, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0]]
    idf = room.inverse_document_frequency(counts)
    np.testing.assert_allclose(idf, [log(4 / 3), log(4), log(4)], rtol=1e-6)
    assert not room.inverse_document_frequency(counts[:3, :1]).any(), "what all have tells nothing"


def test_the_seed_decides_which_words_are_learnt_and_too_few_descriptors_give_none():
    blobs = on_the_line(*np.random.default_rng(0).uniform(-1, 1, 120))
    first, again, other = (room.learn_words([blobs], 6, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    for words in (0, 121):
        with pytest.raises(DataError, match=f"{words} words fitted on 120 descriptors"):
            room.learn_words([blobs], words)


def test_words_are_learnt_on_one_thread_and_the_others_given_back(monkeypatch):
    """On large data, too slow for a test, another number of threads gave other words."""
    seen, before = [], faiss.omp_get_max_threads()
    monkeypatch.setattr(faiss.Kmeans, "train", lambda *_: seen.append(faiss.omp_get_max_threads()))
    faiss.omp_set_num_threads(3)
    try:
        room.learn_words([on_the_line(1, 2, 3)], 2)
        assert seen == [1] and faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_turned_copies_find_their_photographs_by_what_a_slow_way_counts(train, pairs):
    vectors = room.bag_of_visual_words(pairs, train, words=200)
    assert vectors.shape == (10, 200) and vectors.dtype == np.float32
    assert evaluate(vectors, pairs).mean("R@1") == 1
    learnt = room.describe(train)
    centres = room.learn_words(learnt, 200).astype(np.float64)
    nearest = lambda some: [int(((centres - d) ** 2).sum(axis=1).argmin()) for d in some]  # noqa: E731
    images_with = Counter(word for image in learnt for word in set(nearest(image)))
    words = Counter(nearest(room.describe(pairs.subset([3]))[0]))
    weights = {w: n * log(len(learnt) / images_with[w]) for w, n in words.items()}
    norm = sum(v * v for v in weights.values()) ** 0.5
    np.testing.assert_allclose(
        vectors[3], [weights.get(w, 0) / norm for w in range(200)], atol=1e-4
    )


def test_a_crop_is_the_box_of_the_first_object_and_keeps_its_shape(tmp_path):
    image = photograph("coffee.png")
    box = np.float32([[30.5, 10, 130, 60.2], [0, 0, 200, 100]])
    (found,) = room.describe(dataset(tmp_path / "one", [image], boxes=[box]), True)
    expected = room.root_sift(image.crop((30, 10, 130, 61)).resize((96, 49), Image.BICUBIC))
    assert len(expected) > 3 and np.array_equal(found, expected)


def test_tiny_and_outlying_boxes_are_images_without_words(tmp_path):
    boxes = [(5, 5, 5, 5), (-9, -9, -3, -3), (300, 200, 400, 300), (0, 0, 1, 150)]
    boxes = [np.float32([box]) for box in boxes]
    found = room.describe(
        dataset(tmp_path / "some", [photograph("coffee.png")] * 4, boxes=boxes), True
    )
    assert [one.shape[1:] for one in found] == [(128,)] * 4
    counts = room.count_words(found, np.eye(128, dtype=np.float32))
    assert counts.sum(axis=1).tolist() == list(map(len, found))


def test_an_image_without_key_points_has_a_zero_vector_and_can_be_ranked(train, tmp_path):
    plain = Image.new("RGB", (90, 60), "white")
    other = Image.new("RGB", (90, 61), "white")  # of other bytes: no copy
    images = [plain, photograph("coffee.png"), other, rotated(photograph("coffee.png"), 90)]
    some = dataset(tmp_path / "some", [*images, Image.new("RGB", (1, 1))], [0, 1, 0, 1, 2])
    assert [len(d) > 0 for d in room.describe(some)] == [False, True, False, True, False]
    vectors = room.bag_of_visual_words(some, train, words=50)
    assert vectors.any(axis=1).tolist() == [False, True, False, True, False]
    # All gallery images score 0: in their own order, image 0's twin comes second of four.
    scores = evaluate(vectors, some, metrics=["R@1", "mAP"])
    np.testing.assert_allclose(scores.values["mAP"], [1 / 2, 1, 1, 1, np.nan])


def test_the_cache_is_read_and_only_for_the_same_settings(train, pairs, monkeypatch):
    few = pairs.subset(range(4))
    first = room.bag_of_visual_words(few, train, words=30)
    monkeypatch.setattr(room, "root_sift", None)  # computing anything again fails
    assert np.array_equal(room.bag_of_visual_words(few, train, words=30), first)
    others = [(few, train, False, 31, 0), (few, train, False, 30, 1), (few, few, False, 30, 0),
              (pairs.subset(range(3)), train, False, 30, 0)]  # fmt: skip
    for other in others:
        with pytest.raises(TypeError, match="not callable"):
            room.bag_of_visual_words(*other)


def test_unusable_images_are_named(train, tmp_path):
    with pytest.raises(DataError, match=r"0\.png has no box"):
        room.describe(train, True)
    broken = scenes(tmp_path / "scenes")
    (tmp_path / "scenes" / "2.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"2\.png: empty"):
        room.describe(broken)
