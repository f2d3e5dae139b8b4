"""Which tables make a rank slower or fuller than the others, and which settings even that out.

Each setting is planned before it is named, with what it gains.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import numpy as np
from torchrec.distributed.planner.types import Perf, Shard, Storage

from cdp_torchrec.distributed.plans.config import TableShardingConfig, TypeName
from cdp_torchrec.distributed.plans.constraints import (
    COLUMN_TYPES,
    FOR_SEQUENCES,
    narrow_widths,
    table_constraints,
)
from cdp_torchrec.distributed.plans.hardware import GB
from cdp_torchrec.distributed.plans.planner import enumerate_options
from cdp_torchrec.planning.case import FeasiblePlan, Lopsided, PlanCase
from cdp_torchrec.planning.change import constrained, plan_changed
from cdp_torchrec.planning.estimate import PlanEstimate, ShardEstimate, TableEstimate
from cdp_torchrec.planning.outside import OutsideWorkload
from cdp_torchrec.planning.workload import Workload

_FAR_ABOVE_MEAN = 1.25
_MATTERS = 0.01
"""Share of the step that the slowest rank takes beyond the mean, and that a setting gains."""
_FREES = 0.05
"""Share of the memory of the fullest rank that a setting gains."""
_FULL = 0.5
"""Share of a rank's free memory from which on it matters that the others hold less."""
_MOST_CULPRITS = 3
_MOST_TYPES = 3
_MOST_NAMED = 3
_OF_NODES = {"table_row_wise", "table_column_wise", "grid_shard"}
"""Types that are others on a single node."""


@dataclass(frozen=True)
class _Change:
    """Something else for some tables, whose other constraints stay."""

    entities: tuple[str, ...]
    update: Mapping[str, Any]

    def apply(self, case: PlanCase) -> PlanCase:
        """The case with it."""
        for entity in self.entities:
            case = constrained(case, [entity], self._constraint(case, entity))
        return case

    def settings(self, case: PlanCase) -> str:
        """As a command line takes them."""
        strategy = case.sharding.strategy
        asked = [] if strategy == "auto" else [f"sharding.strategy={strategy}"]
        for entity in self.entities:
            own = self._constraint(case, entity).model_dump(exclude_none=True, mode="json")
            values = ", ".join(f"{key}={json.dumps(value)}" for key, value in own.items())
            key = entity if re.fullmatch(r"[\w-]+", entity) else json.dumps(entity)
            asked.append(f"sharding.tables.{key}={{{values}}}")
        return shlex.join(asked)

    def _constraint(self, case: PlanCase, entity: str) -> TableShardingConfig:
        own = case.sharding.tables.get(entity, TableShardingConfig())
        return own.model_copy(update=dict(self.update))


def look_for_balance(result: FeasiblePlan, workload: Workload | OutsideWorkload) -> Lopsided | None:
    """What makes a plan lopsided in time, else in memory; None if nothing does that matters.

    Args:
        result: the plan.
        workload: what it is for.
    """
    found = result.estimate
    excess = found.time.max() - found.time.mean()
    if found.time_balance > _FAR_ABOVE_MEAN and excess > _MATTERS * result.step_ms:
        rank, values = found.critical_rank, found.time_by_table
        said = f"rank {rank} takes {found.embedding_ms:.3g} ms, {found.time_balance:.2f} times the "
        unit, in_time = "ms", True
    elif found.memory_balance > _FAR_ABOVE_MEAN and _is_full(found):
        rank, values = int(found.memory.argmax()), found.memory_by_table / GB
        said = (
            f"tables on rank {rank} take {found.memory.max() / GB:.3g} GB, "
            f"{found.memory_balance:.2f} times the "
        )
        unit, in_time = "GB", False
    else:
        return None
    culprits = _culprits(found, rank, values)
    named = ", ".join(
        f"{table.table.name} ({table.sharding_type}) {amount:.3g} {unit}"
        for table, amount in culprits
    )
    return Lopsided(
        reason=f"{said}mean, because of {named}",
        fixes=_fixes(result, [table for table, _ in culprits], workload, in_time=in_time),
    )


def _is_full(found: PlanEstimate) -> bool:
    return bool(found.memory.max() > _FULL * (found.capacity_bytes - found.reserved_bytes))


def _culprits(
    found: PlanEstimate, rank: int, values: np.ndarray
) -> list[tuple[TableEstimate, float]]:
    """Tables that have more than the mean of all ranks there, until they make up what is more.

    Args:
        found: the plan.
        rank: the slowest or fullest one.
        values: time or memory, [tables, ranks].
    """
    beyond = values[:, rank] - values.mean(1)
    left = beyond.sum()
    culprits = []
    for index in np.argsort(-beyond, kind="stable")[:_MOST_CULPRITS].tolist():
        if left <= 0 or beyond[index] <= 0:
            break
        left -= beyond[index]
        culprits.append((found.tables[index], float(values[index, rank])))
    return culprits


def _fixes(
    result: FeasiblePlan,
    culprits: Sequence[TableEstimate],
    workload: Workload | OutsideWorkload,
    *,
    in_time: bool,
) -> list[str]:
    """Settings with which the step is shorter, or the fullest rank emptier, the best first."""
    case = result.case
    if case.sharding.plan is not None:
        free = replace(case, sharding=case.sharding.model_copy(update={"plan": None}))
        gain = _gain(result, plan_changed(workload, free), in_time=in_time)
        return [f"without sharding.plan: {gain[1]}"] if gain else []
    found = []
    for change in _changes(case, culprits, workload, in_time=in_time):
        planned = plan_changed(workload, change.apply(case))
        if gain := _gain(result, planned, in_time=in_time):
            found.append((gain[0], f"{change.settings(case)}: {gain[1]}"))
    return [text for _, text in sorted(found)[:_MOST_NAMED]]


