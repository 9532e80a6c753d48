"""What the notebooks' cell for Google Colab runs: install the course there, or go on with it.

Colab brings its own Jupyter, which must stay as it is; the rest of what pyproject.toml asks for is
installed beside it. Then the runtime starts anew, and the cell, run again, finds everything there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
OF_COLAB = ("jupyter", "ipykernel", "ipython", "ipywidgets")


def wanted(pyproject: Path) -> list[str]:
    """What the course asks for and Colab's Jupyter is not."""
    import tomllib  # since Python 3.11, which Colab has

    asked = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [line for line in asked if not line.startswith(OF_COLAB)]


def install() -> None:
    """Packages, library and data."""
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    packages = wanted(HOME / "pyproject.toml")
    build = [sys.executable, "data/download.py", "build", "mini-battles"]
    for command in ([*pip, *packages], [*pip, "--no-deps", "-e", "."], build):
        subprocess.run(command, cwd=HOME, check=True)


if __name__ == "__main__":
    os.chdir(HOME / "notebooks")
    if find_spec("objemb_lib") is None:
        install()
        print("Installed. The runtime starts anew: run this cell again, then the others.")
        os.kill(os.getpid(), 9)
