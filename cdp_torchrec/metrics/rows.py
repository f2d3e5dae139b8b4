"""One impression as the metrics keep it, and the strata that it falls into."""

# n impressions, S stratifications (the first is "all": one stratum with every impression)

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_PARTITIONS = 64
_PARTITION_BITS = 6


@dataclass(frozen=True)
class Stratification:
    """A division of all impressions, for example by history length."""

    name: str
    labels: tuple[str, ...]
    """Name of each stratum; impressions carry an index into it."""
    first: int
    """Column of the first stratum where the strata of all stratifications lie side by side."""

    @property
    def columns(self) -> slice:
        """Columns of this stratification's strata."""
        return slice(self.first, self.first + len(self.labels))


def stratifications(strata: Mapping[str, Sequence[str]]) -> tuple[Stratification, ...]:
    """The stratification "all", then those asked for."""
    result = [Stratification("all", ("all",), 0)]
    for name, labels in strata.items():
        if not 0 < len(labels) <= 127 or len(set(labels)) < len(labels):
            raise ValueError(
                f"strata '{name}': expected 1 to 127 distinct labels, found {tuple(labels)}"
            )
        result.append(Stratification(name, tuple(labels), result[-1].columns.stop))
    return tuple(result)


def row_dtype(num_stratifications: int) -> np.dtype:
    """Packed row; `user` is the mixed id (see `bootstrap.mix`), equal for equal users only."""
    return np.dtype(
        [
            ("user", np.uint64),
            ("request", np.int64),
            ("probability", np.float32),
            ("clicked", np.bool_),
            ("strata", np.int8, (num_stratifications,)),
        ]
    )


def user_partition(user: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Partition of each user, [n]; it serves requests too, since a request has one user."""
    return (user >> np.uint64(64 - _PARTITION_BITS)).astype(np.uint16)


def score_codes(rows: NDArray) -> NDArray[np.uint32]:
    """Integers that order and tie as the probabilities do, [n]; less than 2 ** 30.

    The bits of float32 numbers in [0, 1] have that property as they are.
    """
    return np.ascontiguousarray(rows["probability"]).view(np.uint32)
