"""Data sets behind one interface, :class:`~objemb_lib.data.dataset.ImageDataset`.

A notebook asks for :func:`load_splits` of a data set and gets its training images and test splits,
whatever the data set calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data import (
    archives,
    benchmarks,
    classes,
    coco,
    landmarks,
    mini_battles,
    ps_battles,
)
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.folder import folder_splits


class Splits(NamedTuple):
    """A data set as an experiment sees it.

    Args:
        train: everything is chosen and trained on these images.
        tests: split name -> images that are only measured on, the hardest first; their objects
            (labels) are not among ``train``'s.
    """

    train: ImageDataset
    tests: dict[str, ImageDataset]

    def limit(self, scenes: Mapping[str, int] | None = None, images: int = 0) -> Splits:
        """The same splits with fewer images, to keep a notebook short.

        Args:
            scenes: split ("train" or the name of a test) -> images a label; of others all.
            images: a split at most, see :meth:`ImageDataset.limit`; 0 for no limit.
        """
        splits = {"train": self.train} | self.tests
        splits = {split: data.limit(images) for split, data in splits.items()}
        for split in splits.keys() & (scenes or {}).keys():
            splits[split] = splits[split].first_of_each(scenes[split])
        return Splits(splits.pop("train"), splits)


@dataclass(frozen=True)
class Entry:
    """What ``data/download.py`` knows of a data set.

    Args:
        name, about, size, licence: for the list.
        tried: what of it was tried where this was written, and what not.
        load: ``load(split, root=...)`` gives one split; ``root`` defaults to :meth:`folder`.
        build: makes it: ``build(root, source=..., mirror=...)``; None where a copy must be named.
        verify: checks it, returning the splits that differ from the reference build.
        terms: what a user must accept before it is fetched, if anything.
        links: its images lie at addresses of their own, many dead: ``build`` takes
            ``retry_dead`` and goes on where an earlier one ended.
        train, tests: names of the splits that take these roles.
    """

    name: str
    about: str
    size: str
    licence: str
    tried: str
    load: Callable[..., ImageDataset]
    build: Callable[..., Path] | None = None
    verify: Callable[..., list[str]] | None = None
    terms: str = ""
    links: bool = False
    train: str = "train"
    tests: tuple[str, ...] = ("test",)

    def folder(self) -> Path:
        return config.data_root() / self.name

    def built(self) -> bool:
        return (self.folder() / "manifest.json").is_file()


COURSE = mini_battles.NAME  # what the notebooks run on unless told otherwise
RESEARCH = "research only, images belong to their authors"
LOADER = "loader tried on"
NOT_TRIED = "addresses from public code, not tried"

DATASETS = {
    entry.name: entry
    for entry in (
        Entry(
            COURSE,
            "objects cut out and pasted into photographs, 3,042 scenes of 256 px",
            "47 MB (fetches 223 MB)",
            "GPL, CC-BY(-SA), CC0",
            "built and verified",
            mini_battles.mini_battles,
            mini_battles.build,
            mini_battles.verify,
            tests=("battle", "clean"),
        ),
        Entry(
            "cub",
            "CUB-200-2011: 200 species of birds, boxes and masks; 5,864 / 5,924 images",
            "1.2 GB",
            RESEARCH,
            f"{LOADER} the official lists and on 2,969 photographs; {NOT_TRIED}",
            classes.cub,
            benchmarks.CUB.build,
            benchmarks.CUB.verify,
            "https://www.vision.caltech.edu/datasets/cub_200_2011: non-commercial research and "
            "education only",
        ),
        Entry(
            "cars",
            "Cars-196: 196 models of cars, boxes; 8,054 / 8,131 images",
            "1.9 GB",
            RESEARCH,
            f"{LOADER} 784 images and the official annotations; the official servers are gone, a "
            "third party's copy is asked, not tried",
            classes.cars,
            benchmarks.CARS.build,
            benchmarks.CARS.verify,
            "non-commercial research and education only",
        ),
        Entry(
            "sop",
            "Stanford Online Products: 22,634 products of 12 categories; 59,551 / 60,502 images",
            "3.1 GB",
            RESEARCH,
            f"{LOADER} a made-up copy; {NOT_TRIED}",
            classes.sop,
            benchmarks.SOP.build,
            benchmarks.SOP.verify,
            "research only: the photographs are those of eBay's sellers",
        ),
        Entry(
            "ps-battles",
            "PS-Battles: photoshops ask for their original; 102,028 images listed in 2018",
            "23 GB (an estimate)",
            RESEARCH,
            f"the first 500 rows of its list read; {NOT_TRIED}",
            ps_battles.ps_battles,
            ps_battles.build,
            partial(archives.verify, "ps-battles"),
            "the pictures are those of Reddit's users, fetched from where they put them",
            links=True,
        ),
        *(
            Entry(
                name,
                f"{city}: {searched:,} images of landmarks, 70 queries with their boxes",
                size,
                "Flickr's users; research",
                f"{LOADER} a made-up copy; {NOT_TRIED}; no digest published",
                load,
                recipe.build,
                recipe.verify,
                "https://www.robots.ox.ac.uk/~vgg/data: research only",
                tests=("hard", "medium", "easy"),
            )
            for name, city, searched, size, load, recipe in (
                ("roxford5k", "Revisited Oxford", 4_993, "1.9 GB", landmarks.roxford5k,
                 benchmarks.OXFORD),
                ("rparis6k", "Revisited Paris", 6_322, "2.5 GB", landmarks.rparis6k,
                 benchmarks.PARIS),
            )
        ),
        Entry(
            "coco",
            "COCO 2017: objects of 40 categories train, of 40 others test; boxes and masks",
            "20 GB",
            "annotations CC-BY-4.0, images of Flickr's users",
            f"{LOADER} 159 photographs in the official layout; {NOT_TRIED}",
            coco.coco,
            benchmarks.COCO_2017.build,
            benchmarks.COCO_2017.verify,
            "https://cocodataset.org/#termsofuse",
        ),
        Entry(
            "open-images",
            "Open Images: objects of 20 classes train, of 20 others test; boxes",
            "up to 4,000 images",
            "annotations CC-BY-4.0, images CC-BY-2.0",
            f"{LOADER} a made-up copy; {NOT_TRIED}",
            coco.open_images,
            coco.build,
            partial(archives.verify, "open-images"),
            links=True,
        ),
    )
}  # fmt: skip


def entry(name: str) -> Entry:
    """A data set by name. Raises DataError, naming those there are."""
    if name not in DATASETS:
        raise DataError(f"no data set called {name!r}", f"There are: {', '.join(DATASETS)}.")
    return DATASETS[name]


def load_splits(data: str) -> Splits:
    """The training images and the test splits of a data set.

    Args:
        data: a name of ``data/download.py list``, which must be built; or ``name:PATH``, for
            a copy of it that lies elsewhere; or ``folder:PATH``, for photographs of one's own.
    Raises:
        DataError: no such data set, or it is not built.
    """
    name, _, path = data.partition(":")
    if name == "folder":
        train, test = folder_splits(path)
        return Splits(train, {"test": test})
    chosen = entry(name)
    where = {"root": Path(path).expanduser()} if path else {}
    tests = {split: chosen.load(split, **where) for split in chosen.tests}
    return Splits(chosen.load(chosen.train, **where), tests)
