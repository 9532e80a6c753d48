"""Widgets: thin shells over tested functions; a still picture of :mod:`plots` says the same.

None asks any host for anything. A callback that fails says so in its widget.
"""

from objemb_lib.show.widgets.images import Attention, Compare, Retrieval
from objemb_lib.show.widgets.objects import Map, ObjectSearch

__all__ = ["Attention", "Compare", "Map", "ObjectSearch", "Retrieval"]
