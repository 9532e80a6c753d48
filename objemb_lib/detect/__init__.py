"""Detectors, what each of their layers gives, how well they find (notebook 02)."""
