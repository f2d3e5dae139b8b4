"""A run found again: its checkpoint, its own configuration, and its trained model.

Whatever evaluates, exports, distills or measures a run begins here. A run is opened before torch is
imported, so that what is wrong with its name or an override shows at once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from cdp_torchrec.config import ConfigError, dump_toml, load_config, load_toml
from cdp_torchrec.config.changes import Change, find_changes
from cdp_torchrec.data.days import read_schema
from cdp_torchrec.data.schema import SCHEMA, SplitName
from cdp_torchrec.environment import release
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.checksums import verify
from cdp_torchrec.run.records import (
    CHECKPOINT,
    CheckpointError,
    CheckpointRecord,
    check_dataset,
    read_record,
)
from cdp_torchrec.run.saved import (
    CHECKPOINTS,
    CONFIG,
    PREDICTIONS,
    find_checkpoint,
    saved_checkpoints,
)
from cdp_torchrec.whole_file import write_whole

if TYPE_CHECKING:
    import torch

    from cdp_torchrec.experiment import Experiment, Trained

ConfigT = TypeVar("ConfigT", bound=ExperimentConfig)

_OF_TRAINING = ("optimizer.", "data.soft_labels.")
"""Keys that only a training reads."""


@dataclass(frozen=True)
class StoredRun(Generic[ConfigT]):
    """A checkpoint of a run, and how to read it; nothing is built yet."""

    checkpoint: Path
    directory: Path
    """Of the run."""
    record: CheckpointRecord
    config: ConfigT
    """The run's own, with overrides, without the plan and hardware that it was trained with."""
    changes: tuple[Change, ...] = ()
    """What the overrides change in results: other settings than the run's, or another dataset."""

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

    Plan, hardware and sharding group of the training are dropped, which are of other ranks and
    decide nothing but speed, and its soft labels, which nothing else reads.

    Args:
        path: run directory, for its best checkpoint, or a checkpoint.
        overrides: key=value over the run's configuration; sharding.plan=FILE brings a plan of one's
            own.
        config_class: the sections that the configuration has, and those that overrides may add.

    Raises:
        CheckpointError: there is no run or no complete checkpoint, another release wrote it, or it
            was trained on another dataset.
        ConfigError: an override is wrong, or of the optimizers, which have done their work.
        DatasetError: the schema of the dataset is damaged.
    """
    run = _read(find_checkpoint(path), config_class)
    dropped = ["data.soft_labels"]
    dropped += ["sharding.plan", "sharding.hardware", "sharding.sharding_group_size"]
    config = load_config(config_class, overrides, base=run.checkpoint / CONFIG, unset=dropped)
    if (config.data.dir / SCHEMA).is_file():  # else whoever reads it says what is there
        dataset = read_schema(config.data).digest()
        check_dataset(run.record, run.checkpoint, config.data.dir, dataset)
    changes = [c for c in find_changes(run.config, config) if c.key not in dropped]
    idle = [change.describe() for change in changes if change.key.startswith(_OF_TRAINING)]
    if idle:
        raise ConfigError.of(f"{line}, and only its training reads it" for line in idle)
    decisive = [
        change
        for change in changes
        if not change.may_change or _is_moved(change, run.config, config)
    ]
    return replace(run, config=config, changes=tuple(decisive))


def _is_moved(change: Change, own: ExperimentConfig, config: ExperimentConfig) -> bool:
    return change.key == "data.dir" and own.data.dir.resolve() != config.data.dir.resolve()


def parent_run(path: Path) -> StoredRun[ExperimentConfig]:
    """The run that another one begins from, as it was; its dataset may have moved since.

    Raises:
        CheckpointError: there is no run or no complete checkpoint, or another release wrote it.
    """
    return _read(find_checkpoint(path), ExperimentConfig)


def newest_checkpoint(run_dir: Path) -> StoredRun[ExperimentConfig] | None:
    """Newest checkpoint of a run whose records can be read; None if there is none at all.

    Raises:
        CheckpointError: none of them can be read, or another release wrote them.
    """
    failure = None
    for checkpoint in reversed(saved_checkpoints(run_dir / CHECKPOINTS)):
        try:
            return _read(checkpoint, ExperimentConfig)
        except CheckpointError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return None


def _read(checkpoint: Path, config_class: type[ConfigT]) -> StoredRun[ConfigT]:
    """A checkpoint with the configuration that it was written under."""
    record = read_record(checkpoint / CHECKPOINT)
    verify(checkpoint, record, [CONFIG])
    try:
        config = load_toml(config_class, checkpoint / CONFIG)
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint}: its configuration is not one of this release, {release()}; "
            f"{record.writer} wrote it. Use that release, or train again. {error}"
        ) from error
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


def evaluation_directory(run: StoredRun[ExperimentConfig], split: SplitName = "test") -> Path:
    """Where a measurement of a run belongs.

    The run's own directory has that of its best checkpoint on its test split under its own
    settings, and nothing else: any other measurement gets a directory of its own, named by what is
    other about it.
    """
    place = run.directory
    if run.checkpoint.parent.name != CHECKPOINTS:
        place = run.checkpoint.parent  # a checkpoint alone, away from its run
    parts = ["train"] if split == "train" else []
    parts += [] if _is_best(run) else [run.checkpoint.name]
    if run.changes:
        if any(change.key == "data.dir" for change in run.changes):
            parts.append(run.config.data.dir.resolve().name)
        changed = repr([(change.key, change.new) for change in run.changes])
        parts.append(hashlib.sha256(changed.encode()).hexdigest()[:8])
    return place / "evaluations" / "-".join(parts) if parts else place


def _is_best(run: StoredRun[ExperimentConfig]) -> bool:
    try:
        return find_checkpoint(run.directory) == run.checkpoint
    except CheckpointError:
        return False


def evaluate_run(
    run: StoredRun[ExperimentConfig],
    device: "torch.device",
    *,
    split: SplitName = "test",
    output: Path | None = None,
    write_predictions: bool,
) -> "Trained":
    """Measure the checkpoint of a run; collective.

    Args:
        run: the run.
        device: where this rank computes.
        split: on what.
        output: directory for evaluation.json, `evaluation_directory` if not given; one that is not
            the run's also gets the config.toml.
        write_predictions: also write predictions.parquet beside it.

    Raises:
        CheckpointError: the checkpoint does not fit the dataset.
    """
    from cdp_torchrec.distributed.process_group import is_rank_zero
    from cdp_torchrec.experiment import (
        Trained,
        evaluate_test,
        evaluate_training,
        write_evaluation,
    )

    output = output or evaluation_directory(run, split)
    experiment = run.load(device)
    file = experiment.prediction_file(output / PREDICTIONS) if write_predictions else None
    if is_rank_zero() and output != run.directory:
        write_whole(output / CONFIG, dump_toml(run.config))
    measure = evaluate_training if split == "train" else evaluate_test
    report = measure(experiment, predictions=file)
    write_evaluation(output, report, experiment.data.reader, split)
    return Trained(experiment, run.directory, run.record.progress, report)
