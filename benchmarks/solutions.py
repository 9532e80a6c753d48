"""Run the code of the solutions, and write what it prints into them.

python benchmarks/solutions.py 01 03    those of two notebooks; all without arguments

A solution is Markdown: its ``python`` blocks run from top to bottom as one program, and the
``text`` block after one is what it printed. tests/test_solutions.py runs them on few images.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib

FOLDER = Path(__file__).resolve().parents[1] / "notebooks" / "solutions"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<printed>.*?)```\n)?", re.S)


def blocks(text: str) -> list[re.Match[str]]:
    """Every ``python`` block, with the ``text`` block after it, if there is one."""
    return list(BLOCK.finditer(text))


def printed(codes: list[str], name: str) -> Iterator[str]:
    """Run blocks of code in one namespace; what each printed, as soon as it ran."""
    matplotlib.use("Agg")  # a solution may draw
    space: dict[str, object] = {"__name__": name}
    for number, code in enumerate(codes, 1):
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile(code, f"{name}, block {number}", "exec"), space)
        yield out.getvalue()


def renewed(text: str, said: Iterator[str]) -> str:
    """A solution whose ``text`` blocks are what its code printed."""

    def block(found: re.Match[str]) -> str:
        out = next(said)
        return f"```python\n{found['code']}```\n" + (f"\n```text\n{out}```\n" if out else "")

    return BLOCK.sub(block, text)


def main() -> None:
    """Run the named solutions, or all, and write them anew."""
    names = sys.argv[1:] or [path.stem for path in sorted(FOLDER.glob("*.md"))]
    for path in (FOLDER / f"{name}.md" for name in names):
        text = path.read_text(encoding="utf-8")
        said = printed([block["code"] for block in blocks(text)], path.stem)
        path.write_text(renewed(text, said), encoding="utf-8")
        print(f"{path.name}: written anew", flush=True)


if __name__ == "__main__":
    main()
