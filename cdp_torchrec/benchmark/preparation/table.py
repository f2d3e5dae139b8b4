"""The preparation benchmark as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cdp_torchrec.benchmark.preparation.case import Cost, SizeFigures
from cdp_torchrec.benchmark.preparation.config import DAYS, PreparationSettings
from cdp_torchrec.text_table import markdown_table

_HEADER = [
    "behaviours",
    "impressions",
    "preparation: CPU s",
    "wall s",
    "rows/s of CPU",
    "peak MiB",
    "append of a day: CPU s",
    "wall s",
    "rows/s of CPU",
    "of a preparation",
    "read and write only: CPU s",
    "MB of the store",
    "MB of copies",
]


def as_markdown(sizes: Sequence[SizeFigures], settings: PreparationSettings) -> str:
    """What was measured, then a row for each size."""
    about = (
        f"Logs drawn at random over {DAYS} days, {settings.behaviours_per_user} behaviours and one "
        f"request of {settings.num_candidates} candidates a user; the engine has "
        f"{settings.memory_gib} GiB and {settings.num_threads} threads; rows are behaviours and "
        "requests."
    )
    return f"{about}\n\n{markdown_table(_HEADER, [_row(found) for found in sizes])}"


def as_json(sizes: Sequence[SizeFigures], settings: PreparationSettings) -> Mapping[str, Any]:
    """Settings and all numbers."""
    return {
        "settings": settings.model_dump(mode="json"),
        "sizes": [asdict(figures) for figures in sizes],
    }


def _row(found: SizeFigures) -> list[str]:
    rows = found.behaviours + found.requests
    return [
        f"{found.behaviours:,}",
        f"{found.impressions:,}",
        *_cost(found.preparation, rows),
        f"{found.preparation.peak_mib:,.0f}",
        *_cost(found.append, rows // DAYS),
        f"1/{found.preparation.cpu_s / found.append.cpu_s:.1f}",
        f"{found.limit.cpu_s:.1f}",
        f"{found.store_bytes / 1e6:,.0f}",
        f"{found.copies_bytes / 1e6:,.0f}",
    ]


def _cost(cost: Cost, rows: int) -> list[str]:
    return [f"{cost.cpu_s:.1f}", f"{cost.wall_s:.0f}", f"{1e-3 * rows / cost.cpu_s:,.1f}k"]
