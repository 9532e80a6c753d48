"""Widgets: thin shells over tested functions; each has a static twin in ``plots``.

None asks any host for anything. A callback that fails says so in its widget.
"""

from objemb_lib.show.widgets.attention import Attention
from objemb_lib.show.widgets.compare import Compare
from objemb_lib.show.widgets.map import Map
from objemb_lib.show.widgets.retrieval import Retrieval
from objemb_lib.show.widgets.search import ObjectSearch

__all__ = ["Attention", "Compare", "Map", "ObjectSearch", "Retrieval"]