def _gain(
    result: FeasiblePlan, planned: PlanEstimate | None, *, in_time: bool
) -> tuple[float, str] | None:
    """What remains of the step or of the fullest rank, and in words; None if it is no gain."""
    if planned is None:
        return None
    after = replace(result, estimate=planned)
    left = after.step_ms / result.step_ms if in_time else after.rank_bytes / result.rank_bytes
    if left > 1 - (_MATTERS if in_time else _FREES):
        return None
    return left, (
        f"step {result.step_ms:.3g} -> {after.step_ms:.3g} ms (tables on the slowest rank "
        f"{result.estimate.embedding_ms:.3g} -> {planned.embedding_ms:.3g}), fullest rank "
        f"{result.rank_bytes / GB:.3g} -> {after.rank_bytes / GB:.3g} GB"
    )


def _changes(
    case: PlanCase,
    culprits: Sequence[TableEstimate],
    workload: Workload | OutsideWorkload,
    *,
    in_time: bool,
) -> list[_Change]:
    """Other types of the first culprit, the shortest shards first; the best for all."""
    first = culprits[0]
    kinds = _other_types(case, first, workload, in_time=in_time)
    if kinds:
        sizes = _sizes(case, first, kinds, workload, in_time=in_time)
        now = max(_amount(shard, in_time=in_time) for shard in first.shards)
        kinds = [kind for kind in kinds if sizes.get(kind, now) < now]
        kinds = sorted(kinds, key=lambda kind: sizes[kind])[:_MOST_TYPES]
    updates = [_of_type(kind) for kind in kinds]
    updates += _narrower(first, case.optimizer.kind) + _on_the_gpu(first)
    every = tuple(table.table.entity for table in culprits)
    changes = [_Change(every[:1], update) for update in updates]
    return changes + [_Change(every, update) for update in updates[:1] if len(every) > 1]


def _other_types(
    case: PlanCase,
    culprit: TableEstimate,
    workload: Workload | OutsideWorkload,
    *,
    in_time: bool,
) -> list[TypeName]:
    """Types that the table could have.

    In time those that it may not have now: of the others the planner has taken the fastest, which
    says nothing of memory.
    """
    table = culprit.table
    if table.buckets is not None:
        return []  # by rows only
    problem = workload.problem(case)
    allowed = table_constraints(problem)[table.name].sharding_types or ()
    excluded = set(allowed) if in_time else {culprit.sharding_type}
    if not table.is_pooled:
        excluded |= set(FOR_SEQUENCES)
    if case.optimizer.kind == "rowwise_adagrad":
        excluded |= set(COLUMN_TYPES)
    if problem.world_size <= problem.hardware.ranks_per_node or problem.num_replicas > 1:
        excluded |= _OF_NODES
    return [name for name in get_args(TypeName) if name not in excluded]


def _sizes(
    case: PlanCase,
    culprit: TableEstimate,
    kinds: Sequence[TypeName],
    workload: Workload | OutsideWorkload,
    *,
    in_time: bool,
) -> dict[str, float]:
    """The largest shard of the table, of the best option of each type."""
    every = TableShardingConfig(types=tuple(kinds))
    problem = workload.problem(constrained(case, [culprit.table.entity], every))
    sizes: dict[str, float] = {}
    for option in enumerate_options(problem).options:
        if option.name == culprit.table.name:
            largest = max(_planned_amount(shard, in_time=in_time) for shard in option.shards)
            sizes[option.sharding_type] = min(largest, sizes.get(option.sharding_type, np.inf))
    return sizes


def _planned_amount(shard: Shard, *, in_time: bool) -> float:
    if in_time:
        return cast(Perf, shard.perf).total
    storage = cast(Storage, shard.storage)
    return float(storage.hbm or storage.ddr)


def _amount(shard: ShardEstimate, *, in_time: bool) -> float:
    return shard.time_ms if in_time else float(shard.device_bytes)


def _of_type(kind: TypeName) -> dict[str, Any]:
    """Only columns have a width, and data-parallel tables no kernel to choose."""
    update: dict[str, Any] = {"types": (kind,)}
    if kind not in COLUMN_TYPES:
        update["column_width"] = None
    if kind == "data_parallel":
        update |= {"kernels": None, "cache_load_factor": None}
    return update


def _narrower(culprit: TableEstimate, optimizer: str) -> list[dict[str, Any]]:
    """Column shards of a quarter and an eighth of the width; half of it is what is usual."""
    table = culprit.table
    if table.buckets is not None or optimizer == "rowwise_adagrad":
        return []
    now = culprit.shards[0].columns if culprit.sharding_type in COLUMN_TYPES else np.inf
    return [
        {"types": ("column_wise",), "column_width": width}
        for width in narrow_widths(table)
        if width < now
    ]


def _on_the_gpu(culprit: TableEstimate) -> list[dict[str, Any]]:
    in_host_memory = culprit.compute_kernel.startswith("fused_uvm")
    return [{"kernels": ("fused",), "cache_load_factor": None}] * in_host_memory
