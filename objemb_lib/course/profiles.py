"""What a run will do: a profile's settings, its notebooks and data, and how long they took us."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import papermill
import yaml

from objemb_lib import config
from objemb_lib.config import ReproduceError
from objemb_lib.measure.leaderboard import committed

NOTEBOOKS = config.PROJECT / "notebooks"
PROFILES = Path(__file__).parent / "profiles"
USUAL = "mini-battles"  # what a notebook that takes no DATA is about


@dataclass(frozen=True)
class Profile:
    """A readable file of settings, ``profiles/<name>.yaml``.

    Args:
        data: data sets, as for :func:`load_splits`; each gets a run of its own.
        seed: of every random choice.
        parameters: for every notebook that takes them.
        notebooks: those that run, and the parameters that are theirs alone; {} runs all.
        boxed: those that run only where every image has a box.
        boxes: who says where to look, in place of what is said here for BOXES.
        committed: whether ``--update`` writes the outputs of its notebooks, which are then read.
    """

    name: str
    data: list[str]
    seed: int
    parameters: dict = field(default_factory=dict)
    notebooks: dict[str, dict] = field(default_factory=dict)
    boxed: list[str] = field(default_factory=list)
    committed: bool = False
    boxes: str = ""

    def given(self, notebook: Path, data: str) -> dict:
        """The parameters that a notebook gets.

        Raises:
            ReproduceError: it does not take one that the profile has for it alone, or it cannot
                be asked about these data.
        """
        taken, own = defaults(notebook), self.notebooks.get(notebook.stem, {})
        shared = self.parameters | ({"DATA": data} if data else {})
        needed = own if data in ("", USUAL) else {"DATA": data, **own}
        if unknown := needed.keys() - taken.keys():
            raise ReproduceError(
                f"{notebook.name} takes no parameter {', '.join(sorted(unknown))}",
                "Give it one in its `parameters` cell, or take it out of the profile.",
            )
        shared = {name: value for name, value in shared.items() if name in taken}
        asked = {"BOXES": self.boxes} if self.boxes and "BOXES" in taken else {}
        return shared | own | asked


def profile(name: str) -> Profile:
    """A profile by name. Raises ReproduceError, naming those there are, or what is wrong in it."""
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ReproduceError(f"no profile called {name!r}", f"There are: {known}.")
    try:
        return Profile(name, **yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError) as error:
        known = "data, seed, parameters, notebooks, boxed and committed"
        raise ReproduceError(f"{path}: {error}", f"A profile has {known}.") from error


def choose(numbers: Sequence[str]) -> list[Path]:
    """Notebooks whose names start with the given numbers, in order; all if none is given."""
    every = sorted(NOTEBOOKS.glob("[0-9A][0-9]_*.ipynb"))
    if unknown := [n for n in numbers if not any(nb.name.startswith(n) for nb in every)]:
        names = ", ".join(nb.name for nb in every)
        raise ReproduceError(f"no notebook {' '.join(unknown)}", f"There are: {names}.")
    return [nb for nb in every if not numbers or nb.name.startswith(tuple(numbers))]


def defaults(notebook: Path) -> dict:
    """The parameters of a notebook with the values it has when opened by hand.

    Raises ReproduceError: it is no notebook, or they are no plain values.
    """
    try:
        stated = papermill.inspect_notebook(literal(notebook))
        return {name: ast.literal_eval(about["default"]) for name, about in stated.items()}
    except (OSError, ValueError, SyntaxError) as error:
        problem = f"{notebook}: its parameters cannot be read ({error})"
        raise ReproduceError(problem, "Get the notebook again.") from error


def literal(path: Path) -> str:
    """A path whose braces papermill does not take for parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def minutes(name: str = "workshop") -> pd.DataFrame:
    """Minutes that each notebook took in the committed run, from an empty and from a full cache."""
    known = committed(name)
    full, cores = known.get("seconds_full_cache", {}), known.get("environment", {}).get("cores")
    seconds = pd.DataFrame({"empty cache": full | known.get("seconds", {}), "full cache": full})
    return (seconds.sort_index() / 60).round(1).rename_axis(f"minutes on {cores} cores")
