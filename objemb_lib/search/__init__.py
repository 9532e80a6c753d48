"""Indexes, ranking again, one query from photograph to answer, many machines (notebook 05)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "index": ["Index", "recall"],
        "objects": ["ObjectIndex", "search_object"],
        "retriever": ["Retriever", "embedder"],
        "synthetic": ["synthetic_vectors"],
    },
)
