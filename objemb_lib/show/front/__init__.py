"""The front end: ES modules and a style that know nothing of Python (``protocol.js`` says what they
ask of whoever searches), and here what makes one file of them."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (\{[^}]*\};)$", re.MULTILINE)


def module(entry: str) -> str:
    """A module and all that it imports as one module: each is a function that gives its exports."""
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        text = (HERE / f"{name}.js").read_text("utf-8")
        for _, other in IMPORT.findall(text):
            if other not in parts:
                add(other)
        parts[name] = IMPORT.sub(r"const \1 = $\2;", text)

    add(entry)
    last = parts.pop(entry)
    wrapped = [
        f"const ${name} = (() => {{\n{text}}})();\n"
        for name, text in ((name, EXPORT.sub(r"return \1", text)) for name, text in parts.items())
    ]
    return "".join([*wrapped, last])


def style() -> str:
    """The style sheet."""
    return (HERE / "front.css").read_text("utf-8")
