"""How tables with managed collision may be sharded."""

from collections.abc import Iterable

from cdp_torchrec.distributed.plans.tables import EmbeddingTable


def managed_collision_conflicts(
    table: EmbeddingTable,
    *,
    types: Iterable[str],
    kernels: Iterable[str],
    world_size: int,
    num_replicas: int,
) -> list[str]:
    """Why a table cannot be sharded so; nothing for tables without managed collision.

    Args:
        table: of the model.
        types: sharding types that are asked for.
        kernels: compute kernels that are asked for.
        world_size: number of ranks that hold a copy of the table.
        num_replicas: copies of the table.
    """
    if table.buckets is None:
        return []
    key = f"data.vocabulary.{table.entity}.managed_collision"
    problems = [
        f"{name} and {key} do not go together: TorchRec shards such tables row_wise only"
        for name in types
        if name != "row_wise"
    ]
    problems += [
        f"{name} and {key} do not go together: rows that change owners are reset in the memory of "
        "the device; use the kernel fused"
        for name in kernels
        if name.startswith("fused_uvm")
    ]
    if table.buckets % world_size:
        problems.append(
            f"{key}.buckets = {table.buckets}: expected a multiple of the {world_size} ranks, each "
            "of which holds whole buckets"
        )
    if num_replicas > 1:
        problems.append(
            f"sharding.sharding_group_size = {world_size} and {key} do not go together: each "
            "replica would give rows to the ids that it has seen"
        )
    return problems
