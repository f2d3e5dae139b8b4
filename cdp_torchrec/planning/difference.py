"""Two plans, table by table."""

from dataclasses import dataclass

import numpy as np

from cdp_torchrec.planning.case import FeasiblePlan
from cdp_torchrec.planning.estimate import TableEstimate


@dataclass(frozen=True)
class TableDifference:
    """A table that the plans treat differently; pairs are of the first and of the second plan."""

    name: str
    placement: tuple[str, str]
    """Sharding type, kernel and ranks, in words."""
    largest_shard_bytes: tuple[float, float]
    time_ms: tuple[float, float]
    """On the rank where it takes longest."""


def compare_plans(first: FeasiblePlan, second: FeasiblePlan) -> list[TableDifference]:
    """Tables whose type, kernel or ranks differ, those with the largest change of time first."""
    found = [
        TableDifference(
            name=a.table.name,
            placement=(describe_placement(a), describe_placement(b)),
            largest_shard_bytes=(_largest(a), _largest(b)),
            time_ms=(_longest(a), _longest(b)),
        )
        for a, b in zip(first.estimate.tables, second.estimate.tables, strict=True)
        if describe_placement(a) != describe_placement(b)
    ]
    return sorted(found, key=lambda table: -abs(table.time_ms[1] - table.time_ms[0]))


def describe_placement(table: TableEstimate) -> str:
    """Such as `row_wise, ranks 0-7` or `table_wise (fused_uvm), rank 3`."""
    kernel = "" if table.compute_kernel in ("fused", "dense") else f" ({table.compute_kernel})"
    return f"{table.sharding_type}{kernel}, {describe_ranks(table.ranks)}"


def describe_ranks(ranks: list[int]) -> str:
    """Such as `ranks 0-7` or `ranks 1, 4, 6-7`."""
    breaks = np.flatnonzero(np.diff(ranks) > 1) + 1
    runs = [(run[0], run[-1]) for run in np.split(np.array(ranks), breaks)]
    text = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs]
    shown = ", ".join(text[:4]) + (f" and {len(text) - 4} more" if len(text) > 4 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _largest(table: TableEstimate) -> float:
    return max(float(shard.device_bytes) for shard in table.shards)


def _longest(table: TableEstimate) -> float:
    by_rank: dict[int, float] = {}
    for shard in table.shards:
        by_rank[shard.rank] = by_rank.get(shard.rank, 0.0) + shard.time_ms
    return max(by_rank.values())
