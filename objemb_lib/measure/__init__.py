"""Metrics, intervals, the leaderboard, and what else to look at in embeddings."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "analysis": "",
        "linear_cka": "analysis",
        "evaluate_scores": "metrics",
        "ranking": "metrics",
        "truth": "metrics",
    },
)
