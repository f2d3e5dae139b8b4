"""One page with the figures of a dataset directory, for the wall of whoever ranks by it."""
