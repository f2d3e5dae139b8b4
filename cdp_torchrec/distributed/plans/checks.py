"""What can be wrong with a plan: in itself, and for a problem."""

from collections.abc import Iterable, Sequence

from torchrec.distributed.types import ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.constraints import (
    COLUMN_TYPES,
    FOR_SEQUENCES,
    LANES,
    NO_ROWWISE_ADAGRAD,
    NODE_TYPES,
    node_type_conflicts,
)
from cdp_torchrec.distributed.plans.format import PlanFile, ShardEntry, TableEntry
from cdp_torchrec.distributed.plans.managed_collision import managed_collision_conflicts
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.tables import EmbeddingTable, shardings_of

_CACHING = "fused_uvm_caching"


def find_mistakes(file: PlanFile) -> list[str]:
    """What is wrong for any job: parts of a table missing or held twice, ranks out of range."""
    return [
        f"{name}: {mistake}"
        for name, entry in file.tables.items()
        for mistake in _kernel_mistakes(entry) + _shard_mistakes(entry, file)
    ]


def find_mismatches(file: PlanFile, problem: PlanProblem) -> list[str]:
    """What does not fit the problem: its ranks, its tables, or how they are used."""
    mismatches = []
    if file.world_size != problem.world_size:
        mismatches.append(
            f"world_size: {file.world_size} in the plan, {problem.world_size} in this job"
            + (" for each copy of the tables" if problem.num_replicas > 1 else "")
            + "; start as many ranks, or plan anew"
        )
    by_node = [n for n, entry in file.tables.items() if entry.sharding_type in NODE_TYPES]
    if by_node and file.local_world_size != problem.local_world_size:
        mismatches.append(
            f"local_world_size: {file.local_world_size} ranks per node in the plan, "
            f"{problem.local_world_size} in this job, and the rows of {_listed(by_node)} are "
            "spread over a node"
        )
    own = {table.name: table for table in problem.tables}
    for names, where in (
        ([name for name in own if name not in file.tables], "tables of the model without a plan"),
        ([name for name in file.tables if name not in own], "tables that the model does not have"),
    ):
        if names:
            mismatches.append(f"{where}: {_listed(names)}")
    for name, entry in file.tables.items():
        if name in own:
            found = _table_mismatches(entry, own[name], problem)
            mismatches += [f"{name}: {mismatch}" for mismatch in found]
    return mismatches


def check_prefetch(plan: ShardingPlan, device: str) -> None:
    """Refuse to prefetch where no table has a cache.

    Args:
        plan: of the model.
        device: where the ranks compute, cpu or cuda.

    Raises:
        ConfigError: there is no GPU, or no table with the kernel fused_uvm_caching.
    """
    if device != "cuda":
        raise ConfigError(
            f"sharding.prefetch = true: fills caches on GPUs, and the ranks compute on the {device}"
        )
    kernels = {sharding.compute_kernel for sharding in shardings_of(plan).values()}
    if _CACHING not in kernels:
        raise ConfigError(
            f"sharding.prefetch = true: no table has a cache to fill, their kernels are "
            f"{', '.join(sorted(kernels))}; give the largest ones "
            f"sharding.tables.<entity>.kernels = ['{_CACHING}']"
        )


def _table_mismatches(entry: TableEntry, table: EmbeddingTable, problem: PlanProblem) -> list[str]:
    mismatches = []
    if (entry.num_embeddings, entry.embedding_dim) != (table.num_embeddings, table.embedding_dim):
        mismatches.append(
            f"the plan is for {entry.num_embeddings:,} rows x {entry.embedding_dim}, the model has "
            f"{table.num_embeddings:,} x {table.embedding_dim}"
        )
    if not table.is_pooled and entry.sharding_type in FOR_SEQUENCES:
        mismatches.append(
            f"{entry.sharding_type} does not exist for tables that sequences read; use "
            f"{FOR_SEQUENCES[entry.sharding_type]}"
        )
    if entry.sharding_type in COLUMN_TYPES and problem.optimizer.kind == "rowwise_adagrad":
        mismatches.append(f"{entry.sharding_type} {NO_ROWWISE_ADAGRAD}")
    if entry.compute_kernel.startswith("fused_uvm") and problem.device == "cpu":
        mismatches.append(f"{entry.compute_kernel} needs a GPU, and the ranks compute on the CPU")
    mismatches += node_type_conflicts([entry.sharding_type], problem)
    return mismatches + managed_collision_conflicts(
        table,
        types=[entry.sharding_type],
        kernels=[entry.compute_kernel],
        world_size=problem.world_size,
        num_replicas=problem.num_replicas,
    )


