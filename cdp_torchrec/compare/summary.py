"""A table from what its cells have left: rows, differences, and what is missing."""

import math
import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from cdp_torchrec.compare.cells import Cell, Table
from cdp_torchrec.compare.choice import best_point, strongest_baseline
from cdp_torchrec.compare.ideal_gap import IdealShare, Runs, gap_closed, ideal_share
from cdp_torchrec.compare.results import METRICS, Result, read_failure, read_origin, read_result
from cdp_torchrec.compare.search import GridPoint
from cdp_torchrec.compare.statistics import (
    Difference,
    Measured,
    Noise,
    common_noise,
    difference,
    holm,
)
from cdp_torchrec.config import ConfigError
from cdp_torchrec.reference_scorers import TRUTH

CONFIDENCE = 0.95

Kind = Literal["untrained", "floor", "baseline", "reference"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table that has at least one result."""

    name: str
    kind: Kind
    point: GridPoint | None
    """Chosen on validation; None for an untrained scorer."""
    runs: Runs
    """An untrained scorer has the same result for every seed."""
    planned: int
    """Runs of the row when the table is complete."""
    measured: Mapping[str, Measured]
    """By metric."""
    to_reference: Mapping[str, Difference]
    """This row minus the reference, by metric; empty for the reference, or without it. P-values
    are corrected over the trained rows."""
    to_strongest: Mapping[str, Difference]
    """This row minus the strongest baseline, by metric; empty for that one, or without it."""
    gap_closed: float | None
    """Share of the GAUC between the row without history and the Bayes scorer."""
    ideal_share: IdealShare | None
    """Share of the GAUC that a history is worth to the ideal observer."""

    @property
    def results(self) -> list[Result]:
        """Of all runs."""
        return [result for seeds in self.runs.values() for result in seeds.values()]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The table of one dataset, or of a group of datasets that are seeds of one world."""

    name: str
    worlds: tuple[str, ...]
    """The datasets."""
    validation_metric: str
    strongest: str | None
    """The baseline with the best mean validation metric."""
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    """Cells without a result; those behind an open choice of the grid point are not named."""
    failed: Mapping[str, str]
    """The missing cells whose last attempt failed, with the reason."""
    releases: tuple[str, ...]
    """Versions and commits of this package that have made the results."""


def summarize(table: Table, name: str) -> Summary:
    """Read all results of a dataset or of a group.

    Raises:
        ConfigError: the results of a dataset are of different test splits, or a file is damaged.
    """
    worlds = table.config.groups.get(name, (name,))
    runs: dict[str, Runs] = {}
    points: dict[str, GridPoint | None] = {}
    missing: dict[str, Cell] = {}
    for model in table.config.models:
        points[model] = best_point(table, worlds[0], model)
        runs[model], unfinished = _runs(table, worlds, model, points[model])
        missing |= {cell.name: cell for cell in unfinished}
    strongest = strongest_baseline(table, worlds[0], runs)
    runs = _untrained(table, worlds) | runs
    for world in worlds:
        _check_test_split(world, {row: of_row.get(world, {}) for row, of_row in runs.items()})
    measured = {row: _measured(of_row) for row, of_row in runs.items() if of_row}
    noises = {
        metric: common_noise(
            [measured[m][metric] for m in table.config.rows_with_history if m in measured]
        )
        for metric in METRICS
    }
    to_reference = _corrected(
        {row: _differences(measured, row, table.config.reference, noises) for row in measured},
        family=set(table.config.models),
    )

    def row(row_name: str) -> Row:
        return Row(
            name=row_name,
            kind=_kind(table, row_name),
            point=points.get(row_name),
            runs=runs[row_name],
            planned=len(worlds) * len(table.seeds(row_name)),
            measured=measured[row_name],
            to_reference=to_reference[row_name],
            to_strongest=_differences(measured, row_name, strongest, noises),
            gap_closed=(
                gap_closed(runs, row_name, low=table.config.without_history, high=TRUTH)
                if table.config.without_history
                else None
            ),
            ideal_share=ideal_share(runs, row_name),
        )

    reasons = {cell.name: read_failure(cell.directory) for cell in missing.values()}
    return Summary(
        name=name,
        worlds=worlds,
        validation_metric=table.any_config(worlds[0]).trainer.validation_metric,
        strongest=strongest,
        rows=tuple(row(row_name) for row_name in measured),
        missing=tuple(reasons),
        failed={name: reason for name, reason in reasons.items() if reason is not None},
        releases=_releases(table, worlds, points),
    )


def _runs(
    table: Table, worlds: Sequence[str], model: str, point: GridPoint | None
) -> tuple[Runs, list[Cell]]:
    """Results of a row at its grid point, and its unfinished cells."""
    tuning = table.tuning_cells(worlds[0], model)
    unfinished = [cell for cell in tuning if read_result(cell.file) is None]
    if point is None:
        return {}, unfinished
    runs: dict[str, dict[int, Result]] = {}
    for world in worlds:
        for cell in table.chosen_cells(world, model, point):
            if (result := read_result(cell.file)) is not None:
                runs.setdefault(world, {})[cell.seed] = result
            else:
                unfinished.append(cell)
    return runs, unfinished


def _untrained(table: Table, worlds: Sequence[str]) -> dict[str, Runs]:
    """Results of the untrained scorers, the weakest first."""
    found: dict[str, dict[str, Result]] = {}
    for world in worlds:
        for path in sorted(table.untrained_directory(world).glob("*.json")):
            if (result := read_result(path)) is not None:
                found.setdefault(path.stem, {})[world] = result

    def gauc(name: str) -> float:
        return statistics.fmean(result.value("gauc") for result in found[name].values())

    return {
        name: {world: dict.fromkeys(table.all_seeds, r) for world, r in found[name].items()}
        for name in sorted(found, key=gauc)
    }


def _releases(
    table: Table, worlds: Sequence[str], points: Mapping[str, GridPoint | None]
) -> tuple[str, ...]:
    cells = (
        cell.file
        for model, point in points.items()
        if point is not None
        for world in worlds
        for cell in table.chosen_cells(world, model, point)
    )
    origins = (read_origin(path) for path in cells)
    return tuple(sorted({origin.release for origin in origins if origin is not None}))


def _check_test_split(dataset: str, results: Mapping[str, Mapping[int, Result]]) -> None:
    """Replicates are paired only if all rows were tested on the same impressions."""
    sizes = ("num_impressions", "num_clicks", "num_users", "num_requests", "num_bootstrap")
    seen: dict[tuple[int, ...], str] = {}
    for name, of_seeds in results.items():
        for seed, result in of_seeds.items():
            seen.setdefault(tuple(result.metrics[size] for size in sizes), f"{name}, seed {seed}")
    if len(seen) > 1:
        raise ConfigError.of(
            f"{dataset}: {cell} was tested on "
            + ", ".join(f"{size} = {value}" for size, value in zip(sizes, values, strict=True))
            for values, cell in seen.items()
        )


def _measured(runs: Runs) -> dict[str, Measured]:
    return {
        metric: Measured(
            {w: {seed: r.value(metric) for seed, r in seeds.items()} for w, seeds in runs.items()},
            {
                w: {seed: r.replicates[metric] for seed, r in seeds.items()}
                for w, seeds in runs.items()
            },
        )
        for metric in METRICS
    }


def _kind(table: Table, name: str) -> Kind:
    if name == table.config.reference:
        return "reference"
    if name not in table.config.models:
        return "untrained"
    return "floor" if name in table.config.floors else "baseline"


def _differences(
    measured: Mapping[str, Mapping[str, Measured]],
    name: str,
    other: str | None,
    noises: Mapping[str, Noise | None],
) -> dict[str, Difference]:
    if other is None or other == name or other not in measured:
        return {}
    pairs = {
        metric: difference(
            measured[name][metric],
            measured[other][metric],
            noise=noises[metric],
            confidence=CONFIDENCE,
        )
        for metric in METRICS
    }
    return {metric: pair for metric, pair in pairs.items() if pair is not None}


def _corrected(
    differences: Mapping[str, Mapping[str, Difference]], *, family: Set[str]
) -> dict[str, dict[str, Difference]]:
    """The same with p-values corrected over the rows of the family, metric by metric."""
    corrected = {name: dict(of_row) for name, of_row in differences.items()}
    for metric in METRICS:
        p_values = {
            name: of_row[metric].p_value
            for name, of_row in differences.items()
            if name in family and metric in of_row and not math.isnan(of_row[metric].p_value)
        }
        for name, p_holm in holm(p_values).items():
            corrected[name][metric] = replace(corrected[name][metric], p_holm=p_holm)
    return corrected
