"""A table for people (Markdown) and for programs (JSON)."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cdp_torchrec.compare.cells import Table
from cdp_torchrec.compare.choice import mean_validation
from cdp_torchrec.compare.gains import Panel
from cdp_torchrec.compare.results import METRICS, TrainingCost
from cdp_torchrec.compare.statistics import Difference, Measured
from cdp_torchrec.compare.summary import CONFIDENCE, Row, Summary
from cdp_torchrec.environment import release
from cdp_torchrec.text_table import markdown_table
from cdp_torchrec.undefined import json_ready

_MOST_SHOWN = 20


def markdown(summaries: Sequence[Summary], *, table: Table, made_by: Mapping[str, Any]) -> str:
    """One table for each group and dataset that was begun, how to read them, and the caption.

    Args:
        summaries: the groups and datasets.
        table: what was compared.
        made_by: from `provenance`.
    """
    config = table.config
    begun = [summary for summary in summaries if summary.rows or summary.failed]
    parts = [_summary(summary, reference=config.reference) for summary in begun]
    if waiting := [
        f"{summary.name} ({len(summary.missing)} cells)"
        for summary in summaries
        if summary not in begun
    ]:
        parts.append(f"Not begun: {', '.join(waiting)}.")
    worlds = (
        " In a group of worlds the interval is over the worlds, each with users and seeds of its "
        "own."
        if config.groups
        else ""
    )
    parts.append(
        "Mean +/- standard deviation over seeds. Brackets: "
        f"{CONFIDENCE:.0%} interval of the paired difference in GAUC over test users and seeds, by "
        f"this row alone.{worlds} p: of no difference to {config.reference}, corrected for the "
        "number of trained rows after Holm; * below 5 %. Where all rows have one seed, nothing "
        "tells how far another would be: intervals are over users alone, and there is no p. The "
        "grid point of each row is the best on validation at the first seed"
        + (", on the first world of a group. " if config.groups else ". ")
        + "Parameters are those of one model; training time is without validations; CPU seconds "
        "are those of a cell with its validations and test; speed is the median; latency is the "
        "median (and 90th percentile) of scoring one request, without reading. Time, speed and "
        "latency are those of the machine as loaded as it was."
    )
    parts.append(
        f"Made by `{made_by['command']}` of {made_by['release']}; cells by "
        f"{', '.join(made_by['cells']) or 'none'}."
    )
    return (
        "\n\n".join([*parts, *([config.caption.strip()] if config.caption.strip() else [])]) + "\n"
    )


def as_json(
    summaries: Sequence[Summary], panels: Sequence[Panel], *, made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the Markdown and the figures say, for all metrics and runs."""
    return {
        "made_by": made_by,
        "tables": {summary.name: _json_summary(summary) for summary in summaries},
        "gains": [_json_panel(panel) for panel in panels],
    }


def provenance(summaries: Sequence[Summary], *, table: Table) -> dict[str, Any]:
    """The command and the commits of this package that have made a table and its cells."""
    cells = {release_of for summary in summaries for release_of in summary.releases}
    return {"command": table.command, "release": release(), "cells": sorted(cells)}


# --- Markdown ------------------------------------------------------------------------------------


def _summary(summary: Summary, *, reference: str) -> str:
    with_gap = any(row.gap_closed is not None for row in summary.rows)
    header = ["row", "AUC", "UAUC", "GAUC", f"GAUC - {reference}", "p"]
    header += [f"GAUC - {summary.strongest}"] if summary.strongest else []
    header += ["gap to Bayes closed"] if with_gap else []
    with_ideal = any(row.ideal_share is not None for row in summary.rows)
    header += ["ideal gap closed"] if with_ideal else []
    header += ["dense", "sparse", "CPU s", "training s", "impressions/s", "latency ms"]
    header += ["grid point"]
    rows = [
        list(_cells(row, summary, with_gap=with_gap, with_ideal=with_ideal)) for row in summary.rows
    ]
    text = markdown_table(header, rows, left=(0, len(header) - 1)) if rows else "No finished row."
    notes = [f"## {summary.name}"]
    if len(summary.worlds) > 1:
        notes.append(f"Over the worlds {', '.join(summary.worlds)}.")
    notes.append(text)
    if summary.strongest is not None:
        floors = ", ".join(row.name for row in summary.rows if row.kind == "floor")
        notes.append(
            f"Strongest baseline: {summary.strongest}, by the mean {summary.validation_metric} on "
            f"validation, among the trained rows that are neither {reference} nor floors"
            + (f" ({floors})." if floors else ".")
        )
    if with_ideal:
        notes.append(
            "Ideal gap: from the ideal observer without history to the one that sees it, in GAUC; "
            "+/- is the standard error of the observer itself."
        )
    if summary.missing:
        notes.append(_missing(summary))
    return "\n\n".join(notes)


