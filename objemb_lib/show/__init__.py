"""Plots, things to touch, widgets and the app."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(__name__, {"": ["plots", "touch", "widgets"]})
