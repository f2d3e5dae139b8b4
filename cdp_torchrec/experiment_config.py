"""Everything that decides a run, in one configuration; importing it does not import torch."""

from typing import Self

from pydantic import NonNegativeInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.distributed.config import OptimizerConfig
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.model.config import ModelConfig
from cdp_torchrec.run.config import RunConfig, TrainerConfig


class ExperimentConfig(Config):
    """Everything that decides a run."""

    seed: NonNegativeInt = 0
    """Seed of the initial parameters, the order of impressions and all noise."""
    run: RunConfig = RunConfig()
    """Where the results go."""
    data: DataConfig
    """The dataset and how it is read."""
    model: ModelConfig
    """The ranking model."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Sparse and dense optimizer."""
    sharding: ShardingConfig = ShardingConfig()
    """Where the tables live."""
    trainer: TrainerConfig = TrainerConfig()
    """The training loop."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        history, kept = self.model.interest.history, self.data.history.max_length
        problems = [
            (key, f"must be below data.history.max_length = {kept}, found {found}")
            for key, found in (
                ("model.interest.recency_segments", sum(history.pool_segments or ())),
                ("data.history.count_segments", sum(self.data.history.count_segments)),
            )
            if found >= kept
        ]
        if (history.recent_length or 0) > kept:
            problems.append(
                (
                    "data.history.max_length",
                    f"keeps {kept} behaviours, but model.interest reads the last "
                    f"{history.recent_length}; raise it, or shorten the module's history",
                )
            )
        if problems:
            raise ConfigConflicts(problems)
        return self
