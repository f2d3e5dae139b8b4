"""Sparse lookups, the shared tower, and the training losses."""
