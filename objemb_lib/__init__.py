"""objemb: object embeddings for image retrieval, a room for each chapter of the course.

:mod:`config` and :mod:`cache` lie below; then :mod:`data` (photographs with their truth, notebook
00), :mod:`embed` (from image to vector, 01), :mod:`measure` (metrics, intervals, leaderboard),
:mod:`detect` (02), :mod:`attend` (where to look, 03), :mod:`teach` (the student, 04),
:mod:`search` (05), :mod:`show` (plots, widgets, the app) and :mod:`course` (what runs it all).
A module imports only from rooms before its own. What a lesson needs is here, and the rest of what
it calls in its room (``attend.oracle_query``), loaded when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

__version__ = "0.1.0"


def lazy(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], list[str]]:
    """``__getattr__`` and ``__all__`` of a package whose names are loaded when asked for.

    Args:
        modules: module, seen from the package -> names in it; "" -> names of modules.
    """
    where = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> object:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not where[name]:
            return import_module(f"{package}.{name}")
        return getattr(import_module(f"{package}.{where[name]}"), name)

    return load, list(where)


__getattr__, __all__ = lazy(
    __name__,
    {
        "data.catalogue": ["load_splits"],
        "data.dataset": ["ImageDataset"],
        "data.folder": ["folder"],
        "embed.trunks": ["load_trunk"],
        "embed.pooling": ["POOLINGS"],
        "embed.boxes": ["Boxes"],
        "embed.regions": ["Region"],
        "embed.extract": ["ExtractOptions", "extract", "extract_objects"],
        "embed.whitening": ["l2", "PCAWhitening"],
        "measure": ["analysis"],
        "measure.metrics": ["evaluate", "evaluate_scores"],
        "measure.intervals": ["paired_difference"],
        "measure.leaderboard": ["Leaderboard"],
        "detect.weights": ["load_detector"],
        "teach.student": ["Student", "Teacher", "load_student"],
        "teach.distillation": ["train_student"],
        "search.index": ["Index"],
        "search.objects": ["ObjectIndex"],
        "search.retriever": ["Retriever"],
        "search.rerank": ["rerank"],
        "show": ["plots", "touch", "widgets"],
    },
)
