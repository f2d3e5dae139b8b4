"""A run found again: its checkpoint, its own configuration, and its trained model.

Whatever evaluates, exports, distills or measures a run begins here. A run is opened before torch is
imported, so that what is wrong with its name or an override shows at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.schema import read_schema
from cdp_torchrec.environment import release
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.records import (
    CHECKPOINT,
    CheckpointError,
    CheckpointRecord,
    check_dataset,
    read_record,
)
from cdp_torchrec.run.saved import CONFIG, find_checkpoint

if TYPE_CHECKING:
    import torch

    from cdp_torchrec.experiment import Experiment, Trained

ConfigT = TypeVar("ConfigT", bound=ExperimentConfig)


@dataclass(frozen=True)
class StoredRun(Generic[ConfigT]):
    """A checkpoint of a run, and how to read it; nothing is built yet."""

    checkpoint: Path
    directory: Path
    """Of the run."""
    record: CheckpointRecord
    config: ConfigT
    """The run's own, with overrides, without the plan that it was trained with."""

    def load(self, device: "torch.device", config: ExperimentConfig | None = None) -> "Experiment":
        """Build the experiment and load the checkpoint; collective.

        Args:
            device: where this rank computes.
            config: in place of the run's; of a model with the same parameters.

        Raises:
            ConfigError: the configuration does not fit the dataset or the number of ranks.
            DatasetError: the dataset is missing, incomplete or damaged.
            CheckpointError: the checkpoint does not fit the dataset or the model.
        """
        from cdp_torchrec.experiment import build_experiment

        experiment = build_experiment(config or self.config, device)
        load_checkpoint(experiment, self.checkpoint)
        return experiment


def open_run(
    path: Path, overrides: Sequence[str], config_class: type[ConfigT]
) -> StoredRun[ConfigT]:
    """Find a checkpoint and read its run's configuration.

    The plan of the training is dropped: it is of other ranks, and decides nothing but speed.

    Args:
        path: run directory, for its best checkpoint, or a checkpoint.
        overrides: key=value over the run's configuration; sharding.plan=FILE brings a plan of one's
            own.
        config_class: the sections that the configuration has, and those that overrides may add.

    Raises:
        CheckpointError: there is no run or no complete checkpoint, another release wrote it, or it
            was trained on another dataset.
        ConfigError: an override is wrong.
        DatasetError: there is no readable dataset.
    """
    checkpoint = find_checkpoint(path)
    record = read_record(CheckpointRecord, checkpoint / CHECKPOINT)
    layer = str(checkpoint / CONFIG)
    try:
        load_config(config_class, [layer])
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint}: its configuration is not one of this release, {release()}; "
            f"{record.writer} wrote it. Use that release, train again, or, where a key has only "
            f"got another name, change it in {layer}. {error}"
        ) from error
    config = load_config(config_class, [layer, *overrides], unset=["sharding.plan"])
    check_dataset(record, checkpoint, config.data.dir, read_schema(config.data).digest())
    return StoredRun(checkpoint, checkpoint.parent.parent, record, config)


def load_checkpoint(experiment: "Experiment", checkpoint: Path) -> None:
    """Load a checkpoint into an experiment; collective.

    Raises:
        CheckpointError: it belongs to another model or dataset.
    """
    from cdp_torchrec.experiment import make_checkpointer

    parallelized = experiment.parallelized
    checkpointer = make_checkpointer(experiment, checkpoint.parent.parent)
    checkpointer.load(checkpoint, parallelized.model, parallelized.optimizer)


def evaluate_run(
    run: StoredRun[ExperimentConfig], device: "torch.device", *, write_predictions: bool
) -> "Trained":
    """Measure the checkpoint of a run on the test split; collective.

    Args:
        run: the run.
        device: where this rank computes.
        write_predictions: also write predictions.parquet beside evaluation.json.

    Raises:
        CheckpointError: the checkpoint does not fit the dataset.
    """
    from cdp_torchrec.experiment import Trained, evaluate_test

    experiment = run.load(device)
    file = experiment.prediction_file(run.directory / "predictions.parquet")
    report = evaluate_test(
        experiment, run.directory, predictions=file if write_predictions else None
    )
    return Trained(experiment, run.directory, run.record.progress, report)
