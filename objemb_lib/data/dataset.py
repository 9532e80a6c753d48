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
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask

from objemb_lib import config
from objemb_lib.cache import atomic_write_text
from objemb_lib.config import DataError, ObjembError, printable
from objemb_lib.data.images import fit_within, image_size, load_image

EACH = 4  # images a label that a limit keeps, where there are so many
SETTLED = 2_000_000_000  # ns that a file must have rested: clocks of file systems are coarse


@dataclass(frozen=True, eq=False)  # arrays have no truth value: a data set equals itself only
class ImageDataset:
    """``N`` images with their truth.

    Args:
        name: the data set, for tables ("mini-battles"). split: the part of it ("battle").
        root: folder that ``files``, ``N`` image paths, are relative to.
        labels: ``(N,)`` identity that retrieval must match; -1 where unknown.
        categories: ``(N,)`` coarse category; -1 where unknown.
        label_names, category_names: of each label and category.
        boxes: ``N`` arrays ``(K_i, 4)``; the first box is the main object's.
        box_labels: ``N`` arrays ``(K_i,)``: the label of each box.
        box_categories: ``N`` arrays ``(K_i,)``: the coarse category of each box, -1 where
            unknown; default the image's category for its main object, -1 for others.
        masks: ``N`` lists of ``K_i`` COCO run-length encodings, or None.
        queries, gallery: indices of the images that ask, and are searched; default all.
        crops: ``N`` times None or ``(x0, y0, x1, y1)``, whole pixels: the part of the file
            that is the image. Boxes and masks are those of the part.
        judged: query -> (relevant images, junk images), as indices, where a benchmark lists
            them one by one; other queries go by their labels.
        protocol: how it is scored, a key of :data:`objemb_lib.measure.metrics.PROTOCOLS`.
        content: hash of what is in the files (and maybe others), where a manifest states it;
            default: they are read when :attr:`fingerprint` is asked for.
        extra: ``N`` dictionaries of what else is known of an image, or nothing.
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
    content: str = ""
    extra: Sequence[dict] = ()

    def __post_init__(self) -> None:
        n, parts = len(self.files), vars(self)  # vars: the data set is frozen for everybody else
        if not n:
            problem = f"{self.name}/{self.split}: no images in {self.root}"
            raise DataError(problem, "Check the folder's name.")
        if bad := next((f for f in map(str, (self.root, *self.files)) if f != printable(f)), ""):
            raise DataError(f"{self.name}: {bad}: its name is not UTF-8", "Rename it.")
        known = {part: values for part, values in parts.items() if values is not None}
        for part in ("labels", "categories"):
            parts[part] = np.asarray(known.get(part, np.full(n, -1)), np.int64)
        for part in ("queries", "gallery"):
            parts[part] = np.asarray(known.get(part, np.arange(n)), np.int64)
            if not np.isin(parts[part], np.arange(n)).all():
                raise DataError(f"{self.name}: {part} point outside the {n} images")
        if not len(self.boxes):
            parts["boxes"] = (np.zeros((0, 4), np.float32),) * n
        if not len(self.box_labels):
            parts["box_labels"] = [np.full(len(b), lab) for b, lab in zip(self.boxes, self.labels)]
        if not len(self.box_categories):
            parts["box_categories"] = [np.where(np.arange(len(b)) == 0, c, -1)
                                       for b, c in zip(self.boxes, self.categories)]  # fmt: skip
        each = ("labels", "categories", "boxes", "box_labels", "box_categories")
        for part in (*each, *(part for part in ("masks", "extra", "crops") if parts[part])):
            if len(parts[part]) != n:
                raise DataError(f"{self.name}: {n} images but {len(parts[part])} {part}")
        for part in ("box_labels", "box_categories", "masks"):
            for file, boxes, values in zip(self.files, self.boxes, parts[part] or ()):
                if len(values) != len(boxes):
                    raise DataError(f"{self.name}: {file} has {len(boxes)} boxes, other {part}")

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        labels, boxes = len({*self.labels.tolist()} - {-1}), sum(map(len, self.boxes))
        place = f"ImageDataset({self.name}/{self.split}"
        return f"{place}: {len(self)} images, {labels} labels, {boxes} boxes)"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what decides vectors: files and what is in them, crops, boxes, masks.

        A part of the key of every cache. Raises DataError, naming a file that cannot be read.
        """
        content = self.content
        if not content:
            every = "".join(file_digests(self.root, self.files).values())
            content = hashlib.sha256(every.encode()).hexdigest()
        told = [content, list(self.files), list(self.crops), self.masks]
        # pycocotools gives run lengths as bytes, files hold them as text; and NumPy's integers.
        plain = lambda value: value.decode() if isinstance(value, bytes) else int(value)  # noqa: E731
        digest = hashlib.sha256(json.dumps(told, default=plain).encode())
        for boxes in self.boxes:
            digest.update(np.asarray(boxes, np.float32).tobytes() + b"\n")
        return digest.hexdigest()

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

    def sizes(self) -> np.ndarray:
        """``(N, 2)``: width and height of each image as :meth:`image` gives it, by its header.

        Read once. Raises ImageError, naming the first file that cannot be used.
        """
        if (found := vars(self).get("_sizes")) is None:
            found = vars(self)["_sizes"] = np.array([
                (part[2] - part[0], part[3] - part[1]) if part
                else fit_within(image_size(Path(self.root) / file)[0])
                for file, part in zip(self.files, self.crops or [None] * len(self))
            ])  # fmt: skip
        return found

    def mask(self, i: int, k: int = 0) -> np.ndarray:
        """``(H, W)`` boolean mask of object ``k`` in image ``i``."""
        if self.masks is None:
            raise DataError(f"{self.name} has no masks", "Use boxes, or a data set with masks.")
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
        label = int(self.labels[query])
        junk = self.gallery == query
        places, labels = self._shown_beside
        junk[places[labels == label]] = True
        return (self.labels[self.gallery] == label) & (label >= 0) & ~junk, junk

    @cached_property
    def copies(self) -> np.ndarray:
        """``(N,)``: of each image the first that is the same, byte for byte; mostly itself.

        Warns of those with a label, once. A benchmark is taken as it is.
        """
        same, first = {}, {}
        if not self.content and self.protocol == "objects":
            with suppress(DataError):  # of files that are not there nobody knows
                same = file_digests(self.root, self.files)
        parts = zip((same.get(file, file) for file in self.files), self.crops or [None] * len(self))
        found = np.array([first.setdefault(part, i) for i, part in enumerate(parts)])
        again = np.flatnonzero((found < np.arange(len(self))) & (self.labels >= 0))
        if len(again):
            pair = self.names[again[0]], self.names[found[again[0]]]
            note = f"{len(again)} of {len(self)} images are copies, as {pair[0]} of {pair[1]}"
            warnings.warn(f"{self.name}: {note}: none is counted as found by another", stacklevel=2)
        return found

    @cached_property
    def _shown_beside(self) -> np.ndarray:
        """``(2, K)``: places in the gallery, and a known label shown there beside their own."""
        pairs = [(place, label) for place, i in enumerate(self.gallery.tolist())
                 for label in np.asarray(self.box_labels[i]).tolist()
                 if label not in (-1, self.labels[i])]  # fmt: skip
        return np.array(pairs, np.int64).reshape(-1, 2).T

    # --- parts of it ----------------------------------------------------------------------

    def subset(self, images: Sequence[int], keep_roles: bool = False) -> ImageDataset:
        """The same data set with only ``images``, in that order.

        Queries that the benchmark judged keep what is left of their relevant and junk images.

        Args:
            images: indices, or an ``(N,)`` boolean that keeps where it is true.
            keep_roles: who asks and who is searched stays; else all ask and all are searched.
        """
        chosen = np.asarray(images)
        pick = (np.flatnonzero(chosen) if chosen.dtype == bool else chosen).tolist()
        where = lambda images: np.flatnonzero(np.isin(pick, images))  # noqa: E731 - of the new ones
        every = ("files", "boxes", "box_labels", "box_categories", "masks", "crops", "extra")
        known = {part: of for part in every if (of := getattr(self, part)) is not None}
        parts = {part: tuple(of[i] for i in pick) for part, of in known.items() if len(of)}
        return replace(
            self, **parts, labels=self.labels[pick], categories=self.categories[pick],
            queries=where(self.queries) if keep_roles else None,
            gallery=where(self.gallery) if keep_roles else None,
            judged={new: tuple(map(where, self.judged[old]))
                    for new, old in enumerate(pick) if old in self.judged},
        )  # fmt: skip

    def first_of_each(self, count: int) -> ImageDataset:
        """The first ``count`` of each label (0: all): every object, in less time. Roles stay."""
        if not count:
            return self
        first = pd.Series(self.labels).groupby(self.labels).cumcount() < count
        return self.subset(first.to_numpy(), keep_roles=True)

    def limit(self, images: int) -> ImageDataset:
        """At most ``images`` images (0: all): labels are left out, evenly, until four of each fit.

        Only labels of two images or more are kept (the others could not be found again), two at
        least. Data with images of unknown label, which only distract, stay whole. Roles stay.
        """
        if not images or len(self) <= images or (self.labels < 0).any():
            return self
        labels, counts = np.unique(self.labels, return_counts=True)
        labels = labels[counts > 1]
        kept = min(max(2, images // EACH), len(labels))
        chosen = labels[np.linspace(0, len(labels) - 1, kept).astype(int)]
        whole = self.subset(np.isin(self.labels, chosen), keep_roles=True)
        return whole.first_of_each(max(2, images // max(kept, 1)))

    def subsample_labels(self) -> ImageDataset:
        """The labels of even number; all where that leaves one, or some are unknown. Roles stay."""
        even = self.labels % 2 == 0
        scarce = len(np.unique(self.labels[even])) < 2 or (self.labels < 0).any()
        return self if scarce else self.subset(even, keep_roles=True)


def backgrounds(dataset: ImageDataset) -> np.ndarray | None:
    """``(N,)``: a number for each image's background, where a data set recorded all; else None."""
    names = [known.get("background") for known in dataset.extra]
    if not names or None in names:
        return None
    return np.unique(names, return_inverse=True)[1]


# --- content --------------------------------------------------------------------------------


def file_digests(root: Path, files: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the bytes in each of ``files``. Raises DataError, naming an unreadable file.

    A file is read once: its hash is kept in the cache folder, and believed while the file's size,
    inode and times stay (the inode's own time too: a program that sets a photograph's date back
    cannot hide that it turned it).
    """
    name = hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:20]
    memory = config.cache_root() / "content" / f"{name}.json"
    known, fresh = _read_memory(memory), {}

    def digest(file: str) -> str:
        path = Path(root) / file
        try:
            stat = path.stat()
            state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
            if known.get(file, [])[:-1] != state:
                fresh[file] = [*state, hashlib.sha256(path.read_bytes()).hexdigest()]
        except OSError as error:
            remedy = "Put the file back, or build the data set again."
            raise DataError(f"{path}: cannot be read ({error.strerror})", remedy) from error
        return (fresh.get(file) or known[file])[-1]

    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(dict.fromkeys(files), pool.map(digest, dict.fromkeys(files))))
    fresh = {file: one for file, one in fresh.items() if one[-2] < time.time_ns() - SETTLED}
    if fresh:  # of two processes one may be forgotten: it then reads again
        with suppress(OSError, ObjembError):  # as where nothing can be kept
            atomic_write_text(memory, json.dumps(_read_memory(memory) | fresh))
    return found


def _read_memory(memory: Path) -> dict[str, list]:
    try:
        return json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
