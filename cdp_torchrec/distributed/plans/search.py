"""The plan for a problem: read from a file, or searched."""

import time
from dataclasses import dataclass

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption
from torchrec.distributed.types import ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.checks import check_prefetch
from cdp_torchrec.distributed.plans.failure import explain_failure
from cdp_torchrec.distributed.plans.file import read_plan
from cdp_torchrec.distributed.plans.improve import improve, slowest_ms
from cdp_torchrec.distributed.plans.planner import make_planner, reservation_of
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.sharders import sharders
from cdp_torchrec.distributed.plans.tables import optimizer_state_sized, shardings_of


@dataclass(frozen=True)
class SearchedPlan:
    """What a search has found."""

    plan: ShardingPlan
    options: tuple[ShardingOption, ...]
    """One for each table, with the planner's estimates; their shards know their ranks."""
    reservation: HeuristicalStorageReservation
    """Memory that no table may use."""
    num_proposals: int
    seconds: float
    unimproved_ms: float | None
    """Estimate of TorchRec's own plan: its slowest rank and the fixed costs of its groups. None if
    it has found no plan."""
    improved_ms: float
    """The same of this plan."""


def choose_plan(problem: PlanProblem) -> ShardingPlan:
    """The plan of the file that the configuration names, else what the planner finds.

    Raises:
        ConfigError: the file or the configuration does not fit the problem, or no plan does.
    """
    file = problem.sharding.plan
    if file is None:
        return search_plan(problem).plan
    plan = read_plan(file, problem)
    if problem.sharding.prefetch:
        check_prefetch(plan, problem.device)
    return plan


def search_plan(problem: PlanProblem) -> SearchedPlan:
    """A plan with its estimates, without a process group.

    Raises:
        ConfigError: the configuration is wrong for a table, or no plan fits.
    """
    sharding = problem.sharding
    planner = make_planner(problem)
    start = time.perf_counter()
    failure: PlannerError | None = None
    options: tuple[ShardingOption, ...] = ()
    with optimizer_state_sized(problem.model):
        try:
            planner.plan(problem.model, sharders(sharding))
            options = tuple(planner._best_plan or ())
        except PlannerError as error:
            failure = error
        unimproved = slowest_ms(options, problem) if options else None
        if sharding.search == "improved" and problem.world_size > 1:
            options = tuple(improve(options, planner, problem) or options)
    if not options:
        assert failure is not None
        reason = explain_failure(failure, problem, reservation_of(planner))
        raise ConfigError(f"sharding.strategy = '{sharding.strategy}': {reason}") from failure
    plan = to_sharding_plan(list(options), planner._topology)
    if problem.has_dense_gradients:
        for parameter in shardings_of(plan).values():
            parameter.compute_kernel = EmbeddingComputeKernel.DENSE.value
    _check_complete(plan, problem)
    if sharding.prefetch:
        check_prefetch(plan, problem.device)
    return SearchedPlan(
        plan=plan,
        options=options,
        reservation=reservation_of(planner),
        num_proposals=planner._num_proposals,
        seconds=time.perf_counter() - start,
        unimproved_ms=unimproved,
        improved_ms=slowest_ms(options, problem),
    )


def _check_complete(plan: ShardingPlan, problem: PlanProblem) -> None:
    """TorchRec leaves a table that is not in the plan unsharded, and says nothing."""
    planned = shardings_of(plan)
    missing = [table.name for table in problem.tables if table.name not in planned]
    if missing:
        raise RuntimeError(f"TorchRec's planner has left out the tables {', '.join(missing)}")
