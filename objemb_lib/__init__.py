"""objemb: object embeddings for image retrieval, a room for each chapter of the course.

:mod:`config` and :mod:`cache` lie below; then :mod:`data` (photographs with their truth, notebook
00), :mod:`embed` (from image to vector, 01), :mod:`measure` (metrics, intervals, the leaderboard),
:mod:`detect` (02), :mod:`attend` (where to look, 03), :mod:`teach` (the student, 04),
:mod:`search` (05), :mod:`show` (plots, widgets, the app) and :mod:`course` (what runs it all).
A module imports only from rooms before its own. What a lesson needs is here, loaded when asked for.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# name: the module it is in; a name that ends its module's path is that module
_WHERE = {
    "load_splits": "data.catalogue",
    "ImageDataset": "data.dataset",
    "folder": "data.folder",
    "load_trunk": "embed.trunks",
    "POOLINGS": "embed.pooling",
    "Region": "embed.regions",
    "PCAWhitening": "embed.whitening",
    "l2": "embed.whitening",
    "extract": "embed.extract",
    "extract_objects": "embed.extract",
    "analysis": "measure.analysis",
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
    "plots": "show.plots",
    "widgets": "show.widgets",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = _WHERE[name]
    module = import_module(f"{__name__}.{where}")
    return (
        module
        if where.endswith(f".{name}") and not hasattr(module, name)
        else getattr(module, name)
    )


def __dir__() -> list[str]:
    return [*__all__, "config"]
