"""What the planner may choose for each table."""

import logging
from collections.abc import Iterable
from functools import cache

from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.config import KernelName, TableShardingConfig, TypeName
from cdp_torchrec.distributed.plans.managed_collision import managed_collision_conflicts
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.tables import EmbeddingTable

_log = logging.getLogger(__name__)

COLUMN_TYPES: tuple[TypeName, ...] = ("column_wise", "table_column_wise", "grid_shard")
FOR_SEQUENCES: dict[TypeName, TypeName] = {
    "table_row_wise": "row_wise",
    "table_column_wise": "column_wise",
    "grid_shard": "column_wise",
}
"""What stands in for a type that TorchRec has for pooled lookups only."""
NO_ROWWISE_ADAGRAD = (
    "and optimizer.sparse.kind = 'rowwise_adagrad' do not go together: each column shard would "
    "keep its own mean square of the row's gradient, another optimizer, whose state no other plan "
    "can load; use adam, or split by rows"
)
"""Why tables that are split by columns refuse that optimizer."""
NODE_TYPES: tuple[TypeName, ...] = ("table_row_wise", "grid_shard")
"""Types whose collectives go through a node, then between nodes."""
_NARROWEST = 16
LANES = 4
"""FBGEMM's rows are multiples of four floats."""


def table_constraints(problem: PlanProblem) -> dict[str, ParameterConstraints]:
    """Constraints by table name.

    Raises:
        ConfigError: names every table that the configuration is wrong for.
    """
    conflicts = _unknown(problem)
    constraints = {}
    for table in problem.tables:
        own = problem.sharding.tables.get(table.entity, TableShardingConfig())
        types = _types(table, own, problem)
        conflicts += _conflicts(table, own, types, problem)
        caches = "fused_uvm_caching" in (own.kernels or ())
        constraints[table.name] = ParameterConstraints(
            sharding_types=list(types),
            compute_kernels=_kernels(own.kernels, types),
            min_partition=own.column_width or _default_width(table.embedding_dim),
            pooling_factors=[
                _pooling_factor(table, problem.pooling_factors.get(key, 1.0))
                for key in table.features
            ],
            cache_params=CacheParams(load_factor=own.cache_load_factor) if caches else None,
        )
    if conflicts:
        raise ConfigError.of(list(dict.fromkeys(conflicts)))  # the strategy is that of many tables
    return constraints


def _pooling_factor(table: EmbeddingTable, factor: float) -> float:
    """TorchRec prices no embedding of an empty bag, but all B are written and sent."""
    return max(1.0, factor) if table.is_pooled else factor


def _types(
    table: EmbeddingTable, own: TableShardingConfig, problem: PlanProblem
) -> tuple[TypeName, ...]:
    types = own.types or _types_of_strategy(table, problem)
    if table.is_pooled:
        return types
    is_asked_for = own.types is not None or problem.sharding.strategy != "auto"
    return _for_sequences(types, quietly=not is_asked_for)


def _types_of_strategy(table: EmbeddingTable, problem: PlanProblem) -> tuple[TypeName, ...]:
    strategy = problem.sharding.strategy
    if table.buckets is not None:
        return ("row_wise",) if strategy == "auto" else (strategy,)
    # On one rank there is nothing to replicate, and the fused optimizer is faster.
    if table.num_embeddings <= problem.sharding.small_table_rows and problem.world_size > 1:
        return ("data_parallel",)
    if strategy != "auto":
        return (strategy,)
    by_rows: tuple[TypeName, ...] = ("table_wise", "row_wise")
    if problem.num_replicas == 1:
        by_rows += ("table_row_wise",)
    return by_rows if problem.optimizer.kind == "rowwise_adagrad" else (*by_rows, "column_wise")


def _for_sequences(types: tuple[TypeName, ...], *, quietly: bool) -> tuple[TypeName, ...]:
    """The types that TorchRec has for the tables of sequences; says what it replaces."""
    for name in types:
        if name in FOR_SEQUENCES and not quietly:
            _say_what_stands_in(name)
    return tuple(dict.fromkeys(FOR_SEQUENCES.get(name, name) for name in types))


