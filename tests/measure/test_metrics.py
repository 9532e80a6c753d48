"""Metrics by hand and by slow loops, and each protocol with its junk."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from tiny_queries import dataset, random_case

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.whitening import l2
from objemb_lib.measure import metrics
from objemb_lib.measure.analysis import nearest
from objemb_lib.measure.metrics import (
    METRICS,
    PROTOCOLS,
    average_precision,
    evaluate,
    evaluate_scores,
    metric_function,
    ranking,
)

RANKED = st.lists(st.booleans(), min_size=1, max_size=30).map(np.array)


def slow_scores(vectors, data, name) -> np.ndarray:
    """The protocol read aloud, with plain loops."""
    scores = []
    for q in data.queries:
        candidates = []
        for place, g in enumerate(data.gallery):
            own, others = data.labels[g], set(data.box_labels[g]) - {data.labels[g]}
            if g == q or data.labels[q] in others:
                continue
            similarity = sum(float(a) * float(b) for a, b in zip(vectors[q], vectors[g]))
            candidates.append((-similarity, place, own == data.labels[q] and own >= 0))
        ranked = [right for *_, right in sorted(candidates)]
        scores.append(slow_metric(ranked, name))
    return np.array(scores)


def slow_metric(ranked, name) -> float:
    total = sum(ranked)
    if total == 0:
        return np.nan
    if name[:2] == "R@":
        return 1.0 if any(ranked[: int(name[2:])]) else 0.0
    if name[:2] == "P@":
        return sum(ranked[: int(name[2:])]) / int(name[2:])
    if name == "R-precision":
        return sum(ranked[:total]) / total
    stop = len(ranked) if name == "mAP" else total
    return sum(sum(ranked[: i + 1]) / (i + 1) for i in range(stop) if ranked[i]) / total


@given(RANKED)
def test_metrics_match_slow(ranked):
    for name in (*METRICS, "R@10", "P@1"):
        value = metric_function(name)(ranked)
        assert value == pytest.approx(slow_metric(ranked.tolist(), name), nan_ok=True)
    if ranked.any():  # scikit-learn says 0 where there is nothing to find
        known = average_precision_score(ranked, -np.arange(len(ranked)))
        assert average_precision(ranked) == pytest.approx(known)


def test_unknown_metrics_are_refused():
    for name in ("R@0", "P@-1", "F1", "R", "map", "R@1.5"):
        with pytest.raises(DataError, match="mAP"):
            metric_function(name)


def test_protocol_by_hand():
    """Four images on a half circle; the query itself and one shown beside are junk."""
    angles = np.radians([0, 10, 20, 30, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    data = dataset([0, 1, 0, 1, 0], beside={1: [0]}, queries=[0])
    found = evaluate(vectors, data)  # ranking: 0 itself, 1 junk, 2 right, 3 wrong, 4 right
    expected = {"R@1": 1, "R@5": 1, "mAP": 5 / 6, "R-precision": 0.5, "MAP@R": 0.5, "P@5": 0.4}
    assert {name: found.mean(name) for name in METRICS} == pytest.approx(expected)
    top = ranking(vectors, data, query=0, k=2)
    assert top.images.tolist() == [2, 3] and top.relevant.tolist() == [True, False]
    np.testing.assert_allclose(top.scores, np.cos(angles[2:4]))


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(1, 30))
def test_protocol_matches_slow(seed, chunk):
    vectors, data = random_case(seed)
    with mock.patch.object(metrics, "CHUNK", chunk):
        found = evaluate(vectors, data)
    for name in METRICS:
        np.testing.assert_allclose(found.values[name], slow_scores(vectors, data, name), atol=1e-12)


def test_equal_scores_keep_the_gallerys_order():
    """Five hundred: numpy's other sorts happen to keep the order of a few."""
    gallery = np.random.default_rng(0).permutation(500)
    vectors = np.ones((500, 2))
    vectors[gallery[7]] = 2  # something to sort
    data = dataset(np.arange(500) % 50, queries=gallery[:1], gallery=gallery)
    expected = [gallery[7], *gallery[1:7], *gallery[8:]]
    assert ranking(vectors, data, gallery[0], 999).images.tolist() == expected
    ranked = data.labels[expected] == data.labels[gallery[0]]
    assert evaluate(vectors, data).mean("mAP") == average_precision(ranked)


