"""Retriever: one query, from a photograph to an answer grouped by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from objemb_lib.config import DataError, device
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes, whole_image, with_whole
from objemb_lib.embed.extract import ExtractOptions, extract, extract_objects
from objemb_lib.embed.regions import CELLS, Region, model_input, roi_align
from objemb_lib.embed.trunks import Trunk
from objemb_lib.embed.whitening import concat_descriptors, l2
from objemb_lib.search.calibration import LATER, UNCHECKED, Calibration
from objemb_lib.search.index import provenance
from objemb_lib.search.objects import Answer, Match, ObjectIndex, ObjectStore

SAME_BOX = 0.8  # overlap (IoU) from which two boxes show the same, and one is left out

Pairs = Sequence[tuple[str, str]]
Embed = Callable[[ImageDataset, Boxes], np.ndarray]
Find = Callable[[ImageDataset], Boxes]


@dataclass(frozen=True, eq=False)
class Query:
    """An image that can ask with any of its boxes.

    Args:
        dataset: holds the image. image: its number there.
        boxes: ``(K, 4)`` in pixels of it. vectors: ``(K, D)``, one a box.
        whole: the number of the box that is the whole photograph.
    """

    dataset: ImageDataset
    image: int
    boxes: np.ndarray
    vectors: np.ndarray
    whole: int


@dataclass(frozen=True, eq=False)
class Retriever:
    """A gallery of objects, and how whatever asks becomes a vector.

    Args:
        dataset: the gallery. index: of its objects, of all of its images in order; in memory
            (:class:`objects.ObjectIndex`) or in Milvus (:class:`milvus.MilvusIndex`).
        network, boxes: what gave vectors and boxes, for menus.
        embed: ``(M, D)`` vectors of boxes of any images.
        find: boxes of a photograph that is not in the gallery; default its whole.
        calibration: how often answers are right; without it nobody knows.
    Raises:
        DataError: an index of other images.
    """

    dataset: ImageDataset
    index: ObjectStore
    network: str
    boxes: str
    embed: Embed
    find: Find = whole_image
    calibration: Calibration = UNCHECKED

    def __post_init__(self) -> None:
        if self.index.files != list(self.dataset.names):
            problem = f"{self.index} is not of {self.dataset}"
            raise DataError(problem, "Add the images of the data set in order.")

    @classmethod
    def build(
        cls,
        dataset: ImageDataset,
        trunk: Trunk,
        pairs: Pairs,
        region: Region,
        size: int = 256,
        find: Find = whole_image,
        progress: bool = True,
    ) -> Retriever:
        """Embed all objects of a gallery and the whole photographs, and make them searchable.

        Args:
            pairs: (stage, pooling); vectors of several are joined (:func:`concat_descriptors`).
            region: boxes of ``dataset``; a query's box gets the same context.
            find: boxes of a photograph that is not in the gallery.
        """
        options = ExtractOptions(size, progress=progress)
        region = replace(region, boxes=with_whole(region.boxes, dataset, SAME_BOX))
        cut = {"": _region(region.boxes, dataset, region.context)}
        (some,) = extract_objects(dataset, trunk, pairs, cut, options).values()
        joined = concat_descriptors([some.vectors[pair] for pair in pairs])
        pair = tuple("+".join(parts) for parts in zip(*pairs))
        index = ObjectIndex(joined.shape[1], provenance(trunk, size, pair, region.name))
        objects = replace(some, vectors={pair: joined}, where=region.boxes)
        index.add(objects, pair, dataset.names)
        embed = embedder(trunk, pairs, size, region.context)
        return cls(dataset, index, trunk.name, region.name, embed, find)

    def query(self, image: int) -> Query:
        """An image of the gallery, with the boxes that the index has of it."""
        return self._query(self.dataset, image, *self.index.of_images([image])[0])

    def query_photograph(self, photograph: ImageDataset) -> Query:
        """A photograph that is not in the gallery (:func:`objects.photograph`): boxes, vectors."""
        found = with_whole(self.find(photograph), photograph, SAME_BOX)
        return self._query(photograph, 0, found.boxes[0], l2(self.embed(photograph, found)))

    def _query(self, dataset: ImageDataset, image: int, *objects: np.ndarray) -> Query:
        """With the whole photograph among its boxes."""
        query = Query(dataset, image, *objects, 0)
        query, whole = self.add_box(query, (0, 0, *dataset.sizes()[image]))
        return replace(query, whole=whole)

    def add_box(self, query: Query, box: Sequence[float]) -> tuple[Query, int]:
        """The query with a box, and the box's number; one drawn by hand is embedded and added.

        Args:
            box: x0, y0, x1, y1; is clipped to the image.
        Raises:
            DataError: less than two pixels of the box lie in the image.
        """
        size = query.dataset.sizes()[query.image]
        drawn = np.clip(np.asarray(box, np.float32), 0, np.tile(size, 2))
        if (drawn[2:] - drawn[:2] < 2).any():
            raise DataError(f"a box of {drawn.tolist()} holds nothing", "Draw a larger one.")
        same = np.abs(query.boxes - drawn).max(axis=1) < 0.5
        if same.any():
            return query, int(np.argmax(same))
        one = query.dataset.subset([query.image])
        vector = l2(self.embed(one, Boxes("drawn", [drawn], source="by hand")))
        boxes = np.concatenate([query.boxes, drawn[None]])
        more = replace(query, boxes=boxes, vectors=np.concatenate([query.vectors, vector]))
        return more, len(boxes) - 1

    def search(self, query: Query, chosen: int, k: int = 8, kind: str = "both") -> Answer:
        """The ``k`` best images for a query, each with the box that was meant.

        An image counts by its object, or its whole, that is most like anything that asks.

        Args:
            chosen: number of the box. kind: what asks: the ``box``, the ``whole`` or ``both``.
        """
        own = {query.dataset.names[query.image]} if query.dataset is self.dataset else set()
        found: list[Match] = []
        for number in self.asking(query, chosen, kind):
            found += self.index.search(query.vectors[number], max(k, LATER.stop), own)
        kind = "whole" if chosen == query.whole else kind
        images = {match.image: match for match in sorted(found, key=attrgetter("score"))}
        best = sorted(images.values(), key=lambda match: (-match.score, match.image))
        best = best[: max(k, LATER.stop)]  # of these no image is absent
        chances = self.calibration.chance(np.array([match.score for match in best]), kind)
        best = [replace(match, chance=float(c)) for match, c in zip(best[:k], chances)]
        return Answer(query.dataset, query.image, query.boxes, chosen, best, kind)

    def asking(self, query: Query, chosen: int, kind: str) -> list[int]:
        """The numbers of the boxes that ask, see :meth:`search`."""
        return {"box": [chosen], "whole": [query.whole], "both": [chosen, query.whole]}[kind]

    def sample(self, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At most ``most`` objects, evenly spread: image ``(M,)``, boxes and vectors.

        A whole photograph is one of them only where nothing else was found in it.
        """
        images, owners, found = _spread(len(self.dataset), most), [], []
        for image, (boxes, vectors) in zip(images.tolist(), self.index.of_images(images.tolist())):
            part = ~is_whole(boxes, self.dataset.sizes()[image])
            part |= not part.any()
            owners += [image] * int(part.sum())
            found.append((boxes[part], vectors[part]))
        boxes, vectors = map(np.concatenate, zip(*found))
        rows = _spread(len(owners), most)
        return np.array(owners)[rows], boxes[rows], vectors[rows]


