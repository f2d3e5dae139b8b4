"""An exploration as text for a terminal, 100 columns wide."""

import textwrap
from collections.abc import Iterator, Sequence

from cdp_torchrec.planning.cell import FeasibleCell, InfeasibleCell
from cdp_torchrec.planning.difference import compare_plans, describe_placement
from cdp_torchrec.planning.estimate import MEMORY_KINDS, TIME_KINDS, TableEstimate
from cdp_torchrec.planning.explore import Exploration

_GB = 1e9
_MOST_TABLES = 12
_WIDTH = 100

NOTES = """Estimates, not measurements. Lookup, communication and backward of the tables: TorchRec's
planner with the bandwidths of the hardware file, on the rank where they add up to most. Dense part:
every operation of forward and backward as the longer of arithmetic and memory traffic, at least a
kernel launch. All-reduce: a ring over all ranks. Left out: any overlap of these (an upper bound of
the step), reading the data and sending ids (the pipeline hides them unless they are the longest),
hot ids, stragglers, checkpoints and evaluation. Memory: dense is parameters, gradients and Adam;
input the batches under way; the margin is what the planner keeps free."""


def render(exploration: Exploration) -> str:
    """All tables of an exploration."""
    blocks = [_header(exploration), _overview(exploration)]
    blocks += [_plan(result, exploration) for result in _shown(exploration)]
    blocks += [_problem(result) for result in exploration.infeasible]
    pair = compared(exploration)
    if pair is not None:
        blocks.append(render_difference(*pair))
    blocks.append(NOTES)
    return "\n\n".join(blocks) + "\n"


def compared(exploration: Exploration) -> tuple[FeasibleCell, FeasibleCell] | None:
    """The two plans to compare: those asked for, or the first two of one cluster."""
    cells = {result.cell.name: result for result in exploration.feasible}
    asked = exploration.config.compare
    if asked is not None:
        found = [cells[name] for name in asked if name in cells]
        return (found[0], found[1]) if len(found) == 2 else None
    for first in exploration.feasible:
        for second in exploration.feasible:
            if first is not second and _cluster(first) == _cluster(second):
                return first, second
    return None


def _cluster(result: FeasibleCell) -> tuple[str, int]:
    return result.cell.hardware_name, result.cell.world_size


def _shown(exploration: Exploration) -> list[FeasibleCell]:
    """One plan in detail for each hardware: that of the lowest cost."""
    best: dict[str, FeasibleCell] = {}
    for result in exploration.feasible:
        known = best.get(result.cell.hardware_name)
        if known is None or result.rank_hours_per_million < known.rank_hours_per_million:
            best[result.cell.hardware_name] = result
    return list(best.values())


def _header(exploration: Exploration) -> str:
    workload, dense = exploration.workload, exploration.dense
    tables = workload.layout.tables.values()
    weights = sum(t.num_embeddings for t in tables) * workload.model.embedding_dim
    return (
        f"{workload.model.interest.kind}: {len(tables)} tables, {weights:,} sparse parameters "
        f"({4 * weights / _GB:,.1f} GB), {dense.num_parameters:,} dense\n"
        f"sparse optimizer {exploration.optimizer.kind}; {exploration.config.batch_size:,} "
        f"impressions per rank and step; pooling factors {workload.pooling_source}\n"
        f"dense part of a step: {dense.flops / 1e9:,.1f} GFLOP, {dense.num_bytes / _GB:,.1f} GB of "
        f"memory traffic, {len(dense.operations):,} kernels"
    )


def _overview(exploration: Exploration) -> str:
    day = exploration.config.impressions_per_day
    has_price = any(r.price_per_million is not None for r in exploration.feasible)
    header = ["plan", "GB/rank", "of", "tables", "dense", "reduce", "step", "balance"]
    header += ["impr/s", "rank-h/M"] + ["price/M"] * has_price + ["h/day"] * bool(day)
    rows = [header]
    for result in exploration.results:
        if isinstance(result, InfeasibleCell):
            rows.append([result.cell.name, "no plan"])
            continue
        price = result.price_per_million
        rows.append(
            [
                result.cell.name,
                f"{result.rank_bytes / _GB:.1f}",
                f"{result.plan.capacity_bytes / _GB:.0f}",
                f"{result.plan.embedding_ms:.2f}",
                f"{result.dense_ms:.2f}",
                f"{result.all_reduce_ms:.2f}",
                f"{result.step_ms:.2f}",
                f"{result.plan.time_balance:.2f}",
                f"{result.impressions_per_s:,.0f}",
                f"{result.rank_hours_per_million:.4f}",
                *([f"{price:.4f}" if price is not None else "-"] if has_price else []),
                *([f"{result.hours_per_day(day):.2f}"] if day else []),
            ]
        )
    return "Plans (times in ms per step)\n" + _aligned(rows)


