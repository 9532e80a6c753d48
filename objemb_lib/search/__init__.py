"""Indexes, ranking again, one query from photograph to answer, many machines (notebook 05)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Index": "index",
        "recall": "index",
        "ObjectIndex": "objects",
        "search_object": "objects",
        "Retriever": "retriever",
        "embedder": "retriever",
        "synthetic_vectors": "synthetic",
    },
)
