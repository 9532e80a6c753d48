"""objemb: object embeddings for image retrieval, in small rooms.

Data flows one way: images -> :mod:`datasets` -> :mod:`trunks` (feature maps) ->
:mod:`regions` (where to look) -> :mod:`pooling` (map x region -> vector) ->
:mod:`postprocess` -> :mod:`index` -> :mod:`evaluate` -> :mod:`plots`, :mod:`widgets`.
A module imports only from rooms before it.
"""

__version__ = "0.1.0"
