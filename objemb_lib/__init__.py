"""objemb: object embeddings for image retrieval, in small rooms.

Data flows one way: images -> :mod:`datasets` -> :mod:`trunks` (feature maps) -> :mod:`regions`
(where to look) -> :mod:`pooling` (map x region -> vector) -> :mod:`boxes`, :mod:`attention` (where
objects are, whoever says so) -> :mod:`postprocess` -> :mod:`exact`, :mod:`families`,
:mod:`index` -> :mod:`rerank` (by neighbours) -> :mod:`evaluate` -> :mod:`objects` (images as sets
of objects) -> :mod:`retriever` (one query, from photograph to answer) -> :mod:`plots`,
:mod:`widgets` -> :mod:`app` (the search, without code). Training (``detectors``, ``student``)
stands beside the flow and produces trunks; so does ``grow``, which makes large collections to try
an index on. Beyond one machine: ``ray_extract`` (from images to vectors) and ``milvus`` (search),
on ``optional`` packages.
A module imports only from rooms before it.
"""

import ctypes
import os
import sys

# Two programs that compute at once (two notebooks, a training beside one) wait for each other's
# spinning threads, ten times slower. Let them spin less; read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

# A network asks for the same large maps at every batch. glibc gives them back to the system each
# time, which then clears every page again: benchmarks/allocator.py measures what that costs.
if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
    _libc = ctypes.CDLL(None)
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD: free bytes that stay ours
        _libc.mallopt(-3, 128 << 20)  # M_MMAP_THRESHOLD: larger blocks still go back at once

__version__ = "0.1.0"
