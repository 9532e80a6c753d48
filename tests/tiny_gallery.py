"""Galleries that are searched by colour, without a network: the right answers can be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from objemb_lib.data.catalogue import DATASETS
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, true_boxes, with_whole
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.whitening import l2
from objemb_lib.search.objects import ObjectIndex, ObjectStore
from objemb_lib.search.retriever import Retriever

PAIR = ("head", "spoc")
BOXES = {
    "a.png": [(2, 2, 12, 12), (20, 5, 35, 25)],
    "b.png": [(22, 10, 36, 24)],
    "c.png": [(5, 5, 15, 15), (20, 2, 38, 12)],
}
INKS = {"a.png": ["red", "blue"], "b.png": ["red"], "c.png": ["blue", "yellow"]}
NAMES = ["red", "blue", "yellow"]


def made(vectors: list[list], boxes: list[list] | None = None, scores=()) -> Objects:
    """Objects with the given vectors, a list for each image; boxes lie beside each other."""
    boxes = boxes or [[[9 * k, 0, 9 * k + 5, 5] for k in range(len(v))] for v in vectors]
    flat = np.array([v for many in vectors for v in many], np.float32)
    return Objects({PAIR: flat}, Boxes("made", boxes, scores))


def coloured(folder: Path) -> ImageDataset:
    """Red and blue, red, blue and yellow; in the last one also green, without a box."""
    for file, boxes in BOXES.items():
        image = Image.new("RGB", (40, 30), "white")
        for (x0, y0, x1, y1), ink in zip(boxes, INKS[file]):
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), ink)
        if file == "c.png":
            ImageDraw.Draw(image).rectangle((2, 20, 11, 27), "lime")
        image.save(folder / file)
    labels = [np.array([NAMES.index(ink) for ink in inks]) for inks in INKS.values()]
    return ImageDataset(
        "colours", "all", folder, list(BOXES), [0, 0, 1], NAMES, [0, 0, 1], ["warm", "cold"],
        [np.array(some, np.float32) for some in BOXES.values()], labels,
    )  # fmt: skip


def scenes(count: int = 15) -> ImageDataset:
    """The first battle scenes of three objects; skips where mini-battles is not built."""
    entry = DATASETS["mini-battles"]
    if not entry.built():
        pytest.skip("mini-battles is not built: make data")
    battle = entry.load("battle")
    labels = np.unique(battle.labels)[:3]
    three = [np.flatnonzero(battle.labels == k)[: count // 3] for k in labels]
    return battle.subset(np.concatenate(three))


def colours(dataset: ImageDataset, where: Boxes, cells: int) -> np.ndarray:
    """``(M, 3 cells^2)``: mean colours of a grid of cells of each box, around grey."""
    found = []
    for i, boxes in enumerate(where.boxes):
        image = dataset.image(i)
        crops = [image.crop(np.round(b).astype(int).tolist()) for b in boxes]
        found += [np.asarray(c.resize((cells, cells), Image.BOX)).ravel() for c in crops]
    return l2(np.array(found, np.float32) / 255 - 0.5)


def retriever(
    dataset: ImageDataset,
    cells: int = 1,
    main_only: bool = False,
    store: Callable[[int], ObjectStore] = ObjectIndex,
) -> Retriever:
    """A gallery of true boxes and whole pictures by colour; ``cells`` makes it another network."""
    where = with_whole(true_boxes(dataset, main_only), dataset)
    vectors = colours(dataset, where, cells)
    index = store(vectors.shape[1])
    index.add(Objects({PAIR: vectors}, where), PAIR, dataset.files)
    name = "true main box" if main_only else "true boxes"
    embed = lambda data, boxes: colours(data, boxes, cells)  # noqa: E731
    return Retriever(dataset, index, f"colours, {cells} cells", name, embed)
