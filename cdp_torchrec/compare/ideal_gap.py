"""How much of what a history can tell a row gets out of it, where the ideal observer is known."""

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
    ideal, without = runs.get(IDEAL, {}), runs.get(WITHOUT_HISTORY, {})
    worlds = [world for world, seeds in runs[name].items() if seeds]
    if not worlds or not all(ideal.get(world) and without.get(world) for world in worlds):
        return None
    lows = {world: _gauc(without[world]) for world in worlds}
    gap = sum(_gauc(ideal[world]) - lows[world] for world in worlds)
    share = sum(_gauc(runs[name][world]) - lows[world] for world in worlds) / gap
    errors = [
        next(iter(ideal[world].values())).metrics.get(OBSERVER_ERROR, 0.0) for world in worlds
    ]
    error = 0.0 if name == IDEAL else abs(share / gap) * math.hypot(*errors)
    return IdealShare(share, error)


def _gauc(of_seeds: Mapping[int, Result]) -> float:
    return statistics.fmean(result.value("gauc") for result in of_seeds.values())
