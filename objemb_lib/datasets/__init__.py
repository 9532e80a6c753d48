"""Data sets behind one interface, :class:`~objemb_lib.datasets.base.ImageDataset`.

A notebook asks for :func:`roles` of a data set and gets the training images and the test splits,
whatever the data set calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from objemb_lib import settings
from objemb_lib.datasets import mini_battles
from objemb_lib.datasets.base import ImageDataset
from objemb_lib.datasets.own import folder_roles
from objemb_lib.errors import DataError


class Roles(NamedTuple):
    """A data set as an experiment sees it.

    Args:
        train: everything is chosen and trained on these images.
        tests: split name -> images that are only measured on, the hardest first; their objects
            (labels) are not among ``train``'s.
    """

    train: ImageDataset
    tests: dict[str, ImageDataset]


@dataclass(frozen=True)
class Entry:
    """What ``data/download.py`` knows of a data set.

    Args:
        name, about, size, licence: for the list.
        build: makes it: ``build(root, source=..., mirror=...)``.
        verify: checks it, returning the splits that differ from the reference build.
        load: ``load(split, root=...)`` gives one split; ``root`` defaults to :meth:`folder`.
        train, tests: names of the splits that take these roles.
    """

    name: str
    about: str
    size: str
    licence: str
    build: Callable[..., Path]
    verify: Callable[..., list[str]]
    load: Callable[..., ImageDataset]
    train: str
    tests: tuple[str, ...]

    def folder(self) -> Path:
        return settings.data_root() / self.name

    def built(self) -> bool:
        return (self.folder() / "manifest.json").is_file()


DATASETS = {
    entry.name: entry
    for entry in (
        Entry(
            mini_battles.NAME,
            "objects cut out and pasted into photographs, 3,042 scenes of 256 px",
            "47 MB (fetches 223 MB)",
            "GPL, CC-BY(-SA), CC0",
            mini_battles.build,
            mini_battles.verify,
            mini_battles.mini_battles,
            "train",
            ("battle", "clean"),
        ),
    )
}


def entry(name: str) -> Entry:
    """A data set by name. Raises DataError, naming those there are."""
    if name not in DATASETS:
        raise DataError(f"no data set called {name!r}", f"There are: {', '.join(DATASETS)}.")
    return DATASETS[name]


def roles(data: str) -> Roles:
    """The training images and the test splits of a data set.

    Args:
        data: a name of ``data/download.py list``, which must be built; or ``name:PATH``, for
            a copy of it that lies elsewhere; or ``folder:PATH``, for photographs of one's own.
    Raises:
        DataError: no such data set, or it is not built.
    """
    name, _, path = data.partition(":")
    if name == "folder":
        train, test = folder_roles(path)
        return Roles(train, {"test": test})
    chosen = entry(name)
    where = {"root": Path(path).expanduser()} if path else {}
    tests = {split: chosen.load(split, **where) for split in chosen.tests}
    return Roles(chosen.load(chosen.train, **where), tests)
