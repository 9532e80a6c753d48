"""Visual words: SIFT key points counted like the words of a text, the field before deep features.

An image is a *bag of visual words*: its SIFT descriptors, each replaced by the nearest word of a
vocabulary that k-means found in training images, counted, weighted by tf-idf. The vectors are
searched and scored like those of any network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import faiss
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from objemb_lib import config
from objemb_lib.cache import Store
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.regions import crop_pixels
from objemb_lib.embed.whitening import l2

WORDS = 2000  # best of 500, 1000 and 2000 on mini-battles' train split
# Pixels of the whole image, and of the main object alone: there best of 64 to 256 on train.
LONGER_SIDE = {False: 256, True: 96}
ITERATIONS, POINTS_PER_WORD = 10, 50  # of k-means: it learns from a sample of the descriptors
VERSION = 2  # raise when the code changes the numbers


def root_sift(image: Image.Image) -> np.ndarray:
    """``(n, 128)`` float32 RootSIFT descriptors of an image's key points; n can be 0.

    ``sqrt(d / sum(d))`` of each SIFT descriptor d: Euclidean distance then compares the
    histograms as the Hellinger kernel does, in which a few large bins count less.

    Source: Lowe, Distinctive Image Features from Scale-Invariant Keypoints, 2004; Arandjelovic and
    Zisserman, Three Things Everyone Should Know to Improve Object Retrieval, 2012, section 2.
    """
    _, found = cv2.SIFT_create().detectAndCompute(np.asarray(image.convert("L")), None)
    if found is None:
        return np.zeros((0, 128), np.float32)
    return np.sqrt(found / np.maximum(found.sum(axis=1, keepdims=True), 1))


def describe(dataset: ImageDataset, crop: bool = False) -> list[np.ndarray]:
    """:func:`root_sift` of every image, or of every main object cut out with its true box.

    Its longer side has :data:`LONGER_SIDE` pixels; the aspect ratio is kept, since squeezing would
    change the shape of what a key point sees.

    Returns:
        ``N`` arrays ``(n_i, 128)``.
    Raises:
        DataError: no box. ImageError: naming the file.
    """

    def one(i: int) -> np.ndarray:
        image = dataset.image(i)
        if crop and not len(dataset.boxes[i]):
            raise DataError(f"{dataset.files[i]} has no box", "Use the whole image (crop=False).")
        image = crop_pixels(image, dataset.boxes[i][0]) if crop else image
        scale = LONGER_SIDE[crop] / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        return root_sift(image.resize(size, Image.BICUBIC, reducing_gap=2.0))

    what = f"{dataset.name}/{dataset.split}, SIFT, {LONGER_SIDE[crop]} px"
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        each = threads.map(one, range(len(dataset)))
        return list(tqdm(each, what, len(dataset), unit="image"))


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


def learn_words(train: Sequence[np.ndarray], words: int, seed: int = config.SEED) -> np.ndarray:
    """``(words, D)`` k-means centres of the descriptors of training images.

    On one thread: several may round differently, and k-means drifts far from there.

    Args:
        train: ``N`` arrays ``(n_i, D)``, as :func:`describe` gives them.
    Raises:
        DataError: fewer descriptors than words.
    """
    joined = np.concatenate(train)
    if not 1 <= words <= len(joined):
        problem = f"a vocabulary of {words} words fitted on {len(joined)} descriptors"
        raise DataError(problem, "Use more training images, or fewer words, at least one.")
    how = {"niter": ITERATIONS, "max_points_per_centroid": POINTS_PER_WORD, "seed": seed}
    means = faiss.Kmeans(joined.shape[1], words, min_points_per_centroid=1, **how)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        means.train(joined)
    finally:
        faiss.omp_set_num_threads(threads)
    return means.centroids


def count_words(descriptors: Sequence[np.ndarray], centres: np.ndarray) -> np.ndarray:
    """``(N, words)``: how many descriptors of each image have each word as their nearest."""
    found = np.zeros((len(descriptors), len(centres)), np.int64)
    for image, some in zip(found, descriptors):
        if len(some):
            nearest = faiss.knn(some, centres, 1)[1][:, 0]
            image += np.bincount(nearest, minlength=len(centres))
    return found


def bag_of_visual_words(
    dataset: ImageDataset,
    train: ImageDataset,
    crop: bool = False,
    words: int = WORDS,
    seed: int = config.SEED,
) -> np.ndarray:
    """tf-idf vectors of every image, or of every main object: ``l2(tf * idf)``.

    The share of a word among an image's words (tf) and its count differ by a factor that the L2
    norm takes out again. Words and weights come from ``train`` only. Cached by content, as
    :func:`extract.extract` does.

    Args:
        crop: only the main objects. words, seed: see :func:`learn_words`.
    Returns:
        ``(N, words)`` float32, L2-normalised. An image without key points, or with words of no
        weight only, has a zero vector: it is equally unlike every image.
    Raises:
        DataError: as for :func:`describe` and :func:`learn_words`.
    Source: Sivic and Zisserman, Video Google, 2003.
    """

    def compute() -> np.ndarray:
        learnt = describe(train, crop)
        centres = learn_words(learnt, words, seed)
        idf = inverse_document_frequency(count_words(learnt, centres))
        return l2(count_words(describe(dataset, crop), centres) * idf)

    key = {"version": VERSION, "data": dataset.fingerprint, "train": train.fingerprint}
    key |= {"crop": crop, "side": LONGER_SIDE[crop], "words": words, "seed": seed}
    key |= {"opencv": cv2.__version__, "faiss": faiss.__version__}
    store = Store(config.cache_root() / "embeddings", {k: str(v) for k, v in key.items()})
    pair = ("sift", "tf-idf")
    with store.lock():
        if (found := store.get(pair)) is None:
            store.write(found := compute(), pair)
        return found
