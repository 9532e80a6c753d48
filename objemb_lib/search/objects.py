"""Objects: images as sets of object vectors, searched by one object.

An image has as many vectors as a source of boxes found objects in it; a query is one of them. The
answer names the images, and in each the box that was meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from objemb_lib.attend.objects import object_label
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.whitening import l2
from objemb_lib.search.index import Index, read_tables

SAME = 1e-5  # how far two tables of one photograph's vectors may round


@dataclass(frozen=True)
class Match:
    """An image that was found: its number in the index and its file, score, and the box meant.

    ``data_set`` names what the image is part of, where an index holds several.
    """

    image: int
    file: str
    score: float
    box: tuple[float, ...]
    data_set: str = ""


class ObjectStore(Protocol):
    """What holds the objects of a gallery, wherever they lie: all that a ``Retriever`` asks for.

    Images are numbered in the order in which they were added. Every method raises DataError for
    what it cannot do, and then nothing has changed.
    """

    @property
    def files(self) -> list[str]:
        """Of each image, by its number; "" where one was removed."""

    def __len__(self) -> int:
        """The number of objects."""

    def add(self, objects: Objects, pair: tuple[str, str], files: Sequence[str]) -> None:
        """Add the objects of images, whose vectors are L2-normalised; ``files``: one an image."""

    def remove(self, files: Collection[str]) -> None:
        """Take images out, with all of their objects; the others keep their numbers."""

    def of_image(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``(K, 4)`` and L2-normalised vectors ``(K, D)``, in the order of adding."""

    def search(self, vector: np.ndarray, k: int, without: Collection[str] = ()) -> list[Match]:
        """The ``k`` images with the object most like a ``(D,)`` vector, best first.

        Each image counts once, by its best object; so does a photograph that is there twice
        under two names (the same box with the same vector, or with the same code).

        Args:
            without: files that are not to be found, such as the query's own.
        """

    def save(self, path: str | Path) -> None:
        """Write the file that ``load`` reads."""

    @classmethod
    def load(cls, path: str | Path, meta: Mapping[str, str] | None = None) -> ObjectStore:
        """What was saved, if its strings are ``meta``, see :func:`index.provenance`."""


