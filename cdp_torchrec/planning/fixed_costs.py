"""What a step costs however little there is to do, and what its ids cost on their way."""

from collections.abc import Sequence

from cdp_torchrec.distributed.plans.constraints import COLUMN_TYPES
from cdp_torchrec.distributed.plans.fixed_costs import group_ms, table_input_ms
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.planning.estimate import TableEstimate


def fixed_ms(problem: PlanProblem, tables: Sequence[TableEstimate]) -> float:
    """Of the step, of the lookups and of the collectives of tables, on every rank."""
    groups = {(t.table.module, t.sharding_type, t.compute_kernel) for t in tables}
    of_tables = group_ms(problem.hardware, problem.world_size, groups)
    return problem.hardware.fixed_cost("step_ms") + of_tables


def input_ms(problem: PlanProblem, tables: Sequence[TableEstimate]) -> float:
    """Of one rank's ids on their way to the tables."""
    return sum(
        table_input_ms(
            problem,
            table.sharding_type,
            factors=[problem.pooling_factors.get(key, 1.0) for key in table.table.features],
            column_shards=(
                table.table.embedding_dim / table.shards[0].columns
                if table.sharding_type in COLUMN_TYPES
                else 1.0
            ),
        )
        for table in tables
    )
