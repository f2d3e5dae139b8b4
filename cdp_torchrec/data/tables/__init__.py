"""Ids and the rows of embedding tables on which they fall."""
