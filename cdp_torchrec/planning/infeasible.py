"""Why a model does not fit, and which changes make it fit: each is planned before it is named."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torchrec.distributed.planner.types import PartitionByType, ShardingOption

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans.config import ShardingConfig, TableShardingConfig
from cdp_torchrec.distributed.plans.constraints import table_constraints
from cdp_torchrec.distributed.plans.hardware import GB
from cdp_torchrec.distributed.plans.planner import (
    find_tables,
    make_planner,
    optimizer_state_sized,
    sharders,
)
from cdp_torchrec.distributed.plans.topology import make_topology
from cdp_torchrec.planning.cell import Cell
from cdp_torchrec.planning.estimate import PlanEstimate
from cdp_torchrec.planning.estimator import estimate_plan
from cdp_torchrec.planning.workload import Workload

_MOST_SHARDS = 5
_WORTH_NAMING = 0.01
"""Share of the largest shard."""
_LARGE = 0.1
"""Share of a rank's free memory."""
_LARGEST_CLUSTER = 4096
_FIX_SEARCH_SECONDS = 10


@dataclass(frozen=True)
class Shortage:
    """The rank that lacks most when shards are spread by memory alone."""

    rank: int
    needed_bytes: float
    """By tables."""
    free_bytes: float
    """For tables: the device's memory without what is reserved."""
    largest: Sequence[tuple[str, str, float]]
    """Table, sharding type and bytes of the largest shards there."""
    large_tables: Sequence[str]
    """Entities that take a good part of the memory of any rank."""

    def lines(self, cell: Cell) -> list[str]:
        """In words."""
        shards = ", ".join(f"{n} ({t}) {_gb(b)}" for n, t, b in self.largest)
        return [
            f"rank {self.rank} lacks {_gb(self.needed_bytes - self.free_bytes)}: its tables need "
            f"{_gb(self.needed_bytes)}, and of {_gb(cell.hardware.memory_gb * GB)} "
            f"{_gb(self.free_bytes)} are free for tables",
            f"largest there: {shards}",
        ]


def find_shortage(
    workload: Workload, cell: Cell, optimizer: SparseOptimizerConfig, batch_size: int
) -> Shortage:
    """Spread the tables as well as the strategy allows, and look at the fullest rank.

    Every table takes its option with the smallest largest shard, and large shards go first, each
    to the emptiest rank.

    Raises:
        ConfigError: the strategy is wrong for a table.
    """
    model = workload.make_model(optimizer, cell.hardware.device)
    topology = make_topology(cell.hardware, cell.world_size)
    constraints = table_constraints(
        find_tables(model),
        cell.sharding,
        optimizer,
        device=cell.hardware.device,
        world_size=cell.world_size,
        pooling_factors=workload.pooling_factors,
    )
    planner = make_planner(
        model,
        constraints,
        topology=topology,
        batch_size=batch_size,
        search_seconds=cell.sharding.search_seconds,
        prefetch=cell.sharding.prefetch,
    )
    reserved = planner._storage_reservation.reserve(
        topology, batch_size, model, sharders(cell.sharding), constraints=constraints
    )
    with optimizer_state_sized(model):
        options = planner._enumerator.enumerate(model, sharders(cell.sharding))
    chosen: dict[str, ShardingOption] = {}
    for option in options:
        if option.name not in chosen or _largest(option) < _largest(chosen[option.name]):
            chosen[option.name] = option
    used = np.zeros(cell.world_size)
    held: list[list[tuple[str, str, float]]] = [[] for _ in used]
    for option in sorted(chosen.values(), key=_largest, reverse=True):
        for rank, size in _spread(option, used, cell):
            used[rank] += size
            held[rank].append((option.name, option.sharding_type, size))
    fullest = int(used.argmax())
    device = reserved.devices[fullest].storage
    free = device.hbm if cell.hardware.device == "cuda" else device.ddr
    largest = sorted(held[fullest], key=lambda shard: -shard[2])[:_MOST_SHARDS]
    return Shortage(
        rank=fullest,
        needed_bytes=float(used[fullest]),
        free_bytes=free,
        largest=[shard for shard in largest if shard[2] > _WORTH_NAMING * largest[0][2]],
        large_tables=[
            name.removeprefix("t_")
            for name, option in sorted(chosen.items())
            if _largest(option) > _LARGE * free
        ],
    )


def find_fixes(
    workload: Workload,
    cell: Cell,
    optimizer: SparseOptimizerConfig,
    batch_size: int,
    shortage: Shortage,
) -> list[str]:
    """Changes with which there is a plan, cheapest first."""

    def fits(changed: Cell, other: SparseOptimizerConfig) -> PlanEstimate | None:
        sharding = changed.sharding.model_copy(update={"search_seconds": _FIX_SEARCH_SECONDS})
        try:
            return estimate_plan(
                workload.make_model(other, changed.hardware.device),
                sharding,
                other,
                hardware=changed.hardware,
                world_size=changed.world_size,
                batch_size=batch_size,
                pooling_factors=workload.pooling_factors,
            )
        except ConfigError:
            return None

    return list(_fixes(cell, optimizer, shortage, fits))


