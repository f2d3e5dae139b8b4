"""The main job is the same on 1, 2 and 4 ranks, also from the middle of a run."""

import logging
from pathlib import Path

import pytest
import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from cdp_torchrec.experiment import build_experiment, train
from tests.distributed.mishaps import copy_until_step_3
from tests.distributed.spawn import run_ranks
from tests.distributed.test_training import config
from tests.runs import losses

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

CPU = torch.device("cpu")


def on_two_ranks(dataset: Path, folder: Path) -> None:
    """Train, and copy what others resume."""
    train(config(dataset, folder / "two"), CPU)
    for name in ("one", "four"):
        copy_until_step_3(folder / "two", folder / name)


def on_other_ranks(dataset: Path, folder: Path, name: str) -> list[str]:
    """Train from the start, and resume what two ranks began; warnings of the pipeline."""
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    pipeline_logger = logging.getLogger("torchrec.distributed.train_pipeline")
    pipeline_logger.setLevel(logging.WARNING)
    pipeline_logger.addHandler(handler)
    train(config(dataset, folder / f"{name}_fresh"), CPU)
    train(config(dataset, folder / name, "run.resume=true"), CPU)
    return warnings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def warnings(tiny_dataset: Path, folder: Path) -> list[str]:
    """Of the pipeline on one and on four ranks."""
    run_ranks(2, on_two_ranks, tiny_dataset, folder)
    (on_one,) = run_ranks(1, on_other_ranks, tiny_dataset, folder, "one")
    return on_one + run_ranks(4, on_other_ranks, tiny_dataset, folder, "four")[0]


@pytest.mark.usefixtures("warnings")
def test_one_two_and_four_ranks_reach_the_same_losses(folder: Path) -> None:
    for name in ("one_fresh", "four_fresh"):
        assert losses(folder / name) == pytest.approx(losses(folder / "two"), abs=1e-5)


@pytest.mark.usefixtures("warnings")
def test_two_ranks_are_continued_by_one_and_by_four(folder: Path) -> None:
    for name in ("one", "four"):
        assert len(losses(folder / name)) == 6
        assert losses(folder / name) == pytest.approx(losses(folder / "two"), abs=1e-5)


def pipelined_modules(dataset: Path, folder: Path) -> list[str]:
    experiment = build_experiment(config(dataset, folder / "unused"), CPU)
    model, optimizer = experiment.parallelized.model, experiment.parallelized.optimizer
    pipeline = TrainPipelineSparseDist(model, optimizer, CPU)
    pipeline.progress(iter([experiment.data.train[0], experiment.data.train[256]]))
    return sorted(type(module).__name__ for module in pipeline._pipelined_modules)


def test_nothing_falls_out_of_the_pipeline(
    warnings: list[str], tiny_dataset: Path, folder: Path
) -> None:
    assert [w for w in warnings if "NOT be pipelined" in w] == []
    assert run_ranks(1, pipelined_modules, tiny_dataset, folder) == [
        ["ShardedEmbeddingBagCollection", "ShardedEmbeddingCollection"]
    ]
