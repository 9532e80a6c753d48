"""Indexes, ranking again, one query from photograph to answer, many machines (notebook 05)."""
