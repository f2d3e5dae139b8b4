"""The trials of a row: combinations of the grid's values, the same number for every row."""

# T trials

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cdp_torchrec.compare.config import CompareConfig, Value
from cdp_torchrec.config.keys import toml_value

_LONGEST_NAME = 200  # file systems allow 255 bytes
_KEPT = 40


@dataclass(frozen=True)
class GridPoint:
    """One combination of the grid's values."""

    settings: tuple[str, ...]
    """key=value, in the order of the grid."""

    @property
    def name(self) -> str:
        """Name of its directory: the settings, as far as a name may be long."""
        name = ",".join(self.settings).replace('"', "") or "default"
        if len(name.encode()) <= _LONGEST_NAME:
            return name
        return f"{name[:_KEPT]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def trials(config: CompareConfig, model: str) -> tuple[GridPoint, ...]:
    """What a row tries, in the order of the grid.

    The values of `grid` are the same for every row; those of `grid_of` are dealt to the trials.
    """
    combinations = list(itertools.product(*_settings(config.grid)))
    count, seed = config.search.trials or len(combinations), config.search.seed
    drawn = np.random.default_rng(seed).permutation(len(combinations))[:count]
    own = [
        _dealt(values, count, seed=(seed, place))
        for place, values in enumerate(_settings(config.grid_of.get(model, {})), start=1)
    ]
    return tuple(
        GridPoint((*combinations[index], *(values[trial] for values in own)))
        for trial, index in enumerate(sorted(drawn))
    )


def _settings(grid: Mapping[str, tuple[Value, ...]]) -> list[list[str]]:
    return [[f"{key}={toml_value(value)}" for value in values] for key, values in grid.items()]


def _dealt(values: Sequence[str], count: int, *, seed: tuple[int, int]) -> list[str]:
    """Each value about equally often, in a random order, [T]."""
    order = np.random.default_rng(seed).permutation(count)
    return [values[place % len(values)] for place in order]
