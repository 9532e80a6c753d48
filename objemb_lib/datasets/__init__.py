"""Data sets behind one interface, :class:`~objemb_lib.datasets.base.ImageDataset`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from objemb_lib import settings
from objemb_lib.datasets import mini_battles
from objemb_lib.errors import DataError


@dataclass(frozen=True)
class Entry:
    """What ``data/download.py`` knows of a data set.

    Args:
        name, about, size, licence: for the list.
        build: makes it: ``build(root, source=..., mirror=...)``.
        verify: checks it, returning the splits that differ from the reference build.
    """

    name: str
    about: str
    size: str
    licence: str
    build: Callable[..., Path]
    verify: Callable[..., list[str]]

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
        ),
    )
}


def entry(name: str) -> Entry:
    """A data set by name. Raises DataError, naming those there are."""
    if name not in DATASETS:
        raise DataError(f"no data set called {name!r}", f"There are: {', '.join(DATASETS)}.")
    return DATASETS[name]
