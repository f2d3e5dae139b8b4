"""Statistics over users, seeds and worlds: deviations, and intervals and tests of differences.

Three things make a metric of a trained row uncertain: which users the test split happens to hold,
the seed, and, where datasets are seeds of one world, the world. A difference of two rows is taken
run by run (same test users, same seed, same world) and averaged; its variance is

    one dataset   V = users + s^2 / S   (users: variance of the difference over the replicates of
                                         the user bootstrap, which draw the same users for both)
    W worlds      V = s^2 / W           (each world has users and seeds of its own: its difference
                                         holds all three)

with s^2 the variance of the difference over the seeds (or worlds). Three of them say little about
s^2, so all trained rows that read the history lend a hand. What is left of rows x seeds (or worlds)
when the mean of each row and of each seed is taken out has a variance v_r in each row, and these
tell how large the variance of a row is and how much it differs from row to row: 2 v_0 is what a
difference is expected to have, d_0 how many degrees of freedom that expectation is worth. A
difference with d degrees of its own has the moderated variance (Smyth 2004, Statistical
Applications in Genetics and Molecular Biology 3.1.3, section 4)

    (d_0 2 v_0 + d s^2) / (d_0 + d)    with d_0 + d degrees, at most (R - 1)(S - 1)

or its own s^2 with its own d degrees if that is larger, so that a row that is less certain than the
others does not borrow their certainty. Where rows are told to differ v_0 is near a geometric mean,
which one erratic row moves little. Intervals and p-values are those of Student's t with
Satterthwaite's degrees of freedom; p-values over the rows of a table are corrected after Holm,
which bounds the probability of any false one among them.
"""

# R rows, S seeds, W worlds, K replicates of the user bootstrap

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import digamma, polygamma, stdtr, stdtrit

_LEVEL = 0.05
_Block = TypeVar("_Block", str, int)


@dataclass(frozen=True)
class Measured:
    """One metric of a row, by world (a dataset) and seed."""

    values: Mapping[str, Mapping[int, float]]
    replicates: Mapping[str, Mapping[int, NDArray[np.float64]]]
    """Under the user bootstrap, [K]."""

    @property
    def mean(self) -> float:
        """Mean over the worlds of the means over their seeds; NaN without any."""
        means = [np.mean(list(seeds.values())) for seeds in self.values.values() if seeds]
        return float(np.mean(means)) if means else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds of a world; NaN for fewer than two."""
        found = [list(s.values()) for s in self.values.values() if len(s) > 1]
        return math.sqrt(np.mean([np.var(v, ddof=1) for v in found])) if found else math.nan

    def interval(self, confidence: float) -> tuple[float, float]:
        """Interval of the mean over users, seeds and worlds, by this row alone."""
        zero = {world: dict.fromkeys(seeds, 0.0) for world, seeds in self.values.items()}
        nothing = {
            world: {seed: np.zeros_like(k) for seed, k in seeds.items()}
            for world, seeds in self.replicates.items()
        }
        found = difference(self, Measured(zero, nothing), noise=None, confidence=confidence)
        return (found.low, found.high) if found else (math.nan, math.nan)


@dataclass(frozen=True)
class Noise:
    """How much rows vary from block to block beyond what moves all of them alike."""

    over: Literal["seeds", "worlds"]
    variance: float
    """2 v_0, of the difference of two rows."""
    weight: float
    """d_0, in degrees of freedom: infinite where rows differ no more than chance has it."""
    degrees: int
    """Of all rows together."""

    def moderate(self, own: float, degrees: int) -> "_Variance":
        """A difference's own variance, of so many degrees of freedom, with what is expected."""
        if math.isinf(self.weight):
            moderated = _Variance(self.variance, self.degrees)
        else:
            both = self.weight + degrees
            value = (self.weight * self.variance + degrees * own) / both
            moderated = _Variance(value, min(both, self.degrees))
        return _Variance(own, degrees) if own > moderated.value else moderated


