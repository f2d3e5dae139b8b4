"""One case of an exploration: a strategy on hardware at a scale, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.hardware import HardwareConfig
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.planning.config import PlanningExperimentConfig, Strategy
from cdp_torchrec.planning.estimate import PlanEstimate
from cdp_torchrec.planning.fixed_costs import fixed_ms, input_ms
from cdp_torchrec.planning.outside_config import OutsideConfig, OutsideSparseConfig
from cdp_torchrec.planning.replicas import ReplicaSync, sync_of

_MILLION = 1_000_000


@dataclass(frozen=True)
class PlanCase:
    """What to plan."""

    hardware_name: str
    hardware: HardwareConfig
    world_size: int
    strategy: Strategy
    sharding: ShardingConfig
    """Of this strategy."""
    optimizer: SparseOptimizerConfig | OutsideSparseConfig
    """Of the tables."""
    replica_sync_steps: int | None = None
    """Steps between two averages of the weights of replicas, if they are averaged."""

    @property
    def num_replicas(self) -> int:
        """Copies of the tables."""
        return self.world_size // (self.sharding.sharding_group_size or self.world_size)

    @property
    def name(self) -> str:
        """What tables, figures and plan files call it."""
        return f"{self.hardware_name}-{self.world_size}-{self.strategy}"

    def problem(
        self, model: nn.Module, batch_size: int, pooling_factors: Mapping[str, float]
    ) -> PlanProblem:
        """What needs a plan: one copy of the tables, on its ranks.

        Args:
            model: has the tables, on the meta device, with their optimizer applied.
            batch_size: impressions per rank and step.
            pooling_factors: mean number of ids per impression, by key.
        """
        return PlanProblem(
            model=model,
            sharding=self.sharding,
            optimizer=self.optimizer,
            hardware=self.hardware,
            world_size=self.world_size // self.num_replicas,
            batch_size=batch_size,
            pooling_factors=pooling_factors,
            num_replicas=self.num_replicas,
        )


@dataclass(frozen=True)
class Lopsided:
    """Why one rank is far slower, or fuller, than the others are on average."""

    reason: str
    """Names the rank and the tables."""
    fixes: Sequence[str]
    """Settings and what they gain, each of them planned; empty if none gains anything."""


@dataclass(frozen=True)
class FeasiblePlan:
    """A plan and the step it makes."""

    case: PlanCase
    estimate: PlanEstimate
    dense_ms: float
    """Forward, backward and update of the dense part on each rank."""
    all_reduce_ms: float
    """Of the dense gradients."""
    lopsided: Lopsided | None = None
    """None if the ranks are even, or the difference does not matter."""

    @property
    def fixed_ms(self) -> float:
        """Time of the step, the lookups and the collectives however little there is to do."""
        return fixed_ms(self.estimate.problem, self.estimate.tables)

    @property
    def replicas(self) -> ReplicaSync | None:
        """How several copies of the tables are kept alike."""
        return sync_of(self.estimate, self.case.replica_sync_steps)

    @property
    def replica_ms(self) -> float:
        """What that takes in a step."""
        return self.replicas.step_ms if self.replicas else 0.0

    @property
    def input_ms(self) -> float:
        """Time of the ids on their way to the tables."""
        return input_ms(self.estimate.problem, self.estimate.tables)

    @property
    def step_ms(self) -> float:
        """Estimate of a step, without any overlap of its parts."""
        found = self.estimate.embedding_ms + self.dense_ms + self.all_reduce_ms
        return found + self.fixed_ms + self.input_ms + self.replica_ms

    @property
    def step_range_ms(self) -> tuple[float, float]:
        """Where the step is expected to lie."""
        factor = self.case.hardware.uncertainty
        return self.step_ms / factor, self.step_ms * factor

    @property
    def impressions_per_s(self) -> float:
        """Of all ranks together."""
        return 1e3 * self.estimate.problem.batch_size * self.case.world_size / self.step_ms

    @property
    def rank_hours_per_million(self) -> float:
        """Cost of a million impressions."""
        return self.case.world_size * _MILLION / self.impressions_per_s / 3600

    @property
    def price_per_million(self) -> float | None:
        """The same in the currency of the hardware file, if it has a price."""
        price = self.case.hardware.price_per_rank_hour
        return None if price is None else price * self.rank_hours_per_million

    def hours_per_day(self, impressions_per_day: int) -> float:
        """Time to train on a day's log."""
        return impressions_per_day / self.impressions_per_s / 3600

    @property
    def rank_bytes(self) -> float:
        """Memory of the fullest rank, with all that is reserved."""
        return self.estimate.rank_bytes


@dataclass(frozen=True)
class InfeasiblePlan:
    """Why there is no plan, and what would make one possible."""

    case: PlanCase
    reason: Sequence[str]
    """Lines of text."""
    fixes: Sequence[str]
    """Each of them planned again with it."""


PlanOutcome = FeasiblePlan | InfeasiblePlan


def make_cases(
    config: PlanningExperimentConfig | OutsideConfig, hardware: Mapping[str, HardwareConfig]
) -> list[PlanCase]:
    """All cases, hardware by hardware.

    Args:
        config: world sizes, strategies, and what they share.
        hardware: by name.

    Raises:
        ConfigError: a world size is neither part of a node nor whole nodes, or does not fill
            sharding groups that are.
    """
    problems = [
        f"planning.world_sizes: {size} ranks are no whole nodes of {named.ranks_per_node} "
        f"({name}); expected at most {named.ranks_per_node}, or a multiple of it"
        for name, named in hardware.items()
        for size in config.planning.world_sizes
        if size > named.ranks_per_node and size % named.ranks_per_node
    ]
    problems += [
        mistake
        for size in config.planning.world_sizes
        for mistake in config.sharding.group_mistakes(size)
    ]
    group = config.sharding.sharding_group_size or 1
    problems += [
        f"sharding.sharding_group_size = {group}: is neither a part of a node of "
        f"{named.ranks_per_node} ({name}) that fills it, nor whole nodes"
        for name, named in hardware.items()
        if group % named.ranks_per_node and named.ranks_per_node % group
    ]
    if problems:
        raise ConfigError.of(problems)
    return [
        PlanCase(
            hardware_name=name,
            hardware=named,
            world_size=size,
            strategy=strategy,
            sharding=_sharding(strategy, config.sharding),
            optimizer=config.optimizer.sparse,
            replica_sync_steps=config.planning.replica_sync_steps,
        )
        for name, named in hardware.items()
        for size in config.planning.world_sizes
        for strategy in config.planning.strategies
    ]


def _sharding(strategy: Strategy, own: ShardingConfig) -> ShardingConfig:
    if strategy == "constraints":
        return own
    chosen = "auto" if strategy == "planner" else strategy
    return own.model_copy(update={"strategy": chosen, "tables": {}, "plan": None})
