"""Statistics over seeds and users: deviations, and intervals of paired differences.

Two things make a metric of a trained row uncertain: which users the test split happens to hold,
and the seed. An interval covers both (hierarchical bootstrap): every replicate draws the users
(Poisson bootstrap, the same draw for both rows, see `metrics.bootstrap`), draws seeds from those
that both rows have finished, and averages the differences, taken seed by seed, over them. S - 1
of S seeds are drawn, with replacement, because the mean of S draws would have a variance too small
by the factor (S - 1) / S. All draws are a function of S and K, so a table is always the same.

Five seeds are few: simulated, 95 % intervals of a normal difference hold its true value in 93 % of
the cases where users and seeds weigh alike, and in 88 % where the seeds are all there is.
"""

# S seeds, K replicates of the user bootstrap

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.metrics.bootstrap import percentile_interval

_SEED_DRAWS = 20
"""Draws of seeds for each draw of users."""


@dataclass(frozen=True)
class Measured:
    """One metric of a row, by seed."""

    values: Mapping[int, float]
    replicates: Mapping[int, NDArray[np.float64]]
    """Under the user bootstrap, [K]."""

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN without any."""
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; NaN for fewer than two."""
        values = list(self.values.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def interval(self, confidence: float) -> tuple[float, float]:
        """Interval of the mean over users and seeds."""
        return _interval(list(self.replicates.values()), confidence)


@dataclass(frozen=True)
class Difference:
    """Of a row to another one, averaged over the seeds that both have."""

    mean: float
    low: float
    high: float
    num_seeds: int

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_difference(row: Measured, other: Measured, *, confidence: float) -> Difference | None:
    """`row` minus `other`; None if they share no seed.

    Args:
        row: a metric of one row.
        other: the same metric of another row, its replicates from the same user draws.
        confidence: probability mass of the interval.
    """
    seeds = sorted(set(row.values) & set(other.values))
    if not seeds:
        return None
    mean = float(np.mean([row.values[seed] - other.values[seed] for seed in seeds]))
    replicates = [row.replicates[seed] - other.replicates[seed] for seed in seeds]
    return Difference(mean, *_interval(replicates, confidence), num_seeds=len(seeds))


def seed_averages(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replicates of the mean over seeds in which users and seeds are drawn, [20 K].

    Args:
        replicates: by seed and draw of users, [S, K].
    """
    num_seeds, num_users_draws = replicates.shape
    drawn = max(num_seeds - 1, 1)
    generator = np.random.default_rng(0)
    picks = generator.integers(0, num_seeds, (_SEED_DRAWS, num_users_draws, drawn))
    return replicates[picks, np.arange(num_users_draws)[None, :, None]].mean(axis=2).reshape(-1)


def _interval(replicates: list[NDArray[np.float64]], confidence: float) -> tuple[float, float]:
    if not replicates:
        return math.nan, math.nan
    return percentile_interval(seed_averages(np.stack(replicates)), confidence)
