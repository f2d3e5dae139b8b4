"""TorchRec's planner: quiet, with our sizes of memory, and in a reproducible order."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.constants import DEFAULT_PERF_ESTIMATOR
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.estimator import EmbeddingPerfEstimatorFactory
from torchrec.distributed.planner.proposers import (
    DynamicProgrammingProposer,
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError, Proposer, ShardingOption
from torchrec.distributed.types import ModuleSharder, PipelineType, ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.config import ProposerName, ShardingConfig, TableShardingConfig
from cdp_torchrec.distributed.plans.constraints import narrow_widths, table_constraints
from cdp_torchrec.distributed.plans.failure import explain_failure
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.quick_search import (
    EstimatorOfDistinctShards,
    QuickOption,
    QuickPartitioner,
)
from cdp_torchrec.distributed.plans.sharders import sharders
from cdp_torchrec.distributed.plans.tables import num_dense_parameters, optimizer_state_sized
from cdp_torchrec.distributed.plans.topology import make_topology

_PLANNER_SHARE = 1 / 2
"""Of the time of a search; another part goes before it, to look at all options."""
LOCAL_SHARE = 1 / 4
"""For what follows TorchRec's search."""
_FLOAT_BYTES = 4
_DENSE_COPIES = 5
"""Of each dense parameter: itself, gradient, two moments of Adam, and a bucket of DDP."""
_PROPOSERS: Mapping[ProposerName, Callable[[], Proposer]] = {
    "grid_search": GridSearchProposer,
    "greedy": GreedyProposer,
    "greedy_sum": partial(GreedyProposer, use_depth=False),
    "uniform": UniformProposer,
    "dynamic_programming": DynamicProgrammingProposer,
}


class ReproducibleEnumerator(EmbeddingEnumerator):
    """Enumerates the options of a table in the same order in every process, and quickly.

    The stock one goes through sets of strings, whose order differs from process to process, and
    with it the plan among equally good ones.
    """

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """Time and memory of all options."""
        for option in sharding_options:
            option.__class__ = QuickOption
        # The estimators of TorchRec 1.6 take the sharders themselves.
        sharders = getattr(self, "_sharder_data_map", self._sharder_map)
        for estimator in self._estimators:
            EstimatorOfDistinctShards(estimator).estimate(sharding_options, sharders)

    def _filter_sharding_types(
        self, name: str, allowed_sharding_types: list[str], sharder_key: str = ""
    ) -> list[str]:
        return sorted(super()._filter_sharding_types(name, allowed_sharding_types, sharder_key))

    def _filter_compute_kernels(
        self, name: str, allowed_compute_kernels: list[str], sharding_type: str
    ) -> list[str]:
        return sorted(super()._filter_compute_kernels(name, allowed_compute_kernels, sharding_type))


class QuietPlanner(EmbeddingShardingPlanner):
    """Does not warn, in the root logger, that data-parallel tables have no shards."""

    def plan(self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]) -> ShardingPlan:
        """The plan of a model."""
        root = logging.getLogger()
        root.addFilter(_is_no_missing_spec)
        try:
            return super().plan(module, sharders)
        finally:
            root.removeFilter(_is_no_missing_spec)


