"""objemb: object embeddings for image retrieval, in small rooms.

Data flows one way: images -> :mod:`datasets` -> :mod:`trunks` (feature maps) -> :mod:`regions`
(where to look) -> :mod:`pooling` (map x region -> vector) -> :mod:`boxes`, :mod:`attention` (where
objects are, whoever says so) -> :mod:`postprocess` -> :mod:`index` -> :mod:`rerank` (by
neighbours) -> :mod:`evaluate` -> :mod:`objects` (images as sets of objects) -> :mod:`retriever`
(one query, from photograph to answer) -> :mod:`plots`, :mod:`widgets` -> :mod:`app` (the search,
without code). Training (``detectors``, ``student``) stands beside the flow and produces trunks.
Beyond one machine: ``ray_extract`` (from images to vectors) and ``milvus`` (search), on
``optional`` packages.
A module imports only from rooms before it.
"""

import os

# Two programs that compute at once (two notebooks, a training beside one) wait for each other's
# spinning threads, ten times slower. Let them spin less; read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

__version__ = "0.1.0"
