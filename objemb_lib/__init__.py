"""objemb: object embeddings for image retrieval, a room for each chapter of the course.

:mod:`config` and :mod:`cache` lie below; then :mod:`data` (photographs with their truth, notebook
00), :mod:`embed` (from image to vector, 01), :mod:`measure` (metrics, intervals, leaderboard),
:mod:`detect` (02), :mod:`attend` (where to look, 03), :mod:`teach` (the student, 04),
:mod:`search` (05), :mod:`show` (plots, widgets, the app) and :mod:`course` (what runs it all).
A module imports only from rooms before its own. What a lesson needs is here, and the rest of what
it calls in its room (``attend.oracle_query``), loaded when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

__version__ = "0.1.0"


def lazy(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], object], list[str]]:
    """``__getattr__`` and ``__all__`` of a package whose names are loaded when asked for.

    Args:
        where: name -> the module that it is in, seen from the package; "" where it is a module.
    """

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
        "load_splits": "data.catalogue",
        "ImageDataset": "data.dataset",
        "folder": "data.folder",
        "load_trunk": "embed.trunks",
        "POOLINGS": "embed.pooling",
        "Boxes": "embed.boxes",
        "Region": "embed.regions",
        "ExtractOptions": "embed.extract",
        "extract": "embed.extract",
        "extract_objects": "embed.extract",
        "l2": "embed.whitening",
        "PCAWhitening": "embed.whitening",
        "analysis": "measure",
        "evaluate": "measure.metrics",
        "evaluate_scores": "measure.metrics",
        "paired_difference": "measure.intervals",
        "Leaderboard": "measure.leaderboard",
        "load_detector": "detect.weights",
        "Student": "teach.student",
        "Teacher": "teach.student",
        "load_student": "teach.student",
        "train_student": "teach.distillation",
        "Index": "search.index",
        "ObjectIndex": "search.objects",
        "Retriever": "search.retriever",
        "rerank": "search.rerank",
        "plots": "show",
        "touch": "show",
        "widgets": "show",
    },
)
