"""Settings of a run: the training loop, and where its results go."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from cdp_torchrec.config import MAY_CHANGE, Config

CheckpointMode = Literal["background", "blocking"]
ValidationMetric = Literal["gauc", "auc", "uauc", "log_loss"]


class RunConfig(Config):
    """Where the results go."""

    dir: Annotated[Path | None, MAY_CHANGE] = None
    """Directory of the run; without it, a new one under runs/, named by the launcher's job or
    by the time."""
    resume: Annotated[bool, MAY_CHANGE] = False
    """Continue from the newest checkpoint in run.dir, with the run's own configuration; layers and
    key=value on top may change what decides no result. Begins where there is no checkpoint yet, so
    that a job script may repeat one line."""
    fork_from: Path | None = None
    """Begin a new run, with other settings, from the weights and the optimizer state of this run's
    best checkpoint (or of this checkpoint). Its configuration lies below what else is given. On
    days that were appended since (data.train_on), tables may have rows for more ids: those behind
    the rows of the run are begun anew."""
    verify: Annotated[bool, MAY_CHANGE] = False
    """Begin with reading the whole dataset, to compare every byte with its checksums; without it, a
    few blocks of each file are compared."""


class TrainerConfig(Config):
    """The training loop."""

    global_batch_size: PositiveInt = 4096
    """Impressions per step over all ranks; 4 x 4096 in the paper."""
    max_epochs: Annotated[PositiveInt, MAY_CHANGE] = 1
    """Passes over the training impressions."""
    max_steps: Annotated[PositiveInt | None, MAY_CHANGE] = None
    """Stop after this many steps, even within the first epoch; max_epochs ends it, too."""
    log_every_steps: Annotated[PositiveInt, MAY_CHANGE] = 10
    """Steps between two lines of metrics.jsonl."""
    validate_every_steps: Annotated[PositiveInt | None, MAY_CHANGE] = None
    """Steps between two validations; without it, one at the end of each epoch."""
    validation_metric: ValidationMetric = "gauc"
    """Decides which checkpoint is the best."""
    patience: Annotated[PositiveInt | None, MAY_CHANGE] = None
    """Stop after this many validations in a row without a better one; without it, never."""
    checkpoint_every_steps: Annotated[PositiveInt | None, MAY_CHANGE] = None
    """Steps between two checkpoints; without it, one at each validation and at the end. Tables with
    managed collision assign rows at each, so there it has a part in the result."""
    checkpoint_mode: Annotated[CheckpointMode, MAY_CHANGE] = "background"
    """"background": the loop stops for a copy of the tensors only, which takes as much main memory
    as they do, and goes on while the copy is written; "blocking": it waits until they are
    written."""
    keep_checkpoints: Annotated[PositiveInt, MAY_CHANGE] = 2
    """Newest checkpoints kept, beside the best one."""
    num_workers: Annotated[int, Field(ge=0, le=1024), MAY_CHANGE] = 0
    """Processes per rank that prepare batches; 0: the training process itself."""
