"""The plan of the house: rooms import only what comes before them, and never in a circle."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import objemb_lib

LIBRARY = Path(objemb_lib.__file__).parent
ORDER = list(dict.fromkeys(re.findall(r":mod:`(\w+)`", objemb_lib.__doc__)))


def modules() -> dict[str, Path]:
    """Dotted name below ``objemb_lib`` -> file."""
    files = {file.relative_to(LIBRARY): file for file in LIBRARY.rglob("*.py")}
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): file
        for path, file in files.items()
    }


def imported(file: Path, known: set[str]) -> set[str]:
    """Modules of the library that a file imports, also those inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("objemb_lib"):
            place = node.module.removeprefix("objemb_lib").lstrip(".")
            names = {f"{place}.{alias.name}".lstrip(".") for alias in node.names}
            found |= names & known or {place}
    return found - {""}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(file, set(known)) for name, file in known.items() if name != "__init__"}


def test_the_order_is_the_documented_one_and_each_of_its_rooms_is_there():
    tops = {name.partition(".")[0] for name in graph()}
    assert len(ORDER) >= 9 and set(ORDER) <= tops


def test_rooms_import_only_from_rooms_before_them():
    place = {room: i for i, room in enumerate(ORDER)}
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if place.get(name.partition(".")[0], len(ORDER)) < place.get(other.partition(".")[0], -1)
    ]
    assert not wrong


def test_nothing_is_imported_in_a_circle():
    graphlib.TopologicalSorter(graph()).prepare()  # raises CycleError, naming the circle


def test_the_graph_is_seen():
    """Or the tests above could not fail."""
    found = graph()
    assert {"datasets.base", "trunks", "regions"} <= found["extract"]
    assert "detectors.build" in found["detectors.weights"]
    assert {"settings", "datasets"} <= found["reproduce"]
