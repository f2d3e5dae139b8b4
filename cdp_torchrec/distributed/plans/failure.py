"""Why there is no plan, in the words of whoever has to change something."""

import math
from collections.abc import Sequence

from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError, PlannerErrorType

from cdp_torchrec.distributed.optimizers import TableOptimizer
from cdp_torchrec.distributed.plans.hardware import GB
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.tables import EmbeddingTable

_FLOAT_BYTES = 4
_MOST_TABLES = 5
_STATE_COPIES = {"adam": 2, "adagrad": 1, "sgd": 0}
"""Numbers that an optimizer keeps for each weight."""
_LARGE = 0.01
"""Share of all memory from which on a table is named."""


def explain_failure(
    error: PlannerError, problem: PlanProblem, reservation: HeuristicalStorageReservation
) -> str:
    """What does not fit where, and what would help.

    Args:
        error: what the planner has raised.
        problem: which it was to solve.
        reservation: memory that no table may use.
    """
    reserved = reservation.last_reserved_topology
    if reserved is None:
        return _nothing_left(problem, reservation)
    on_gpu = problem.device == "cuda"
    storage = reserved.devices[0].storage
    free = storage.hbm if on_gpu else storage.ddr
    if free <= 0:  # of a host's memory TorchRec reserves more than there is
        return _nothing_left(problem, reservation)
    tables, optimizer = problem.tables, problem.optimizer
    memory, place = problem.hardware.memory_gb, "GPU" if on_gpu else "host"
    in_host = _only_in_host_memory(problem)
    if sum(_bytes(table, optimizer) for table in in_host) > storage.ddr * problem.world_size:
        tables, free = in_host, storage.ddr
        memory, place = problem.hardware.host_memory_gb, "host"
    is_memory = error.error_type == PlannerErrorType.INSUFFICIENT_STORAGE
    if not is_memory and all(_bytes(table, optimizer) <= free for table in tables):
        said = str(error).strip().splitlines()
        return f"no plan for {problem.world_size} ranks: {said[0].strip()} {said[-1].strip()}"
    needed = sum(_bytes(table, optimizer) for table in tables)
    return "\n  ".join(
        [
            f"no plan for {problem.world_size} ranks: spread evenly, the tables take "
            f"{_gb(needed / problem.world_size)} on each rank, which has {_gb(free)} for them, of "
            f"{_gb(memory * GB)} {place} memory",
            *_largest(tables, optimizer, needed),
            f"what helps: {'; '.join(_remedies(needed, free, problem, place))}",
        ]
    )


def _only_in_host_memory(problem: PlanProblem) -> list[EmbeddingTable]:
    """Tables whose kernels read them from there, whatever the plan."""
    kernels = {entity: own.kernels for entity, own in problem.sharding.tables.items()}
    found = ((table, kernels.get(table.entity)) for table in problem.tables)
    return [table for table, asked in found if asked is not None and "fused" not in asked]


def _nothing_left(problem: PlanProblem, reservation: HeuristicalStorageReservation) -> str:
    """What fills a GPU, or a host, before there is any table on it."""
    dense, batches = reservation._dense_storage, reservation._kjt_storage
    assert dense is not None
    assert batches is not None
    on_gpu = problem.device == "cuda"
    of_dense, of_batches = (s.hbm if on_gpu else s.ddr for s in (dense, batches))
    memory = problem.hardware.memory_gb * GB
    share = problem.sharding.reserved_share if on_gpu else 0.0
    left = (1 - share) * memory - of_dense
    largest = math.floor(left * problem.batch_size / of_batches)
    helps = (
        f"fewer than {largest:,} impressions per rank"
        if largest > 0
        else "a smaller dense part" + ", or a smaller sharding.reserved_share" * on_gpu
    )
    margin = f" and the margin {_gb(share * memory)} (sharding.reserved_share = {share:g})"
    return (
        f"no memory for tables on any of {problem.world_size} ranks: the batches under way take "
        f"{_gb(of_batches)} at {problem.batch_size:,} impressions per rank, the dense part "
        f"{_gb(of_dense)}{margin * on_gpu} of {_gb(memory)} {'GPU' if on_gpu else 'host'} memory"
        f"\n  what helps: {helps}"
    )


def _largest(tables: Sequence[EmbeddingTable], optimizer: TableOptimizer, needed: int) -> list[str]:
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


def _remedies(needed: int, free: int, problem: PlanProblem, place: str) -> list[str]:
    remedies = []
    if needed <= free * problem.world_size:
        remedies.append("large tables split by rows (sharding.strategy = 'row_wise')")
    elif free > 0:
        remedies.append(f"at least {math.ceil(needed / free):,} ranks, large tables split by rows")
    if problem.device == "cuda":
        other = "host" if place == "GPU" else "GPU"
        remedies.append(f"large tables in {other} memory (sharding.tables.<entity>.kernels)")
    if problem.optimizer.kind == "adam":
        remedies.append("optimizer.sparse.kind = 'rowwise_adagrad', whose state is 4 bytes per row")
    return [*remedies, "fewer or narrower embeddings"]


def _bytes(table: EmbeddingTable, optimizer: TableOptimizer) -> int:
    return _weights(table) + _state(table, optimizer)


def _weights(table: EmbeddingTable) -> int:
    return table.num_embeddings * table.embedding_dim * table.element_bytes


def _state(table: EmbeddingTable, optimizer: TableOptimizer) -> int:
    if optimizer.kind == "rowwise_adagrad":
        return table.num_embeddings * _FLOAT_BYTES
    return _STATE_COPIES[optimizer.kind] * _weights(table)


def _gb(size: float) -> str:
    return f"{size / GB:,.1f} GB"
