"""Hard and soft attention: where to look, and images as sets of objects (notebook 03)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "detections": ["box_sources", "boxes_from", "detection_ms"],
        "sources": ["detect_cached", "detector_boxes"],
        "": ["soft"],
        "objects": [
            "choices",
            "evaluate_objects",
            "listed_scores",
            "looked_at",
            "meets_main",
            "oracle_query",
            "query_strata",
            "retrieval_scores",
        ],
    },
)
