"""The plan of the house: every module imports only from rooms before its own, never in a circle."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import objemb_lib

LIBRARY = Path(objemb_lib.__file__).parent
ROOMS = re.findall(r":mod:`(\w+)`", objemb_lib.__doc__)
MODULES = {
    ".".join(file.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__"): file
    for file in LIBRARY.rglob("*.py")
    if file != LIBRARY / "__init__.py"
}


def imported(file: Path) -> set[str]:
    """Modules of the library that a file imports, also those inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("objemb_lib"):
            place = node.module.removeprefix("objemb_lib").lstrip(".")
            names = {f"{place}.{alias.name}".lstrip(".") for alias in node.names}
            found |= names & MODULES.keys() or {place}
    return found - {""}


GRAPH = {name: imported(file) for name, file in MODULES.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_is_in_a_room_and_there_are_at_most_a_dozen_things_at_the_top():
    assert {room(name) for name in MODULES} == set(ROOMS)
    assert len(ROOMS) + 1 <= 12


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_rooms_before_its_own(module: str):
    later = {
        other for other in GRAPH[module] if ROOMS.index(room(other)) > ROOMS.index(room(module))
    }
    assert not later


def test_nothing_is_imported_in_a_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError, naming the circle


def test_the_graph_is_seen():
    """Or the tests above could not fail."""
    assert {"data.dataset", "embed.trunks", "cache"} <= GRAPH["embed.extract"]
    assert {"config", "data.catalogue"} <= GRAPH["course.reproduce"]


def test_what_a_lesson_imports_is_there_and_the_root_loads_nothing_before_it_is_asked_for():
    for name in objemb_lib.__all__:
        getattr(objemb_lib, name)
    code = "import objemb_lib, sys; print([m for m in ('torch', 'faiss') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_data_set_loads_no_other_nor_what_downloads():
    code = (
        "import sys, objemb_lib.data.coco; print([m for m in sys.modules if m in ('requests', "
        "'pooch', 'objemb_lib.data.classes', 'objemb_lib.data.mini_battles')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
