"""Metrics, intervals, the leaderboard, and what else to look at in embeddings."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "": ["analysis"],
        "analysis": ["linear_cka"],
        "metrics": ["evaluate_scores", "ranking", "truth"],
    },
)
