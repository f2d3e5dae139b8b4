"""An exploration as text for a terminal, 100 columns wide."""

import textwrap
from collections.abc import Iterator, Sequence

from cdp_torchrec.planning.case import FeasiblePlan, InfeasiblePlan, Lopsided
from cdp_torchrec.planning.difference import compare_plans, describe_placement
from cdp_torchrec.planning.estimate import MEMORY_KINDS, TIME_KINDS, PlanEstimate, TableEstimate
from cdp_torchrec.planning.explore import Exploration
from cdp_torchrec.planning.rank_text import render_rank_changes, render_ranks
from cdp_torchrec.text_table import aligned_table

_GB = 1e9
_MOST_TABLES = 12
_WIDTH = 100

NOTES = """Estimates, not measurements; "from" and "to" are the estimate of the step divided and
multiplied by 1.3 where the fixed costs of the hardware were fitted, and by 2, a guess, where they
are defaults. Tables: TorchRec's planner with the bandwidths of the hardware file, on the rank where
they add up to most, the way of the ids, and all rows of tables with dense gradients. Dense part:
every operation of forward and backward as the longer of arithmetic and memory traffic, at least a
kernel launch. Reduce: a ring over all ranks, in buckets. Fixed: calls and latency of lookups and
collectives, and what a step costs besides. The parts are added up: overlap makes a step shorter.
Left out: reading the data, hot ids, stragglers, checkpoints and evaluation, which make it longer.
Memory: dense is parameters, gradients and Adam; input the batches under way; the margin is what the
planner keeps free."""


def render(exploration: Exploration) -> str:
    """All tables of an exploration."""
    blocks = [_header(exploration), _overview(exploration)]
    blocks += [_plan(result) for result in _shown(exploration)]
    blocks += [
        render_imbalance(r.case.name, r.lopsided) for r in exploration.feasible if r.lopsided
    ]
    blocks += [_problem(result) for result in exploration.infeasible]
    pair = compared(exploration)
    if pair is not None:
        blocks.append(render_difference(*pair))
    elif asked := exploration.config.planning.compare:
        without = [r.case.name for r in exploration.infeasible if r.case.name in asked]
        blocks.append(f"{' -> '.join(asked)}: not compared, no plan of {' and '.join(without)}")
    blocks.append(NOTES)
    return "\n\n".join(blocks) + "\n"


def compared(exploration: Exploration) -> tuple[FeasiblePlan, FeasiblePlan] | None:
    """The two plans to compare: those asked for, or the first two of one cluster."""
    cases = {result.case.name: result for result in exploration.feasible}
    asked = exploration.config.planning.compare
    if asked is not None:
        found = [cases[name] for name in asked if name in cases]
        return (found[0], found[1]) if len(found) == 2 else None
    for first in exploration.feasible:
        for second in exploration.feasible:
            if first is not second and _cluster(first) == _cluster(second):
                return first, second
    return None


def _cluster(result: FeasiblePlan) -> tuple[str, int]:
    return result.case.hardware_name, result.case.world_size


def _shown(exploration: Exploration) -> list[FeasiblePlan]:
    """One plan in detail for each hardware: that of the lowest cost."""
    best: dict[str, FeasiblePlan] = {}
    for result in exploration.feasible:
        known = best.get(result.case.hardware_name)
        if known is None or result.rank_hours_per_million < known.rank_hours_per_million:
            best[result.case.hardware_name] = result
    return list(best.values())


def _header(exploration: Exploration) -> str:
    workload, dense = exploration.workload, exploration.dense
    tables = workload.tables
    weights = sum(t.num_embeddings * t.embedding_dim for t in tables)
    size = sum(t.num_embeddings * t.embedding_dim * t.element_bytes for t in tables)
    return (
        f"{workload.name}: {len(tables)} tables, {weights:,} sparse parameters "
        f"({size / _GB:,.1f} GB), {dense.num_parameters:,} dense\n"
        f"sparse optimizer {exploration.config.optimizer.sparse.kind}; {workload.batch_size:,} "
        f"impressions per rank and step; pooling factors {workload.pooling_source}\n"
        f"dense part of a step: {dense.flops / 1e9:,.1f} GFLOP, {dense.num_bytes / _GB:,.1f} GB of "
        f"memory traffic, {len(dense.operations):,} kernels"
    )


