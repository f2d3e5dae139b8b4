"""The paper's log, which is only a schema, and its cases, which are planned in moments."""

from pathlib import Path

import pytest

from cdp_torchrec.config import load_config
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.workload import Workload, read_workload
from tests.paths import CONFIGS

PAPER = CONFIGS / "planning" / "paper.toml"


@pytest.fixture
def load(tmp_path: Path):
    """Configuration of the paper's setup with changes, writing into a temporary directory."""

    def load(*arguments: str) -> PlanningExperimentConfig:
        return load_config(
            PlanningExperimentConfig,
            [
                str(PAPER),
                f"data.dir={CONFIGS / 'planning' / 'paper'}",
                f"planning.output={tmp_path / 'plans'}",
                *arguments,
            ],
        )

    return load


@pytest.fixture
def workload(load) -> Workload:
    """The paper's setup."""
    return read_workload(load())
