"""Detectors, what each of their layers gives, how well they find (notebook 02)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "practised": "classifier",
        "DetectorTrunk": "features",
        "detect": "metrics",
        "main_recall": "metrics",
        "cards_table": "weights",
        "read_card": "weights",
        "with_cards": "weights",
    },
)
