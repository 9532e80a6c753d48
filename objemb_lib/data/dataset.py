"""The one interface of every data set: images, boxes, masks, labels, queries, gallery, truth.

Conventions, the same everywhere:

- boxes are ``(x0, y0, x1, y1)`` in pixels of the image as ``image(i)`` gives it (upright; only
  sides over 4,096 pixels are reduced), ``x1`` and ``y1`` exclusive;
- ``labels`` say what retrieval must find again (an object, a model of car, a species);
- *relevant* for a query: a gallery image of the same label;
- *junk*: gallery images that are taken out of the ranking before it is scored, neither
  right nor wrong: the query itself, and images that show the query's object only in the
  background (as in revisited Oxford and Paris, Radenovic et al. 2018).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from objemb_lib.config import DataError
from objemb_lib.data.images import load_image


def no_boxes(n: int) -> tuple[np.ndarray, ...]:
    """``n`` empty ``(0, 4)`` arrays: a data set without boxes."""
    return tuple(np.zeros((0, 4), np.float32) for _ in range(n))


@dataclass(frozen=True, eq=False)  # arrays have no truth value: a data set equals itself only
class ImageDataset:
    """``N`` images with their truth.

    Args:
        name: the data set, for tables ("mini-battles").
        split: the part of it ("battle").
        root: folder that ``files`` are relative to.
        files: ``N`` image paths.
        labels: ``(N,)`` identity that retrieval must match; -1 where unknown.
        label_names: name of each label.
        categories: ``(N,)`` coarse category; -1 where unknown.
        category_names: name of each category.
        boxes: ``N`` arrays ``(K_i, 4)``; the first box is the main object's.
        box_labels: ``N`` arrays ``(K_i,)``: the label of each box.
        box_categories: ``N`` arrays ``(K_i,)``: the coarse category of each box, -1 where
            unknown; default the image's category for its main object, -1 for others.
        masks: ``N`` lists of ``K_i`` COCO run-length encodings, or None.
        queries: indices of the images that ask; default all.
        gallery: indices of the images that are searched; default all.
        crops: ``N`` times None or ``(x0, y0, x1, y1)``, whole pixels: the part of the file
            that is the image. Boxes and masks are those of the part.
        judged: query -> (relevant images, junk images), as indices, where a benchmark lists
            them one by one; other queries go by their labels.
        protocol: how it is scored, a key of :data:`objemb_lib.measure.metrics.PROTOCOLS`.
        fingerprint: hash of the content, the key of every cache; default a hash of the
            files' names, sizes and times, and of the boxes and crops.
    Raises:
        DataError: when the lengths do not agree or an index is out of range.
    """

    name: str
    split: str
    root: Path
    files: Sequence[str]
    labels: np.ndarray
    label_names: Sequence[str] = ()
    categories: np.ndarray | None = None
    category_names: Sequence[str] = ()
    boxes: Sequence[np.ndarray] = ()
    box_labels: Sequence[np.ndarray] = ()
    box_categories: Sequence[np.ndarray] = ()
    masks: Sequence[Sequence[dict]] | None = None
    queries: np.ndarray | None = None
    gallery: np.ndarray | None = None
    crops: Sequence[tuple[int, int, int, int] | None] = ()
    judged: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    protocol: str = "objects"
    fingerprint: str = ""
    extra: Sequence[dict] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.files)
        fill = object.__setattr__
        if not n:
            raise DataError(
                f"{self.name}/{self.split}: no images in {self.root}", "Check the folder's name."
            )
        fill(self, "labels", np.asarray(self.labels, np.int64))
        unknown = np.full(n, -1)
        categories = unknown if self.categories is None else self.categories
        fill(self, "categories", np.asarray(categories, np.int64))
        if not len(self.boxes):
            fill(self, "boxes", no_boxes(n))
        if not len(self.box_labels):
            same = [np.full(len(b), lab) for b, lab in zip(self.boxes, self.labels)]
            fill(self, "box_labels", tuple(same))
        if not len(self.box_categories):
            first = [np.where(np.arange(len(b)) == 0, c, -1)
                     for b, c in zip(self.boxes, self.categories)]  # fmt: skip
            fill(self, "box_categories", tuple(first))
        for part in ("queries", "gallery"):
            index = getattr(self, part)
            fill(self, part, np.arange(n) if index is None else np.asarray(index, np.int64))
        self._check(n)
        if not self.fingerprint:
            fill(self, "fingerprint", self._fingerprint())

    def _check(self, n: int) -> None:
        for part in ("labels", "categories", "boxes", "box_labels", "box_categories"):
            if len(getattr(self, part)) != n:
                raise DataError(f"{self.name}: {n} images but {len(getattr(self, part))} {part}")
        for part in ("masks", "extra", "crops"):
            if getattr(self, part) and len(getattr(self, part)) != n:
                raise DataError(f"{self.name}: {n} images but {len(getattr(self, part))} {part}")
        for part in ("box_labels", "box_categories", "masks"):
            for file, boxes, values in zip(self.files, self.boxes, getattr(self, part) or ()):
                if len(values) != len(boxes):
                    raise DataError(f"{self.name}: {file} has {len(boxes)} boxes, other {part}")
        for part in ("queries", "gallery"):
            index = getattr(self, part)
            if len(index) and not (0 <= index.min() and index.max() < n):
                raise DataError(f"{self.name}: {part} point outside the {n} images")

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name}/{self.split}".encode())
        for file in self.files:
            try:
                stat = (Path(self.root) / file).stat()
            except OSError as error:
                raise DataError(
                    f"{self.name}: {Path(self.root) / file} cannot be read ({error.strerror})",
                    "Put the file back, or build the data set again.",
                ) from error
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        for boxes in self.boxes:  # other boxes or parts: other embeddings of the same files
            digest.update(np.asarray(boxes, np.float32).tobytes() + b"\n")
        digest.update(repr(list(self.crops)).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        known = np.unique(self.labels[self.labels >= 0])
        return (
            f"ImageDataset({self.name}/{self.split}: {len(self)} images, "
            f"{len(known)} labels, {sum(map(len, self.boxes))} boxes)"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each image that no other has: its file, and where in it, if it is a part."""
        parts = self.crops or [None] * len(self)
        return tuple(f if p is None else f"{f}#{','.join(map(str, p))}"
                     for f, p in zip(self.files, parts))  # fmt: skip

    def image(self, i: int) -> Image.Image:
        """Image ``i`` as upright 8-bit RGB. Raises ImageError, naming the file, if unusable."""
        whole = load_image(Path(self.root) / self.files[i])
        part = self.crops[i] if self.crops else None
        return whole if part is None else whole.crop(part)

    def mask(self, i: int, k: int = 0) -> np.ndarray:
        """``(H, W)`` boolean mask of object ``k`` in image ``i``."""
        if self.masks is None:
            raise DataError(f"{self.name} has no masks", "Use boxes, or a data set with masks.")
        from pycocotools import mask as coco_mask

        return coco_mask.decode(self.masks[i][k]).astype(bool)

    def relevant(self, query: int) -> np.ndarray:
        """``(G,)`` boolean: gallery images of the query's label. ``query`` is an image index."""
        return self.truth(query)[0]

    def junk(self, query: int) -> np.ndarray:
        """``(G,)`` boolean: gallery images left out of this query's ranking."""
        return self.truth(query)[1]

    def truth(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`relevant` and :meth:`junk`, both ``(G,)`` boolean."""
        if query in self.judged:
            relevant, junk = (np.isin(self.gallery, images) for images in self.judged[query])
            junk |= self.gallery == query
            return relevant & ~junk, junk
        label = self.labels[query]
        junk = self._shown_beside(label) | (self.gallery == query)
        same = (self.labels[self.gallery] == label) & (label >= 0)
        return same & ~junk, junk

    def _shown_beside(self, label: int) -> np.ndarray:
        """``(G,)`` boolean: images with ``label`` among their boxes though it is not their own."""
        found = np.zeros(len(self.gallery), bool)
        if label < 0:  # unknown objects are not the same object
            return found
        table = self.__dict__.get("_beside")
        if table is None:  # label -> places in the gallery, built once: else quadratic
            table = {}
            for place, i in enumerate(self.gallery.tolist()):
                for other in set(np.asarray(self.box_labels[i]).tolist()) - {int(self.labels[i])}:
                    table.setdefault(other, []).append(place)
            object.__setattr__(self, "_beside", table)
        found[table.get(int(label), [])] = True
        return found

    def subset(self, images: Sequence[int]) -> ImageDataset:
        """The same data set with only ``images``, in that order; all query and are searched.

        Queries that the benchmark judged keep what is left of their relevant and junk images.

        ``images`` are indices, or an ``(N,)`` boolean that keeps where it is true.
        """
        chosen = np.asarray(images)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        pick = [int(i) for i in chosen]
        take = lambda values: tuple(values[i] for i in pick) if len(values) else ()  # noqa: E731
        part = hashlib.sha256(f"{self.fingerprint}{pick}".encode()).hexdigest()
        return ImageDataset(
            self.name, self.split, self.root, take(self.files), self.labels[pick],
            self.label_names, self.categories[pick], self.category_names, take(self.boxes),
            take(self.box_labels), take(self.box_categories),
            None if self.masks is None else take(self.masks), crops=take(self.crops),
            judged=self._judged_among(pick), protocol=self.protocol,
            fingerprint=part, extra=take(self.extra),
        )  # fmt: skip

    def _judged_among(self, pick: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """``judged`` in the numbers of a subset of the images ``pick``."""
        found = {}
        for new, old in enumerate(pick):
            if old in self.judged:
                relevant, junk = (np.flatnonzero(np.isin(pick, a)) for a in self.judged[old])
                found[new] = relevant, junk
        return found
