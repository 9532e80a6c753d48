"""Metrics, intervals, results and claims, and what else to look at in embeddings."""
