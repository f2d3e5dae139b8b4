"""Estimates of TorchRec's planner for a plan that it searches, or for one that exists."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.shard_estimators import _get_optimizer_multipler
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import Perf, Shard, ShardingOption, Storage
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans.config import ShardingConfig, TableShardingConfig
from cdp_torchrec.distributed.plans.constraints import table_constraints
from cdp_torchrec.distributed.plans.hardware import GB, HardwareConfig
from cdp_torchrec.distributed.plans.planner import (
    EmbeddingTable,
    find_tables,
    make_planner,
    optimizer_state_sized,
    sharders,
)
from cdp_torchrec.distributed.plans.search import search_plan
from cdp_torchrec.distributed.plans.topology import make_topology
from cdp_torchrec.planning.estimate import PlanEstimate, ShardEstimate, TableEstimate

_FLOAT_BYTES = 4
_CACHED_ROW_BYTES = (4, 16)
"""What FBGEMM's cache keeps for each row of the table, and for each row of the cache."""


def estimate_plan(
    model: nn.Module,
    config: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    *,
    hardware: HardwareConfig,
    world_size: int,
    batch_size: int,
    pooling_factors: Mapping[str, float],
) -> PlanEstimate:
    """Search a plan as training does, and keep its estimates.

    Args:
        model: model with its tables on the meta device; in-backward optimizers already applied,
            because the planner sizes their state.
        config: strategy and constraints.
        optimizer: of the tables.
        hardware: of all ranks.
        world_size: number of ranks.
        batch_size: impressions per rank.
        pooling_factors: mean number of ids per impression, by key; 1 where unknown.

    Raises:
        ConfigError: the configuration is wrong for a table, or no plan fits.
    """
    found = search_plan(
        model,
        config,
        optimizer,
        topology=make_topology(hardware, world_size),
        batch_size=batch_size,
        pooling_factors=pooling_factors,
    )
    return _estimate(
        model,
        found.planner,
        found.options,
        found.plan,
        hardware=hardware,
        world_size=world_size,
        batch_size=batch_size,
        num_proposals=found.num_proposals,
        search_seconds=found.seconds,
    )


def estimate_given_plan(
    model: nn.Module,
    plan: ShardingPlan,
    config: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    *,
    hardware: HardwareConfig,
    world_size: int,
    batch_size: int,
    pooling_factors: Mapping[str, float],
) -> PlanEstimate:
    """The same of a plan that exists, such as one read from a file.

    Args:
        model: as in `estimate_plan`.
        plan: a complete plan of the model for that number of ranks.
        config: precision of the communication, and whether caches are filled ahead.
        optimizer: of the tables.
        hardware: of all ranks.
        world_size: number of ranks.
        batch_size: impressions per rank.
        pooling_factors: mean number of ids per impression, by key; 1 where unknown.
    """
    tables = find_tables(model)
    topology = make_topology(hardware, world_size)
    constraints = table_constraints(
        tables,
        config.model_copy(update={"tables": {t.entity: _as_planned(t, plan) for t in tables}}),
        optimizer,
        device=hardware.device,
        world_size=world_size,
        pooling_factors=pooling_factors,
    )
    planner = make_planner(
        model,
        constraints,
        topology=topology,
        batch_size=batch_size,
        search_seconds=config.search_seconds,
        prefetch=config.prefetch,
    )
    planner._storage_reservation.reserve(
        topology, batch_size, model, sharders(config), constraints=constraints
    )
    with optimizer_state_sized(model):
        options = planner._enumerator.enumerate(model, sharders(config))
    by_name = {}
    for option in options:
        _place(option, plan)
        by_name.setdefault(option.name, option)
    return _estimate(
        model,
        planner,
        list(by_name.values()),
        plan,
        hardware=hardware,
        world_size=world_size,
        batch_size=batch_size,
        num_proposals=0,
        search_seconds=0.0,
    )