def _is_no_missing_spec(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Sharding spec not found for ")


def proposer_mistakes(sharding: ShardingConfig, device: str) -> list[str]:
    """Why the proposers cannot search for such ranks; nothing if they can."""
    if device == "cuda" or "dynamic_programming" not in sharding.proposers:
        return []
    return [
        "sharding.proposers: dynamic_programming divides the memory of GPUs, and the ranks compute "
        "on the CPU; leave it out"
    ]


def make_planner(problem: PlanProblem) -> EmbeddingShardingPlanner:
    """TorchRec's planner with our order of enumeration and reservation of memory.

    Raises:
        ConfigError: names every table that the configuration is wrong for, or the proposer that
            needs a GPU.
    """
    if mistakes := proposer_mistakes(problem.sharding, problem.device):
        raise ConfigError.of(mistakes)
    constraints = table_constraints(problem)
    topology = make_topology(problem.hardware, problem.world_size)
    prefetch = problem.sharding.prefetch
    return QuietPlanner(
        topology=topology,
        batch_size=problem.batch_size,
        enumerator=ReproducibleEnumerator(
            topology=topology,
            batch_size=problem.batch_size,
            constraints=constraints,
            estimator=[
                EmbeddingPerfEstimatorFactory.create(
                    DEFAULT_PERF_ESTIMATOR, topology=topology, constraints=constraints
                ),
                EmbeddingStorageEstimator(
                    topology=topology,
                    constraints=constraints,
                    pipeline_type=PipelineType.TRAIN_PREFETCH_SPARSE_DIST
                    if prefetch
                    else PipelineType.NONE,
                    run_embedding_at_peak_memory=True,  # NONE counts outputs, the other one so
                ),
            ],
        ),
        proposer=[_PROPOSERS[name]() for name in problem.sharding.proposers],
        storage_reservation=_reservation(problem),
        constraints=constraints,
        partitioner=QuickPartitioner(),
        timeout_seconds=math.ceil(problem.sharding.search_seconds * _PLANNER_SHARE),
        debug=False,
    )


def _reservation(problem: PlanProblem) -> HeuristicalStorageReservation:
    """Memory that no table may use: for the dense part, the batches, and a margin."""
    dense = num_dense_parameters(problem.model)
    with warnings.catch_warnings():
        # It advises to give the size of the dense part, which we do.
        warnings.filterwarnings("ignore", message="HeuristicalStorageReservation is known")
        return HeuristicalStorageReservation(
            percentage=problem.sharding.reserved_share,
            dense_tensor_estimate=dense * _FLOAT_BYTES * _DENSE_COPIES,
        )


@dataclass(frozen=True)
class EnumeratedOptions:
    """All ways to shard every table."""

    options: list[ShardingOption]
    """With the planner's estimates; their shards have no ranks yet."""
    reservation: HeuristicalStorageReservation
    """What no table may use, already reserved."""


def enumerate_options(problem: PlanProblem) -> EnumeratedOptions:
    """The options that a search would choose from.

    Raises:
        ConfigError: names every table that the configuration is wrong for, or says what leaves no
            memory for tables.
    """
    planner = make_planner(problem)
    model, every = problem.model, sharders(problem.sharding)
    reservation = reservation_of(planner)
    try:
        reservation.reserve(
            planner._topology, problem.batch_size, model, every, constraints=planner._constraints
        )
    except PlannerError as error:
        raise ConfigError(explain_failure(error, problem, reservation)) from error
    with optimizer_state_sized(model):
        return EnumeratedOptions(planner._enumerator.enumerate(model, every), reservation)


def narrower_options(problem: PlanProblem) -> list[ShardingOption]:
    """Narrower column shards than TorchRec's enumerator has, which knows one width of a table.

    Of tables that may be column_wise and have no width of their own.
    """
    constraints = table_constraints(problem)
    by_number: dict[int, dict[str, TableShardingConfig]] = {}
    for table in problem.tables:
        own = problem.sharding.tables.get(table.entity, TableShardingConfig())
        types = constraints[table.name].sharding_types or ()
        if "column_wise" not in types or own.column_width is not None:
            continue
        for number, width in enumerate(narrow_widths(table)):
            changes = {"types": ("column_wise",), "column_width": width}
            by_number.setdefault(number, {})[table.entity] = own.model_copy(update=changes)
    options = []
    for tables in by_number.values():
        constraints_of_all = {**problem.sharding.tables, **tables}
        sharding = problem.sharding.model_copy(update={"tables": constraints_of_all})
        found = enumerate_options(replace(problem, sharding=sharding)).options
        names = {table.name for table in problem.tables if table.entity in tables}
        options += [option for option in found if option.name in names]
    return options


def reservation_of(planner: EmbeddingShardingPlanner) -> HeuristicalStorageReservation:
    """What a planner has reserved, after its search."""
    reservation = planner._storage_reservation
    assert isinstance(reservation, HeuristicalStorageReservation)
    return reservation