def test_queries_without_relevant_images_are_counted_and_left_out():
    """Image 2 is alone with its label, image 3 has none."""
    data = dataset([0, 0, 5, -1])
    found = evaluate(np.eye(4), data)
    assert (found.n_queries, found.n_skipped) == (4, 2)
    assert np.isnan(found.values["R@1"]).tolist() == [False, False, True, True]
    assert found.mean("R@1") == np.nanmean(found.values["R@1"])
    for labels in ([0, 1], [-1, -1]):
        with pytest.raises(DataError, match="no query of .* has a relevant image"):
            evaluate(np.eye(2), dataset(labels))


def test_bad_vectors_and_scores_are_refused():
    data = dataset([0, 0, 1])
    for wrong in (np.eye(4), np.ones(3)):
        with pytest.raises(DataError, match="3 images"):
            evaluate(wrong, data)
    broken = np.eye(3)
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match="1.jpg"):
        evaluate(broken, data)
    good, data = np.zeros((2, 3)), dataset([0, 0, 1], queries=[0, 1])
    for bad in (good[1:], good[:, 1:], good.T, np.full((2, 3), np.nan)):
        with pytest.raises(DataError, match="scores"):
            evaluate_scores(bad, data)


def slow_revisited(order: list[int], relevant: set[int], junk: set[int], ks=(1, 5, 10)):
    """AP and P@k of one query, told as a story: walk down the ranking, junk does not count."""
    if not relevant:
        return np.nan, [np.nan] * len(ks)
    area, seen, found, where = 0.0, 0, 0, []
    for image in order:
        if image in junk:
            continue
        before = found / seen if seen else 1.0
        seen += 1
        if image in relevant:
            found += 1
            where.append(seen)
            area += (before + found / seen) / 2 / len(relevant)
    at = []
    for k in ks:
        k = min(k, where[-1])
        at.append(sum(place <= k for place in where) / k)
    return area, at