def _as_planned(table: EmbeddingTable, plan: ShardingPlan) -> TableShardingConfig:
    """Constraints that leave the planner no choice."""
    parameter = _module_plan(plan, table.module)[table.name]
    by_columns = parameter.sharding_type in ("column_wise", "table_column_wise", "grid_shard")
    width = _shards(plan, table.module, table.name)[0].shard_sizes[1] if by_columns else None
    kernel, cache = parameter.compute_kernel, parameter.cache_params
    return TableShardingConfig.model_validate(
        {
            "types": (parameter.sharding_type,),
            "kernels": None if kernel == "dense" else (kernel,),
            "column_width": width,
            "cache_load_factor": cache.load_factor if cache else None,
        }
    )


def _place(option: ShardingOption, plan: ShardingPlan) -> None:
    parameter = _module_plan(plan, option.module[0])[option.name]
    ranks = parameter.ranks
    if parameter.sharding_spec is not None:
        ranks = [s.placement.rank() for s in _shards(plan, option.module[0], option.name)]
    for shard, rank in zip(option.shards, ranks or (), strict=True):
        shard.rank = rank


def _module_plan(plan: ShardingPlan, module: str) -> EmbeddingModuleShardingPlan:
    found = plan.plan[module]
    assert isinstance(found, EmbeddingModuleShardingPlan)
    return found


def _shards(plan: ShardingPlan, module: str, table: str) -> list:
    spec = _module_plan(plan, module)[table].sharding_spec
    return spec.shards  # pyrefly: ignore[missing-attribute]


def _estimate(
    model: nn.Module,
    planner: EmbeddingShardingPlanner,
    options: Sequence[ShardingOption],
    plan: ShardingPlan,
    *,
    hardware: HardwareConfig,
    world_size: int,
    batch_size: int,
    num_proposals: int,
    search_seconds: float,
) -> PlanEstimate:
    tables = {table.name: table for table in find_tables(model)}
    kernels = {
        n: p.compute_kernel for path in plan.plan for n, p in _module_plan(plan, path).items()
    }
    reservation = planner._storage_reservation
    assert isinstance(reservation, HeuristicalStorageReservation)
    on_gpu = hardware.device == "cuda"
    with optimizer_state_sized(model):
        estimates = [
            TableEstimate(
                table=tables[option.name],
                sharding_type=option.sharding_type,
                compute_kernel=kernels[option.name],
                shards=tuple(_shard(option, shard, hardware) for shard in option.shards),
            )
            for option in sorted(options, key=lambda option: option.name)
        ]
    return PlanEstimate(
        hardware=hardware,
        world_size=world_size,
        batch_size=batch_size,
        tables=tuple(estimates),
        plan=plan,
        dense_bytes=_on_device(reservation._dense_storage, hardware),
        input_bytes=_on_device(reservation._kjt_storage, hardware),
        # On a CPU the planner keeps nothing free.
        margin_bytes=round(reservation._percentage * hardware.memory_gb * GB) if on_gpu else 0,
        num_proposals=num_proposals,
        search_seconds=search_seconds,
    )


def _shard(option: ShardingOption, shard: Shard, hardware: HardwareConfig) -> ShardEstimate:
    """The planner's estimate; it gives one sum for weights, state, ids and embeddings."""
    rows, columns = shard.size
    storage, perf = cast(Storage, shard.storage), cast(Perf, shard.perf)
    optimizer_class = getattr(option.tensor, "_optimizer_classes", [None])[0]
    weights = rows * columns * _FLOAT_BYTES
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
    # The planner does not count it.
    gradient = weights if option.sharding_type == "data_parallel" else 0
    assert shard.rank is not None
    return ShardEstimate(
        table=option.name,
        rank=shard.rank,
        rows=rows,
        columns=columns,
        weight_bytes=device_weights,
        optimizer_bytes=device_state,
        activation_bytes=gradient
        + max(0, _on_device(storage, hardware) - device_weights - device_state),
        host_bytes=storage.ddr if hardware.device == "cuda" else 0,
        lookup_ms=perf.fwd_compute,
        forward_communication_ms=perf.fwd_comms,
        backward_ms=perf.bwd_compute,
        backward_communication_ms=perf.bwd_comms,
        prefetch_ms=perf.prefetch_compute,
    )


def _on_device(storage: Storage | None, hardware: HardwareConfig) -> int:
    assert storage is not None
    return storage.hbm if hardware.device == "cuda" else storage.ddr
