"""Estimates of TorchRec's planner for a plan that it searches, or for one that exists."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torchrec.distributed.planner.shard_estimators import _get_optimizer_multipler
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import Perf, Shard, ShardingOption, Storage
from torchrec.distributed.types import ParameterSharding, ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.config import TableShardingConfig
from cdp_torchrec.distributed.plans.constraints import COLUMN_TYPES
from cdp_torchrec.distributed.plans.hardware import GB
from cdp_torchrec.distributed.plans.planner import enumerate_options
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.search import choose_plan, search_plan
from cdp_torchrec.distributed.plans.tables import (
    OPTIMIZER_MARK,
    optimizer_state_sized,
    shardings_of,
    shards_of,
)
from cdp_torchrec.planning.estimate import PlanEstimate, ShardEstimate, TableEstimate

_DENSE_GRADIENT_PASSES = 3
"""Over all rows of a split table with a dense gradient: zeros are written, rows are looked for."""
_CACHED_ROW_BYTES = (4, 16)
"""What FBGEMM's cache keeps for each row of the table, and for each row of the cache."""


def estimate(problem: PlanProblem) -> PlanEstimate:
    """The plan that a training would take, with its estimates.

    Raises:
        ConfigError: the configuration is wrong for a table, or no plan fits.
    """
    if problem.sharding.plan is not None:
        return estimate_plan(problem, choose_plan(problem))
    found = search_plan(problem)
    return replace(
        _estimate(problem, found.plan, found.options, found.reservation),
        num_proposals=found.num_proposals,
        search_seconds=found.seconds,
        unimproved_ms=found.unimproved_ms,
        improved_ms=found.improved_ms,
    )


def estimate_plan(problem: PlanProblem, plan: ShardingPlan) -> PlanEstimate:
    """The same of a plan that exists.

    Args:
        problem: its tables and ranks, whatever its strategy.
        plan: a complete plan of them.

    Raises:
        ConfigError: the plan shards a table as the planner cannot.
    """
    shardings = shardings_of(plan)
    tables = {t.entity: _as_planned(shardings[t.name]) for t in problem.tables}
    sharding = problem.sharding.model_copy(update={"tables": tables})
    found = enumerate_options(replace(problem, sharding=sharding))
    by_name = {option.name: option for option in reversed(found.options)}
    for option in by_name.values():
        _place(option, shardings[option.name])
    return _estimate(problem, plan, list(by_name.values()), found.reservation)


def _as_planned(sharding: ParameterSharding) -> TableShardingConfig:
    """Constraints that leave the planner no choice."""
    by_columns = sharding.sharding_type in COLUMN_TYPES
    kernel, cache = sharding.compute_kernel, sharding.cache_params
    return TableShardingConfig.model_validate(
        {
            "types": (sharding.sharding_type,),
            "kernels": None if kernel == "dense" else (kernel,),
            "column_width": shards_of(sharding)[0].sizes[1] if by_columns else None,
            "cache_load_factor": cache.load_factor if cache else None,
        }
    )


def _place(option: ShardingOption, sharding: ParameterSharding) -> None:
    placed = [shard.rank for shard in shards_of(sharding)]
    if placed and len(placed) != len(option.shards):
        raise ConfigError(
            f"table '{option.name}': the plan has {len(placed)} shards where the planner knows "
            f"{len(option.shards)}: it estimates shards of one width and height only"
        )
    for shard, rank in zip(option.shards, placed or sharding.ranks or (), strict=True):
        shard.rank = rank


def _estimate(
    problem: PlanProblem,
    plan: ShardingPlan,
    options: Sequence[ShardingOption],
    reservation: HeuristicalStorageReservation,
) -> PlanEstimate:
    tables = {table.name: table for table in problem.tables}
    shardings = shardings_of(plan)
    with optimizer_state_sized(problem.model):
        estimates = [
            TableEstimate(
                table=tables[option.name],
                sharding_type=option.sharding_type,
                compute_kernel=shardings[option.name].compute_kernel,
                shards=tuple(
                    _shard(option, shard, problem, shardings[option.name].compute_kernel)
                    for shard in option.shards
                ),
            )
            for option in sorted(options, key=lambda option: option.name)
        ]
    # On a CPU the planner keeps nothing free.
    share = reservation._percentage if problem.device == "cuda" else 0.0
    return PlanEstimate(
        problem=problem,
        tables=tuple(estimates),
        plan=plan,
        dense_bytes=_on_device(reservation._dense_storage, problem.device),
        input_bytes=_on_device(reservation._kjt_storage, problem.device),
        margin_bytes=round(share * problem.hardware.memory_gb * GB),
    )


def _shard(
    option: ShardingOption, shard: Shard, problem: PlanProblem, kernel: str
) -> ShardEstimate:
    """The planner's estimate; it gives one sum for weights, state, ids and embeddings."""
    device, hardware = problem.device, problem.hardware
    rows, columns = shard.size
    storage, perf = cast(Storage, shard.storage), cast(Perf, shard.perf)
    optimizer_class = getattr(option.tensor, OPTIMIZER_MARK, [None])[0]
    weights = rows * columns * option.tensor.element_size()
    state = weights * _get_optimizer_multipler(optimizer_class, option.tensor.shape)
    on_device = 1.0
    if option.compute_kernel == "fused_uvm":
        on_device = 0.0
    elif option.compute_kernel == "fused_uvm_caching":
        on_device = option.cache_load_factor or 0.2
    per_row, per_cached_row = _CACHED_ROW_BYTES
    bookkeeping = rows * (per_row + on_device * per_cached_row) if 0 < on_device < 1 else 0
    device_weights = round(weights * on_device + bookkeeping)
    device_state = round(state * on_device)
    # Of data-parallel tables, and where the optimizer is not fused; the planner does not count it.
    gradient = weights if kernel == "dense" else 0
    # Nor what it takes to fill and to read it, which does not depend on how few rows are touched;
    # but of data-parallel tables, in their backward communication.
    bandwidth = hardware.device_bandwidth_gb_s if device == "cuda" else hardware.host_bandwidth_gb_s
    assert bandwidth is not None
    is_split = option.sharding_type != "data_parallel"
    passes = _DENSE_GRADIENT_PASSES if kernel == "dense" and is_split else 0
    assert shard.rank is not None
    return ShardEstimate(
        table=option.name,
        rank=shard.rank,
        rows=rows,
        columns=columns,
        weight_bytes=device_weights,
        optimizer_bytes=device_state,
        activation_bytes=gradient
        + max(0, _on_device(storage, device) - device_weights - device_state),
        host_bytes=storage.ddr if device == "cuda" else 0,
        lookup_ms=perf.fwd_compute,
        forward_communication_ms=perf.fwd_comms,
        backward_ms=perf.bwd_compute,
        backward_communication_ms=perf.bwd_comms,
        prefetch_ms=perf.prefetch_compute,
        optimizer_ms=1e3 * passes * weights / (bandwidth * GB),
    )


def _on_device(storage: Storage | None, device: str) -> int:
    assert storage is not None
    return storage.hbm if device == "cuda" else storage.ddr