def _cells(row: Row, summary: Summary, *, with_gap: bool, with_ideal: bool) -> Iterator[str]:
    unit = "seeds" if len(summary.worlds) == 1 else "runs"
    count = len(row.results)
    partial = f" ({count} of {row.planned} {unit})" if count < row.planned else ""
    yield {"untrained": f"*{row.name}*", "reference": f"**{row.name}**"}.get(
        row.kind, row.name
    ) + partial
    for metric in METRICS:
        yield _value(row.measured[metric], with_deviation=row.kind != "untrained")
    yield _difference(row.to_reference.get("gauc"))
    yield _p_value(row.to_reference.get("gauc"))
    if summary.strongest:
        yield _difference(row.to_strongest.get("gauc"))
    if with_gap:
        yield "-" if row.gap_closed is None else f"{row.gap_closed:.1%}"
    if with_ideal:
        found = row.ideal_share
        yield "-" if found is None else f"{found.share:.1%} +/- {found.error:.1%}"
    costs = _costs(row)
    if not costs:
        yield from ("-",) * 7
        return
    yield f"{costs[0].dense_parameters:,}"
    yield f"{costs[0].sparse_parameters:,}"
    yield f"{_mean(costs, 'cpu_s'):,.1f}"
    yield f"{_mean(costs, 'training_s'):,.1f}"
    yield f"{_mean(costs, 'impressions_per_s'):,.0f}"
    yield "{median_ms:.2f} ({p90_ms:.2f})".format(**_latency(costs))
    yield row.point.name if row.point else "-"


def _value(measured: Measured, *, with_deviation: bool) -> str:
    if math.isnan(measured.mean):
        return "-"
    if not with_deviation or math.isnan(measured.deviation):
        return f"{measured.mean:.4f}"
    return f"{measured.mean:.4f} +/- {measured.deviation:.4f}"


def _difference(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.mean):
        return "-"
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _p_value(difference: Difference | None) -> str:
    if difference is None or difference.p_holm is None:
        return "-"
    shown = "< .0001" if difference.p_holm < 1e-4 else f"{difference.p_holm:.4f}".lstrip("0")
    return shown + (" *" if difference.is_significant else "")


def _missing(summary: Summary) -> str:
    shown = [
        f"- {name}" + (f": {_one_line(summary.failed[name])}" if name in summary.failed else "")
        for name in summary.missing[:_MOST_SHOWN]
    ]
    more = len(summary.missing) - len(shown)
    shown += [f"- and {more} more"] if more else []
    return "Missing cells:\n\n" + "\n".join(shown)


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- costs and JSON ------------------------------------------------------------------------------


def _costs(row: Row) -> list[TrainingCost]:
    return [result.cost for result in row.results if result.cost is not None]


def _mean(costs: Sequence[TrainingCost], name: str) -> float:
    return statistics.fmean(getattr(cost, name) for cost in costs)


def _latency(costs: Sequence[TrainingCost]) -> dict[str, float]:
    """Medians over the seeds, because a busy moment of the machine is no property of the row."""
    return {
        name: statistics.median(getattr(cost.latency, name) for cost in costs)
        for name in ("median_ms", "p90_ms")
    }


def _json_summary(summary: Summary) -> dict[str, Any]:
    return {
        "worlds": list(summary.worlds),
        "validation_metric": summary.validation_metric,
        "strongest_baseline": summary.strongest,
        "confidence": CONFIDENCE,
        "rows": [_json_row(row) for row in summary.rows],
        "missing": list(summary.missing),
        "failed": dict(summary.failed),
    }


def _json_row(row: Row) -> dict[str, Any]:
    costs = _costs(row)
    return {
        "name": row.name,
        "kind": row.kind,
        "grid_point": list(row.point.settings) if row.point else None,
        "seeds": {world: list(seeds) for world, seeds in row.runs.items()} if costs else None,
        "metrics": {metric: _json_measured(m) for metric, m in row.measured.items()},
        "to_reference": _json_differences(row.to_reference),
        "to_strongest_baseline": _json_differences(row.to_strongest),
        "gap_closed": row.gap_closed,
        "ideal_gap_closed": asdict(row.ideal_share) if row.ideal_share else None,
        "validation": mean_validation(row.results) if costs else None,
        "cost": _json_cost(costs) if costs else None,
    }


def _json_measured(measured: Measured) -> dict[str, Any]:
    return json_ready(
        {
            "mean": measured.mean,
            "deviation": measured.deviation,
            "interval": measured.interval(CONFIDENCE),
            "by_seed": {
                world: {str(seed): value for seed, value in seeds.items()}
                for world, seeds in measured.values.items()
            },
        }
    )


def _json_differences(differences: Mapping[str, Difference]) -> dict[str, Any]:
    return {metric: _json_difference(found) for metric, found in differences.items()}


def _json_difference(difference: Difference) -> dict[str, Any]:
    return json_ready(asdict(difference)) | {"is_significant": difference.is_significant}


def _json_panel(panel: Panel) -> dict[str, Any]:
    return {
        "title": panel.title,
        "axis": panel.axis,
        "gains_over": {
            base: [{"at": point.label} | _json_difference(point.gain) for point in points]
            for base, points in panel.curves.items()
        },
    }


def _json_cost(costs: Sequence[TrainingCost]) -> dict[str, Any]:
    first = costs[0]
    return {
        "dense_parameters": first.dense_parameters,
        "sparse_parameters": first.sparse_parameters,
        "steps": [cost.steps for cost in costs],
        "cpu_s": _mean(costs, "cpu_s"),
        "training_s": _mean(costs, "training_s"),
        "impressions_per_s": _mean(costs, "impressions_per_s"),
        "latency": asdict(first.latency) | _latency(costs),
    }
