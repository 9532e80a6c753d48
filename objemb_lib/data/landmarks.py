"""Revisited Oxford and Paris (Radenović et al. 2018): landmarks, searched by a box in a query.

Its truth names images one by one: per query those that are easy, hard and junk; which of them are
relevant, :data:`PROTOCOLS` says.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import note_part, open_copy

OTHER = {"roxford5k": "rparis6k", "rparis6k": "roxford5k"}
TOTAL = {"roxford5k": (4_993, 70), "rparis6k": (6_322, 70)}  # images searched, queries
PROTOCOLS = {  # split -> (relevant, junk)
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
ALLOWED = {"numpy.ndarray", "numpy.dtype", "_codecs.encode", "builtins.bytes", "__builtin__.bytes"}
ALLOWED |= {f"numpy.{core}.{name}" for core in ("core", "_core") for name in (
    "multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")}  # fmt: skip


class Truth(NamedTuple):
    """The revisited ground truth: names without suffix; ``(Q, 4)`` boxes of the landmarks in the
    queries; per query, "easy", "hard" and "junk" -> indices into ``images``."""

    images: list[str]
    queries: list[str]
    boxes: np.ndarray
    judged: list[dict[str, np.ndarray]]


def landmarks(name: str, split: str, root: Path | None = None) -> ImageDataset:
    """Images searched first, then the queries, cut to their boxes; labels are landmarks.

    Args:
        name: "roxford5k" or "rparis6k". root: folder with ``gnd_<name>.pkl`` and ``jpg/``.
        split: "easy", "medium", "hard"; or "train": the other city's "medium", which lies
            beside this one, since the field learns its whitening there.
    Raises:
        DataError: no such split, not that data set, or none of its queries is there.
    """
    root = Path(root or config.data_root() / name)
    if split == "train":
        return landmarks(OTHER[name], "medium", root.absolute().parent / OTHER[name])
    place = open_copy(name, split, root, [f"gnd_{name}.pkl"], [name], (*PROTOCOLS, "train"))
    truth = read_truth(place / f"gnd_{name}.pkl")
    searched = len(truth.images)
    files = [f"jpg/{one}.jpg" for one in truth.images + truth.queries]
    crops = [None] * searched + [tuple(box) for box in truth.boxes.round().astype(int).tolist()]
    shown = [query.rpartition("_")[0] for query in truth.queries]
    label_names, labels = sorted(set(shown)), np.full(len(files), -1)  # -1: no query shows it
    judged = {}
    for q, (landmark, lists) in enumerate(zip(shown, truth.judged), searched):
        labels[[*lists["easy"], *lists["hard"], q]] = label_names.index(landmark)
        judged[q] = tuple(np.concatenate([lists[k] for k in kinds]) for kinds in PROTOCOLS[split])
    here = np.array([(place / file).is_file() for file in files])
    if not here[:searched].any() or not here[searched:].any():
        raise DataError(f"{place}/jpg: no queries, or no images to search", "Unpack them there.")
    data = ImageDataset(
        name, split, place, files, labels, label_names, queries=np.arange(searched, len(files)),
        gallery=np.arange(searched), crops=crops, judged=judged, protocol="revisited",
    ).subset(here, keep_roles=True)  # fmt: skip
    return replace(data, name=note_part(data, len(data), sum(TOTAL[name])))


roxford5k = partial(landmarks, "roxford5k")
rparis6k = partial(landmarks, "rparis6k")


def read_truth(file: Path) -> Truth:
    """The published pickle, of which only plain containers and NumPy arrays are believed.

    Raises DataError: it asks for anything else, or says something else.
    """
    try:
        with file.open("rb") as opened:
            content = _Unpickler(opened, encoding="latin1").load()
        images, queries, judged = content["imlist"], content["qimlist"], content["gnd"]
        lists = ("easy", "hard", "junk")
        parts = [{k: np.asarray(one[k], np.int64).ravel() for k in lists} for one in judged]
        boxes = np.array([np.ravel(one["bbx"]) for one in judged], np.float64).reshape(-1, 4)
        indices = np.concatenate([a for one in parts for a in one.values()])
        if len(boxes) != len(queries) or not np.isfinite(boxes).all():
            raise ValueError(f"{len(boxes)} boxes for {len(queries)} queries")
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(images):
            raise ValueError("judgements of images that are not listed")
        for name in [*images, *queries]:
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"an image called {name!r}")
    except Exception as error:  # a hostile or cut pickle may raise anything
        remedy = "Get it again from http://cmp.felk.cvut.cz/revisitop."
        raise DataError(f"{file}: not the revisited ground truth ({error})", remedy) from error
    return Truth(list(images), list(queries), boxes, parts)


class _Unpickler(pickle.Unpickler):
    """Loads NumPy arrays and nothing else that a pickle may name: no code is ever run."""

    def find_class(self, module: str, name: str) -> object:
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
