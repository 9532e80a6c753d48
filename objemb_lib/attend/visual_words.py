"""Visual words: SIFT key points counted like the words of a text, the field before deep features.

An image is a *bag of visual words*: its SIFT descriptors, each replaced by the nearest word of a
vocabulary that k-means found in training images, counted, weighted by tf-idf. OpenCV finds the key
points, faiss the words. The vectors are searched and scored like those of any network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import ceil, floor

import cv2
import faiss
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.cache import Store
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.whitening import l2

DIM = 128  # of a SIFT descriptor: 4 x 4 cells, 8 directions
WORDS = 2000  # best of 500, 1000 and 2000 on mini-battles' train split
# Pixels of the whole image, and of the main object alone: there best of 64 to 256 on train.
LONGER_SIDE = {False: 256, True: 96}
ITERATIONS, POINTS_PER_WORD = 10, 50  # of k-means: it learns from a sample of the descriptors
IMAGES_AT_ONCE = 64  # whose words are looked up together
VERSION = 1  # raise when the code changes the numbers


def root_sift(image: Image.Image) -> np.ndarray:
    """``(n, 128)`` float32 RootSIFT descriptors of an image's key points; n can be 0.

    ``sqrt(d / sum(d))`` of each SIFT descriptor d: Euclidean distance then compares the
    histograms as the Hellinger kernel does, in which a few large bins count less.

    Source: Lowe, Distinctive Image Features from Scale-Invariant Keypoints, 2004; Arandjelovic and
    Zisserman, Three Things Everyone Should Know to Improve Object Retrieval, 2012, section 2.
    """
    _, found = cv2.SIFT_create().detectAndCompute(np.asarray(image.convert("L")), None)
    if found is None:
        return np.zeros((0, DIM), np.float32)
    return np.sqrt(found / np.maximum(found.sum(axis=1, keepdims=True), 1))


def describe(
    dataset: ImageDataset,
    crop: bool = False,
    longer_side: int | None = None,
    progress: bool = True,
) -> list[np.ndarray]:
    """:func:`root_sift` of every image, or of every main object cut out with its true box.

    Args:
        crop: only the main object, by the true box.
        longer_side: in pixels, of what SIFT sees; the aspect ratio is kept, since squeezing would
            change the shape of what a key point sees. Default :data:`LONGER_SIDE`.
    Returns:
        ``N`` arrays ``(n_i, 128)``.
    Raises:
        DataError: a size below 1, or no box. ImageError: naming the file.
    """
    side = LONGER_SIDE[crop] if longer_side is None else longer_side
    if side < 1:
        raise DataError(f"images of {side} pixels", "Use a longer_side of at least 1.")

    def one(i: int) -> np.ndarray:
        image = dataset.image(i)
        return root_sift(_resized(_main_object(dataset, i, image) if crop else image, side))

    what = f"{dataset.name}/{dataset.split}, SIFT, {side} px"
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        each = threads.map(one, range(len(dataset)))
        return list(tqdm(each, what, len(dataset), unit="image", disable=not progress))


def _main_object(dataset: ImageDataset, i: int, image: Image.Image) -> Image.Image:
    """Image ``i`` inside its first box, in whole pixels, at least one."""
    if not len(dataset.boxes[i]):
        raise DataError(f"{dataset.files[i]} has no box", "Use the whole image (crop=False).")
    x0, y0, x1, y1 = map(float, dataset.boxes[i][0])
    left, top = (max(0, min(floor(a), b - 1)) for a, b in zip((x0, y0), image.size))
    right, bottom = max(min(ceil(x1), image.width), left + 1), min(ceil(y1), image.height)
    return image.crop((left, top, right, max(bottom, top + 1)))


def _resized(image: Image.Image, longer_side: int) -> Image.Image:
    scale = longer_side / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image if size == image.size else image.resize(size, Image.BICUBIC, reducing_gap=2.0)


def inverse_document_frequency(counts: np.ndarray) -> np.ndarray:
    """``log(N / n_w)`` for each word w, which n_w of N images have: rare words tell more.

    A word that no image has counts as if one had it; a word that all have weighs 0.

    Args:
        counts: ``(N, words)``, how often each image has each word.
    Returns:
        ``(words,)`` float32.
    Source: Sivic and Zisserman, Video Google, 2003, section 4; n_w counts images, not occurrences,
    as in Sparck Jones, A Statistical Interpretation of Term Specificity, 1972.

    >>> inverse_document_frequency(np.array([[5, 1, 0], [1, 0, 0]])).round(3).tolist()
    [0.0, 0.6930000185966492, 0.6930000185966492]
    """
    images = np.maximum((np.asarray(counts) > 0).sum(axis=0), 1)
    return np.log(len(counts) / images).astype(np.float32)


class Vocabulary:
    """Visual words, and how much each tells: k-means centres with their idf weights.

    ``vector = l2(tf * idf)``; the share of a word among an image's words (tf) and its count differ
    by a factor that the L2 norm takes out again. Fit on the training split only. The same seed
    and descriptors give the same words on one machine, however many threads it has.

    Args:
        words: number of k-means centres, at least 1.
        seed: of the sample of descriptors and of the first centres.
    Source: Sivic and Zisserman, Video Google, 2003.
    """

    def __init__(self, words: int = WORDS, seed: int = config.SEED) -> None:
        if words < 1:
            raise DataError(f"a vocabulary of {words} words", "Use at least 1 word.")
        self.words, self.seed = words, seed
        self.centres: np.ndarray | None = None  # (words, D)
        self.idf: np.ndarray | None = None  # (words,)

    def __repr__(self) -> str:
        fitted = "not fitted" if self.centres is None else "fitted"
        return f"Vocabulary(words={self.words}, seed={self.seed}; {fitted})"

    def fit(self, train: Sequence[np.ndarray]) -> Vocabulary:
        """Learn words and weights from the descriptors of training images; returns itself.

        Args:
            train: ``N`` arrays ``(n_i, D)``, as :func:`describe` gives them.
        Raises:
            DataError: fewer descriptors than words, images of different D, a NaN or infinity.
        """
        joined = _joined(train)
        if len(joined) < self.words:
            raise DataError(
                f"a vocabulary of {self.words} words fitted on {len(joined)} descriptors",
                "Use more training images, or fewer words.",
            )
        how = {"niter": ITERATIONS, "max_points_per_centroid": POINTS_PER_WORD, "seed": self.seed}
        means = faiss.Kmeans(joined.shape[1], self.words, min_points_per_centroid=1, **how)
        with _one_thread():
            means.train(joined)
        self.centres = means.centroids.copy()
        self.idf = inverse_document_frequency(self.counts(train))
        return self

    def counts(self, descriptors: Sequence[np.ndarray]) -> np.ndarray:
        """``(N, words)`` int64: how many descriptors of each image have each word as nearest.

        Raises:
            DataError: before ``fit``, or for descriptors of another D, with a NaN or infinity.
        """
        if self.centres is None:
            raise DataError("the vocabulary is not fitted", "Call fit(train) first.")
        found = np.zeros((len(descriptors), self.words), np.int64)
        for start in range(0, len(descriptors), IMAGES_AT_ONCE):
            part = descriptors[start : start + IMAGES_AT_ONCE]
            joined = _joined(part, self.centres.shape[1])
            if len(joined):
                words = faiss.knn(joined, self.centres, 1)[1][:, 0]
                images = np.repeat(np.arange(start, start + len(part)), [len(d) for d in part])
                np.add.at(found, (images, words), 1)
        return found

    def __call__(self, descriptors: Sequence[np.ndarray]) -> np.ndarray:
        """Descriptors of N images -> ``(N, words)`` float32, L2-normalised tf-idf vectors.

        An image without key points, or with words of no weight only, gets a zero vector: it is
        equally unlike every image, so that its ranking is the gallery's own order.

        Raises:
            DataError: as for :meth:`counts`.
        """
        return l2(self.counts(descriptors) * self.idf)


@contextmanager
def _one_thread() -> Iterator[None]:
    """faiss on one thread: several may round differently, and k-means drifts far from there."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _joined(descriptors: Sequence[np.ndarray], dim: int | None = None) -> np.ndarray:
    """All descriptors below each other, ``(sum n_i, D)`` float32, checked."""
    shapes = {np.shape(d)[1:] for d in descriptors}
    wanted = {(dim,)} if dim is not None else shapes
    if len(shapes) != 1 or shapes != wanted or len(next(iter(shapes))) != 1:
        raise DataError(
            f"descriptors of {len(descriptors)} images with rows of shape {sorted(shapes)}",
            f"Pass one array (n, {dim or 'D'}) an image, D the same for all, as describe() does.",
        )
    joined = np.ascontiguousarray(np.concatenate(descriptors), np.float32)
    if not np.isfinite(joined).all():
        bad = next(i for i, d in enumerate(descriptors) if not np.isfinite(d).all())
        raise DataError(
            f"descriptors hold NaN or infinite values, first those of image {bad}",
            "Describe that image again, or leave it out.",
        )
    return joined


