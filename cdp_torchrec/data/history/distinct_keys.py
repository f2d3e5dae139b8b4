"""Pairs of a number and a code as one integer, and the distinct ones of them."""

import numpy as np

CODE_BITS = 32
"""A key is (number << CODE_BITS) | code."""
_FEW = 256
"""Keys up to which Python's set finds the distinct ones sooner than numpy: those of a request."""


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ones of some keys, rising, and the place of each key among them, int64."""
    if len(keys) > _FEW:
        return np.unique(keys, return_inverse=True)
    rising = np.array(sorted(set(keys.tolist())), dtype=np.int64)
    return rising, rising.searchsorted(keys)
