"""Mean and deviation of numbers that are seen batch by batch."""

import math
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-12
"""A spread below this share of the values is rounding."""


@dataclass
class Moments:
    """Mean and variance of a number over impressions, merged batch by batch (Chan et al.)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Add values, each `weights` times; NaN is skipped."""
        known = ~np.isnan(values)
        values, weights = values[known], weights[known]
        count = int(weights.sum())
        if count == 0:
            return
        mean = float((values * weights).sum() / count)
        total = self.count + count
        self.squares += float((weights * (values - mean) ** 2).sum())
        self.squares += (mean - self.mean) ** 2 * self.count * count / total
        self.mean += (mean - self.mean) * count / total
        self.count = total
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    @property
    def is_constant(self) -> bool:
        """There is one value, or none, but for the rounding of what wrote or added them."""
        size = max(abs(self.low), abs(self.high))
        return self.count == 0 or self.high - self.low <= _ROUNDING * size

    @property
    def std(self) -> float:
        """Population standard deviation; 1 for a constant, so that it can divide."""
        # The square of a spread may be too small for a float where the spread is not.
        return 1.0 if self.is_constant else math.sqrt(self.squares / self.count) or 1.0
