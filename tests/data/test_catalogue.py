"""The catalogue: every loader is there, and none is loaded before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from objemb_lib.config import DataError
from objemb_lib.data import catalogue

HEAVY = {"requests", "pooch", "torch"}


def loaded(code: str) -> set[str]:
    """Modules that a new process has after ``code``."""
    shown = subprocess.check_output(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], text=True
    )
    return set(shown.split())


def data_modules(names: set[str]) -> set[str]:
    return {name.removeprefix("objemb_lib.data.") for name in names if ".data." in name}


def test_the_catalogue_loads_no_data_set() -> None:
    names = loaded("from objemb_lib.data import catalogue")
    assert not names & HEAVY and data_modules(names) <= {"catalogue", "dataset", "images"}


@pytest.mark.parametrize("entry", catalogue.DATASETS.values(), ids=lambda entry: entry.name)
def test_a_data_set_loads_no_other_nor_what_downloads(entry: catalogue.Entry) -> None:
    module, function = entry.loader.split(".")
    assert callable(getattr(import_module(f"objemb_lib.data.{module}"), function))
    names = loaded(
        f"from objemb_lib.data.catalogue import load_splits\ntry: load_splits('{entry.name}:/none')"
        "\nexcept Exception: pass"
    )
    others = {other.loader.split(".")[0] for other in catalogue.DATASETS.values()} - {module}
    assert module in data_modules(names)
    assert not names & HEAVY and not data_modules(names) & others


@pytest.mark.parametrize("entry", catalogue.DATASETS.values(), ids=lambda entry: entry.name)
def test_every_entry_says_all_that_the_list_shows(entry: catalogue.Entry) -> None:
    assert entry.about and entry.size and entry.licence and entry.tried and entry.tests
    assert hasattr(import_module(f"objemb_lib.data.{entry.maker}"), "build")


def test_an_unknown_data_set_names_those_there_are() -> None:
    with pytest.raises(DataError, match="no data set called 'birds'(.|\n)*mini-battles, cub"):
        catalogue.load_splits("birds")
