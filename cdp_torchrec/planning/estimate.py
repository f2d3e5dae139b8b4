"""What TorchRec's planner expects of a plan: memory and time of every shard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.shard_estimators import _get_optimizer_multipler
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import Perf, Shard, ShardingOption, Storage
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from cdp_torchrec.distributed.constraints import table_constraints
from cdp_torchrec.distributed.hardware import GB, HardwareConfig
from cdp_torchrec.distributed.optimizers import SparseOptimizerConfig
from cdp_torchrec.distributed.planner import (
    EmbeddingTable,
    find_tables,
    make_planner,
    optimizer_state_sized,
    sharders,
)
from cdp_torchrec.distributed.sharding import search_plan
from cdp_torchrec.distributed.sharding_config import ShardingConfig, TableShardingConfig

_FLOAT_BYTES = 4
_CACHED_ROW_BYTES = (4, 16)
"""What FBGEMM's cache keeps for each row of the table, and for each row of the cache."""

MEMORY_KINDS = ("weights", "optimizer", "activations")
TIME_KINDS = (
    "lookup",
    "forward_communication",
    "backward",
    "backward_communication",
    "prefetch",
)


@dataclass(frozen=True)
class ShardEstimate:
    """A part of a table on one rank: its memory, and its time in one step."""

    table: str
    rank: int
    rows: int
    columns: int
    weight_bytes: int
    """On the rank's device; of a table in host memory, only its cache."""
    optimizer_bytes: int
    """Likewise."""
    activation_bytes: int
    """Ids that are looked up, and embeddings before they are sent; of a data-parallel table also
    its gradient, which is as large as the table."""
    host_bytes: int
    """Weights and optimizer state in host memory, of a table that a GPU reads from there."""
    lookup_ms: float
    forward_communication_ms: float
    backward_ms: float
    """Gradient and update of the rows, which FBGEMM fuses."""
    backward_communication_ms: float
    prefetch_ms: float
    """Filling the cache of a table in host memory."""

    @property
    def device_bytes(self) -> int:
        """Memory on the rank's device."""
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes

    @property
    def time_ms(self) -> float:
        """All of its time."""
        return (
            self.lookup_ms
            + self.forward_communication_ms
            + self.backward_ms
            + self.backward_communication_ms
            + self.prefetch_ms
        )


@dataclass(frozen=True)
class TableEstimate:
    """A table as one plan shards it."""

    table: EmbeddingTable
    sharding_type: str
    compute_kernel: str
    shards: tuple[ShardEstimate, ...]

    @property
    def ranks(self) -> list[int]:
        """Ranks that hold a part of it."""
        return sorted({shard.rank for shard in self.shards})


@dataclass(frozen=True)
class PlanEstimate:
    """A plan with its estimates."""

    hardware: HardwareConfig
    world_size: int
    batch_size: int
    """Impressions per rank."""
    tables: tuple[TableEstimate, ...]
    """By name."""
    plan: ShardingPlan
    dense_bytes: int
    """Of the replicated part of the model on each rank: parameters, gradients, Adam's moments."""
    input_bytes: int
    """Of the batches that are on their way through the pipeline, on each rank."""
    margin_bytes: int
    """Kept free on each rank."""
    num_proposals: int
    search_seconds: float

    @property
    def local_world_size(self) -> int:
        """Ranks of a node."""
        return min(self.world_size, self.hardware.ranks_per_node)

    @property
    def capacity_bytes(self) -> int:
        """Memory of one rank's device."""
        return int(self.hardware.memory_gb * GB)

    @property
    def reserved_bytes(self) -> int:
        """Memory of each rank that no table may use."""
        return self.dense_bytes + self.input_bytes + self.margin_bytes

    @cached_property
    def memory_by_kind(self) -> np.ndarray:
        """Bytes on the device, [MEMORY_KINDS, ranks]."""
        return self._sum(("weight_bytes", "optimizer_bytes", "activation_bytes"))

    @cached_property
    def time_by_kind(self) -> np.ndarray:
        """Milliseconds per step, [TIME_KINDS, ranks]."""
        return self._sum(tuple(f"{kind}_ms" for kind in TIME_KINDS))

    @cached_property
    def host_memory(self) -> np.ndarray:
        """Bytes in host memory of tables that GPUs read from there, [ranks]."""
        return self._sum(("host_bytes",))[0]

    @cached_property
    def memory_by_table(self) -> np.ndarray:
        """Bytes on the device, [tables, ranks]."""
        return self._by_table("device_bytes")

    @cached_property
    def time_by_table(self) -> np.ndarray:
        """Milliseconds per step, [tables, ranks]."""
        return self._by_table("time_ms")

    @property
    def memory(self) -> np.ndarray:
        """Bytes of the tables on the device, [ranks]."""
        return self.memory_by_kind.sum(0)

    @property
    def time(self) -> np.ndarray:
        """Milliseconds that the tables take in a step, [ranks]."""
        return self.time_by_kind.sum(0)

    @property
    def critical_rank(self) -> int:
        """The rank that the others wait for."""
        return int(self.time.argmax())

    @property
    def embedding_ms(self) -> float:
        """Time of the tables in a step: that of the critical rank."""
        return float(self.time.max())

    @property
    def time_balance(self) -> float:
        """Largest over mean time; 1 is perfect."""
        return _balance(self.time)

    @property
    def memory_balance(self) -> float:
        """Largest over mean memory; 1 is perfect."""
        return _balance(self.memory)

    def _sum(self, names: Sequence[str]) -> np.ndarray:
        total = np.zeros((len(names), self.world_size))
        for table in self.tables:
            for shard in table.shards:
                total[:, shard.rank] += [getattr(shard, name) for name in names]
        return total

    def _by_table(self, name: str) -> np.ndarray:
        total = np.zeros((len(self.tables), self.world_size))
        for row, table in enumerate(self.tables):
            for shard in table.shards:
                total[row, shard.rank] += getattr(shard, name)
        return total


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
        topology=hardware.topology(world_size),
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
    topology = hardware.topology(world_size)
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


def _balance(values: np.ndarray) -> float:
    return float(values.max() / values.mean()) if values.any() else 1.0
