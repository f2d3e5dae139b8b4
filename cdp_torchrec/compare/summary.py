"""A table from what its cells have left: rows, differences, and what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cdp_torchrec.compare.cells import Cell, Table
from cdp_torchrec.compare.choice import best_point, strongest_baseline
from cdp_torchrec.compare.results import METRICS, Result, read_failure, read_result
from cdp_torchrec.compare.search import GridPoint
from cdp_torchrec.compare.statistics import Difference, Measured, paired_difference
from cdp_torchrec.config import ConfigError

CONFIDENCE = 0.95

Kind = Literal["untrained", "floor", "baseline", "reference"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table that has at least one result."""

    name: str
    kind: Kind
    point: GridPoint | None
    """Chosen on validation; None for an untrained scorer."""
    results: Mapping[int, Result]
    """By seed; an untrained scorer has the same one for every seed."""
    measured: Mapping[str, Measured]
    """By metric."""
    to_reference: Mapping[str, Difference]
    """This row minus the reference, by metric; empty for the reference, or without it."""
    to_strongest: Mapping[str, Difference]
    """This row minus the strongest baseline, by metric; empty for that one, or without it."""
    gap_closed: float | None
    """Share of the GAUC between the row without history and the Bayes scorer."""


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """The table of one dataset."""

    dataset: str
    validation_metric: str
    strongest: str | None
    """The baseline with the best mean validation metric."""
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    """Cells without a result; those behind an open choice of the grid point are not named."""
    failed: Mapping[str, str]
    """The missing cells whose last attempt failed, with the reason."""


def summarize(table: Table, dataset: str) -> DatasetSummary:
    """Read all results of a dataset.

    Raises:
        ConfigError: the results are of different test splits.
    """
    results: dict[str, dict[int, Result]] = {}
    points: dict[str, GridPoint | None] = {}
    missing: list[Cell] = []
    for model in table.config.models:
        points[model] = best_point(table, dataset, model)
        results[model], unfinished = _results(table, dataset, model, points[model])
        missing += unfinished
    strongest = strongest_baseline(table, dataset, results)
    results = _untrained(table, dataset) | results
    _check_test_split(dataset, results)
    measured = {name: _measured(of_seeds) for name, of_seeds in results.items() if of_seeds}

    def row(name: str) -> Row:
        return Row(
            name=name,
            kind=_kind(table, name),
            point=points.get(name),
            results=results[name],
            measured=measured[name],
            to_reference=_differences(measured, name, table.config.reference),
            to_strongest=_differences(measured, name, strongest),
            gap_closed=_gap_closed(measured, name, table.config.without_history),
        )

    reasons = {cell.name: read_failure(cell.directory) for cell in missing}
    return DatasetSummary(
        dataset=dataset,
        validation_metric=table.any_config(dataset).trainer.validation_metric,
        strongest=strongest,
        rows=tuple(row(name) for name in measured),
        missing=tuple(reasons),
        failed={name: reason for name, reason in reasons.items() if reason is not None},
    )


def _results(
    table: Table, dataset: str, model: str, point: GridPoint | None
) -> tuple[dict[int, Result], list[Cell]]:
    """Results of a row at its grid point by seed, and its unfinished cells."""
    tuning = [
        cell for cell in table.tuning_cells(dataset, model) if read_result(cell.directory) is None
    ]
    if point is None:
        return {}, tuning
    cells = table.chosen_cells(dataset, model, point)
    found = {cell.seed: read_result(cell.directory) for cell in cells}
    finished = {seed: result for seed, result in found.items() if result is not None}
    return finished, tuning + [cell for cell in cells if cell.seed not in finished]


def _untrained(table: Table, dataset: str) -> dict[str, dict[int, Result]]:
    """Results of the untrained scorers, the weakest first."""
    directories = sorted(table.untrained_directory(dataset).glob("*"))
    found = {directory.name: read_result(directory) for directory in directories}
    results = {name: result for name, result in found.items() if result is not None}
    return {
        name: dict.fromkeys(table.all_seeds, results[name])
        for name in sorted(results, key=lambda name: results[name].value("gauc"))
    }


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


def _measured(of_seeds: Mapping[int, Result]) -> dict[str, Measured]:
    return {
        metric: Measured(
            {seed: result.value(metric) for seed, result in of_seeds.items()},
            {seed: result.replicates[metric] for seed, result in of_seeds.items()},
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
    measured: Mapping[str, Mapping[str, Measured]], name: str, other: str | None
) -> dict[str, Difference]:
    if other is None or other == name or other not in measured:
        return {}
    pairs = {
        metric: paired_difference(
            measured[name][metric], measured[other][metric], confidence=CONFIDENCE
        )
        for metric in METRICS
    }
    return {metric: pair for metric, pair in pairs.items() if pair is not None}


def _gap_closed(
    measured: Mapping[str, Mapping[str, Measured]], name: str, without_history: str | None
) -> float | None:
    if without_history not in measured or "bayes" not in measured:
        return None
    low, high = measured[without_history]["gauc"].mean, measured["bayes"]["gauc"].mean
    return (measured[name]["gauc"].mean - low) / (high - low)
