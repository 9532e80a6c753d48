"""A small gallery of real scenes that is searched without a network: for the widgets' tests."""

from __future__ import annotations

import numpy as np
import pytest

from objemb_lib.data.catalogue import DATASETS
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, true_boxes
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.whitening import l2
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.retriever import Retriever

PAIR = ("pixels", "colours")


def scenes(count: int = 15) -> ImageDataset:
    """The first battle scenes of three objects; skips where mini-battles is not built."""
    entry = DATASETS["mini-battles"]
    if not entry.built():
        pytest.skip("mini-battles is not built: make data")
    battle = entry.load("battle")
    labels = np.unique(battle.labels)[:3]
    three = [np.flatnonzero(battle.labels == k)[: count // 3] for k in labels]
    return battle.subset(np.concatenate(three))


def colours(dataset: ImageDataset, where: Boxes, cells: int = 4) -> np.ndarray:
    """``(M, 48)``: mean colours of a grid of cells of each box, around grey."""
    found = []
    for i, boxes in enumerate(where.boxes):
        image = dataset.image(i)
        crops = [image.crop(np.round(b).astype(int).tolist()) for b in boxes]
        found += [np.asarray(c.resize((cells, cells), reducing_gap=2.0)).ravel() for c in crops]
    return l2(np.array(found, np.float32) / 255 - 0.5)


def retriever(dataset: ImageDataset, cells: int = 4, main_only: bool = False) -> Retriever:
    """A gallery of true boxes by their colours; ``cells`` makes it another network."""
    where = true_boxes(dataset, main_only)
    vectors = {PAIR: colours(dataset, where, cells)}
    index = ObjectIndex(vectors[PAIR].shape[1])
    index.add(Objects(vectors, where), PAIR, dataset.files)
    embed = lambda data, boxes: colours(data, boxes, cells)  # noqa: E731
    return Retriever(dataset, index, f"colours, {cells} cells", where.name, embed)