@dataclass(frozen=True)
class Difference:
    """Of a row to another one, averaged over the seeds and worlds that both have."""

    mean: float
    low: float
    high: float
    num_runs: int
    """Pairs of runs."""
    p_value: float
    """Of no difference, two-sided; NaN where nothing tells how far another seed would be."""
    p_holm: float | None = None
    """Corrected for the number of rows; None: not one of a family."""

    @property
    def is_significant(self) -> bool:
        """Whether zero is refuted at 5 %, after the correction where there is one."""
        return (self.p_value if self.p_holm is None else self.p_holm) < _LEVEL


def common_noise(rows: Sequence[Measured]) -> Noise | None:
    """What some rows together tell of the noise; None with fewer than two rows or blocks.

    Args:
        rows: of one metric. In an unfinished table not all have the same blocks: taken are the
            blocks of that row, and all rows which have them, that tell most. A row whose metric is
            undefined in one of them tells nothing.
    """
    if len(rows) < 2:
        return None
    over_worlds = any(len(row.values) > 1 for row in rows)
    if over_worlds:
        worlds = _most_telling([row.values.keys() for row in rows])
        rows = [row for row in rows if worlds <= row.values.keys()]
        seeds = {w: _shared([row.values[w].keys() for row in rows]) for w in worlds}
        table = np.array(
            [
                [np.mean([row.values[w][s] for s in seeds[w]]) for w in sorted(worlds) if seeds[w]]
                for row in rows
            ]
        )
    else:
        by_seed = [next(iter(row.values.values()), {}) for row in rows]
        blocks = _most_telling([of_row.keys() for of_row in by_seed])
        table = np.array(
            [[row[b] for b in sorted(blocks)] for row in by_seed if blocks <= row.keys()]
        )
    table = table[~np.isnan(table).any(axis=1)]
    if min(table.shape) < 2:
        return None
    left = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    num_rows, degrees = table.shape[0], table.shape[1] - 1
    of_rows = (left**2).sum(1) / degrees * num_rows / (num_rows - 1)
    variance, weight = _expected_variance(of_rows[of_rows > 0.0], degrees)
    over = "worlds" if over_worlds else "seeds"
    return Noise(over, 2 * variance, weight, (num_rows - 1) * degrees)


def difference(
    row: Measured, other: Measured, *, noise: Noise | None, confidence: float
) -> Difference | None:
    """`row` minus `other`; None if they share no seed of a world.

    Args:
        row: a metric of one row.
        other: the same metric of another row, its replicates from the same user draws.
        noise: of all trained rows; None: the two rows alone tell it. A single pair of runs does
            not: its interval is over users alone.
        confidence: probability mass of the interval.
    """
    seeds = {w: sorted(set(v) & set(other.values.get(w, {}))) for w, v in row.values.items()}
    worlds = [world for world, common in seeds.items() if common]
    if not worlds:
        return None
    by_world = [[row.values[w][s] - other.values[w][s] for s in seeds[w]] for w in worlds]
    num_runs = sum(map(len, by_world))
    if len(worlds) > 1:
        means = [float(np.mean(pairs)) for pairs in by_world]
        spread = _block_variance(means, noise if noise and noise.over == "worlds" else None)
    else:
        (world,), (pairs,) = worlds, by_world
        means = pairs
        spread = _block_variance(pairs, noise if noise and noise.over == "seeds" else None)
        draws = [row.replicates[world][s] - other.replicates[world][s] for s in seeds[world]]
        spread += _Variance.of_draws(np.mean(draws, axis=0))
    mean = float(np.mean(means))
    over_users_alone = num_runs == 1 and (noise is None or noise.over != "seeds")
    return Difference(
        mean,
        *spread.interval(mean, confidence),
        num_runs=num_runs,
        p_value=math.nan if over_users_alone else spread.p_value(mean),
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979).

    Rejecting those below a level keeps the probability of any false rejection below it, however
    the tests depend on each other.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    order = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(order):
        largest = max(largest, min(1.0, p_values[name] * (len(order) - place)))
        corrected[name] = largest
    return corrected


