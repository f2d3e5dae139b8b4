"""Settings of the training benchmark."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from cdp_torchrec.config import Config
from cdp_torchrec.config.once import ONCE
from cdp_torchrec.experiment_config import ExperimentConfig


class TrainingSettings(Config):
    """What is timed."""

    rows: Annotated[tuple[str, ...], Field(min_length=1), ONCE] = ("pooled", "cdp", "cdp_paper")
    """Names of files in configs/interest; ratios are to the first one."""
    plain: bool = True
    """On one rank, also train the first row with plain nn.EmbeddingBag tables."""
    rounds: PositiveInt = 5
    """Rounds to take medians of, after one that warms up."""
    steps: PositiveInt = 10
    """Steps of each row in a round, and batches in memory, which take turns."""
    output: Path | None = None
    """Directory for the table (train.md) and all numbers (train.json)."""


class TrainingBenchmarkConfig(ExperimentConfig):
    """A run whose training is timed."""

    benchmark: TrainingSettings = Field(default_factory=TrainingSettings)
    """What is timed."""
