"""Why there is no plan, in the words of whoever has to change something."""

import math
from collections.abc import Sequence

from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.types import PlannerError, PlannerErrorType, Topology

from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans.planner import EmbeddingTable

_GB = 10**9
_FLOAT_BYTES = 4
_MOST_TABLES = 5
_LARGE = 0.01
"""Share of all memory from which on a table is named."""


def explain_failure(
    error: PlannerError,
    planner: EmbeddingShardingPlanner,
    tables: Sequence[EmbeddingTable],
    optimizer: SparseOptimizerConfig,
) -> str:
    """What does not fit where, and what would help.

    Args:
        error: what the planner has raised.
        planner: which has raised it.
        tables: of the model.
        optimizer: of the tables.
    """
    topology = planner._topology
    reserved = planner._storage_reservation.last_reserved_topology
    assert isinstance(topology, Topology) and reserved is not None
    on_gpu = topology.compute_device == "cuda"
    whole, free = (
        (device.storage.hbm if on_gpu else device.storage.ddr)
        for device in (topology.devices[0], reserved.devices[0])
    )
    is_memory = error.error_type == PlannerErrorType.INSUFFICIENT_STORAGE
    if not is_memory and all(_bytes(table, optimizer) <= free for table in tables):
        said = str(error).strip().splitlines()
        return f"no plan for {topology.world_size} ranks: {said[0].strip()} {said[-1].strip()}"
    needed = sum(_bytes(table, optimizer) for table in tables)
    return "\n  ".join(
        [
            f"no plan for {topology.world_size} ranks: spread evenly, the tables take "
            f"{_gb(needed / topology.world_size)} on each rank, which has {_gb(free)} for them, of "
            f"{_gb(whole)} {'GPU' if on_gpu else 'host'} memory",
            *_largest(tables, optimizer, needed),
            f"what helps: {'; '.join(_remedies(needed, free, topology, optimizer))}",
        ]
    )


def _largest(
    tables: Sequence[EmbeddingTable], optimizer: SparseOptimizerConfig, needed: int
) -> list[str]:
    large = [table for table in tables if _bytes(table, optimizer) >= _LARGE * needed]
    large.sort(key=lambda table: -_bytes(table, optimizer))
    large = large[:_MOST_TABLES]
    rest = needed - sum(_bytes(table, optimizer) for table in large)
    return [
        f"{table.name}: {table.num_embeddings:,} rows x {table.embedding_dim}: "
        f"{_gb(_weights(table))} of weights, {_gb(_state(table, optimizer))} of {optimizer.kind} "
        "state"
        for table in large
    ] + ([f"{len(tables) - len(large)} other tables: {_gb(rest)}"] if rest else [])


def _remedies(
    needed: int, free: int, topology: Topology, optimizer: SparseOptimizerConfig
) -> list[str]:
    remedies = []
    if needed <= free * topology.world_size:
        remedies.append("large tables split by rows (sharding.strategy = 'row_wise')")
    elif free > 0:
        remedies.append(f"at least {math.ceil(needed / free):,} ranks, large tables split by rows")
    if topology.compute_device == "cuda":
        remedies.append("large tables in host memory (sharding.tables.<entity>.kernels)")
    if optimizer.kind == "adam":
        remedies.append("optimizer.sparse.kind = 'rowwise_adagrad', whose state is 4 bytes per row")
    return [*remedies, "fewer or narrower embeddings"]


def _bytes(table: EmbeddingTable, optimizer: SparseOptimizerConfig) -> int:
    return _weights(table) + _state(table, optimizer)


def _weights(table: EmbeddingTable) -> int:
    return table.num_embeddings * table.embedding_dim * _FLOAT_BYTES


def _state(table: EmbeddingTable, optimizer: SparseOptimizerConfig) -> int:
    if optimizer.kind == "adam":
        return 2 * _weights(table)
    return table.num_embeddings * _FLOAT_BYTES


def _gb(size: float) -> str:
    return f"{size / _GB:,.1f} GB"
