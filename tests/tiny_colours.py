"""Three pictures of coloured rectangles, searched by colour: the right answers can be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, true_boxes
from objemb_lib.embed.extract import Objects
from objemb_lib.search.objects import ObjectIndex, ObjectStore
from objemb_lib.search.retriever import Retriever

BOXES = {
    "a.png": [(2, 2, 12, 12), (20, 5, 35, 25)],
    "b.png": [(22, 10, 36, 24)],
    "c.png": [(5, 5, 15, 15), (20, 2, 38, 12)],
}
INKS = {"a.png": ["red", "blue"], "b.png": ["red"], "c.png": ["blue", "yellow"]}
LABELS = {"red": 0, "blue": 1, "yellow": 2}
PAIR = ("pixels", "mean")


def coloured(folder: Path) -> ImageDataset:
    """Red and blue, red, blue and yellow; in the last one also green, without a box."""
    for file, boxes in BOXES.items():
        image = Image.new("RGB", (40, 30), "white")
        for (x0, y0, x1, y1), ink in zip(boxes, INKS[file]):
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), ink)
        if file == "c.png":
            ImageDraw.Draw(image).rectangle((2, 20, 11, 27), "lime")
        image.save(folder / file)
    labels = [np.array([LABELS[ink] for ink in inks]) for inks in INKS.values()]
    return ImageDataset(
        "colours", "all", folder, list(BOXES), [0, 0, 1], list(LABELS), [0, 0, 1],
        ["warm", "cold"], [np.array(some, np.float32) for some in BOXES.values()], labels,
    )  # fmt: skip


def mean_colours(dataset: ImageDataset, where: Boxes) -> np.ndarray:
    """``(M, 3)``: mean colour of each box, around grey."""
    crops = [
        np.asarray(dataset.image(i).crop(np.round(box).astype(int).tolist()))
        for i, boxes in enumerate(where.boxes)
        for box in boxes
    ]
    return np.array([crop.reshape(-1, 3).mean(axis=0) / 127.5 - 1 for crop in crops], np.float32)


def by_colour(
    dataset: ImageDataset,
    network: str = "colour",
    main_only: bool = False,
    store: Callable[[int], ObjectStore] = ObjectIndex,
) -> Retriever:
    """A gallery of true boxes."""
    where = true_boxes(dataset, main_only)
    index = store(3)
    index.add(Objects({PAIR: mean_colours(dataset, where)}, where), PAIR, dataset.files)
    return Retriever(dataset, index, network, where.name, mean_colours)
