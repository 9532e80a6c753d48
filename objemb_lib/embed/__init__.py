"""From an image to vectors: trunks, regions, pooling, whitening, extraction (notebook 01)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "boxes": ["true_boxes"],
        "regions": ["WHOLE", "Region", "crop", "roi", "model_input"],
        "extract": ["ExtractOptions", "benchmark_latency", "extract_regions"],
        "pooling": ["POOLINGS", "rmac_grid"],
        "whitening": ["PCAWhitening", "l2"],
    },
)
