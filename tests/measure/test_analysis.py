"""Analysis: by hand, by slow second implementations, and what must not change a result."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pycocotools import mask as coco_mask
from tiny_queries import dataset, random_case
from tiny_scenes import small

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.detect.features import DetectorTrunk
from objemb_lib.embed.whitening import l2
from objemb_lib.measure import analysis
from objemb_lib.measure.metrics import ranking

CROSS = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # variances 8 and 2 (of 10)
SEEDS = st.integers(0, 2**16)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def slow_cka(x, y) -> float:
    """By kernels: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), HSIC(K, L) = tr(K H L H)."""
    centre = np.eye(len(x)) - 1 / len(x)
    hsic = lambda k, l: np.trace(k @ centre @ l @ centre)  # noqa: E731, E741
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@settings(max_examples=50)
@given(SEEDS, st.integers(2, 12), st.integers(1, 9), st.integers(1, 9))
def test_cka_matches_slow(seed, n, wide, narrow):
    x, y = normal(seed, n, wide) + 3, normal(seed + 1, n, narrow) - 5
    x[:, 0] += y[:, 0]
    assert analysis.linear_cka(x, y) == pytest.approx(slow_cka(x, y), abs=1e-6)


@pytest.mark.parametrize(
    "function",
    [analysis.spectrum, lambda x: analysis.linear_cka(x, x)],
)
@pytest.mark.parametrize("wrong", [np.full((5, 3), 0.1), np.eye(3)[:1], np.arange(4.0),
                                   np.array([[0.0, np.nan], [1, 2]])])  # fmt: skip
def test_features_that_say_nothing_are_refused(function, wrong):
    with pytest.raises(DataError, match="features? "):
        function(wrong)


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (2, 5), (9, 1)])
def test_spectrum_matches_the_covariance(shape):
    x = normal(1, *shape) * np.arange(1, shape[1] + 1)
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False).reshape(shape[1], shape[1]))[::-1]
    size = min(shape[0] - 1, shape[1])
    assert_allclose(analysis.spectrum(x), values[:size] / values.sum(), atol=1e-12)


def test_nearest_is_rank_one_also_of_equals_and_says_where_all_is_junk():
    vectors, data = random_case(3)
    for some in (vectors, np.ones_like(vectors)):
        expected = [ranking(some, data, q, 1).images[0] for q in data.queries]
        assert analysis.nearest(some, data).tolist() == expected
    assert analysis.nearest(np.eye(2), dataset([0, 1], gallery=[0])).tolist() == [-1, 0]


def test_first_answers_share_an_object_and_where_known_a_background():
    data, x = dataset([0, 0, 1, -1]), l2(np.array([[1, 0], [0.9, 0.1], [0, 1], [0.8, 0.1]]))
    shares = analysis.first_shares({"mine": x}, data)  # the answers are 1, 3, 3, 1
    assert shares["same object"].tolist() == pytest.approx([2 / 12, 1 / 4])
    assert shares.shape == (2, 1)
    known = replace(data, extra=[{"background": name} for name in ("wall", "lawn", "wall", "lawn")])
    shares = analysis.first_shares({"mine": x}, known)
    assert shares["same background"].tolist() == pytest.approx([4 / 12, 2 / 4])
    kinds = dataset([0, 0, 1, -1], categories=[0, 0, 0, -1])  # the last is of no known category
    shares = analysis.first_shares({"mine": x}, kinds, ["category"])
    assert shares["same category"].tolist() == pytest.approx([6 / 12, 1 / 4])


def test_what_an_object_covers_is_its_mask_or_else_its_box(make_image, tmp_path):
    make_image("a.png", size=(40, 30))
    box = np.array([[10, 0, 30, 15]], np.float32)
    data = ImageDataset("toy", "test", tmp_path, ["a.png"], [0], boxes=[box])
    assert analysis.area_ratio(data, 0) == 20 * 15 / (40 * 30)
    mask = np.zeros((30, 40), np.uint8, order="F")
    mask[:3, 10:14] = 1
    assert analysis.area_ratio(replace(data, masks=[[coco_mask.encode(mask)]]), 0) == 12 / (40 * 30)


@pytest.mark.parametrize("how", analysis.PROJECTIONS)
def test_near_vectors_are_near_on_the_map(how):
    x = np.concatenate([0.05 * normal(k, 12, 5) + np.eye(5)[k] for k in (0, 1)])
    points = analysis.project(x, how)
    assert points.min() == 0 and points.max() == 1
    nearest = np.linalg.norm(points[:, None] - points, axis=2) + 9 * np.eye(24)
    assert ((nearest.argmin(axis=1) < 12) == (np.arange(24) < 12)).all()


def test_a_detector_offers_every_source_but_of_its_body_only_the_last_stages():
    pairs = analysis.candidates(DetectorTrunk(small("fcos")), poolings=("spoc", "mac"))
    stages = ["stage4", "stage5", "head", "fpn3", "fpn4", "fpn5", "roi", "box_head"]
    assert pairs == [(stage, pooling) for stage in stages for pooling in ("spoc", "mac")]


def test_each_source_speaks_with_the_best_of_its_own():
    """Two objects, two images each; ``right`` separates them, ``wrong`` joins the wrong ones."""
    data = dataset([0, 0, 1, 1])
    right = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    wrong = right[[0, 2, 1, 3]]
    vectors = {
        ("stage5", "spoc"): wrong,
        ("head", "mac"): right,
        ("fpn3", "spoc"): wrong,
        ("fpn4", "spoc"): wrong,
        ("box_head", "spoc"): right * 7,  # length does not matter
    }
    found = analysis.choose(vectors, data)
    assert found["body"] == ("head", "mac") and found["box head"] == ("box_head", "spoc")
    assert found["FPN"] == ("fpn3", "spoc")  # of equals, the first
    assert "RoI features" not in found
    assert analysis.best_of(vectors, data) == ("head", "mac")
