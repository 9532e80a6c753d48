"""What a learner wrote in a copy is never overwritten."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

from objemb_lib.course.lab import copies


def test_copies_have_no_outputs_and_a_second_start_keeps_what_was_written(tmp_path: Path) -> None:
    source, dest = tmp_path / "notebooks", tmp_path / "mine"
    (source / "images").mkdir(parents=True)
    (source / "images" / "a.svg").write_text("<svg/>")
    said = new_output("stream", text="1")
    cell = new_code_cell("print(1)", outputs=[said], execution_count=1)
    for name in ("00_a", "01_b"):
        nbformat.write(new_notebook(cells=[cell]), source / f"{name}.ipynb")
    assert [path.name for path in copies(source, dest)] == ["00_a.ipynb", "01_b.ipynb"]
    (copied,) = nbformat.read(dest / "00_a.ipynb", 4).cells
    assert (copied.source, copied.outputs, copied.execution_count) == ("print(1)", [], None)
    assert (dest / "images" / "a.svg").exists()
    (dest / "00_a.ipynb").write_text("a learner's")
    (dest / "01_b.ipynb").unlink()
    assert [path.name for path in copies(source, dest)] == ["01_b.ipynb"]
    assert (dest / "00_a.ipynb").read_text() == "a learner's"
