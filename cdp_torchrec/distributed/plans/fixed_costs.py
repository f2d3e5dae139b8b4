"""What a plan costs all ranks in a step: however little its tables have to do, and by their ids."""

from collections.abc import Iterable

from torchrec.distributed.planner.types import CollectiveType, ShardingOption

from cdp_torchrec.distributed.plans.constraints import COLUMN_TYPES
from cdp_torchrec.distributed.plans.hardware import HardwareConfig
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.topology import link_of_collective

_ID_BYTES = 8

_COLLECTIVES = {"data_parallel": 0, "table_row_wise": 6, "grid_shard": 6}
"""Of tables of one kind of sharding in a step: lengths and ids on their way in, embeddings and
gradients on their way out and back, the last two in two stages where a node and the nodes take
turns. Gradients of data-parallel tables go with those of the dense part."""
_USUAL_COLLECTIVES = 4

Group = tuple[str, str, str]
"""Path of the collection, sharding type and compute kernel: what tables share one lookup by."""


def group_ms(hardware: HardwareConfig, world_size: int, groups: Iterable[Group]) -> float:
    """Fixed time of the lookups and collectives of a step, on every rank."""
    groups = set(groups)
    found = len(groups) * hardware.fixed_cost("lookup_us") / 1e3
    if world_size > 1:
        kinds = {(path, sharding_type) for path, sharding_type, _ in groups}
        calls = sum(_COLLECTIVES.get(kind, _USUAL_COLLECTIVES) for _, kind in kinds)
        found += calls * hardware.collective_ms(world_size - 1)
    return found


def table_input_ms(
    problem: PlanProblem, sharding_type: str, *, factors: Iterable[float], column_shards: float
) -> float:
    """Of one rank's ids of a table on their way to it.

    Args:
        problem: whose batches they are of.
        sharding_type: of the table.
        factors: mean number of ids per impression of each feature that is looked up in it.
        column_shards: shards that its columns are split in, each of which needs all ids.
    """
    if problem.world_size == 1 or sharding_type == "data_parallel":
        return 0.0
    lengths = _lengths(problem, sharding_type)
    numbers = column_shards * sum(lengths + factor for factor in factors)
    link = link_of_collective(problem.hardware, problem.world_size, CollectiveType.ALL_TO_ALL)
    return problem.batch_size * numbers * _ID_BYTES / link


def option_input_ms(problem: PlanProblem, option: ShardingOption) -> float:
    """`table_input_ms` of a planner's option."""
    by_columns = option.sharding_type in COLUMN_TYPES
    return table_input_ms(
        problem,
        option.sharding_type,
        factors=option.input_lengths,
        column_shards=option.tensor.shape[1] / option.shards[0].size[1] if by_columns else 1.0,
    )


def _lengths(problem: PlanProblem, sharding_type: str) -> int:
    """Of an impression: ids that go by rows are told apart before, so each rank gets a length."""
    match sharding_type:
        case "row_wise":
            return problem.world_size
        case "table_row_wise" | "grid_shard":
            return problem.local_world_size
        case _:
            return 1