class ObjectIndex:
    """The objects in memory: an :class:`index.Index` that knows their images and boxes.

    Args:
        dim: of the vectors. meta: strings to keep, see :func:`index.provenance`.
        factory: the family of the index, see :mod:`index`; all but "Flat", "SQ8" and graphs want
            ``index.train(l2(vectors))`` first.
    """

    def __init__(
        self, dim: int, meta: Mapping[str, str] | None = None, factory: str = "Flat"
    ) -> None:
        self.index = Index(dim, meta, factory)
        self.files: list[str] = []
        self._numbers: dict[str, int] = {}  # of the files that are there
        self._count = 0  # of objects that ever were: their ids
        self._image, self._boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.float32)]

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"ObjectIndex({len(self)} objects of {len(self._numbers)} images)"

    @property
    def image(self) -> np.ndarray:
        """``(M,)`` image of every object that ever was."""
        return _joined(self._image)

    @property
    def boxes(self) -> np.ndarray:
        """``(M, 4)`` in pixels of its image."""
        return _joined(self._boxes)

    @property
    def n_bytes(self) -> int:
        """What vectors (or codes), ids and boxes take."""
        return self.index.n_bytes + self.boxes.nbytes

    @property
    def vectors(self) -> np.ndarray:
        """``(M, D)``, L2-normalised, as the index keeps them. Raises DataError once some left."""
        return self.index.vectors(np.arange(self._count))

    def add(self, objects: Objects, pair: tuple[str, str], files: Sequence[str]) -> None:
        """As :meth:`ObjectStore.add`. Raises DataError for a file that is there already, too."""
        check_files(objects, files)
        new = {file: len(self.files) + n for n, file in enumerate(files)}
        if again := new.keys() & self._numbers.keys():
            raise DataError(f"{min(again)} is in the index already", "Add an image once only.")
        self.index.add(l2(objects.vectors[pair]), self._count + np.arange(len(objects)))
        self._count += len(objects)
        self._image.append(objects.image + len(self.files))
        self._boxes.append(objects.boxes)
        self.files += files
        self._numbers |= new

    def remove(self, files: Collection[str]) -> None:
        """As :meth:`ObjectStore.remove`."""
        if absent := set(files) - self._numbers.keys():
            raise DataError(f"{min(absent)!r} is not in the index", "Name files it holds.")
        gone = [self._numbers[file] for file in set(files)]
        self.index.remove(np.flatnonzero(np.isin(self.image, gone)))
        for file in set(files):
            self.files[self._numbers.pop(file)] = ""

    def of_image(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`ObjectStore.of_image`."""
        if not 0 <= image < len(self.files) or not self.files[image]:
            raise DataError(f"no image {image} in {self}", "Name one it holds.")
        mine = np.arange(*np.searchsorted(self.image, [image, image + 1]))
        return self.boxes[mine], self.index.vectors(mine)

    def search(self, vector: np.ndarray, k: int, without: Collection[str] = ()) -> list[Match]:
        """As :meth:`ObjectStore.search`."""
        asked, image, boxes = l2(np.asarray(vector)[None]), self.image, self.boxes

        def hits(wanted: int) -> Hits:
            scores, rows = (some[0] for some in self.index.search(asked, wanted))
            scores, rows = scores[rows >= 0], rows[rows >= 0]
            found = [
                Match(i, self.files[i], score, tuple(box))
                for i, score, box in zip(
                    image[rows].tolist(), scores.tolist(), boxes[rows].tolist()
                )
            ]
            return found, lambda places: self.index.vectors(rows[places])

        return best_images(hits, k, len(self), without)

    def save(self, path: str | Path) -> None:
        """Write one file, atomically; see :meth:`index.Index.save`."""
        files = np.array(json.dumps(self.files))
        self.index.save(path, image=self.image, boxes=self.boxes, files=files)

    @classmethod
    def load(
        cls, path: str | Path, meta: Mapping[str, str] | None = None, mmap: bool = False
    ) -> ObjectIndex:
        """Read what ``save`` wrote; arguments and errors as for :meth:`index.Index.load`."""
        index, tables = Index.load(path, meta, mmap), read_tables(path)
        found = cls(index.dim)
        found.index = index
        try:
            found._image, found._boxes = [tables["image"]], [tables["boxes"]]
            found.files = json.loads(str(tables["files"]))
        except KeyError as error:
            raise DataError(f"{path} is no index of objects", "Build it again.") from error
        found._count = len(found.image)
        found._numbers = {file: n for n, file in enumerate(found.files) if file}
        return found


def check_files(objects: Objects, files: Sequence[str]) -> None:
    """Raise DataError unless there is a name for each image, each another."""
    if not len(files) == len(set(files)) == len(objects.where) or "" in files:
        raise DataError(
            f"{len(files)} files for {len(objects.where)} images", "Name each image once."
        )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Parts as one, which takes their place: adding many, then reading once, copies once."""
    if len(parts) > 1:
        parts[:] = [np.concatenate(parts)]
    return parts[0]


# --- from objects to images ---------------------------------------------------------------

Hits = tuple[list[Match], Callable[[list[int]], np.ndarray]]  # objects, best first; their vectors


def best_images(
    hits: Callable[[int], Hits], k: int, most: int, without: Collection[str] = ()
) -> list[Match]:
    """The ``k`` best images, of as many objects as that takes.

    Args:
        hits: the objects of the highest scores, as many as asked for or all there are; and what
            gives the vectors of some of them, by their places.
        most: objects that can be asked for. without: files that are left out.
    """
    if k < 1:
        raise DataError(f"search for {k} images", "Use k >= 1.")
    wanted = min(4 * (k + len(without)), most)
    while True:
        found, vectors = hits(wanted)
        places = [n for n, match in enumerate(found) if match.file not in without]
        best = _one_an_image(found, places, vectors)
        if len(best) >= k or len(found) < wanted or wanted == most:
            return best[:k]
        wanted = min(2 * wanted, most)


def _one_an_image(
    found: list[Match], places: list[int], vectors: Callable[[list[int]], np.ndarray]
) -> list[Match]:
    """The best object of each image, without copies: the same box with the same vector."""
    seen: set[tuple[str, int]] = set()
    kept: list[int] = []
    for n in places:
        match = found[n]
        if (match.data_set, match.image) in seen:
            continue
        seen.add((match.data_set, match.image))
        alike = [
            other
            for other in kept
            if found[other].box == match.box and abs(found[other].score - match.score) < SAME
        ]
        if alike:
            own, *others = vectors([n, *alike])
            if np.isclose(others, own, atol=SAME).all(axis=1).any():
                continue
        kept.append(n)
    return [found[n] for n in kept]


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
    index: ObjectStore,
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
        raise DataError(f"image {query} has {len(mine)} boxes, none of number {chosen}")
    vector = objects.vectors[pair][mine[chosen]]
    matches = index.search(vector, k, without={dataset.names[query]})
    return Answer(dataset, query, objects.boxes[mine], chosen, matches)


def photograph(path: str | Path) -> ImageDataset:
    """One file as a data set, so that it can ask as any other image does."""
    path = Path(path).resolve()
    return ImageDataset("photograph", "query", path.parent, [path.name], np.array([-1]))
