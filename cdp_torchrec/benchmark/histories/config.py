"""Settings of the history benchmark."""

# D embedding dim

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from cdp_torchrec.config import Config
from cdp_torchrec.config.once import ONCE


class HistorySettings(Config):
    """What is measured."""

    rows: Annotated[tuple[str, ...], Field(min_length=1), ONCE] | None = None
    """Names of files in configs/interest; without it, all that have something to measure."""
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1), ONCE] = (
        50,
        200,
        1000,
        2000,
        10000,
    )
    """History lengths: the longest in the batch, the others are between half of it and all."""
    batch_size: PositiveInt = 1024
    """Impressions."""
    num_requests: PositiveInt = 45
    """Requests that the impressions belong to; those of a request share its history."""
    embedding_dim: PositiveInt = 16
    """Width D of every embedding."""
    max_rounds: PositiveInt = 5
    """Rounds to take medians of; fewer where they would take more than half of the time limit."""
    time_limit_s: PositiveFloat = 120.0
    """Wall-clock time for one row at one length, with the start of its process."""
    memory_limit_gib: PositiveFloat = 8.0
    """Memory of one row at one length."""
    output: Path | None = None
    """Directory for the tables (history.md) and all numbers (history.json)."""

    @property
    def requests_of_batch(self) -> int:
        """As many as num_requests, each with one impression or more."""
        return min(self.num_requests, self.batch_size)


class HistoryBenchmarkConfig(Config):
    """Configuration of `benchmark history`."""

    benchmark: HistorySettings = HistorySettings()
    """What is measured."""