def _overview(exploration: Exploration) -> str:
    day = exploration.config.planning.impressions_per_day
    has_price = any(r.price_per_million is not None for r in exploration.feasible)
    header = ["plan", "GB/rank", "of", "tables", "dense", "reduce", "fixed", "step", "from", "to"]
    header += ["balance"]
    has_replicas = any(r.replicas for r in exploration.feasible)
    header += (
        ["sync"] * has_replicas
        + ["impr/s", "rank-h/M"]
        + ["price/M"] * has_price
        + ["h/day"] * bool(day)
    )
    rows = [header]
    for result in exploration.outcomes:
        if isinstance(result, InfeasiblePlan):
            rows.append([result.case.name, "no plan", *[""] * (len(header) - 2)])
            continue
        price = result.price_per_million
        rows.append(
            [
                result.case.name,
                f"{result.rank_bytes / _GB:.1f}",
                f"{result.estimate.capacity_bytes / _GB:.0f}",
                f"{result.estimate.embedding_ms + result.input_ms:.3g}",
                f"{result.dense_ms:.3g}",
                f"{result.all_reduce_ms:.3g}",
                f"{result.fixed_ms:.3g}",
                f"{result.step_ms:.3g}",
                *(f"{end:.3g}" for end in result.step_range_ms),
                f"{result.estimate.time_balance:.2f}",
                *([f"{result.replica_ms:.3g}"] if has_replicas else []),
                f"{result.impressions_per_s:,.0f}",
                f"{result.rank_hours_per_million:.4f}",
                *([f"{price:.4f}" if price is not None else "-"] if has_price else []),
                *([f"{result.hours_per_day(day):.2f}"] if day else []),
            ]
        )
    lines = ["Estimated plans (times in ms per step)", aligned_table(rows)]
    hardware = {r.case.hardware_name: r.case.hardware for r in exploration.outcomes}
    for name, found in hardware.items():
        if found.defaults:
            costs = ", ".join(f"{key} {found.fixed_cost(key):g}" for key in found.defaults)
            lines += textwrap.wrap(
                f"{name}: its file has no fixed costs of its own for {costs}: these are defaults",
                _WIDTH,
                subsequent_indent="  ",
            )
    return "\n".join(lines)


def _plan(result: FeasiblePlan) -> str:
    found = result.estimate
    rank = found.critical_rank
    fullest = int(found.memory.argmax())
    memory = ", ".join(
        f"{kind} {found.memory_by_kind[row, fullest] / _GB:.2f}"
        for row, kind in enumerate(MEMORY_KINDS)
    )
    times = ", ".join(
        f"{kind.replace('_', ' ')} {found.time_by_kind[row, rank]:.3f}"
        for row, kind in enumerate(TIME_KINDS)
    )
    lines = [
        f"{result.case.name}: lowest cost on this hardware",
        *_wrapped(_search(found)),
        *(line for text in _replicas(result) for line in _wrapped(text)),
        *_wrapped(
            f"rank {fullest} is fullest: {result.rank_bytes / _GB:.2f} of "
            f"{found.capacity_bytes / _GB:.0f} GB ({memory}; dense {found.dense_bytes / _GB:.2f}, "
            f"input {found.input_bytes / _GB:.2f}, margin {found.margin_bytes / _GB:.2f}); memory "
            f"balance {found.memory_balance:.2f}"
        ),
        *_wrapped(f"rank {rank} is critical: {found.embedding_ms:.3f} ms ({times})"),
    ]
    if found.host_memory.any():
        lines += _wrapped(f"host memory, fullest rank: {found.host_memory.max() / _GB:.1f} GB")
    return "\n".join([*lines, _tables(result), render_ranks(result)])


def _replicas(result: FeasiblePlan) -> list[str]:
    return result.replicas.lines() if result.replicas else []


def _search(found: PlanEstimate) -> str:
    """How the plan came about."""
    if not found.improved_ms:
        return "the plan that is given"
    text = f"planned in {found.search_seconds:.1f} s; TorchRec's best of {found.num_proposals}"
    if found.unimproved_ms is None:
        return f"{text} proposals does not fit, the local search has found this one"
    if found.unimproved_ms == found.improved_ms:
        return f"{text} proposals, which the local search does not improve"
    return (
        f"{text} proposals takes {found.unimproved_ms:.3g} ms on its slowest rank with the fixed "
        f"costs of its lookups and collectives, and after the local search {found.improved_ms:.3g}"
    )


