"""Loads what a training goes on from: its own checkpoints, those of a forked run, or nothing."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cdp_torchrec.config import ConfigError
from cdp_torchrec.continuation import check_unchanged, flattered
from cdp_torchrec.data.days import requests_of_periods
from cdp_torchrec.distributed.parallelize import Parallelized
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.checkpoint import Checkpointer
from cdp_torchrec.run.records import BEGINNING, Progress
from cdp_torchrec.stored_run import parent_run


@dataclass(frozen=True)
class TrainingStart:
    """Where a training begins; the model is that of its checkpoint."""

    progress: Progress
    checkpoint: Path | None
    """What was loaded; of another run where this one is a fork. None: nothing."""
    notes: tuple[str, ...]
    """In words, for the terminal."""


def load_start(
    config: ExperimentConfig,
    parallelized: Parallelized,
    checkpointer: Checkpointer,
    *,
    total_steps: int,
) -> TrainingStart:
    """Load the model and its optimizers; collective.

    Args:
        config: the run.
        parallelized: its model and optimizer.
        checkpointer: its checkpoints.
        total_steps: steps of the whole training.

    Raises:
        ConfigError: the run would be another one, or end before it goes on.
        CheckpointError: a checkpoint belongs to another model or dataset.
    """
    from_rank_zero(
        lambda: check_unchanged(config, checkpointer.run_dir), purpose="read the run's settings"
    )
    newest = checkpointer.load_newest(parallelized.model, parallelized.optimizer)
    if newest is not None:
        checkpoint, progress = newest
        if progress.step > total_steps:
            raise ConfigError(
                f"run.resume: {checkpointer.run_dir} is at step {progress.step} already, and "
                f"trainer.max_epochs and trainer.max_steps end it at step {total_steps}; "
                "`evaluate` measures an earlier checkpoint"
            )
        notes = [f"resumed at step {progress.step}"]
        if progress.step == total_steps:
            notes.append(
                f"nothing is left to train up to step {total_steps}, the end by "
                "trainer.max_epochs and trainer.max_steps"
            )
        return TrainingStart(progress, checkpoint, tuple(notes))
    if config.run.fork_from is not None:
        parent = parent_run(config.run.fork_from)
        progress = checkpointer.load(
            parent.checkpoint, parallelized.model, parallelized.optimizer, may_grow=True
        ).forked()
        torch.manual_seed(config.seed)  # the checkpoint has brought the generator's state
        warnings = flattered(parent.config, config, requests_of_periods(config.data.dir))
        notes = [f"forked from {parent.checkpoint}", *warnings]
        return TrainingStart(progress, parent.checkpoint, tuple(notes))
    notes = ["there is no checkpoint to resume: begun at step 0"] if config.run.resume else []
    return TrainingStart(BEGINNING, None, tuple(notes))
