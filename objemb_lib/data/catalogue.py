"""Data sets behind one interface, :class:`~objemb_lib.data.dataset.ImageDataset`.

Loaders are named, not imported: one data set loads no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import yaml

from objemb_lib import config
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset


class Splits(NamedTuple):
    """A data set as an experiment sees it.

    Args:
        train: everything is chosen and trained on these images.
        tests: split name -> images that are only measured on, the hardest first; their objects
            (labels) are not among ``train``'s.
    """

    train: ImageDataset
    tests: dict[str, ImageDataset]

    def lesson(self, each: int = 4, images: int = 0) -> tuple[ImageDataset, ...]:
        """What every notebook works on: train images, the hardest test, and the easiest.

        Args:
            each: images of each label of a test, so that a lesson takes minutes; 0 for all.
            images: a split at most, see :meth:`ImageDataset.limit`; 0 for no limit.
        """
        every = [data.limit(images) for data in (self.train, *self.tests.values())]
        few = [data.first_of_each(each) for data in every[1:]]
        return every[0], few[0], few[-1]


@dataclass(frozen=True)
class Entry:
    """What ``data/download.py`` knows of a data set: a row of ``catalogue.yaml``.

    Args:
        tried: what of it was tried where this was written, and what not.
        loader: ``module.function`` in this package: one split, by its name.
        terms: what a user must accept before it is fetched, if anything.
        maker: module whose ``build`` makes it; :mod:`benchmarks` takes its name as well.
        links: its images lie at addresses of their own, many dead: :meth:`build` takes
            ``retry_dead`` and goes on where an earlier one ended.
        tests: names of the splits that are measured on.
    """

    name: str
    about: str
    size: str
    licence: str
    tried: str
    loader: str
    terms: str = ""
    maker: str = "benchmarks"
    links: bool = False
    tests: Sequence[str] = ("test",)

    def load(self, split: str, root: Path | None = None) -> ImageDataset:
        """One split of the copy in ``root``, default :meth:`folder`."""
        module, function = self.loader.split(".")
        return getattr(_module(module), function)(split, root)

    def build(self, **options: object) -> Path:
        """Make it in :func:`config.data_root`; see its module's ``build``."""
        named = [self.name] if self.maker == "benchmarks" else []
        return _module(self.maker).build(*named, **options)

    def verify(self) -> list[str]:
        """Decode every image; returns the splits that differ from the reference build."""
        if self.name == COURSE:
            return _module(self.maker).verify()
        return _module("benchmarks").verify(self.name)

    def folder(self) -> Path:
        return config.data_root() / self.name

    def built(self) -> bool:
        return (self.folder() / "manifest.json").is_file()


def _module(name: str):  # noqa: ANN202 - a module
    return import_module(f"objemb_lib.data.{name}")


COURSE = "mini-battles"  # what the notebooks run on unless told otherwise
_listed = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DATASETS = {name: Entry(name, **row) for name, row in _listed.items()}


def entry(name: str) -> Entry:
    """A data set by name. Raises DataError, naming those there are."""
    if name not in DATASETS:
        raise DataError(f"no data set called {name!r}", f"There are: {', '.join(DATASETS)}.")
    return DATASETS[name]


def load_splits(data: str) -> Splits:
    """The training images and the test splits of a data set, whatever it calls them.

    Args:
        data: a name of ``data/download.py list``, which must be built; or ``name:PATH``, for
            a copy of it that lies elsewhere; or ``folder:PATH``, for photographs of one's own.
    Raises:
        DataError: no such data set, or it is not built.
    """
    name, _, path = data.partition(":")
    if name == "folder":
        train, test = _module("folder").folder_splits(path)
        return Splits(train, {"test": test})
    chosen, root = entry(name), Path(path).expanduser() if path else None
    tests = {split: chosen.load(split, root) for split in chosen.tests}
    return Splits(chosen.load("train", root), tests)
