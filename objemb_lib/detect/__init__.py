"""Detectors, what each of their layers gives, how well they find (notebook 02)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "classifier": ["practised"],
        "features": ["DetectorTrunk"],
        "metrics": ["detect", "main_recall"],
        "weights": ["cards_table", "read_card", "with_cards"],
    },
)
