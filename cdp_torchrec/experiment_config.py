"""Everything that decides a run, in one configuration; importing it does not import torch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from cdp_torchrec.config import Config, ConfigConflicts, ConfigError
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.days import read_schema
from cdp_torchrec.distributed.config import OptimizerConfig, RanksConfig
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.process_group import world_size
from cdp_torchrec.model.config import ModelConfig
from cdp_torchrec.run.config import RunConfig, TrainerConfig

Seed = Annotated[int, Field(ge=0, lt=1 << 43)]
"""Of a training, whose noise has one 64-bit key for each epoch of each seed."""


class ExperimentConfig(Config):
    """Everything that decides a run."""

    seed: Seed = 0
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
    ranks: RanksConfig = RanksConfig()
    """How long the ranks wait for one another."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        history, kept = self.model.interest.history, self.data.history.max_length
        if (history.recent_length or 0) > kept:
            raise ConfigConflicts(
                [
                    (
                        "data.history.max_length",
                        f"keeps {kept} behaviours, but model.interest reads the last "
                        f"{history.recent_length}; raise it, or shorten the module's history",
                    )
                ]
            )
        return self


def check_early(config: ExperimentConfig) -> None:
    """What is wrong with a run, as far as it shows before torch is imported.

    A synthetic dataset that is not there yet will be made.

    Raises:
        ConfigError: the configuration does not fit the dataset or the number of ranks.
        DatasetError: there is no readable dataset.
    """
    if mistakes := config.sharding.group_mistakes(world_size()):
        raise ConfigError.of(mistakes)
    check_dataset_early(config)


def check_dataset_early(config: ExperimentConfig) -> None:
    """Conflicts with a dataset that need not be made first.

    Raises:
        ConfigError: names all of them.
        DatasetError: there is no readable dataset.
    """
    if config.data.synthetic is None or config.data.dir.exists():
        check_against_data(config, world_size())


def check_against_data(config: ExperimentConfig, world_size: int) -> None:
    """Conflicts that only the dataset or the number of ranks reveals.

    Raises:
        ConfigError: names all of them.
    """
    problems = []
    schema = read_schema(config.data)
    names = [feature.name for feature in schema.features]
    for name in config.model.interaction.exclude:
        if name not in names:
            problems.append(
                f"model.interaction.exclude: the dataset has no feature '{name}'; it has {names}"
            )
    if config.trainer.global_batch_size % world_size:
        problems.append(
            f"trainer.global_batch_size = {config.trainer.global_batch_size}: not a multiple of "
            f"the {world_size} ranks"
        )
    if problems:
        raise ConfigError.of(problems)
    if config.data.soft_labels is not None:
        from cdp_torchrec.data.soft_labels import SoftLabels

        SoftLabels(config.data.soft_labels, schema)  # raises what its footer shows
