"""Bootstrap by user: every replicate draws each user Poisson(1) times, all impressions together.

The draw is a hash of (user, replicate, seed). So all ranks agree on it without talking, the order
of impressions does not matter, and two models evaluated on the same users get the same draws:
replicate k of one report is paired with replicate k of the other.
"""

# U users

from collections.abc import Iterator
from math import exp, factorial

import numpy as np
from numpy.typing import NDArray

_DRAWS_PER_HASH = 4
_MAX_WEIGHTS_AT_ONCE = 1 << 22
# Poisson(1) by inverse transform of 16 uniform bits; mean 1.00005 and variance 1.0002.
_POISSON = np.repeat(
    np.arange(9, dtype=np.uint8), [round(exp(-1) / factorial(k) * 2**16) for k in range(9)]
)


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: a bijection of the 64-bit integers whose output bits look independent."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def poisson_weights(
    user: NDArray[np.uint64], *, first: int, last: int, seed: int
) -> NDArray[np.uint8]:
    """How often replicates first .. last - 1 draw each user, [last - first, U].

    Args:
        user: mixed user ids (see `mix`), [U].
        first: a multiple of 4, because one hash serves 4 replicates.
        last: end of the replicates, exclusive.
        seed: another seed gives independent draws.
    """
    assert first % _DRAWS_PER_HASH == 0
    quads = np.arange(first // _DRAWS_PER_HASH, -(-last // _DRAWS_PER_HASH), dtype=np.uint64)
    keys = mix(mix(np.array([seed], np.int64).view(np.uint64)) + quads)
    bits = mix(user[None, :] + keys[:, None])
    draws = _POISSON[bits.view(np.uint16).reshape(len(quads), len(user), _DRAWS_PER_HASH)]
    weights = draws.transpose(0, 2, 1).reshape(len(quads) * _DRAWS_PER_HASH, len(user))
    return weights[: last - first]


def weight_chunks(
    user: NDArray[np.uint64], *, num_bootstrap: int, seed: int
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """All replicates' weights, a few million at a time: slices of replicates and [.., U]."""
    step = max(1, _MAX_WEIGHTS_AT_ONCE // max(1, _DRAWS_PER_HASH * len(user))) * _DRAWS_PER_HASH
    for first in range(0, num_bootstrap, step):
        last = min(first + step, num_bootstrap)
        yield slice(first, last), poisson_weights(user, first=first, last=last, seed=seed)


def percentile_interval(replicates: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Percentile interval over the replicates in which the metric is defined; NaN if none is."""
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return float("nan"), float("nan")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return float(low), float(high)
