"""Configuration of `benchmark.py plans`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from cdp_torchrec.config import Config
from cdp_torchrec.config.once import ONCE
from cdp_torchrec.data.config import NumRows
from cdp_torchrec.experiment_config import ExperimentConfig


class PlanBenchmarkConfig(Config):
    """Settings of `benchmark.py plans`."""

    plans: Annotated[tuple[str, ...], ONCE] = ()
    """Plans to run: strategies, as sharding.strategy, and plan files (.json). Without any:
    table_wise, row_wise, column_wise (if the optimizer allows it), data_parallel and auto."""
    rows: Mapping[str, NumRows] = {}
    """Rows of tables, by entity, in place of the dataset's; their ids are drawn uniformly."""
    rounds: PositiveInt = 3
    """How often every plan has its turn. Medians are taken, so that a slow moment of the machine
    does not count."""
    steps: PositiveInt = 5
    """Measured steps of each table in a round; fewer where they take more than a second."""
    output: Path | None = None
    """Directory for the table (plans.md), the figure (plans.png) and all numbers (plans.json)."""
    output_hardware: Path | None = None
    """File (.toml) for the hardware with fitted bandwidths, to be named by sharding.hardware: a new
    one, or one that was written so before."""


class PlansConfig(ExperimentConfig):
    """A run whose tables are measured under several plans."""

    benchmark: PlanBenchmarkConfig = Field(default_factory=PlanBenchmarkConfig)
    """What is measured."""
