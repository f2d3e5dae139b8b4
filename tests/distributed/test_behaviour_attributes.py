"""Attributes of behaviours on two ranks and in loader processes: the same losses."""

from pathlib import Path

import pytest
import torch

from cdp_torchrec.config import load_config
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.conftest import MakeOnce
from tests.data.attributed_log import fill_attributed
from tests.distributed.spawn import run_ranks
from tests.paths import CONFIGS
from tests.runs import losses
from tests.whole_matrix import only_whole

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def losses_of(dataset: Path, run_dir: Path, num_workers: int) -> list[float]:
    settings = (
        str(CONFIGS / "interest" / "sasrec.toml"),
        f"data.dir={dataset}",
        f"run.dir={run_dir}",
        "data.vocabulary.tag={hash_bucket_size=6}",
        "model.embedding_dim=4",
        "model.embedding_init_std=0.3",
        "optimizer.sparse.kind=rowwise_adagrad",
        "optimizer.sparse.lr=0.2",
        "optimizer.dense.lr=0.01",
        "trainer.global_batch_size=32",
        "trainer.max_steps=4",
        "trainer.log_every_steps=1",
        f"trainer.num_workers={num_workers}",
    )
    train(load_config(ExperimentConfig, settings), torch.device("cpu"))
    return losses(run_dir)


@only_whole
def test_ranks_and_loader_processes_change_nothing(make_once: MakeOnce, tmp_path: Path) -> None:
    dataset = make_once("attributed", fill_attributed) / "whole"
    (one,) = run_ranks(1, losses_of, dataset, tmp_path / "one", 0)
    two, _ = run_ranks(2, losses_of, dataset, tmp_path / "two", 1)
    assert two == pytest.approx(one, abs=1e-5)
