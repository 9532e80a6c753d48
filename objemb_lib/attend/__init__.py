"""Hard and soft attention: where to look, and images as sets of objects (notebook 03)."""
