"""Progress bars that stay short in a log.

On a terminal and in a notebook a bar redraws itself in place. In a log (a CI job, a redirected
stderr) every redraw stays, and hundreds of them make one endless line: there it speaks seldom.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm.auto import tqdm

LOG_SECONDS = 10  # between two updates in a log


def bar(
    iterable: Iterable | None = None,
    desc: str | None = None,
    total: float | None = None,
    unit: str = "it",
    disable: bool = False,
    **more: object,
) -> tqdm:
    """tqdm's bar over ``iterable``, or one to ``update`` by hand; at most every 10 s in a log.

    Args:
        desc: what is counted. total: how many there will be, where that is known.
        unit: what one of them is called.
        disable: show nothing.
        more: further options of tqdm.
    """
    look = {"desc": desc, "total": total, "unit": unit, "disable": disable}
    return tqdm(iterable, **look, **pace(), **more)


def pace() -> dict[str, float]:
    """How often a bar may redraw, as options of tqdm: for those who make theirs elsewhere."""
    return {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS} if in_log() else {}


def in_log() -> bool:
    """Whether what is drawn on stderr stays: neither a terminal nor a notebook shows it."""
    return not (sys.stderr.isatty() or in_notebook())


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, where the bar is a widget."""
    ipython = sys.modules.get("IPython")  # a kernel has it; do not import it for the others
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