@dataclass(frozen=True)
class _Variance:
    """Of a mean, with the degrees of freedom of its estimate."""

    value: float
    degrees: float

    @classmethod
    def of_draws(cls, draws: NDArray[np.float64]) -> "_Variance":
        """From bootstrap replicates; those in which the metric is undefined do not count."""
        defined = draws[~np.isnan(draws)]
        if len(defined) < 2:
            return cls(math.nan, math.nan)
        return cls(float(np.var(defined, ddof=1)), len(defined) - 1)

    def __add__(self, other: "_Variance") -> "_Variance":
        """Of the sum of independent parts, with Satterthwaite's degrees of freedom."""
        value = self.value + other.value
        uncertain = self.value**2 / self.degrees + other.value**2 / other.degrees
        return _Variance(value, value**2 / uncertain if uncertain > 0 else math.inf)

    def __truediv__(self, count: int) -> "_Variance":
        """Of the mean of so many."""
        return _Variance(self.value / count, self.degrees)

    def interval(self, mean: float, confidence: float) -> tuple[float, float]:
        """Around the mean."""
        if self.value == 0.0:
            return mean, mean
        width = float(stdtrit(self._finite_degrees, 0.5 + confidence / 2)) * math.sqrt(self.value)
        return mean - width, mean + width

    def p_value(self, mean: float) -> float:
        """Of a mean of zero."""
        if self.value == 0.0:
            return float(mean == 0.0)
        return float(2 * stdtr(self._finite_degrees, -abs(mean) / math.sqrt(self.value)))

    @property
    def _finite_degrees(self) -> float:
        return min(self.degrees, 1e9)


def _block_variance(values: Sequence[float], noise: Noise | None) -> _Variance:
    """Variance of the mean of values of seeds or of worlds."""
    count = len(values)
    own = float(np.var(values, ddof=1)) if count > 1 else 0.0
    if noise is not None:
        return noise.moderate(own, count - 1) / count
    return _Variance(own / count, count - 1 if count > 1 else math.inf)


def _expected_variance(found: NDArray[np.float64], degrees: int) -> tuple[float, float]:
    """v_0 and d_0 of variances that are v_0 d_0 / chi^2(d_0) in truth (Smyth 2004, section 6.2).

    Args:
        found: estimates of the variances, each of `degrees` degrees of freedom.
        degrees: at least one.
    """
    if not len(found):
        return 0.0, math.inf
    logarithms = np.log(found) - digamma(degrees / 2) + math.log(degrees / 2)
    # Trigamma of half of d_0: how far apart they are, less what estimates of equal ones would be.
    apart = float(np.var(logarithms, ddof=1)) if len(found) > 2 else 0.0
    spread = apart - float(polygamma(1, degrees / 2))
    if spread <= 0.0:
        return float(found.mean()), math.inf
    # 1 / x < trigamma(x) < 1 / x + 1 / x^2 brackets the root.
    above = (1 + math.sqrt(1 + 4 * spread)) / (2 * spread)
    half = root_scalar(lambda x: polygamma(1, x) - spread, bracket=(1 / spread, above)).root
    return math.exp(logarithms.mean() + digamma(half) - math.log(half)), 2 * half


def _most_telling(of_rows: Sequence[Set[_Block]]) -> Set[_Block]:
    """The blocks of one row that leave the most degrees of freedom to the rows which have them."""

    def degrees(blocks: Set[_Block]) -> int:
        return (sum(blocks <= of_row for of_row in of_rows) - 1) * (len(blocks) - 1)

    return max(dict.fromkeys(map(frozenset, of_rows)), key=degrees)


def _shared(sets: Sequence[Set[_Block]]) -> list[_Block]:
    return sorted(set(sets[0]).intersection(*sets[1:]))
