"""A small table on the tiny dataset, and results made by hand."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cdp_torchrec.compare.cells import Cell, Table, load_table
from cdp_torchrec.compare.results import (
    METRICS,
    Latency,
    Origin,
    Result,
    Stratum,
    TrainingCost,
    write_result,
)
from cdp_torchrec.compare.run import run_table
from tests.paths import CONFIGS

INTEREST = CONFIGS / "interest"
CPU = torch.device("cpu")

TABLE = """
reference = "pooled"
floors = ["none"]
without_history = "none"
seeds = [0, 1]
num_bootstrap = 50
caption = "The paper has other numbers."
settings = ["trainer.max_steps=4", "trainer.validate_every_steps=2", "trainer.log_every_steps=1"]

[grid]
"optimizer.dense.lr" = [1e-3, 3e-3]

[datasets]
tiny = ["data.toml"]

[models]
none = ["{interest}/none.toml"]
pooled = ["{interest}/pooled.toml"]
"""

DATA = """
[data]
dir = "{dataset}"
[model]
embedding_dim = 8
[model.interest]
kind = "none"
[sharding]
small_table_rows = 20
[optimizer.sparse]
kind = "rowwise_adagrad"
[trainer]
global_batch_size = 256
"""

MakeTable = Callable[..., Table]
MakeResult = Callable[..., Result]


def write_table_file(folder: Path, dataset: Path) -> Path:
    """The table's file in `folder`."""
    (folder / "data.toml").write_text(DATA.format(dataset=dataset))
    path = folder / "table.toml"
    path.write_text(TABLE.format(interest=INTEREST))
    return path


def arguments(path: Path, runs: Path) -> list[str]:
    """Of the table with its row "pooled" alone, which saves time."""
    return [str(path), f"run_dir={runs}", 'select.models=["pooled"]']


def copied(finished: tuple[Path, Path], folder: Path) -> list[str]:
    """Arguments of a table with the same cells in another run directory."""
    path, runs = finished
    shutil.copytree(runs, folder / "runs")
    return arguments(path, folder / "runs")


@pytest.fixture(scope="module")
def finished(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory, one_rank: None
) -> tuple[Path, Path]:
    """The table's file and a run directory with its row "pooled"; do not write into it."""
    folder = tmp_path_factory.mktemp("table")
    path = write_table_file(folder, tiny_dataset)
    assert run_table(load_table([*arguments(path, folder / "runs")]), CPU) == {}
    return path, folder / "runs"


@pytest.fixture
def make_table(tiny_dataset: Path, tmp_path: Path) -> MakeTable:
    path = write_table_file(tmp_path, tiny_dataset)

    def make(*overrides: str) -> Table:
        return load_table([str(path), f"run_dir={tmp_path / 'runs'}", *overrides])

    return make


@pytest.fixture
def make_result() -> MakeResult:
    def make(*, gauc: float, validation: float, replicates: np.ndarray | None = None) -> Result:
        spread = np.random.default_rng(0).normal(0.0, 0.01, 50)
        samples = gauc + spread if replicates is None else replicates
        counts = ("num_impressions", "num_clicks", "num_users", "num_requests", "num_bootstrap")
        return Result(
            metrics={name: gauc for name in METRICS} | dict.fromkeys(counts, 100),
            replicates=dict.fromkeys(METRICS, samples),
            strata={"1-5": Stratum(gauc=gauc, num_impressions=40, replicates=samples)},
            cost=TrainingCost(
                validation=validation,
                steps=4,
                training_s=1.0,
                cpu_s=3.0,
                impressions_per_s=1000.0,
                dense_parameters=10,
                sparse_parameters=20,
                latency=Latency(median_ms=1.0, p90_ms=2.0, num_candidates=8, num_requests=100),
            ),
        )

    return make


ORIGIN = Origin(release="1.0 (commit abc)", files="0", config=None)


def finish(cell: Cell, result: Result) -> None:
    """Leave what a finished cell leaves, without training it."""
    write_result(cell.file, result, ORIGIN)
