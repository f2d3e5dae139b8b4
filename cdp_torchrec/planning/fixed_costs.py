"""What a step costs however little there is to do, and what its ids cost on their way."""

from collections.abc import Sequence

from torchrec.distributed.planner.types import CollectiveType

from cdp_torchrec.distributed.plans.constraints import COLUMN_TYPES
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.topology import link_of_collective
from cdp_torchrec.planning.estimate import TableEstimate

_COLLECTIVES = {"table_row_wise": 6, "grid_shard": 6}
"""Of tables of one kind of sharding in a step: lengths and ids on their way in, embeddings and
gradients on their way out and back, the last two in two stages where a node and the nodes take
turns."""
_USUAL_COLLECTIVES = 4
_ID_BYTES = 8


def count_groups(tables: Sequence[TableEstimate]) -> int:
    """Lookups in a step: tables of one collection, sharding type and kernel share one."""
    return len({(t.table.module, t.sharding_type, t.compute_kernel) for t in tables})


def count_collectives(tables: Sequence[TableEstimate]) -> int:
    """Collectives of the tables in a step; gradients of data-parallel tables go with the dense."""
    groups = {(t.table.module, t.sharding_type) for t in tables}
    return sum(
        _COLLECTIVES.get(kind, _USUAL_COLLECTIVES) for _, kind in groups if kind != "data_parallel"
    )


def fixed_ms(problem: PlanProblem, tables: Sequence[TableEstimate]) -> float:
    """Of the step, of the lookups and of the collectives of tables, on every rank."""
    hardware = problem.hardware
    found = hardware.fixed_cost("step_ms")
    found += count_groups(tables) * hardware.fixed_cost("lookup_us") / 1e3
    if problem.world_size > 1:
        found += count_collectives(tables) * hardware.collective_ms(problem.world_size - 1)
    return found


def input_ms(problem: PlanProblem, tables: Sequence[TableEstimate]) -> float:
    """Of one rank's ids on their way to the tables; columns of a table each need all of them."""
    if problem.world_size == 1:
        return 0.0
    ids = 0.0
    for table in tables:
        if table.sharding_type == "data_parallel":
            continue
        by_columns = table.sharding_type in COLUMN_TYPES
        parts = table.table.embedding_dim / table.shards[0].columns if by_columns else 1.0
        factors = (problem.pooling_factors.get(key, 1.0) for key in table.table.features)
        ids += parts * sum(1 + factor for factor in factors)  # a length, and the ids
    link = link_of_collective(problem.hardware, problem.world_size, CollectiveType.ALL_TO_ALL)
    return problem.batch_size * ids * _ID_BYTES / link
