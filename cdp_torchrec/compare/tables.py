"""A table for people (Markdown) and for programs (JSON)."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cdp_torchrec.compare.choice import mean_validation
from cdp_torchrec.compare.results import METRICS, TrainingCost
from cdp_torchrec.compare.statistics import Difference, Measured
from cdp_torchrec.compare.summary import CONFIDENCE, DatasetSummary, Row
from cdp_torchrec.text_table import markdown_table

_MOST_SHOWN = 20


def markdown(
    summaries: Sequence[DatasetSummary], *, reference: str, num_seeds: int, caption: str
) -> str:
    """One table for each dataset, how to read them, and the caption.

    Args:
        summaries: the datasets.
        reference: row that the others are compared with.
        num_seeds: seeds of a complete row.
        caption: last paragraph.
    """
    parts = [_dataset(summary, reference=reference, num_seeds=num_seeds) for summary in summaries]
    parts.append(
        f"Mean +/- standard deviation over {num_seeds} seed{'s' * (num_seeds != 1)}. Brackets: "
        f"{CONFIDENCE:.0%} interval of the paired difference in GAUC, averaged over seeds "
        "(hierarchical bootstrap: test users and seeds are both resampled); * excludes zero, with "
        "no correction for the number of rows. The grid point of each row is the best on "
        "validation at the first seed. Parameters are those of one model; training time is without "
        "validations; speed is the median; latency is the median (and 90th percentile) of scoring "
        "one request, without reading. Time, speed and latency are those of the machine as loaded "
        "as it was."
    )
    return "\n\n".join([*parts, *([caption.strip()] if caption.strip() else [])]) + "\n"


def as_json(summaries: Sequence[DatasetSummary]) -> dict[str, Any]:
    """Everything that the Markdown says, for all metrics, with the values of each seed."""
    return {summary.dataset: _json_summary(summary) for summary in summaries}


# --- Markdown ------------------------------------------------------------------------------------


def _dataset(summary: DatasetSummary, *, reference: str, num_seeds: int) -> str:
    with_gap = any(row.gap_closed is not None for row in summary.rows)
    header = ["row", "AUC", "UAUC", "GAUC", f"GAUC - {reference}"]
    header += [f"GAUC - {summary.strongest}"] if summary.strongest else []
    header += ["gap to Bayes closed"] if with_gap else []
    header += ["dense", "sparse", "training s", "impressions/s", "latency ms", "grid point"]
    rows = [
        list(_cells(row, summary, num_seeds=num_seeds, with_gap=with_gap)) for row in summary.rows
    ]
    text = markdown_table(header, rows, left=(0, len(header) - 1)) if rows else "No finished row."
    notes = [f"## {summary.dataset}", text]
    if summary.strongest is not None:
        floors = ", ".join(row.name for row in summary.rows if row.kind == "floor")
        notes.append(
            f"Strongest baseline: {summary.strongest}, by the mean {summary.validation_metric} on "
            f"validation, among the trained rows that are neither {reference} nor floors"
            + (f" ({floors})." if floors else ".")
        )
    if summary.missing:
        notes.append(_missing(summary))
    return "\n\n".join(notes)


def _cells(row: Row, summary: DatasetSummary, *, num_seeds: int, with_gap: bool) -> Iterator[str]:
    partial = f" ({len(row.results)} of {num_seeds} seeds)" if len(row.results) < num_seeds else ""
    yield {"untrained": f"*{row.name}*", "reference": f"**{row.name}**"}.get(
        row.kind, row.name
    ) + partial
    for metric in METRICS:
        yield _value(row.measured[metric], with_deviation=row.kind != "untrained")
    yield _difference(row.to_reference.get("gauc"))
    if summary.strongest:
        yield _difference(row.to_strongest.get("gauc"))
    if with_gap:
        yield "-" if row.gap_closed is None else f"{row.gap_closed:.1%}"
    costs = _costs(row)
    if not costs:
        yield from ("-",) * 6
        return
    yield f"{costs[0].dense_parameters:,}"
    yield f"{costs[0].sparse_parameters:,}"
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
    star = " *" if difference.is_significant else ""
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]{star}"


def _missing(summary: DatasetSummary) -> str:
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
    return [result.cost for result in row.results.values() if result.cost is not None]


def _mean(costs: Sequence[TrainingCost], name: str) -> float:
    return statistics.fmean(getattr(cost, name) for cost in costs)


def _latency(costs: Sequence[TrainingCost]) -> dict[str, float]:
    """Medians over the seeds, because a busy moment of the machine is no property of the row."""
    return {
        name: statistics.median(getattr(cost.latency, name) for cost in costs)
        for name in ("median_ms", "p90_ms")
    }


def _json_summary(summary: DatasetSummary) -> dict[str, Any]:
    return {
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
        "seeds": list(row.results) if costs else None,
        "metrics": {metric: _json_measured(m) for metric, m in row.measured.items()},
        "to_reference": _json_differences(row.to_reference),
        "to_strongest_baseline": _json_differences(row.to_strongest),
        "gap_closed": row.gap_closed,
        "validation": mean_validation(row.results) if costs else None,
        "cost": _json_cost(costs) if costs else None,
    }


def _json_measured(measured: Measured) -> dict[str, Any]:
    return {
        "mean": _number(measured.mean),
        "deviation": _number(measured.deviation),
        "interval": [_number(bound) for bound in measured.interval(CONFIDENCE)],
        "by_seed": {str(seed): _number(value) for seed, value in measured.values.items()},
    }


def _json_differences(differences: Mapping[str, Difference]) -> dict[str, Any]:
    return {
        metric: {
            name: _number(value) if isinstance(value, float) else value
            for name, value in asdict(difference).items()
        }
        | {"is_significant": difference.is_significant}
        for metric, difference in differences.items()
    }


def _json_cost(costs: Sequence[TrainingCost]) -> dict[str, Any]:
    first = costs[0]
    return {
        "dense_parameters": first.dense_parameters,
        "sparse_parameters": first.sparse_parameters,
        "steps": [cost.steps for cost in costs],
        "training_s": _mean(costs, "training_s"),
        "impressions_per_s": _mean(costs, "impressions_per_s"),
        "latency": asdict(first.latency) | _latency(costs),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
