"""How much of what is possible a row gets out of a history, where an ideal is known."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from cdp_torchrec.compare.results import Result
from cdp_torchrec.ideal_scorer import IDEAL, WITHOUT_HISTORY

OBSERVER_ERROR = "observer_error"
"""Metric of the ideal observer's result: standard error of its GAUC by its own random numbers."""

Runs = Mapping[str, Mapping[int, Result]]
"""Results of a row by world (a dataset) and seed."""


@dataclass(frozen=True)
class IdealShare:
    """(row - ideal without history) / (ideal - ideal without history) in GAUC."""

    share: float
    error: float
    """Its standard error by the observer's own random numbers alone."""


def ideal_share(runs: Mapping[str, Runs], name: str) -> IdealShare | None:
    """What a row closes of the ideal gap, over the worlds of its runs.

    Args:
        runs: of all rows.
        name: the row.

    Returns:
        None if a world of the row has no ideal observer.
    """
    share = gap_closed(runs, name, low=WITHOUT_HISTORY, high=IDEAL)
    if share is None:
        return None
    worlds = _worlds(runs, name)
    gap = sum(_gauc(runs[IDEAL][w]) - _gauc(runs[WITHOUT_HISTORY][w]) for w in worlds)
    errors = [
        next(iter(runs[IDEAL][world].values())).metrics.get(OBSERVER_ERROR, 0.0) for world in worlds
    ]
    error = 0.0 if name == IDEAL else abs(share / gap) * math.hypot(*errors)
    return IdealShare(share, error)


def gap_closed(runs: Mapping[str, Runs], name: str, *, low: str, high: str) -> float | None:
    """(row - low) / (high - low) in GAUC, over the worlds of the row's runs.

    Args:
        runs: of all rows.
        name: the row.
        low: the row at 0.
        high: the row at 1.

    Returns:
        None if one of them has no run in a world of the row, there is no gap, or GAUC is undefined.
    """
    worlds = _worlds(runs, name)
    ends = [runs.get(low, {}), runs.get(high, {})]
    if not worlds or not all(end.get(world) for end in ends for world in worlds):
        return None
    gap = sum(_gauc(runs[high][world]) - _gauc(runs[low][world]) for world in worlds)
    closed = sum(_gauc(runs[name][world]) - _gauc(runs[low][world]) for world in worlds)
    share = closed / gap if gap else math.nan
    return None if math.isnan(share) else share


def _worlds(runs: Mapping[str, Runs], name: str) -> list[str]:
    return [world for world, seeds in runs[name].items() if seeds]


def _gauc(of_seeds: Mapping[int, Result]) -> float:
    return statistics.fmean(result.value("gauc") for result in of_seeds.values())
