"""Sharding plans as files: readable JSON that training uses as it is.

A file holds what a plan decides about each table: sharding type, compute kernel, and which part of
it lies on which rank. What follows from the job stays out of it: the device of a shard from its
rank, the place of a table in the model from its name, and where the optimizer runs. So a plan for
GPUs can be tried on as many CPU ranks, and a plan of one model fits any other with the same tables.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.planner.utils import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.optimizers import needs_dense_gradients
from cdp_torchrec.distributed.plans.checks import find_mismatches, find_mistakes
from cdp_torchrec.distributed.plans.format import (
    FORMAT_VERSION,
    CacheEntry,
    PlanFile,
    ShardEntry,
    TableEntry,
)
from cdp_torchrec.distributed.plans.planner import EmbeddingTable
from cdp_torchrec.whole_file import write_whole

_LINE_LENGTH = 100
_MOST_LINES = 20


def write_plan(
    path: Path,
    plan: ShardingPlan,
    tables: Sequence[EmbeddingTable],
    *,
    world_size: int,
    local_world_size: int,
    device: str,
) -> None:
    """Write a plan file, whole or not at all; arguments as `dump_plan`."""
    text = dump_plan(
        plan, tables, world_size=world_size, local_world_size=local_world_size, device=device
    )
    write_whole(path, text)


def dump_plan(
    plan: ShardingPlan,
    tables: Sequence[EmbeddingTable],
    *,
    world_size: int,
    local_world_size: int,
    device: str,
) -> str:
    """A plan as the text of a plan file.

    Args:
        plan: of the model.
        tables: of the model.
        world_size: number of ranks.
        local_world_size: ranks of a node.
        device: where the ranks compute, cpu or cuda.

    Raises:
        ValueError: the plan holds what the format cannot say.
    """
    file = PlanFile(
        format_version=FORMAT_VERSION,
        world_size=world_size,
        local_world_size=local_world_size,
        device=device,
        tables={table.name: _entry(table, _planned(plan, table)) for table in tables},
    )
    for table in tables:
        planned = _planned(plan, table)
        if _sharding(file, table, planned.compute_kernel, device, local_world_size) != planned:
            raise ValueError(f"{table.name}: a plan file cannot say {planned!r}")
    return _pretty(file.model_dump(mode="json", exclude_none=True)) + "\n"


def read_plan(
    path: Path,
    tables: Sequence[EmbeddingTable],
    *,
    optimizer: SparseOptimizerConfig,
    world_size: int,
    local_world_size: int,
    device: str,
) -> ShardingPlan:
    """The plan in a file, for this model on these ranks.

    Args:
        path: of the file.
        tables: of the model.
        optimizer: of the tables; decides whether FBGEMM updates them (kernel fused) or we do
            (dense), whatever the file says.
        world_size: number of ranks.
        local_world_size: ranks of a node.
        device: where the ranks compute, cpu or cuda.

    Raises:
        ConfigError: the file cannot be read, is wrong, or does not fit; names every problem.
    """
    file = _parse(path)
    problems = find_mistakes(file) + find_mismatches(
        file,
        tables,
        optimizer=optimizer,
        world_size=world_size,
        local_world_size=local_world_size,
        device=device,
    )
    if problems:
        raise _error(path, "does not fit", problems)
    exposed = needs_dense_gradients(optimizer, torch.device(device))
    plan: dict[str, EmbeddingModuleShardingPlan] = {}
    for table in tables:
        kernel = file.tables[table.name].compute_kernel
        if kernel == "fused" and exposed:
            kernel = "dense"
        elif kernel == "dense" and not exposed and file.tables[table.name].shards:
            kernel = "fused"
        module_plan = plan.setdefault(table.module, EmbeddingModuleShardingPlan())
        module_plan[table.name] = _sharding(file, table, kernel, device, local_world_size)
    return ShardingPlan(dict(plan))


def _planned(plan: ShardingPlan, table: EmbeddingTable) -> ParameterSharding:
    module_plan = plan.plan[table.module]
    assert isinstance(module_plan, EmbeddingModuleShardingPlan)
    return module_plan[table.name]


def _entry(table: EmbeddingTable, planned: ParameterSharding) -> TableEntry:
    spec = planned.sharding_spec
    shards = [] if spec is None else spec.shards  # pyrefly: ignore[missing-attribute]
    cache = planned.cache_params
    return TableEntry.model_validate(
        {
            "num_embeddings": table.num_embeddings,
            "embedding_dim": table.embedding_dim,
            "sharding_type": planned.sharding_type,
            "compute_kernel": planned.compute_kernel,
            "cache_params": None if cache is None else CacheEntry(load_factor=cache.load_factor),
            "shards": tuple(
                ShardEntry(
                    rank=shard.placement.rank(),
                    offsets=tuple(shard.shard_offsets),
                    sizes=tuple(shard.shard_sizes),
                )
                for shard in shards
            ),
        }
    )


def _sharding(
    file: PlanFile, table: EmbeddingTable, kernel: str, device: str, local_world_size: int
) -> ParameterSharding:
    entry = file.tables[table.name]
    cache = entry.cache_params
    shards = [
        ShardMetadata(
            list(shard.offsets),
            list(shard.sizes),
            placement(device, shard.rank, local_world_size),
        )
        for shard in entry.shards
    ]
    replicated = entry.sharding_type == "data_parallel"
    return ParameterSharding(
        sharding_type=entry.sharding_type,
        compute_kernel=kernel,
        ranks=list(range(file.world_size)) if replicated else [s.rank for s in entry.shards],
        sharding_spec=None if replicated else EnumerableShardingSpec(shards),
        cache_params=None if cache is None else CacheParams(load_factor=cache.load_factor),
    )


def _parse(path: Path) -> PlanFile:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise _error(path, "cannot be read", [str(error.strerror)]) from error
    except ValueError as error:
        raise _error(path, "cannot be read", [f"no JSON: {error}"]) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        found = "none" if version is None else repr(version)
        raise _error(
            path,
            "cannot be read",
            [f"format_version: found {found}, this release reads {FORMAT_VERSION}"],
        )
    try:
        return PlanFile.model_validate_json(json.dumps(content))
    except ValidationError as error:
        wrong = []
        for mistake in error.errors():
            key = ".".join(str(part) for part in mistake["loc"])
            if mistake["type"] == "missing":
                wrong.append(f"{key}: required key is missing")
            else:
                wrong.append(f"{key} = {mistake['input']!r}: {mistake['msg']}")
        raise _error(path, "cannot be read", wrong) from error


def _error(path: Path, what: str, problems: Sequence[str]) -> ConfigError:
    more = len(problems) - _MOST_LINES
    lines = [*problems[:_MOST_LINES], *([f"... and {more} more"] if more > 0 else [])]
    return ConfigError("\n  ".join([f"sharding.plan = '{path}' {what}:", *lines]))


def _pretty(value: Any, indent: int = 0) -> str:
    """JSON with a shard on each line, instead of a number on each line."""
    line = json.dumps(value)
    if indent + len(line) < _LINE_LENGTH or not isinstance(value, dict | list):
        return line
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_pretty(part, indent + 2)}" for key, part in value.items()]
    else:
        parts = [_pretty(part, indent + 2) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    body = ",\n".join(inner + part for part in parts)
    return f"{opening}\n{body}\n{' ' * indent}{closing}"
