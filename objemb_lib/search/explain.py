"""Why did it answer that? What matches what, and what is left when a part of it is blotted out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from objemb_lib.attend.soft import similarity
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.whitening import l2
from objemb_lib.search.objects import Match
from objemb_lib.search.retriever import Embedder, Query, Retriever


@dataclass(frozen=True)
class Explanation:
    """Why an image is an answer.

    Args:
        cells: ``(n, 5)``: x, y in the query, x, y in the answer, in pixels, and the cosine of two
            cells that are each other's nearest, best first; none where ``way.embed`` has no map.
        heat: ``(h, w)`` in 0..1: how like the query each cell of the whole answer is.
        score: of the answer. without_background, without_object: its score when all but the box,
            or the box, has the photograph's mean colour.
    """

    cells: np.ndarray
    heat: np.ndarray
    score: float
    without_background: float
    without_object: float


def explain(
    way: Retriever, query: Query, chosen: int, match: Match, kind: str = "both"
) -> Explanation:
    """What in a query and in one of its answers is alike.

    Args:
        chosen: number of the box that asked. match: of :meth:`retriever.Retriever.search`.
        kind: what asked, as there.
    """
    cells, heat = np.zeros((0, 5)), np.zeros((1, 1))
    if isinstance(way.embed, Embedder):
        cut, asks = way.embed.cells, (query.boxes[chosen], query.dataset.sizes()[query.image])
        whole = way.embed.maps(way.dataset, match.image)
        ours = cut(way.embed.maps(query.dataset, query.image), *asks)
        theirs = cut(whole, match.box, way.dataset.sizes()[match.image])
        found = [
            [*_centre(asks[0], i, ours), *_centre(match.box, j, theirs), cosine]
            for i, j, cosine in mutual_nearest(ours, theirs)
        ]
        cells = np.array(found).reshape(-1, 5)
        heat = similarity(whole[0], ours.mean(dim=(1, 2))).clamp(0, 1).numpy()
    with tempfile.TemporaryDirectory(prefix="objemb-") as folder:
        shown = blotted(way.dataset, match.image, match.box, folder)
        boxes = np.array([match.box, (0, 0, *shown.sizes()[0])], np.float32)
        vectors = l2(way.embed(shown, Boxes("blotted", [boxes] * 3)))
    asking = query.vectors[way.asking(query, chosen, kind)]
    return Explanation(cells, heat, *(vectors.reshape(3, 2, -1) @ asking.T).max(axis=(1, 2)))


def mutual_nearest(ours: Tensor, theirs: Tensor) -> list[tuple[int, int, float]]:
    """Cells of two maps ``(C, h, w)`` that are each other's nearest: their numbers, row by row,
    and cosine, best first.

    >>> import torch
    >>> one, other = torch.eye(2)[:, None], torch.eye(2).flip(0)[:, None]
    >>> mutual_nearest(one, other)
    [(0, 1, 1.0), (1, 0, 1.0)]
    """
    cosines = F.normalize(ours.flatten(1), dim=0).T @ F.normalize(theirs.flatten(1), dim=0)
    there, back = cosines.argmax(dim=1).tolist(), cosines.argmax(dim=0).tolist()
    found = [(i, j, float(cosines[i, j])) for i, j in enumerate(there) if back[j] == i]
    return sorted(found, key=lambda pair: -pair[2])


def _centre(box: Sequence[float], cell: int, cells: Tensor) -> tuple[float, float]:
    """x and y of a cell's centre, of those that a box was cut into."""
    height, width = cells.shape[1:]
    row, column = divmod(cell, width)
    x0, y0, x1, y1 = box
    return x0 + (x1 - x0) * (column + 0.5) / width, y0 + (y1 - y0) * (row + 0.5) / height


def blotted(
    dataset: ImageDataset, i: int, box: Sequence[float], folder: str | Path
) -> ImageDataset:
    """An image as it is, without its background, and without what is in a box.

    What goes gets the image's mean colour. With the vectors of one box of all three it can be seen
    how much of a vector comes from what is not in the box.

    Args:
        folder: where the three images are written.
    """
    image = np.asarray(dataset.image(i))
    x0, y0, x1, y1 = np.round(box).astype(int)
    inside = np.zeros(image.shape[:2], bool)
    inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
    mean = image.mean(axis=(0, 1)).round().astype(np.uint8)
    files = ["as it is.png", "without background.png", "without object.png"]
    for file, gone in zip(files, (inside & False, ~inside, inside)):
        Image.fromarray(np.where(gone[..., None], mean, image)).save(Path(folder) / file)
    return ImageDataset("blotted", "query", Path(folder), files, np.full(3, -1))
