"""Sharding plans as files: readable JSON that training uses as it is.

A file holds what a plan decides about each table: sharding type, compute kernel, and which part of
it lies on which rank. What follows from the job stays out of it: the device of a shard from its
rank, the place of a table in the model from its name, and where the optimizer runs. So a plan for
GPUs can be tried on as many CPU ranks, and a plan of one model fits any other with the same tables.
"""

from pathlib import Path

from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.planner.utils import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from cdp_torchrec.distributed.plans.checks import find_mismatches, find_mistakes
from cdp_torchrec.distributed.plans.format import (
    FORMAT_VERSION,
    CacheEntry,
    PlanFile,
    TableEntry,
    parse,
    plan_error,
)
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.tables import EmbeddingTable, shardings_of, shards_of
from cdp_torchrec.whole_file import write_whole


def write_plan(path: Path, plan: ShardingPlan, problem: PlanProblem) -> None:
    """Write a plan file, whole or not at all; as `dump_plan`."""
    write_whole(path, dump_plan(plan, problem))


def dump_plan(plan: ShardingPlan, problem: PlanProblem) -> str:
    """A plan as the text of a plan file.

    Args:
        plan: of the problem.
        problem: tables and ranks.

    Raises:
        ValueError: the plan holds what the format cannot say.
    """
    shardings = shardings_of(plan)
    entries = {table.name: _entry(table, shardings[table.name]) for table in problem.tables}
    for name, entry in entries.items():
        planned = shardings[name]
        if _sharding(entry, planned.compute_kernel, problem) != planned:
            raise ValueError(f"{name}: a plan file cannot say {planned!r}")
    return PlanFile(
        format_version=FORMAT_VERSION,
        world_size=problem.world_size,
        local_world_size=problem.local_world_size,
        device=problem.device,
        tables=entries,
    ).as_json()


def read_plan(path: Path, problem: PlanProblem) -> ShardingPlan:
    """The plan in a file, for the tables and ranks of a problem.

    The problem's optimizer decides whether FBGEMM updates a table (kernel fused) or we do (dense),
    whatever the file says.

    Raises:
        ConfigError: the file cannot be read, is wrong, or does not fit; names everything.
    """
    file = parse(path)
    if wrong := find_mistakes(file) + find_mismatches(file, problem):
        raise plan_error(path, "does not fit", wrong)
    plan: dict[str, EmbeddingModuleShardingPlan] = {}
    for table in problem.tables:
        entry = file.tables[table.name]
        kernel = entry.compute_kernel
        if kernel == "fused" and problem.has_dense_gradients:
            kernel = "dense"
        elif kernel == "dense" and not problem.has_dense_gradients and entry.shards:
            kernel = "fused"
        module_plan = plan.setdefault(table.module, EmbeddingModuleShardingPlan())
        module_plan[table.name] = _sharding(entry, kernel, problem)
    return ShardingPlan(dict(plan))


def _entry(table: EmbeddingTable, planned: ParameterSharding) -> TableEntry:
    cache = planned.cache_params
    return TableEntry.model_validate(
        {
            "num_embeddings": table.num_embeddings,
            "embedding_dim": table.embedding_dim,
            "sharding_type": planned.sharding_type,
            "compute_kernel": planned.compute_kernel,
            "cache_params": None if cache is None else CacheEntry(load_factor=cache.load_factor),
            "shards": shards_of(planned),
        }
    )


def _sharding(entry: TableEntry, kernel: str, problem: PlanProblem) -> ParameterSharding:
    cache = entry.cache_params
    shards = [
        ShardMetadata(
            list(shard.offsets),
            list(shard.sizes),
            placement(problem.device, shard.rank, problem.local_world_size),
        )
        for shard in entry.shards
    ]
    replicated = entry.sharding_type == "data_parallel"
    return ParameterSharding(
        sharding_type=entry.sharding_type,
        compute_kernel=kernel,
        ranks=list(range(problem.world_size)) if replicated else [s.rank for s in entry.shards],
        sharding_spec=None if replicated else EnumerableShardingSpec(shards),
        cache_params=None if cache is None else CacheParams(load_factor=cache.load_factor),
    )