def _tables(result: FeasiblePlan) -> str:
    """The largest tables and those that take longest on the critical rank, then the rest."""
    found = result.estimate
    rank, factors = found.critical_rank, found.problem.pooling_factors

    def there(table: TableEstimate) -> float:
        return sum(shard.time_ms for shard in table.shards if shard.rank == rank)

    by_size = sorted(found.tables, key=lambda table: -table.num_bytes)
    by_time = sorted(found.tables, key=lambda table: -there(table))
    half = _MOST_TABLES // 2
    names = {table.table.name for table in (*by_size[:half], *by_time[:half])}
    rows = [
        ["table, largest first", "rows", "width", "ids", "sharding", "GB, all", "largest", "ms"]
    ]
    rest: dict[str, list[TableEstimate]] = {}
    for table in by_size:
        if table.table.name not in names:
            rest.setdefault(table.sharding_type, []).append(table)
            continue
        ids = sum(factors.get(key, 1.0) for key in table.table.features)
        rows.append(
            [
                table.table.name,
                f"{table.table.num_embeddings:,}",
                str(table.table.embedding_dim),
                f"{ids:.3g}",
                describe_placement(table),
                *_sizes([table]),
                f"{there(table):.3f}",
            ]
        )
    for kind, members in rest.items():
        num_rows = sum(table.table.num_embeddings for table in members)
        time = sum(there(table) for table in members)
        what = f"{len(members)} smaller tables"
        rows.append([what, f"{num_rows:,}", "", "", kind, *_sizes(members), f"{time:.3f}"])
    return aligned_table(rows, left=(0, 4)) + f"\nms on rank {rank}; ids per impression"


def _sizes(tables: Sequence[TableEstimate]) -> list[str]:
    """GB on all ranks together, and of the largest shard."""
    largest = max(shard.device_bytes for table in tables for shard in table.shards)
    return [f"{sum(table.num_bytes for table in tables) / _GB:.3f}", f"{largest / _GB:.3f}"]


def _problem(result: InfeasiblePlan) -> str:
    lines = [f"{result.case.name}: no plan"]
    for line in result.reason:
        lines += _wrapped(line)
    return "\n".join([*lines, *_listed("what helps, each planned", result.fixes)])


def render_imbalance(name: str, lopsided: Lopsided) -> str:
    """Which tables make a rank slower or fuller, and what helps, or that nothing does.

    Args:
        name: of the plan.
        lopsided: what was found.
    """
    helps = _listed("what helps, each planned (with the strategy constraints)", lopsided.fixes)
    nothing = ["  none of the other ways to shard them that were planned gains enough"]
    return "\n".join([f"{name}: lopsided", *_wrapped(lopsided.reason), *(helps or nothing)])


def _listed(what: str, fixes: Sequence[str]) -> list[str]:
    lines = [f"  {what}:"] if fixes else []
    for fix in fixes:
        lines += textwrap.wrap(fix, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return lines


def render_difference(first: FeasiblePlan, second: FeasiblePlan) -> str:
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
        f"{first.case.name} -> {second.case.name}: {len(different)} of "
        f"{len(first.estimate.tables)} tables differ",
        *([aligned_table(rows, left=(0, 1, 2))] if different else []),
        *([f"... and {more} more"] if more > 0 else []),
        *_changes(first, second),
        *([render_rank_changes(first, second)] if _same_ranks(first, second) else []),
    ]
    return "\n".join(lines)


def _same_ranks(first: FeasiblePlan, second: FeasiblePlan) -> bool:
    return first.case.world_size == second.case.world_size


def _changes(first: FeasiblePlan, second: FeasiblePlan) -> Iterator[str]:
    for what, a, b in (
        ("fullest rank, GB", first.rank_bytes / _GB, second.rank_bytes / _GB),
        ("critical rank, ms", first.estimate.embedding_ms, second.estimate.embedding_ms),
        ("balance of time", first.estimate.time_balance, second.estimate.time_balance),
        ("step, ms", first.step_ms, second.step_ms),
    ):
        yield f"{what}: {a:.2f} -> {b:.2f}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")