def _kernel_mistakes(entry: TableEntry) -> list[str]:
    mistakes = []
    if entry.sharding_type == "data_parallel" and entry.compute_kernel != "dense":
        mistakes.append(f"{entry.compute_kernel} cannot be data_parallel, only dense can")
    if entry.cache_params is not None and entry.compute_kernel != _CACHING:
        mistakes.append(f"{entry.compute_kernel} has no cache, only fused_uvm_caching has")
    return mistakes


def _shard_mistakes(entry: TableEntry, file: PlanFile) -> list[str]:
    """First whether the shards are the table, then whether the sharding type splits it so."""
    if entry.sharding_type == "data_parallel":
        return ["data_parallel has no shards: every rank holds the table"] if entry.shards else []
    if not entry.shards:
        return [f"{entry.sharding_type} without shards"]
    mistakes = [
        f"rank {rank} is out of range: the plan has ranks 0 to {file.world_size - 1}"
        for rank in sorted({shard.rank for shard in entry.shards})
        if rank >= file.world_size
    ]
    stacks: dict[tuple[int, int], list[ShardEntry]] = {}
    for shard in entry.shards:
        stacks.setdefault((shard.offsets[1], shard.sizes[1]), []).append(shard)
    mistakes += _not_covered(stacks, entry.embedding_dim, "columns")
    for stack in stacks.values():
        rows = [(shard.offsets[0], shard.sizes[0]) for shard in stack]
        mistakes += _not_covered(rows, entry.num_embeddings, "rows")
    return mistakes or _layout_mistakes(entry, file, list(stacks.values()))


def _not_covered(parts: Iterable[tuple[int, int]], total: int, what: str) -> list[str]:
    """Whether parts (start, size) follow each other from 0 to total."""
    mistakes, end = [], 0
    for start, size in sorted(part for part in parts if part[1]):
        if start > end:
            mistakes.append(f"{what} {end:,} to {start - 1:,} are in no shard")
        elif start < end:
            mistakes.append(f"{what} {start:,} to {min(end, start + size) - 1:,} are in two shards")
        end = max(end, start + size)
    if end < total:
        mistakes.append(f"{what} {end:,} to {total - 1:,} are in no shard")
    if end > total:
        mistakes.append(f"{what} up to {end - 1:,} in a table of {total:,} {what}")
    return mistakes


def _layout_mistakes(
    entry: TableEntry, file: PlanFile, stacks: Sequence[Sequence[ShardEntry]]
) -> list[str]:
    """Whether the shards are those that the lookup of the sharding type expects.

    Lookups compute the rank of a row from its number, and read other rows, without an error, where
    the shards lie differently.

    Args:
        entry: of the table.
        file: of the entry.
        stacks: shards of the same columns, which together have all rows.
    """
    kind = entry.sharding_type
    if kind not in COLUMN_TYPES and len(stacks) > 1:
        return [f"{kind} does not split columns, but the shards do"]
    if any(stack[0].sizes[1] % LANES for stack in stacks) and len(stacks) > 1:
        return [f"shards need multiples of {LANES} columns"]
    if list(entry.shards) != sorted(entry.shards, key=lambda s: (s.offsets[1], s.offsets[0])):
        return ["shards are not in the order of columns, then rows"]
    parts = {"row_wise": file.world_size} | dict.fromkeys(NODE_TYPES, file.local_world_size)
    num_parts = parts.get(kind, 1)
    rows = _even_rows(entry.num_embeddings, num_parts)
    for stack in stacks:
        if [shard.sizes[0] for shard in stack] != rows:
            return [
                f"{kind} splits the rows into {num_parts} of {rows[0]:,}, found "
                f"{len(stack)} of {stack[0].sizes[0]:,}"
            ]
        first = stack[0].rank
        ranks = [shard.rank for shard in stack]
        if ranks != list(range(first, first + num_parts)) or (num_parts > 1 and first % num_parts):
            where = "all ranks" if kind == "row_wise" else f"a node of {num_parts} ranks"
            return [f"{kind} spreads the rows over {where} in their order, found ranks {ranks}"]
    return []


def _even_rows(total: int, parts: int) -> list[int]:
    block = -(-total // parts)
    return [max(0, min(block, total - part * block)) for part in range(parts)]


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
