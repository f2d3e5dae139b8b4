"""Settings of the preparation benchmark."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts
from cdp_torchrec.config.once import ONCE

DAYS = 60


class PreparationSettings(Config):
    """What is measured."""

    behaviours: Annotated[
        tuple[Annotated[int, Field(ge=10_000)], ...], Field(min_length=1), ONCE
    ] = (
        1_000_000,
        10_000_000,
    )
    """Behaviours of each log, over 60 days; the 61st, which is appended, has a sixtieth more."""
    behaviours_per_user: PositiveInt = 50
    """Each user has so many on average, and one request."""
    num_candidates: Annotated[int, Field(ge=2, le=100_000)] = 10
    """Candidates of a request."""
    num_items: PositiveInt = 1_000_000
    """Items, drawn by a Zipf law."""
    num_categories: PositiveInt = 1000
    """Categories of the items."""
    memory_gib: PositiveFloat = 2.0
    """Memory of the engine."""
    num_threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """Threads of the engine, which starts as many as it is told."""
    scratch: Path | None = None
    """Directory for the logs, which are removed at the end; without it, the system's."""
    output: Path | None = None
    """Directory for the table (preparation.md) and all numbers (preparation.json)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        most = min(self.behaviours) // (DAYS + 1)
        if self.behaviours_per_user > most:
            raise ConfigConflicts(
                [
                    (
                        "behaviours_per_user",
                        f"at most {most:,} with {min(self.behaviours):,} behaviours: each of "
                        f"{DAYS + 1} days needs a user",
                    )
                ]
            )
        return self


class PreparationBenchmarkConfig(Config):
    """Configuration of `benchmark prepare`."""

    benchmark: PreparationSettings = PreparationSettings()
    """What is measured."""
