"""What a sharding-plan experiment explores."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts
from cdp_torchrec.data.config import NumRows
from cdp_torchrec.distributed.plans.config import TypeName
from cdp_torchrec.experiment_config import ExperimentConfig

NumIds = Annotated[float, Field(ge=0, le=1_000_000)]
"""Ids per impression, their mean."""

Strategy = Literal["planner", "constraints", TypeName]


class PlanningConfig(Config):
    """Plans to make and to compare, none of which needs the hardware that it is for."""

    hardware: Annotated[tuple[str, ...], Field(min_length=1)] = ("h100",)
    """Names of hardware (a10, a100-40, a100-80, h100, h200, b200, l40s, cpu) or paths of files
    of your own."""
    world_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=16_384)], ...], Field(min_length=1)
    ] = (8,)
    """Numbers of ranks: part of a node, or whole nodes. The planner's work grows with them: 1,024
    may take minutes."""
    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)] = ("planner",)
    """planner: TorchRec's choice for each table; a sharding type: that one for all but small
    tables; constraints: what sharding.strategy, sharding.tables and sharding.plan say, which no
    other strategy reads."""
    batch_size: PositiveInt = 4096
    """Impressions per rank and step."""
    impressions_per_day: PositiveInt | None = None
    """Length of a day's log; with it, plans show the time that a day takes to train."""
    rows: Mapping[str, NumRows] = {}
    """Rows of tables by entity, in place of what the dataset has."""
    pooling_factors: Mapping[str, NumIds] = {}
    """Mean number of ids per impression by key, in place of what the dataset shows. A dataset that
    is only a schema.toml needs it for every bag and for the history."""
    compare: tuple[str, str] | None = None
    """Two plans to compare table by table, such as ["h100-8-planner", "h100-8-row_wise"]; without
    it, the first two feasible ones of one hardware and number of ranks."""
    replica_sync_steps: PositiveInt | None = None
    """With sharding.sharding_group_size and an optimizer that is fused into the backward pass (all
    on CUDA, rowwise_adagrad on CPUs): steps after which TorchRec's DMPCollection averages weights
    and optimizer state of the replicas; without it, each. That is another optimizer than that of
    one copy, so training refuses it."""
    output: Path = Path("plans")
    """Directory of tables, figures and plan files."""
    cache: Path | None = None
    """Directory of earlier results, reused where nothing that matters has changed; without it,
    <output>/cache."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts_of_names = {
            "hardware": [Path(name).stem for name in self.hardware],
            "world_sizes": self.world_sizes,
            "strategies": self.strategies,
        }
        conflicts = [
            (key, f"names {value} twice, by which plans are told apart")
            for key, values in parts_of_names.items()
            for value, count in Counter[object](values).items()
            if count > 1
        ]
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self


class PlanningExperimentConfig(ExperimentConfig):
    """A training, and what to explore before it is run."""

    planning: PlanningConfig = PlanningConfig()
    """Plans to explore."""
