"""The notebooks keep the course's shape, and are committed as one clean run from top to bottom."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.stem[0].isdigit()]  # the others are appendices
LIMITS = {"words": 1500, "lines": 130, "cell": 12, "megabytes": 1}
SECTIONS = ("What you will be able to do", "Exercises", r"(Take-away|You can now say)")
HOME_PATHS = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|mnt|var)/|\b[A-Za-z]:\\+Users")
EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=\\n]+")  # pictures: by chance they hold anything


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def code(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook) -> dict[str, object]:
    """What the cell tagged ``parameters`` assigns; every value must be a literal."""
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    assigned = ast.parse(cell.source).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assigned}


def code_lines(source: str) -> int:
    lines = (line.strip() for line in source.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def home_paths(notebook) -> list[str]:
    """Places where the text or an output names a folder of somebody's machine."""
    found = []
    for cell in notebook.cells:
        kinds = [kind for o in cell.get("outputs", []) for kind in o.get("data", o).items()]
        said = json.dumps([value for kind, value in kinds if not kind.startswith("image/")])
        for text in (cell.source, EMBEDDED.sub("", said)):
            found += [
                text[max(m.start() - 20, 0) : m.end() + 20] for m in HOME_PATHS.finditer(text)
            ]
    return found


def test_it_is_valid(notebook):
    nbformat.validate(notebook)


def test_it_can_be_parametrised(notebook):
    given = parameters(notebook)
    assert given["RUN_DIR"] == "", "opened by hand, a notebook records nothing"
    assert isinstance(given["SEED"], int)


def test_prose_comes_before_code(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    pairs = zip(kinds, kinds[1:])
    bare = [i for i, pair in enumerate(pairs, 1) if pair == ("code", "code")]
    assert not bare, f"cells {bare} follow another code cell without a word"


def test_it_is_a_lesson_and_not_a_report(notebook, request):
    """Short enough for half a day of five; its harness is in tags, not in the code."""
    path = request.node.callspec.params["notebook"]
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    plain = re.sub(r"\]\([^)]*\)|<[^>]+>|[|#*`$]", " ", "\n".join(prose))
    lines = [code_lines(cell.source) for cell in code(notebook)]
    found = {"words": len(plain.split()), "lines": sum(lines), "cell": max(lines),
             "megabytes": path.stat().st_size / 1e6}  # fmt: skip
    assert not {what: n for what, n in found.items() if n > LIMITS[what]}
    source = "\n".join(cell.source for cell in code(notebook))
    assert not re.findall(r"NBVAL|fmt: skip|measure\.where|board\.record", source)


def test_its_outputs_are_those_of_one_run_without_errors(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    said = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in said if "Warning" in text or "Traceback" in text]


def test_it_names_no_folder_of_somebodys_machine(notebook):
    assert not home_paths(notebook)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_lesson_has_the_course_sections(lesson, section):
    prose = "\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    assert re.search(rf"^##+ {section}\b", prose, re.M | re.I)


def test_verdicts_are_checked_when_their_notebook_runs_anew():
    """Every notebook that writes claims has a marked cell that prints their verdicts."""
    writers = 0
    for path in NOTEBOOKS:
        cells = code(nbformat.read(path, as_version=4))
        if any(re.search(r"board\.(record|verdicts)", cell.source) for cell in cells):
            writers += 1
            checked = [c for c in cells if c.source.startswith("# NBVAL_CHECK_OUTPUT")
                       or "nbval-check-output" in c.metadata.get("tags", [])]  # fmt: skip
            said = " ".join(output.get("text", "") for c in checked for output in c.outputs)
            assert re.search(r"\b(holds|reversed|inconclusive)\b", said), path.stem
    assert writers
