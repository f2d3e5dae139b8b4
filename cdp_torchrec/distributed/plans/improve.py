"""TorchRec's plan of a problem, made better by the local search if that is worth it."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.types import Perf, ShardingOption

from cdp_torchrec.distributed.plans.fixed_costs import Group, group_ms, option_input_ms
from cdp_torchrec.distributed.plans.local_search import LocalSearch, placed_options
from cdp_torchrec.distributed.plans.planner import (
    LOCAL_SHARE,
    ReproducibleEnumerator,
    narrower_options,
    reservation_of,
)
from cdp_torchrec.distributed.plans.problem import PlanProblem

_WORTH = 0.98
"""Of the estimate, above which TorchRec's plan stays."""


def improve(
    plan: Sequence[ShardingOption], planner: EmbeddingShardingPlanner, problem: PlanProblem
) -> list[ShardingOption] | None:
    """A better plan, or None.

    Args:
        plan: of the planner, its shards have ranks; empty if it has found none.
        planner: after its search.
        problem: which it was for.
    """
    reserved = reservation_of(planner).last_reserved_topology
    enumerator = planner._enumerator
    assert isinstance(enumerator, ReproducibleEnumerator)
    options = enumerator.last_stored_search_space
    if reserved is None or options is None:
        return None  # there was no memory for tables, or nothing to enumerate
    storages = [device.storage for device in reserved.devices]
    search = LocalSearch(
        [*options, *narrower_options(problem)],
        np.array([[s.hbm for s in storages], [s.ddr for s in storages]], dtype=float),
        local_world_size=problem.local_world_size,
        group_cost=lambda groups: group_ms(problem.hardware, problem.world_size, groups),
        input_cost=lambda option: option_input_ms(problem, option),
    )
    found = search.improve(plan, problem.sharding.search_seconds * LOCAL_SHARE)
    if found is None:
        return None
    better = placed_options(found.chosen)
    is_worth = not plan or slowest_ms(better, problem) < _WORTH * slowest_ms(plan, problem)
    return better if is_worth else None


def slowest_ms(plan: Sequence[ShardingOption], problem: PlanProblem) -> float:
    """Planner's time of the slowest rank, and what all ranks pay: fixed costs, and their ids."""
    by_rank = np.zeros(problem.world_size)
    groups: set[Group] = set()
    for option in plan:
        groups.add((option.path, option.sharding_type, option.compute_kernel))
        for shard in option.shards:
            assert shard.rank is not None
            by_rank[shard.rank] += cast(Perf, shard.perf).total
    of_ids = sum(option_input_ms(problem, option) for option in plan)
    fixed = group_ms(problem.hardware, problem.world_size, groups)
    return float(by_rank.max()) + fixed + of_ids
