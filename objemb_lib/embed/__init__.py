"""From an image to vectors: trunks, regions, pooling, whitening, extraction (notebook 01)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "true_boxes": "boxes",
        "WHOLE": "regions",
        "Region": "regions",
        "crop": "regions",
        "roi": "regions",
        "model_input": "regions",
        "ExtractOptions": "extract",
        "benchmark_latency": "extract",
        "extract_regions": "extract",
        "POOLINGS": "pooling",
        "rmac_grid": "pooling",
        "PCAWhitening": "whitening",
        "l2": "whitening",
    },
)