def judged_case(seed: int, n: int = 24, queries: int = 6):
    """Images, and queries that are not searched, judged one by one; some without any relevant."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, (queries, n), p=[0.6, 0.2, 0.2])
    kinds[0] = np.where(kinds[0] == 1, 0, kinds[0])  # the first has nothing to find
    kinds[1, 0] = 1  # the second has
    judged = {
        n + q: (np.flatnonzero(kinds[q] == 1), np.flatnonzero(kinds[q] == 2))
        for q in range(queries)
    }
    data = dataset([-1] * n + [0] * queries, queries=n + np.arange(queries),
                   gallery=np.arange(n), judged=judged, protocol="revisited")  # fmt: skip
    return rng.permuted(np.tile(np.arange(n), (queries, 1)), axis=1).astype(float), data


@given(st.integers(0, 2**16))
@settings(max_examples=50)
def test_revisited_matches_the_slow_story(seed):
    scores, data = judged_case(seed)
    found = evaluate_scores(scores, data)
    for q, query in enumerate(data.queries):
        order = np.argsort(-scores[q], kind="stable").tolist()
        relevant, junk = (set(a.tolist()) for a in data.judged[query])
        ap, at = slow_revisited(order, relevant, junk)
        np.testing.assert_allclose(found.values["mAP"][q], ap, atol=1e-12)
        np.testing.assert_allclose([found.values[f"P@{k}"][q] for k in (1, 5, 10)], at)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_protocol_is_used_by_default(name):
    found = evaluate_scores(np.eye(4), dataset([0, 0, 1, 1], protocol=name))
    protocol = PROTOCOLS[name]
    assert found.protocol == name and "\n" not in protocol.convention
    assert list(found.values)[: len(protocol.metrics)] == list(protocol.metrics)
    assert set(METRICS) <= set(found.values)


# --- scores without meaning ---------------------------------------------------------------

KINDS = (np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64, np.float16, bool)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_numbers_are_ranked_as_floats(kind):
    """google-ai-edge/mediapipe#4027, vidore-benchmark#23: int8 products overflow; 0 of unsigned
    scores stays best when they are negated."""
    labels = np.repeat(np.arange(8), 3)
    data, rng = dataset(labels), np.random.default_rng(0)
    vectors = 120 * l2(rng.standard_normal((8, 16))[labels] + rng.standard_normal((24, 16)) / 3)
    vectors = (vectors if kind in (np.int8, np.int16, np.int64) else vectors.clip(0)).astype(kind)
    if kind is np.float16:
        vectors *= kind(100)  # finite, but not their products
    found, known = evaluate(vectors, data), evaluate(vectors.astype(np.float64), data)
    assert found.mean("mAP") == known.mean("mAP") > 0.6
    top, true = (ranking(v, data, 3, 9) for v in (vectors, vectors.astype(np.float64)))
    np.testing.assert_allclose(top.scores, true.scores, rtol=1e-6)
    counts = np.where(labels[:, None] == labels, 30, 0).astype(kind)  # such as matched words
    assert evaluate_scores(counts, data).mean("mAP") == 1


@pytest.mark.parametrize("wrong", [np.full((3, 2), "a"), np.ones((3, 2), complex), [[1, 2], [3]]])
def test_what_is_no_real_number_cannot_be_ranked(wrong):
    with pytest.raises(DataError, match="cannot be ranked"):
        evaluate(wrong, dataset([0, 0, 1]))


def test_tensors_are_ranked_as_arrays():
    vectors, data = (
        l2(np.random.default_rng(0).standard_normal((6, 4))),
        dataset([0, 0, 1, 1, 2, 2]),
    )
    for tensor in (torch.tensor(vectors, requires_grad=True), torch.tensor(vectors).bfloat16()):
        known = evaluate(tensor.detach().float().numpy(), data)
        assert evaluate(tensor, data).mean("mAP") == known.mean("mAP")


def test_products_that_overflow_are_refused():
    with pytest.raises(DataError, match="infinite"):
        evaluate(np.full((3, 2), 1e30, np.float32), dataset([0, 0, 1]))


def test_a_single_label_is_not_scored():
    """easezyc/deep-transfer-learning#4: one folder too high, and noise reaches 1.0 everywhere."""
    noise = np.random.default_rng(0).standard_normal((6, 8))
    for labels in ([0] * 6, [3] * 6):
        with pytest.raises(DataError, match="every image of toy/test is right"):
            evaluate(noise, dataset(labels))
    assert evaluate(noise, dataset([0, 0, 0, 0, 0, -1])).mean("mAP") <= 1  # others distract
    scores = np.hstack([noise @ noise.T, noise[:, :1]])  # so does what is no image of it
    assert evaluate_scores(scores, dataset([0] * 6)).mean("R@1") <= 1


def test_copies_of_a_photograph_are_no_answers(make_image, tmp_path):
    """MVC-Datasets/MVC#4, tqwei05/PlantSeg#11: under several names, of one label or of two."""
    files = [f"{label}/{k}{copy}.png" for label in ("cup", "dog") for k in range(3)
             for copy in ("", " (1)")]  # fmt: skip
    seeds = [3 * (file[:3] == "dog") + int(file[4]) for file in files]
    for file, seed in zip(files, seeds):
        make_image(file, seed=seed)
    data = ImageDataset("own", "all", tmp_path, files, np.repeat([0, 1], 6))
    noise = l2(np.random.default_rng(1).standard_normal((6, 32)))[seeds]
    with pytest.warns(UserWarning, match="6 of 12 images are copies") as told:
        found = evaluate(noise, data)
    alone = evaluate(noise[::2], data.subset(range(0, 12, 2)))
    assert found.mean("R@1") == alone.mean("R@1") < 1 and len(told) == 1  # 1.0 it was
    assert 1 not in ranking(noise, data, 0, 12).images and nearest(noise, data)[0] != 1
    make_image("dog/0.png", seed=0)  # a cup
    both = replace(data, labels=data.labels)
    with pytest.warns(UserWarning, match="copies"):
        assert {0, 1, 6} & set(ranking(noise, both, 0, 12).images) == set()
