"""From an image to vectors: trunks, regions, pooling, whitening, extraction (notebook 01)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "true_boxes": "boxes",
        "whole_image": "boxes",
        "with_whole": "boxes",
        "WHOLE": "regions",
        "Region": "regions",
        "crop": "regions",
        "roi": "regions",
        "every_image_has_a_box": "regions",
        "model_input": "regions",
        "ExtractOptions": "extract",
        "benchmark_latency": "extract",
        "extract_regions": "extract",
        "POOLINGS": "pooling",
        "rmac_grid": "pooling",
        "PCAWhitening": "whitening",
        "concat_descriptors": "whitening",
        "l2": "whitening",
    },
)
