"""What a step costs however little there is to do, and what its ids cost on their way."""

from collections.abc import Sequence

from torchrec.distributed.planner.types import CollectiveType

from cdp_torchrec.distributed.plans.constraints import COLUMN_TYPES
from cdp_torchrec.distributed.plans.fixed_costs import group_ms
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.topology import link_of_collective
from cdp_torchrec.planning.estimate import TableEstimate

_ID_BYTES = 8


def fixed_ms(problem: PlanProblem, tables: Sequence[TableEstimate]) -> float:
    """Of the step, of the lookups and of the collectives of tables, on every rank."""
    groups = {(t.table.module, t.sharding_type, t.compute_kernel) for t in tables}
    of_tables = group_ms(problem.hardware, problem.world_size, groups)
    return problem.hardware.fixed_cost("step_ms") + of_tables


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
        lengths = _lengths(problem, table.sharding_type)
        ids += parts * sum(lengths + factor for factor in factors)
    link = link_of_collective(problem.hardware, problem.world_size, CollectiveType.ALL_TO_ALL)
    return problem.batch_size * ids * _ID_BYTES / link


def _lengths(problem: PlanProblem, sharding_type: str) -> int:
    """Of an impression: ids that go by rows are told apart before, so each rank gets a length."""
    match sharding_type:
        case "row_wise":
            return problem.world_size
        case "table_row_wise" | "grid_shard":
            return problem.local_world_size
        case _:
            return 1
