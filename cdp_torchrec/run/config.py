"""Settings of a run: the training loop, and where its results go."""

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from cdp_torchrec.config import Config

ValidationMetric = Literal["gauc", "auc", "uauc", "log_loss"]


class RunConfig(Config):
    """Where the results go."""

    dir: Path | None = None
    """Directory of the run; without it, a new one under runs/, named by the time."""
    resume: bool = False
    """Continue from the newest checkpoint in run.dir."""
    verify: bool = False
    """Begin with reading the whole dataset, to compare every byte with its checksums; without it, a
    few blocks of each file are compared."""


class TrainerConfig(Config):
    """The training loop."""

    global_batch_size: PositiveInt = 4096
    """Impressions per step over all ranks; 4 x 4096 in the paper."""
    max_epochs: PositiveInt = 1
    """Passes over the training impressions."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps, even within the first epoch."""
    log_every_steps: PositiveInt = 10
    """Steps between two lines of metrics.jsonl."""
    validate_every_steps: PositiveInt | None = None
    """Steps between two validations; without it, one at the end of each epoch."""
    validation_metric: ValidationMetric = "gauc"
    """Decides which checkpoint is the best."""
    patience: PositiveInt | None = None
    """Stop after this many validations in a row without a better one; without it, never."""
    checkpoint_every_steps: PositiveInt | None = None
    """Steps between two checkpoints; without it, one at each validation and at the end."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept, beside the best one."""
    num_workers: NonNegativeInt = 0
    """Processes per rank that prepare batches; 0: the training process itself."""
