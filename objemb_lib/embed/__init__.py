"""From an image to vectors: trunks, regions, pooling, whitening, extraction (notebook 01)."""