@dataclass(frozen=True, eq=False)
class Embedder:
    """What embeds boxes as :meth:`Retriever.build` embeds the gallery's; see there."""

    trunk: Trunk
    pairs: Pairs
    size: int = 256
    context: float = 0.0

    def __call__(self, dataset: ImageDataset, where: Boxes) -> np.ndarray:
        """``(M, D)`` vectors of boxes of any images."""
        options = ExtractOptions(self.size, cache=False, progress=False)
        region = _region(where, dataset, self.context)
        vectors = extract(dataset, self.trunk, self.pairs, region, options)
        return concat_descriptors([vectors[pair] for pair in self.pairs])

    @property
    def stage(self) -> str:
        """Whose map can be looked into: the vectors' own, or the one a student's are cut from."""
        own = self.pairs[0][0]
        if not self.trunk.stages[own].per_box:
            return own
        return self.trunk.embedding.stage.name if own == "student" else "head"

    @torch.inference_mode()
    def maps(self, dataset: ImageDataset, i: int) -> Tensor:
        """``(1, C, H, W)``: the map of a whole image."""
        seen = torch.from_numpy(model_input(dataset.image(i), self.size).copy())
        pixels = seen.permute(2, 0, 1)[None].to(self.trunk.mean.device)
        maps = self.trunk(self.trunk.normalise(pixels), self.trunk.deepest([self.stage]))
        return maps[self.stage].float().cpu()

    def cells(self, maps: Tensor, box: Sequence[float], size: Sequence[int]) -> Tensor:
        """``(C, 7, 7)``: a box of an image of this width and height, cut out of its map."""
        inside = torch.tensor(np.array(box) / np.tile(size, 2), dtype=torch.float32)
        scale = self.size / self.trunk.stages[self.stage].stride
        return roi_align(maps, [inside[None]], CELLS, scale)[0]


def embedder(trunk: Trunk, pairs: Pairs, size: int = 256, context: float = 0.0) -> Embedder:
    """An :class:`Embedder` that is ready to run."""
    return Embedder(trunk.for_inference(device()), pairs, size, context)


def _region(where: Boxes, dataset: ImageDataset, context: float) -> Region:
    """Boxes with their context; the whole image stays whole, where a context shrinks boxes, too."""
    if context >= 0:
        return Region(where, context=context)
    boxes = []
    for many, size in zip(where.boxes, dataset.sizes()):
        whole = is_whole(many, size)[:, None]
        beyond = context / (1 + 2 * context) * np.array([1, 1, -1, -1]) * np.tile(size, 2)
        boxes.append(np.where(whole, many + beyond, many))
    return Region(replace(where, boxes=boxes, masks=None), context=context)


def is_whole(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """``(K,)`` boolean: which of ``(K, 4)`` boxes are all of an image of this width and height."""
    return np.abs(boxes - np.array([0, 0, *size])).max(axis=1) < 0.5


def _spread(n: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(int))
