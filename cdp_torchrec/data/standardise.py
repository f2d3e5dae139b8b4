"""Numbers as the model reads them, in training and serving alike."""

import numpy as np

from cdp_torchrec.data.schema import Feature

LARGEST_DEVIATION = 1000.0
"""Standardised numbers end here: what a network multiplies a few times must stay finite, whatever
a request says."""


def standardise(raw: np.ndarray, feature: Feature) -> np.ndarray:
    """Distances from the mean in deviations, float64; 0, the mean, where a number is missing.

    The result is finite and within LARGEST_DEVIATION for everything that a float64 can hold.

    Args:
        raw: numbers, NaN where missing.
        feature: whose numbers they are.
    """
    with np.errstate(over="ignore"):
        scaled = (raw - feature.mean) / feature.std
    return np.nan_to_num(np.clip(scaled, -LARGEST_DEVIATION, LARGEST_DEVIATION))
