"""The data benchmark as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cdp_torchrec.benchmark.data.case import LengthFigures, RowFigures
from cdp_torchrec.benchmark.data.config import DataSettings
from cdp_torchrec.text_table import markdown_table


def as_markdown(lengths: Sequence[LengthFigures], settings: DataSettings) -> str:
    """What was measured, then one table for each question."""
    passes = f"the gate passes one of {settings.num_categories} categories"
    parts = [
        f"Batches of {settings.batch_size:,} impressions, {settings.num_candidates} candidates of "
        f"one category in a request, {settings.num_users:,} users with "
        f"{settings.requests_per_user:,} requests each, {passes}; median of {settings.rounds} "
        "rounds, files in the page cache.",
        _speed(lengths),
        _bytes(lengths),
        _workers(lengths, settings),
        _disk(lengths),
    ]
    return "\n\n".join(parts)


def as_json(lengths: Sequence[LengthFigures], settings: DataSettings) -> Mapping[str, Any]:
    """Settings and all numbers."""
    return {
        "settings": settings.model_dump(mode="json"),
        "lengths": [asdict(figures) for figures in lengths],
    }


def _speed(lengths: Sequence[LengthFigures]) -> str:
    header = ["impressions/s of a core", "behaviours", "inline", "store", "store over inline"]
    header += ["read and copy only", "share of it"]
    return _by_row(
        header,
        lengths,
        lambda found: [
            _thousands(found.per_second["inline"]),
            _thousands(found.per_second["store"]),
            f"{found.speedup:.1f} x",
            _thousands(found.limit_per_second),
            f"{found.per_second['store'] / found.limit_per_second:.1%}",
        ],
    )


def _bytes(lengths: Sequence[LengthFigures]) -> str:
    header = ["bytes an impression", "behaviours", "read, inline", "read, store"]
    header += ["inline over store", "store, second pass", "inline over that", "in the batch"]
    return _by_row(
        header,
        lengths,
        lambda found: [
            f"{found.bytes_read['inline']:,.0f}",
            f"{found.bytes_read['store']:,.0f}",
            f"{found.bytes_read['inline'] / found.bytes_read['store']:.1f} x",
            f"{found.bytes_read_again:,.0f}",
            f"{found.bytes_read['inline'] / found.bytes_read_again:.1f} x",
            f"{found.bytes_made:,.0f}",
        ],
    )


def _workers(lengths: Sequence[LengthFigures], settings: DataSettings) -> str:
    titles = [f"{number} workers" for number in settings.workers]
    header = ["impressions/s on the wall, shuffled", "behaviours", *titles]
    return _by_row(
        header,
        lengths,
        lambda found: [_thousands(found.workers[number]) for number in settings.workers],
    )


def _disk(lengths: Sequence[LengthFigures]) -> str:
    header = ["behaviours", "MB on disk, inline", "store", "inline over store"]
    header += ["preparation, rows/s"]
    rows = [
        [
            f"{found.length:,}",
            f"{found.on_disk['inline'] / 1e6:,.1f}",
            f"{found.on_disk['store'] / 1e6:,.1f}",
            f"{found.on_disk['inline'] / found.on_disk['store']:.1f} x",
            _thousands(found.preparation.rows / found.preparation.seconds),
        ]
        for found in lengths
    ]
    return markdown_table(header, rows)


def _by_row(
    header: Sequence[str],
    lengths: Sequence[LengthFigures],
    cells: Callable[[RowFigures], Sequence[str]],
) -> str:
    rows = [
        [f"`{found.row}`", f"{figures.length:,}", *cells(found)]
        for place in range(len(lengths[0].rows))
        for figures in lengths
        for found in [figures.rows[place]]
    ]
    return markdown_table(header, rows)


def _thousands(rate: float) -> str:
    return f"{1e-3 * rate:,.1f}k"
