"""Settings of the data benchmark."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from cdp_torchrec.config import Config
from cdp_torchrec.config.once import ONCE


class DataSettings(Config):
    """What is measured."""

    rows: Annotated[tuple[str, ...], Field(min_length=1), ONCE] = ("pooled", "sim_hard", "din")
    """Names of files in configs/interest: which forms of the history are read. pooled reads sums
    and counts behind the gate, sim_hard sequences behind it, din sequences of all behaviours."""
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1), ONCE] = (50, 200, 2000, 10000)
    """Behaviours before each request."""
    num_categories: PositiveInt = 10
    """Categories of the log; the gate passes one of them. 1: it passes everything."""
    num_items: PositiveInt = 1_000_000
    """Items of the log; few enough that behaviours and candidates meet."""
    num_users: PositiveInt = 100
    """Users, each with a history of its own."""
    requests_per_user: Annotated[int, Field(ge=2)] = 20
    """Requests of each, all behind the history; the last one is the test split."""
    num_candidates: Annotated[int, Field(ge=2, le=100_000)] = 20
    """Candidates of a request, all in one category, as on a page of search results."""
    batch_size: PositiveInt = 1024
    """Impressions of a batch."""
    rounds: PositiveInt = 3
    """Rounds to take medians of; all contestants take their turns in each."""
    workers: Annotated[tuple[NonNegativeInt, ...], ONCE] = (0, 1, 2)
    """Loader processes; 0: the rank assembles its batches itself."""
    worker_batches: PositiveInt = 100
    """Batches of a round with loader processes, in the order of a training."""
    scratch: Path | None = None
    """Directory for the logs, which are removed at the end; without it, the system's."""
    output: Path | None = None
    """Directory for the tables (data.md) and all numbers (data.json)."""


class DataBenchmarkConfig(Config):
    """Configuration of `benchmark data`."""

    benchmark: DataSettings = DataSettings()
    """What is measured."""
