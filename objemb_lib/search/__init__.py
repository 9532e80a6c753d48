"""Indexes, ranking again, one query from photograph to answer, many machines (notebook 05)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "provenance": "index",
        "recall": "index",
        "search_object": "objects",
        "embedder": "retriever",
        "neighbour_distances": "synthetic",
        "synthetic_vectors": "synthetic",
    },
)