def _fixes(
    cell: Cell,
    optimizer: SparseOptimizerConfig,
    shortage: Shortage,
    fits: Callable[[Cell, SparseOptimizerConfig], PlanEstimate | None],
) -> Iterator[str]:
    culprits = shortage.large_tables
    named = ", ".join(culprits)
    by_rows = _constrained(cell, culprits, TableShardingConfig(types=("row_wise",)))
    if found := fits(by_rows, optimizer):
        yield (
            f"split {named} by rows (sharding.tables.<entity>.types = ['row_wise']): {_fit(found)}"
        )
    adagrad = optimizer.model_copy(update={"kind": "rowwise_adagrad"})
    if optimizer.kind == "adam":
        for changed, also in ((cell, ""), (by_rows, f", and {named} by rows")):
            if found := fits(changed, adagrad):
                yield (
                    "optimizer.sparse.kind = 'rowwise_adagrad', one number per row in place of two "
                    f"per weight{also}: {_fit(found)}"
                )
                break
    if cell.hardware.device == "cuda":
        cached = TableShardingConfig(types=("row_wise",), kernels=("fused_uvm_caching",))
        if found := fits(_constrained(cell, culprits, cached), optimizer):
            yield (
                f"{named} in host memory, by rows, with a cache on the GPU "
                f"(sharding.tables.<entity>.kernels = ['fused_uvm_caching']): {_fit(found)}"
            )
    for changed, also in ((cell, ""), (by_rows, f", and {named} by rows")):
        if found := _more_ranks(changed, optimizer, shortage, fits):
            yield f"{found.world_size} ranks instead of {cell.world_size}{also}: {_fit(found)}"
            break


def _more_ranks(
    cell: Cell,
    optimizer: SparseOptimizerConfig,
    shortage: Shortage,
    fits: Callable[[Cell, SparseOptimizerConfig], PlanEstimate | None],
) -> PlanEstimate | None:
    """The first doubling of the cluster that fits."""
    kinds = {kind for _, kind, _ in shortage.largest}
    if cell.sharding.tables:
        size = 2 * cell.world_size
    elif kinds & {"row_wise", "column_wise", "table_column_wise"}:
        lacking = max(2.0, shortage.needed_bytes / max(1.0, shortage.free_bytes))
        size = cell.world_size * 2 ** math.floor(math.log2(lacking))
    else:
        return None  # more ranks make no shard of these types smaller
    while size <= _LARGEST_CLUSTER:
        if found := fits(replace(cell, world_size=size), optimizer):
            return found
        size *= 2
    return None


def _constrained(cell: Cell, entities: Sequence[str], constraint: TableShardingConfig) -> Cell:
    tables: Mapping[str, TableShardingConfig] = {
        **cell.sharding.tables,
        **dict.fromkeys(entities, constraint),
    }
    return replace(
        cell, sharding=ShardingConfig.model_validate({**dict(cell.sharding), "tables": tables})
    )


def _spread(option: ShardingOption, used: np.ndarray, cell: Cell) -> list[tuple[int, float]]:
    """Ranks for the shards of an option, given what the ranks already hold."""
    sizes = _sizes(option)
    if option.partition_by == PartitionByType.UNIFORM.value:
        return list(enumerate(sizes))
    if option.partition_by == PartitionByType.DEVICE.value:
        filled = used.copy()
        placed = []
        for size in sizes:
            rank = int(filled.argmin())
            filled[rank] += size
            placed.append((rank, size))
        return placed
    per_node = min(cell.world_size, cell.hardware.ranks_per_node)
    nodes = used.reshape(-1, per_node).max(1)
    placed = []
    for start in range(0, len(sizes), per_node):
        node = int(nodes.argmin())
        group = sizes[start : start + per_node]
        nodes[node] += max(group)
        placed += [(node * per_node + local, size) for local, size in enumerate(group)]
    return placed


def _sizes(option: ShardingOption) -> list[float]:
    # On a GPU the ddr of a table is host memory; on a CPU there is no hbm.
    sizes = []
    for shard in option.shards:
        assert shard.storage is not None
        sizes.append(float(shard.storage.hbm or shard.storage.ddr))
    return sizes


def _largest(option: ShardingOption) -> float:
    return max(_sizes(option))


def _fit(found: PlanEstimate) -> str:
    full = (found.memory.max() + found.reserved_bytes) / found.capacity_bytes
    return f"fullest rank at {full:.0%}, embeddings {found.embedding_ms:.1f} ms a step"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:,.1f} GB"
