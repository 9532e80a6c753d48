"""A learner's own copies of the notebooks: ``python -m objemb_lib.course.lab``, or ``make lab``.

The committed notebooks keep their outputs, to be read; the copies have none, to be run. What is in
the folder already stays as it is: a second start never overwrites what a learner wrote.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import nbformat

from objemb_lib import config
from objemb_lib.cache import atomic_write_text


def copies(source: Path, dest: Path) -> list[Path]:
    """Copy what ``dest`` lacks of the notebooks, pictures and solutions in ``source``; returns the
    new notebooks."""
    for folder in ("images", "solutions"):
        if not (dest / folder).exists() and (source / folder).exists():
            shutil.copytree(source / folder, dest / folder)
    new = [path for path in sorted(source.glob("*.ipynb")) if not (dest / path.name).exists()]
    for path in new:
        notebook = nbformat.read(path, as_version=4)
        for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
            cell.outputs, cell.execution_count = [], None
        atomic_write_text(dest / path.name, nbformat.writes(notebook) + "\n")
    return new


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = config.PROJECT / "my_course"
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="my_course")
    folder = parser.parse_args().folder
    new = copies(config.PROJECT / "notebooks", folder)
    print(f"{len(new)} notebooks copied into {folder}; those that were there stay as you left them")


if __name__ == "__main__":
    main()
