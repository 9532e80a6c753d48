"""Why an image is an answer: cells whose partners are known, and parts that are blotted out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_gallery import BOXES, PAIR, coloured, colours, retriever

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, with_whole
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.trunks import Stage
from objemb_lib.search.explain import blotted, explain
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.retriever import Embedder, Retriever

SIDE = 128  # of the pictures, and of what the toy network sees


class Pixels(Embedder):
    """A network whose map is the picture itself, in cells of four pixels."""

    def __init__(self) -> None:
        trunk = SimpleNamespace(
            stages={"pixels": Stage("pixels", 3, 4)}, mean=torch.zeros(1), normalise=lambda x: x,
        )  # fmt: skip
        super().__init__(trunk, [("pixels", "spoc")], SIDE)

    def __call__(self, dataset: ImageDataset, where: Boxes) -> np.ndarray:
        return colours(dataset, where, 1)

    def maps(self, dataset: ImageDataset, i: int) -> torch.Tensor:
        pixels = torch.from_numpy(np.asarray(dataset.image(i)).copy()).permute(2, 0, 1)[None]
        return F.avg_pool2d(pixels.float() - 127, 4)


def test_the_cells_of_a_part_are_found_where_it_stands_in_the_answer(tmp_path: Path) -> None:
    mosaic = np.random.default_rng(0).integers(0, 255, (7, 7, 3), np.uint8)
    part = Image.fromarray(mosaic).resize((56, 56), Image.NEAREST)
    places = {"asks.png": (8, 8), "answers.png": (64, 56)}
    for file, place in places.items():
        image = Image.new("RGB", (SIDE, SIDE), "grey")
        image.paste(part, place)
        image.save(tmp_path / file)
    data = ImageDataset("mosaics", "all", tmp_path, list(places), [0, 0])
    boxes = Boxes("parts", [[[x, y, x + 56, y + 56]] for x, y in places.values()])
    where, embed = with_whole(boxes, data), Pixels()
    index = ObjectIndex(3)
    index.add(Objects({PAIR: embed(data, where)}, where), PAIR, data.names)
    way = Retriever(data, index, "pixels", "parts", embed)
    query = way.query(0)
    (match,) = way.search(query, 0, kind="box").matches
    told = explain(way, query, 0, match, "box")
    assert len(told.cells) == 49 and (np.diff(told.cells[:, 4]) <= 0).all()
    np.testing.assert_allclose(told.cells[:, 2:4] - told.cells[:, :2], [[56, 48]] * 49, atol=1e-3)
    assert told.cells[:, :2].min() == 12 and told.cells[:, 4].min() > 0.999
    assert told.heat.shape == (32, 32) and 0 <= told.heat.min() < told.heat.max() <= 1
    assert told.score == pytest.approx(match.score, abs=1e-4)


def test_what_is_blotted_out_is_missed_only_where_it_counted(tmp_path: Path) -> None:
    way = retriever(coloured(tmp_path))
    query = way.query(0)
    match = way.search(query, 0, 1, "box").matches[0]
    told = explain(way, query, 0, match, "box")
    assert match.image == 1 and told.score == pytest.approx(1, abs=1e-4)
    assert told.without_background == pytest.approx(told.score)
    assert told.score > told.without_object + 0.5
    assert not len(told.cells), "colours are no map"
    whole = way.search(query, query.whole, 1, "whole").matches[0]
    told = explain(way, query, query.whole, whole, "whole")
    assert whole.box == (0, 0, 40, 30) and told.without_background == pytest.approx(told.score)


def test_blotted_pictures_keep_the_rest_pixel_by_pixel(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    x0, y0, x1, y1 = BOXES["b.png"][0]
    (tmp_path / "blotted").mkdir()
    is_, alone, without = map(np.asarray, map(blotted(
        data, 1, (x0, y0, x1, y1), tmp_path / "blotted").image, range(3)))  # fmt: skip
    inside = np.zeros(is_.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    assert (is_ == np.asarray(data.image(1))).all()
    assert (alone[inside] == is_[inside]).all() and (without[~inside] == is_[~inside]).all()
    mean = is_.mean(axis=(0, 1)).round()
    assert (alone[~inside] == mean).all() and (without[inside] == mean).all()