def bag_of_visual_words(
    dataset: ImageDataset,
    train: ImageDataset,
    crop: bool = False,
    words: int = WORDS,
    seed: int = config.SEED,
    cache: bool = True,
    progress: bool = True,
) -> np.ndarray:
    """tf-idf vectors of every image, or of every main object, for :func:`evaluate.evaluate`.

    Words and weights come from the same part of ``train``. Cached by content, as
    :func:`extract.extract` does.

    Args:
        crop: only the main object. words, seed: see :class:`Vocabulary`.
        cache: False neither reads nor writes the cache.
    Returns:
        ``(N, words)`` float32, L2-normalised; zero for an image without key points.
    Raises:
        DataError: as for :func:`describe` and :class:`Vocabulary`. ImageError: naming the file.
        CacheError: the cache cannot be written.
    """

    def compute() -> np.ndarray:
        vocabulary = Vocabulary(words, seed).fit(describe(train, crop, progress=progress))
        return vocabulary(describe(dataset, crop, progress=progress))

    if not cache:
        return compute()
    key = {"version": VERSION, "data": dataset.fingerprint, "train": train.fingerprint}
    key |= {"crop": crop, "side": LONGER_SIDE[crop], "words": words, "seed": seed}
    key |= {"opencv": cv2.__version__, "faiss": faiss.__version__}
    store = Store(config.cache_root() / "embeddings", {k: str(v) for k, v in key.items()})
    pair = ("sift", "tf-idf")
    with store.lock():
        if not store.has(pair):
            store.write(compute(), pair)
        return store.read(pair)