@cache  # once per process, however many tables and world sizes are planned
def _say_what_stands_in(name: TypeName) -> None:
    _log.warning(
        "tables that sequences read are %s instead of %s, which TorchRec has for pooled lookups "
        "only",
        FOR_SEQUENCES[name],
        name,
    )


def _kernels(
    kernels: tuple[KernelName, ...] | None, types: tuple[TypeName, ...]
) -> list[str] | None:
    if kernels is None:
        return ["fused", "dense"]  # the planner drops dense where fused exists
    return [*kernels, "dense"] if "data_parallel" in types else list(kernels)


def _default_width(embedding_dim: int) -> int:
    """The largest width of at most half the embedding that FBGEMM can split by."""
    widths = range(embedding_dim // 2, LANES - 1, -1)
    return next((w for w in widths if embedding_dim % w == 0 and w % LANES == 0), embedding_dim)


def narrow_widths(table: EmbeddingTable) -> list[int]:
    """A quarter and an eighth of the width, as far as lookups of such rows are estimated well.

    The planner's time of a lookup grows for rows of up to 32 columns, and for no shorter ones.
    """
    parts = [parts for parts in (4, 8) if table.embedding_dim % (parts * LANES) == 0]
    widths = [table.embedding_dim // part for part in parts]
    return [width for width in widths if width >= _NARROWEST]


def _unknown(problem: PlanProblem) -> list[str]:
    entities = [table.entity for table in problem.tables]
    return [
        f"sharding.tables.{entity}: the model has no such table; it has {', '.join(entities)}"
        for entity in problem.sharding.tables
        if entity not in entities
    ]


def _conflicts(
    table: EmbeddingTable,
    own: TableShardingConfig,
    types: tuple[TypeName, ...],
    problem: PlanProblem,
) -> list[str]:
    key = f"sharding.tables.{table.entity}"
    asked = key if own.types else f"sharding.strategy = '{problem.sharding.strategy}'"
    conflicts = [f"{asked}: {found}" for found in node_type_conflicts(types, problem)]
    if problem.optimizer.kind == "rowwise_adagrad":
        conflicts += [f"{asked}: {n} {NO_ROWWISE_ADAGRAD}" for n in types if n in COLUMN_TYPES]
    width = own.column_width
    if width is not None and (table.embedding_dim % width or width % LANES):
        conflicts.append(
            f"{key}.column_width = {width}: expected a multiple of {LANES} that divides the "
            f"embedding's width {table.embedding_dim}"
        )
    if width is not None and not any(name in COLUMN_TYPES for name in types):
        conflicts.append(f"{key}.column_width: nothing splits {', '.join(types)} by columns")
    if own.kernels and all(name == "data_parallel" for name in types):
        conflicts.append(
            f"{key}.kernels: the table is data_parallel, which has no kernel to choose; give it "
            "other types"
        )
    host = [name for name in own.kernels or () if name != "fused"]
    if host and problem.device == "cpu":
        conflicts.append(f"{key}.kernels: {host[0]} needs a GPU, and the ranks compute on the CPU")
    if own.cache_load_factor is not None and "fused_uvm_caching" not in (own.kernels or ()):
        conflicts.append(f"{key}.cache_load_factor: only the kernel fused_uvm_caching has a cache")
    of_collision = managed_collision_conflicts(
        table,
        types=types,
        kernels=own.kernels or (),
        world_size=problem.world_size,
        num_replicas=problem.num_replicas,
    )
    return conflicts + [f"{key}: {conflict}" for conflict in of_collision]


def node_type_conflicts(types: Iterable[str], problem: PlanProblem) -> list[str]:
    """Why a table of which there are several copies cannot be sharded so.

    Args:
        types: sharding types that are asked for.
        problem: tells how many copies there are.
    """
    if problem.num_replicas == 1:
        return []
    return [
        f"{name} and sharding.sharding_group_size = {problem.world_size} do not go together: "
        "TorchRec makes the groups of ranks within and between nodes of all ranks, not of those "
        "that share a copy of the tables"
        for name in types
        if name in NODE_TYPES
    ]