def _plan(result: FeasibleCell, exploration: Exploration) -> str:
    plan = result.plan
    rank = plan.critical_rank
    fullest = int(plan.memory.argmax())
    memory = ", ".join(
        f"{kind} {plan.memory_by_kind[row, fullest] / _GB:.2f}"
        for row, kind in enumerate(MEMORY_KINDS)
    )
    times = ", ".join(
        f"{kind.replace('_', ' ')} {plan.time_by_kind[row, rank]:.3f}"
        for row, kind in enumerate(TIME_KINDS)
    )
    lines = [
        f"{result.cell.name}: lowest cost on this hardware (planned in "
        f"{plan.search_seconds:.1f} s, {plan.num_proposals} proposals)",
        *_wrapped(
            f"rank {fullest} is fullest: {result.rank_bytes / _GB:.2f} of "
            f"{plan.capacity_bytes / _GB:.0f} GB ({memory}; dense {plan.dense_bytes / _GB:.2f}, "
            f"input {plan.input_bytes / _GB:.2f}, margin {plan.margin_bytes / _GB:.2f}); memory "
            f"balance {plan.memory_balance:.2f}"
        ),
        *_wrapped(f"rank {rank} is critical: {plan.embedding_ms:.3f} ms ({times})"),
    ]
    if plan.host_memory.any():
        lines += _wrapped(f"host memory, fullest rank: {plan.host_memory.max() / _GB:.1f} GB")
    return "\n".join(lines) + "\n" + _tables(plan.tables, rank)


def _tables(tables: Sequence[TableEstimate], rank: int) -> str:
    """The tables that take longest on the critical rank, then the rest by sharding type."""

    def there(table: TableEstimate) -> float:
        return sum(shard.time_ms for shard in table.shards if shard.rank == rank)

    ordered = sorted(tables, key=lambda table: -there(table))
    rows = [["table", "rows", "sharding", "GB, largest shard", f"ms on rank {rank}"]]
    for table in ordered[:_MOST_TABLES]:
        largest = max(shard.device_bytes for shard in table.shards)
        rows.append(
            [
                table.table.name,
                f"{table.table.num_embeddings:,}",
                describe_placement(table),
                f"{largest / _GB:.3f}",
                f"{there(table):.3f}",
            ]
        )
    rest: dict[str, list[TableEstimate]] = {}
    for table in ordered[_MOST_TABLES:]:
        rest.setdefault(table.sharding_type, []).append(table)
    for kind, members in rest.items():
        num_rows = sum(table.table.num_embeddings for table in members)
        largest = max(shard.device_bytes for table in members for shard in table.shards)
        time = sum(there(table) for table in members)
        rows.append(
            [f"{len(members)} more", f"{num_rows:,}", kind, f"{largest / _GB:.3f}", f"{time:.3f}"]
        )
    return _aligned(rows, text_columns=(0, 2))


def _problem(result: InfeasibleCell) -> str:
    lines = [f"{result.cell.name}: no plan"]
    for line in result.reason:
        lines += _wrapped(line)
    if result.fixes:
        lines.append("  what helps, each planned:")
    for fix in result.fixes:
        lines += textwrap.wrap(fix, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join(lines)


def render_difference(first: FeasibleCell, second: FeasibleCell) -> str:
    """Tables that two plans treat differently, and what it does to the ranks."""
    rows = [["table", "first", "second", "GB, largest shard", "ms"]]
    different = compare_plans(first, second)
    for table in different[:_MOST_TABLES]:
        a, b = table.largest_shard_bytes
        rows.append(
            [
                table.name,
                *table.placement,
                f"{a / _GB:.2f} -> {b / _GB:.2f}",
                f"{table.time_ms[0]:.2f} -> {table.time_ms[1]:.2f}",
            ]
        )
    more = len(different) - _MOST_TABLES
    lines = [
        f"{first.cell.name} -> {second.cell.name}: {len(different)} of {len(first.plan.tables)} "
        "tables differ",
        *([_aligned(rows, text_columns=(0, 1, 2))] if different else []),
        *([f"... and {more} more"] if more > 0 else []),
        *_changes(first, second),
    ]
    return "\n".join(lines)


def _changes(first: FeasibleCell, second: FeasibleCell) -> Iterator[str]:
    for what, a, b in (
        ("fullest rank, GB", first.rank_bytes / _GB, second.rank_bytes / _GB),
        ("critical rank, ms", first.plan.embedding_ms, second.plan.embedding_ms),
        ("balance of time", first.plan.time_balance, second.plan.time_balance),
        ("step, ms", first.step_ms, second.step_ms),
    ):
        yield f"{what}: {a:.2f} -> {b:.2f}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")


def _aligned(rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    full = [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in full) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in text_columns else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in full
    )
