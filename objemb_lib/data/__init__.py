"""Photographs with their truth: where they come from, how they are read (notebook 00)."""
