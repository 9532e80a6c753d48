"""Objects: images as sets of object vectors, searched by one object.

An image has as many vectors as a source of boxes found objects in it. A query is one object; an
image's score says how well the query meets the best of its objects, or all of them together. The
answer names the images, and in each the box that was meant.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objemb_lib.attend.objects import object_label
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.whitening import l2
from objemb_lib.search.index import Index

SAME = 1e-5  # how far two tables of one photograph's vectors may round


# --- an index of objects ------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """An image that was found: its number in the index and its file, score, and the box meant."""

    image: int
    file: str
    score: float
    box: tuple[float, ...]


class ObjectIndex:
    """An :class:`index.Index` of objects that knows their images and boxes, and answers by image.

    Args:
        dim: of the vectors. meta: strings to keep, see :func:`index.provenance`.
        factory: the family of the index, see :mod:`index`; all but "Flat", "SQ8" and graphs want
            ``index.train(l2(vectors))`` first.
    """

    def __init__(
        self, dim: int, meta: Mapping[str, str] | None = None, factory: str = "Flat"
    ) -> None:
        self.index = Index(dim, meta=meta, factory=factory)
        self.files: list[str] = []  # "" where an image was removed
        self.image = np.zeros(0, np.int64)  # (M,) of every object that ever was
        self.boxes = np.zeros((0, 4), np.float32)  # (M, 4)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        images = sum(map(bool, self.files))
        return f"ObjectIndex({len(self)} objects of {images} images)"

    @property
    def n_bytes(self) -> int:
        """What vectors (or codes), ids and boxes take."""
        return self.index.n_bytes + self.boxes.nbytes

    @property
    def vectors(self) -> np.ndarray:
        """``(M, D)``, L2-normalised, as the index keeps them. Raises DataError once some left."""
        return self.index.vectors(np.arange(len(self.image)))

    def add(self, objects: Objects, pair: tuple[str, str], files: Sequence[str]) -> None:
        """Add the objects of further images; vectors are L2-normalised.

        Args:
            files: one an image, in their order.
        Raises:
            DataError: a file that is there already; else as :meth:`index.Index.add`. Then nothing
                is added.
        """
        files = list(files)
        if len(files) != len(objects.where) or len(set(files)) != len(files) or "" in files:
            raise DataError(
                f"{len(files)} files for {len(objects.where)} images", "Name each image once."
            )
        if again := set(files) & set(self.files):
            raise DataError(
                f"{sorted(again)[0]} is in the index already", "Add an image once only."
            )
        ids = len(self.image) + np.arange(len(objects))
        self.index.add(l2(objects.vectors[pair]), ids)
        self.image = np.concatenate([self.image, objects.image + len(self.files)])
        self.boxes = np.concatenate([self.boxes, objects.boxes])
        self.files += files

    def remove(self, files: Collection[str]) -> None:
        """Take images out, with all of their objects; the others keep their numbers.

        Raises:
            DataError: a file that is not there. Then nothing is removed.
        """
        if absent := set(files) - set(self.files) | set(files) & {""}:
            raise DataError(f"{min(absent)!r} is not in the index", "Name files it holds.")
        gone = [n for n, file in enumerate(self.files) if file in set(files)]
        self.index.remove(np.flatnonzero(np.isin(self.image, gone)))
        for n in gone:
            self.files[n] = ""

    def of_image(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``(K, 4)`` and L2-normalised vectors ``(K, D)`` of an image's objects."""
        mine = np.flatnonzero(self.image == image)
        return self.boxes[mine], self.index.vectors(mine)

    def search(self, vector: np.ndarray, k: int, without: Collection[str] = ()) -> list[Match]:
        """The ``k`` images with the object most like a ``(D,)`` vector, best first.

        Each image counts once, by its best object; so does a photograph that is there twice
        under two names (the same box with the same vector, or with the same code).

        Args:
            without: files that are not to be found, such as the query's own.
        """
        asked, found = l2(np.asarray(vector)[None]), []
        for wanted in _doubling(4 * (k + len(without)), len(self)):
            scores, rows = self.index.search(asked, wanted)
            there = rows[0] >= 0
            found = self._grouped(scores[0, there], rows[0, there], without)
            if len(found) >= k or not there.all():
                break
        return found[:k]

    def _grouped(
        self, scores: np.ndarray, rows: np.ndarray, without: Collection[str]
    ) -> list[Match]:
        best: dict[int, int] = {}
        copies: set[int] = set()
        score_of = dict(zip(rows.tolist(), scores.tolist()))
        for row in rows.tolist():
            image = int(self.image[row])
            if image in best or image in copies or self.files[image] in without:
                continue
            alike = [
                other
                for other in best.values()
                if abs(score_of[other] - score_of[row]) < SAME
                and np.array_equal(self.boxes[other], self.boxes[row])
            ]
            if alike and _any_equal(self.index.vectors(np.array([row, *alike]))):
                copies.add(image)
                continue
            best[image] = row
        return [
            Match(image, self.files[image], score_of[row], tuple(self.boxes[row].tolist()))
            for image, row in best.items()
        ]

    def save(self, path: str | Path) -> None:
        """Write one file, atomically; see :meth:`index.Index.save`."""
        objects = {
            "files": self.files,
            "image": self.image.tolist(),
            "boxes": self.boxes.tolist(),
        }
        kept = self.index.meta
        try:
            self.index.meta = {**kept, "objects": json.dumps(objects)}
            self.index.save(path)
        finally:
            self.index.meta = kept

    @classmethod
    def load(
        cls, path: str | Path, meta: Mapping[str, str] | None = None, mmap: bool = False
    ) -> ObjectIndex:
        """Read what ``save`` wrote; arguments as for :meth:`index.Index.load`.

        Raises:
            DataError: absent, damaged, of another model, or no index of objects.
        """
        index = Index.load(path, meta=meta, mmap=mmap)
        try:
            objects = json.loads(index.meta.pop("objects"))
            found = cls(index.dim, index.meta)
            found.index, found.files = index, objects["files"]
            found.image = np.array(objects["image"], np.int64)
            found.boxes = np.array(objects["boxes"], np.float32).reshape(-1, 4)
            if not len(found.image) == len(found.boxes) >= len(index):
                raise ValueError(f"{len(index)} vectors, {len(found.boxes)} boxes")
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path} is no index of objects ({error})", "Build it again."
            ) from error
        return found


