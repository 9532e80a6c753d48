"""What a run will do: a profile's settings, its notebooks and data, and what they will cost."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import papermill
import yaml

from objemb_lib import config
from objemb_lib.config import ReproduceError
from objemb_lib.course.doctor import GIB, estimate, free_bytes
from objemb_lib.data.catalogue import Splits
from objemb_lib.embed.trunks import load_trunk

NOTEBOOKS = config.PROJECT / "notebooks"
PROFILES = Path(__file__).parent / "profiles"
USUAL = "mini-battles"  # what a notebook that takes no DATA is about


@dataclass(frozen=True)
class Profile:
    """A readable file of settings, ``profiles/<name>.yaml``.

    Args:
        data: data sets, as for :func:`datasets.load_splits`; each gets a run of its own.
        seed: of every random choice.
        parameters: for every notebook that takes them.
        notebooks: those that run, and the parameters that are theirs alone; {} runs all.
    """

    name: str
    data: list[str]
    seed: int
    parameters: dict = field(default_factory=dict)
    notebooks: dict[str, dict] = field(default_factory=dict)

    def choose(self, numbers: Sequence[str] = ()) -> list[Path]:
        """Notebooks whose names start with the numbers, in order; of none, the profile's own."""
        return choose(numbers or list(self.notebooks))

    def given(self, notebook: Path, data: str) -> dict:
        """The parameters that a notebook gets.

        Raises:
            ReproduceError: it does not take one that the profile has for it alone, or it cannot
                be asked about these data.
        """
        taken, own = defaults(notebook), self.notebooks.get(notebook.stem, {})
        shared = {"DATA": data, **self.parameters} if data else self.parameters
        unknown = own.keys() - taken.keys()
        if data and data != USUAL:
            unknown |= {"DATA"} - taken.keys()
        if unknown:
            raise ReproduceError(
                f"{notebook.name} takes no parameter {', '.join(sorted(unknown))}",
                "Give it one in its `parameters` cell, or take it out of the profile.",
            )
        return {name: value for name, value in shared.items() if name in taken} | own


def profile(name: str) -> Profile:
    """A profile by name. Raises ReproduceError, naming those there are, or what is wrong in it."""
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ReproduceError(f"no profile called {name!r}", f"There are: {known}.")
    try:
        return Profile(name, **yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError) as error:
        known = "data, seed, parameters and notebooks"
        raise ReproduceError(f"{path}: {error}", f"A profile has {known}.") from error


def choose(numbers: Sequence[str]) -> list[Path]:
    """Notebooks whose names start with the given numbers, in order; all if none is given."""
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    chosen = [nb for nb in every if not numbers or any(nb.name.startswith(n) for n in numbers)]
    unknown = [n for n in numbers if not any(nb.name.startswith(n) for nb in every)]
    if unknown or not chosen:
        names = ", ".join(nb.name for nb in every)
        raise ReproduceError(f"no notebook {' '.join(unknown)}", f"There are: {names or 'none'}.")
    return chosen


def defaults(notebook: Path) -> dict:
    """The parameters of a notebook with the values it has when opened by hand."""
    stated = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(about["default"]) for name, about in stated.items()}


@dataclass(frozen=True)
class Work:
    """What a notebook does for each image it looks at, with one network.

    Args:
        passes: of an image through the bare network; what costs as much counts as one.
        kept: bytes of cached vectors.
        fixed: passes that it does whatever the data (a training).
    """

    passes: float
    kept: int
    fixed: int = 0


# From workshop runs with an empty cache: 01 and 02 counted, where a detector's pass costs more than
# its trunk's; 03 to 05 by their time beside that of 01.
WORK = {
    "01": Work(2, 40_000),
    "02": Work(3, 60_000),
    "03": Work(15, 400_000),
    "04": Work(6, 100_000, 8_000),
    "05": Work(4, 20_000, 6_000),
}


@dataclass(frozen=True)
class Forecast:
    """What a run costs from an empty cache: images it looks at, seconds, bytes on disk."""

    images: int
    seconds: float
    kept: int

    def __str__(self) -> str:
        minutes, megabytes = max(1, round(self.seconds / 60)), max(1, round(self.kept / 1e6))
        room = free_bytes(config.cache_root()) / GIB
        return (
            f"some {minutes} min and {megabytes} MB from an empty cache (a guess from this "
            f"machine's speed; {room:.0f} GiB are free)"
        )


def forecast(stated: Profile, notebooks: Sequence[Path], data: str, roles: Splits) -> Forecast:
    """What notebooks cost, from what this machine does in a moment with each trunk and size.

    Raises:
        ReproduceError: the disk of the cache has no room for it.
    """
    images, seconds, kept = 0, 0.0, 0
    spent: dict[tuple[str, int], float] = {}  # (trunk, size) -> seconds for a thousand images
    for notebook in notebooks:
        if not (work := WORK.get(notebook.name[:2])):
            continue
        with_all = defaults(notebook) | stated.given(notebook, data)
        small = roles.limit(with_all.get("SCENES"), with_all.get("LIMIT", 0))
        here = len(small.train) + sum(map(len, small.tests.values()))
        networks = 1 + len(with_all.get("DETECTORS", ()))
        passes = here * work.passes * networks + work.fixed
        key = with_all.get("TRUNK", "efficientnet_lite0"), with_all.get("SIZE", 256)
        if key not in spent:
            spent[key] = estimate(1000, load_trunk(key[0]), key[1], probe=1.0)
        seconds += spent[key] * passes / 1000
        images, kept = max(images, here), kept + here * work.kept * networks
    found = Forecast(images, seconds, kept)
    if kept > free_bytes(config.cache_root()):
        raise ReproduceError(
            f"{config.cache_root()} has no room for this run: {found}",
            "Free some, name a folder on a larger disk with OBJEMB_CACHE, or set a LIMIT.",
        )
    return found
