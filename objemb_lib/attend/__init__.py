"""Hard and soft attention: where to look, and images as sets of objects (notebook 03)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "box_sources": "detections",
        "detect_cached": "sources",
        "detector_boxes": "sources",
        "boxes_from": "detections",
        "detection_ms": "detections",
        "soft": "",
        "choices": "objects",
        "evaluate_objects": "objects",
        "listed_scores": "objects",
        "looked_at": "objects",
        "meets_main": "objects",
        "oracle_query": "objects",
        "query_strata": "objects",
        "retrieval_scores": "objects",
    },
)
