"""What the reference row gains over others: along dials of a world, by activity, along rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cdp_torchrec.compare.config import CompareConfig
from cdp_torchrec.compare.statistics import Difference, Measured, common_noise, difference
from cdp_torchrec.compare.summary import CONFIDENCE, Row, Summary


@dataclass(frozen=True)
class Point:
    """A gain somewhere on an axis."""

    place: float
    label: str
    """Of the place."""
    gain: Difference
    """In GAUC."""


@dataclass(frozen=True)
class Panel:
    """Gains along one axis."""

    title: str
    axis: str
    """Label of the axis."""
    curves: Mapping[str, Sequence[Point]]
    """By the row that the gain is over, in the order of their places."""

    @property
    def is_logarithmic(self) -> bool:
        """Whether the places are positive and far apart."""
        places = [point.place for points in self.curves.values() for point in points]
        return min(places) > 0 and max(places) >= 20 * min(places)


def find_gains(config: CompareConfig, summaries: Sequence[Summary]) -> list[Panel]:
    """All panels that have a point."""
    panels = _panels(config, {summary.name: summary for summary in summaries})
    return [panel for panel in panels if any(panel.curves.values())]


def _panels(config: CompareConfig, summaries: Mapping[str, Summary]) -> Iterator[Panel]:
    gains = config.gains
    for axis, places in gains.dials.items():
        curves = {
            base: [
                Point(place, f"{place:g}", gain)
                for name, place in sorted(places.items(), key=lambda item: item[1])
                if (gain := _gain(config, summaries[name], config.reference, base)) is not None
            ]
            for base in gains.over
        }
        yield Panel(config.reference, axis, curves)
    for name in _drawn(config):
        summary = summaries[name]
        yield Panel(
            f"{config.reference} on {name}",
            "behaviours of the user before the request",
            {base: list(_by_activity(config, summary, base)) for base in gains.over},
        )
        for axis, places in gains.rows.items():
            curves = {
                base: [
                    Point(place, f"{place:g}", gain)
                    for row, place in sorted(places.items(), key=lambda item: item[1])
                    if (gain := _gain(config, summary, row, base)) is not None
                ]
                for base in gains.over
            }
            yield Panel(f"rows on {name}", axis, curves)


def _drawn(config: CompareConfig) -> tuple[str, ...]:
    """Groups and datasets with panels of their own."""
    if config.gains.of is not None:
        return config.gains.of
    on_dials = {name for places in config.gains.dials.values() for name in places}
    in_groups = {name for names in config.groups.values() for name in names}
    names = (*config.groups, *config.datasets)
    return tuple(name for name in names if name not in on_dials | in_groups)


def _gain(config: CompareConfig, summary: Summary, row: str, base: str) -> Difference | None:
    measured = {found.name: found.measured["gauc"] for found in _trained(summary)}
    return _difference(config, measured, row, base)


def _by_activity(config: CompareConfig, summary: Summary, base: str) -> Iterator[Point]:
    rows = _trained(summary)
    labels = dict.fromkeys(
        label for found in rows for result in found.results for label in result.strata
    )
    for place, label in enumerate(labels):
        measured = {found.name: _in_stratum(found, label) for found in rows}
        gain = _difference(config, measured, config.reference, base)
        if gain is not None:
            yield Point(place, label, gain)


def _trained(summary: Summary) -> list[Row]:
    return [row for row in summary.rows if row.kind != "untrained"]


def _in_stratum(row: Row, label: str) -> Measured:
    """GAUC of the runs in which the stratum has one."""
    found = {
        world: {
            seed: stratum
            for seed, result in seeds.items()
            if (stratum := result.strata.get(label)) and not math.isnan(stratum.gauc)
        }
        for world, seeds in row.runs.items()
    }
    runs = {world: seeds for world, seeds in found.items() if seeds}
    return Measured(
        {w: {s: stratum.gauc for s, stratum in seeds.items()} for w, seeds in runs.items()},
        {w: {s: stratum.replicates for s, stratum in seeds.items()} for w, seeds in runs.items()},
    )


def _difference(
    config: CompareConfig, measured: Mapping[str, Measured], row: str, base: str
) -> Difference | None:
    if row == base or row not in measured or base not in measured:
        return None
    noise = common_noise([measured[name] for name in config.rows_with_history if name in measured])
    found = difference(measured[row], measured[base], noise=noise, confidence=CONFIDENCE)
    return None if found is None or math.isnan(found.mean) else found