def _any_equal(vectors: np.ndarray) -> bool:
    """Whether the first vector is any of the others, to rounding."""
    return bool(np.isclose(vectors[1:], vectors[0], atol=SAME).all(axis=1).any())


def _doubling(first: int, most: int) -> list[int]:
    """Numbers to ask for, until there is nothing more.

    >>> _doubling(4, 20)
    [4, 8, 16, 20]
    """
    found = [min(first, most)]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


# --- choose a box, search for that object -------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What was asked, and found.

    Args:
        dataset: holds the query. query: image index in it. boxes: ``(K, 4)`` of it.
        chosen: which box was asked for. matches: best first.
    """

    dataset: ImageDataset
    query: int
    boxes: np.ndarray
    chosen: int
    matches: list[Match]

    @property
    def label(self) -> int:
        """Label of the object that was chosen; -1 where nobody knows."""
        return object_label(self.dataset, self.query, self.boxes[self.chosen])


def search_object(
    dataset: ImageDataset,
    query: int,
    objects: Objects,
    pair: tuple[str, str],
    chosen: int,
    index: ObjectIndex,
    k: int = 8,
) -> Answer:
    """Choose a box of an image, search for that object: what a click in a picture does.

    Args:
        dataset: holds the query; its own file is not found. objects: of ``dataset``.
        chosen: number of the box in the image.
    Raises:
        DataError: no such image or box.
    """
    mine = np.flatnonzero(objects.image == query)
    if not 0 <= chosen < len(mine):
        raise DataError(
            f"image {query} has {len(mine)} boxes, none of number {chosen}",
            f"Choose 0 to {len(mine) - 1}." if len(mine) else f"Use {dataset}'s own objects.",
        )
    vector = objects.vectors[pair][mine[chosen]]
    matches = index.search(vector, k, without={dataset.names[query]})
    return Answer(dataset, query, objects.boxes[mine], chosen, matches)


def photograph(path: str | Path) -> ImageDataset:
    """One file as a data set, so that it can ask as any other image does."""
    path = Path(path).resolve()
    return ImageDataset("photograph", "query", path.parent, [path.name], np.array([-1]))
