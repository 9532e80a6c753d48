"""Objects: images as sets of object vectors, searched by one object.

An image has as many vectors as a source of boxes found objects in it; a query is one of them. The
answer names the images, and in each the box that was meant.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
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

    ``data_set`` names what the image is part of, where an index holds several. ``chance``: how
    often such answers are right, 0 to 1; nan where that was not checked.
    """

    image: int
    file: str
    score: float
    box: tuple[float, ...]
    data_set: str = ""
    chance: float = field(default=np.nan, compare=False)


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
        """Add the objects of images; ``files``: one an image."""

    def remove(self, files: Collection[str]) -> None:
        """Take images out, with all of their objects; the others keep their numbers."""

    def of_images(self, images: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each, boxes ``(K, 4)`` and unit vectors ``(K, D)``, in the order of adding."""

    def search(self, vector: np.ndarray, k: int, without: Collection[str] = ()) -> list[Match]:
        """The ``k`` images with the object most like a ``(D,)`` vector, best first.

        Each image counts once, by its best object; so does a photograph that is there under two
        names (the same box with the same vector, or code). ``without``: files that are left out.
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
        factory: the family of the index, see :mod:`index`; all but "Flat" and graphs want
            ``index.train(l2(vectors))`` first.
    """

    def __init__(
        self, dim: int, meta: Mapping[str, str] | None = None, factory: str = "Flat"
    ) -> None:
        self.index = Index(dim, meta, factory)
        self.files: list[str] = []
        self._boxes: list[np.ndarray] = []  # (K, 4), of each image that ever was
        self._first = [0]  # the id of each image's first object; last, that of the next object
        self._numbers: dict[str, int] = {}  # of the files that are there

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"ObjectIndex({len(self)} objects of {len(self._numbers)} images)"

    @property
    def vectors(self) -> np.ndarray:
        """``(M, D)``, L2-normalised, as the index keeps them. Raises DataError once some left."""
        return self.index.vectors(np.arange(self._first[-1]))

    def add(self, objects: Objects, pair: tuple[str, str], files: Sequence[str]) -> None:
        """As :meth:`ObjectStore.add`. Raises DataError for a file that is there already, too."""
        check_added(objects, pair, files, self.index.meta)
        new = {file: len(self.files) + n for n, file in enumerate(files)}
        if again := new.keys() & self._numbers.keys():
            raise DataError(f"{min(again)} is in the index already", "Add an image once only.")
        first = self._first[-1]
        self.index.add(l2(objects.vectors[pair]), first + np.arange(len(objects)))
        self.files += files
        self._boxes += objects.where.boxes
        self._first += (first + np.cumsum(objects.where.counts)).tolist()
        self._numbers |= new

    def remove(self, files: Collection[str]) -> None:
        """As :meth:`ObjectStore.remove`."""
        if absent := set(files) - self._numbers.keys():
            raise DataError(f"{min(absent)!r} is not in the index", "Name files it holds.")
        gone = [self._numbers[file] for file in set(files)]
        self.index.remove(np.array([i for image in gone for i in self._ids(image)], int))
        for file in set(files):
            self.files[self._numbers.pop(file)] = ""

    def _ids(self, image: int) -> range:
        """Of an image's objects."""
        return range(*self._first[image : image + 2])

    def of_images(self, images: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As :meth:`ObjectStore.of_images`."""
        for image in images:
            if not 0 <= image < len(self.files) or not self.files[image]:
                raise DataError(f"no image {image} in {self}", "Name one it holds.")
        ids = [np.array(self._ids(image), int) for image in images]
        ends = np.cumsum([len(some) for some in ids])
        vectors = np.split(self.index.vectors(np.concatenate(ids)), ends[:-1])
        return [(self._boxes[image], some) for image, some in zip(images, vectors)]

    def search(self, vector: np.ndarray, k: int, without: Collection[str] = ()) -> list[Match]:
        """As :meth:`ObjectStore.search`."""
        asked = l2(np.asarray(vector)[None])

        def hits(wanted: int) -> Hits:
            scores, ids = (some[0].tolist() for some in self.index.search(asked, wanted))
            ids, found = ids[: ids.index(-1)] if -1 in ids else ids, []
            for i, score in zip(ids, scores):
                image = bisect_right(self._first, i) - 1
                box = self._boxes[image][i - self._first[image]]
                found.append(Match(image, self.files[image], score, tuple(box.tolist())))
            return found, lambda places: self.index.vectors([ids[n] for n in places])

        return best_images(hits, k, len(self), without)

    def save(self, path: str | Path) -> None:
        """Write one file, atomically; see :meth:`index.Index.save`."""
        image = np.repeat(np.arange(len(self.files)), np.diff(self._first))
        boxes = np.concatenate([np.zeros((0, 4), np.float32), *self._boxes])
        self.index.save(path, image=image, boxes=boxes, files=np.array(json.dumps(self.files)))

    @classmethod
    def load(
        cls, path: str | Path, meta: Mapping[str, str] | None = None, mmap: bool = False
    ) -> ObjectIndex:
        """Read what ``save`` wrote; arguments and errors as for :meth:`index.Index.load`."""
        index, tables = Index.load(path, meta, mmap), read_tables(path)
        found = cls(index.dim)
        found.index = index
        if not {"image", "boxes", "files"} <= tables.keys():
            raise DataError(f"{path} is no index of objects", "Build it again.")
        found.files = json.loads(str(tables["files"]))
        found._first += np.cumsum(np.bincount(tables["image"], minlength=len(found.files))).tolist()
        found._boxes = np.split(tables["boxes"], found._first[1:])[:-1]
        found._numbers = {file: n for n, file in enumerate(found.files) if file}
        return found


def check_added(
    objects: Objects, pair: tuple[str, str], files: Sequence[str], meta: Mapping[str, str]
) -> None:
    """Raise DataError unless there is a name for each image, each another, and what is known of
    the objects' maker is what ``meta`` says of the index."""
    made_by = {**objects.made_by, "stage": pair[0], "pooling": pair[1]} if objects.made_by else {}
    for key, value in made_by.items():  # a name alone may be anybody's
        if "weights" in meta and value != meta.get(key, value):
            raise DataError(
                f"objects of another model: their {key} is {value!r}, the index's {meta[key]!r}",
                "Embed them with the index's own model, or make a new index.",
            )
    if not len(files) == len(set(files)) == len(objects.where) or "" in files:
        problem = f"{len(files)} files for {len(objects.where)} images"
        raise DataError(problem, "Name each image once.")


# --- from objects to images ---------------------------------------------------------------

Hits = tuple[list[Match], Callable[[list[int]], np.ndarray]]  # objects, best first; their vectors


def best_images(
    hits: Callable[[int], Hits], k: int, most: int, without: Collection[str] = ()
) -> list[Match]:
    """The ``k`` best images, of as many objects as that takes; copies of a photograph count once.

    Args:
        hits: the objects of the highest scores, as many as asked for or all there are; and what
            gives the vectors of some of them, by their places.
        most: objects that can be asked for. without: files that are left out.
    """
    wanted = min(4 * (k + len(without)), most)
    while True:
        found, vectors = hits(wanted)
        kept: list[int] = []
        seen: set[tuple[str, int]] = set()
        for n, match in enumerate(found):
            if match.file in without or (match.data_set, match.image) in seen:
                continue
            seen.add((match.data_set, match.image))
            alike = [other for other in kept if found[other].box == match.box
                     and abs(found[other].score - match.score) < SAME]  # fmt: skip
            if alike:  # a copy has the same vector, too
                own, *others = vectors([n, *alike])
                if np.isclose(others, own, atol=SAME).all(axis=1).any():
                    continue
            kept.append(n)
        if len(kept) >= k or len(found) < wanted or wanted == most:
            return [found[n] for n in kept[:k]]
        wanted = min(2 * wanted, most)


# --- choose a box, search for that object -------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What was asked, and found.

    Args:
        dataset: holds the query. query: image index in it. boxes: ``(K, 4)`` of it.
        chosen: which box was asked for. matches: best first.
        kind: what of the query was compared: the ``box``, the ``whole`` photograph, or ``both``.
    """

    dataset: ImageDataset
    query: int
    boxes: np.ndarray
    chosen: int
    matches: list[Match]
    kind: str = "box"

    @property
    def label(self) -> int:
        """Label of what was asked for; -1 where nobody knows.

        That of the object in the box; of the image, where the whole of it asked, too, or its
        boxes are not known.
        """
        known = object_label(self.dataset, self.query, self.boxes[self.chosen])
        whole = self.kind != "box" or not len(self.dataset.boxes[self.query])
        return int(self.dataset.labels[self.query]) if known < 0 and whole else known

    def shows(self, gallery: ImageDataset) -> np.ndarray:
        """``(N,)``: 1 where an image of the gallery shows what was asked for, 0 where not.

        -1 where nobody knows: there, or of the query; and for the query itself.
        """
        if self.label < 0:
            return np.full(len(gallery), -1)
        own, beside = gallery.labels, gallery.box_labels
        found = np.where(own < 0, -1, own == self.label)
        known = [i for i, labels in enumerate(beside) if np.max(labels, initial=-1) >= 0]
        found[known] = [found[i] == 1 or self.label in beside[i] for i in known]
        if gallery is self.dataset:
            found[self.query] = -1
        return found

    def states(self, gallery: ImageDataset) -> list[str]:
        """Of each match: ``right``; ``loose``, the right photograph but a box beside the object;
        ``wrong``; or "" where nobody knows."""
        shows, found = self.shows(gallery), []
        for match in self.matches:
            boxed = self.kind != "whole" and len(gallery.boxes[match.image])
            there = object_label(gallery, match.image, np.array(match.box)) if boxed else self.label
            right = "right" if there == self.label else "loose"
            found.append({-1: "", 0: "wrong", 1: right}[int(shows[match.image])])
        return found

    def found(self, gallery: ImageDataset) -> str:
        """How many of them were found, and where; "" where nobody knows.

        As "3 of 3 found, at ranks 1, 2 and 7".
        """
        relevant, states = int((self.shows(gallery) == 1).sum()), self.states(gallery)
        if self.label < 0:
            return ""
        if not relevant:
            return "no other photograph shows it"
        ranks = [str(n) for n, state in enumerate(states, 1) if state in ("right", "loose")]
        told = f"{len(ranks)} of {relevant} found"
        if not ranks:
            return told
        listed = " and ".join(filter(None, [", ".join(ranks[:-1]), ranks[-1]]))
        return f"{told}, at rank{'s' if len(ranks) > 1 else ''} {listed}"


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
    """
    mine = np.flatnonzero(objects.image == query)
    vector = objects.vectors[pair][mine[chosen]]
    matches = index.search(vector, k, without={dataset.names[query]})
    return Answer(dataset, query, objects.where.boxes[query], chosen, matches)


def photograph(path: str | Path) -> ImageDataset:
    """One file as a data set, so that it can ask as any other image does."""
    path = Path(path).resolve()
    return ImageDataset("photograph", "query", path.parent, [path.name], np.array([-1]))
