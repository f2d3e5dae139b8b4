"""What the planner may choose for each table."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache

from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.managed_collision import managed_collision_conflicts
from cdp_torchrec.distributed.plans.config import (
    KernelName,
    ShardingConfig,
    TableShardingConfig,
    TypeName,
)
from cdp_torchrec.distributed.plans.planner import EmbeddingTable

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
_LANES = 4
"""FBGEMM's rows are multiples of four floats."""


def table_constraints(
    tables: Sequence[EmbeddingTable],
    config: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    *,
    device: str,
    world_size: int,
    pooling_factors: Mapping[str, float],
) -> dict[str, ParameterConstraints]:
    """Constraints by table name.

    Args:
        tables: of the model.
        config: strategy and constraints.
        optimizer: of the tables.
        device: where the ranks compute, cpu or cuda.
        world_size: number of ranks.
        pooling_factors: mean number of ids per impression, by key; 1 where unknown.

    Raises:
        ConfigError: names every table that the configuration is wrong for.
    """
    problems = _unknown(tables, config)
    constraints = {}
    for table in tables:
        own = config.tables.get(table.entity, TableShardingConfig())
        types = own.types or _types(table, config, optimizer, world_size)
        if not table.is_pooled:
            types = _for_sequences(types, quietly=own.types is None and config.strategy == "auto")
        if optimizer.kind == "rowwise_adagrad":
            asked = f"tables.{table.entity}" if own.types else f"strategy = '{config.strategy}'"
            problems += [
                f"sharding.{asked}: {name} {NO_ROWWISE_ADAGRAD}"
                for name in types
                if name in COLUMN_TYPES
            ]
        problems += _conflicts(table, own, device)
        problems += [
            f"sharding.tables.{table.entity}: {conflict}"
            for conflict in managed_collision_conflicts(
                table, types=types, kernels=own.kernels or (), world_size=world_size
            )
        ]
        caches = "fused_uvm_caching" in (own.kernels or ())
        constraints[table.name] = ParameterConstraints(
            sharding_types=list(types),
            compute_kernels=_kernels(own.kernels, types),
            min_partition=own.column_width or _default_width(table.embedding_dim),
            pooling_factors=[
                _pooling_factor(table, pooling_factors.get(key, 1.0)) for key in table.features
            ],
            cache_params=CacheParams(load_factor=own.cache_load_factor) if caches else None,
        )
    if problems:
        raise ConfigError.of(list(dict.fromkeys(problems)))  # the strategy is that of many tables
    return constraints


def _pooling_factor(table: EmbeddingTable, factor: float) -> float:
    """TorchRec prices no embedding of an empty bag, but all B are written and sent."""
    return max(1.0, factor) if table.is_pooled else factor


def _types(
    table: EmbeddingTable,
    config: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    world_size: int,
) -> tuple[TypeName, ...]:
    if table.buckets is not None:
        return ("row_wise",) if config.strategy == "auto" else (config.strategy,)
    # On one rank there is nothing to replicate, and the fused optimizer is faster.
    if table.num_embeddings <= config.small_table_rows and world_size > 1:
        return ("data_parallel",)
    if config.strategy != "auto":
        return (config.strategy,)
    if optimizer.kind == "rowwise_adagrad":
        return ("table_wise", "row_wise", "table_row_wise")
    return ("table_wise", "row_wise", "table_row_wise", "column_wise")


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
    widths = range(embedding_dim // 2, _LANES - 1, -1)
    return next((w for w in widths if embedding_dim % w == 0 and w % _LANES == 0), embedding_dim)


def _unknown(tables: Sequence[EmbeddingTable], config: ShardingConfig) -> list[str]:
    entities = [table.entity for table in tables]
    return [
        f"sharding.tables.{entity}: the model has no such table; it has {', '.join(entities)}"
        for entity in config.tables
        if entity not in entities
    ]


def _conflicts(
    table: EmbeddingTable,
    own: TableShardingConfig,
    device: str,
) -> list[str]:
    key = f"sharding.tables.{table.entity}"
    problems = []
    width = own.column_width
    if width is not None and (table.embedding_dim % width or width % _LANES):
        problems.append(
            f"{key}.column_width = {width}: expected a multiple of {_LANES} that divides the "
            f"embedding's width {table.embedding_dim}"
        )
    host = [name for name in own.kernels or () if name != "fused"]
    if host and device == "cpu":
        problems.append(f"{key}.kernels: {host[0]} needs a GPU, and the ranks compute on the CPU")
    if own.cache_load_factor is not None and "fused_uvm_caching" not in (own.kernels or ()):
        problems.append(f"{key}.cache_load_factor: only the kernel fused_uvm_caching has a cache")
    return problems
