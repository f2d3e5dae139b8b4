"""FBGEMM counts forward passes as steps of its optimizers; scoring is none."""

from pathlib import Path

import pytest
import torch

from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.step_counts import _fused_kernels
from cdp_torchrec.evaluation import EvaluationSettings, evaluate
from cdp_torchrec.experiment import build_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.paths import CONFIGS

CPU = torch.device("cpu")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("row", ["pooled", "din"])  # din also looks up single behaviours
def test_an_evaluation_is_no_step_of_the_tables_optimizers(tiny_dataset: Path, row: str) -> None:
    config = load_config(
        ExperimentConfig,
        [
            str(CONFIGS / "interest" / f"{row}.toml"),
            f"data.dir={tiny_dataset}",
            "optimizer.sparse.kind=rowwise_adagrad",
        ],
    )
    experiment = build_experiment(config, CPU)
    parallelized = experiment.parallelized
    parallelized.optimizer.set_optimizer_step(7)  # as after a resume
    kernels = list(_fused_kernels(parallelized.model))
    assert len(kernels) == (1 if row == "pooled" else 2)
    evaluate(
        parallelized.model,
        parallelized.optimizer,
        experiment.data.test,
        EvaluationSettings(CPU),
    )
    assert [int(kernel.iter) for kernel in kernels] == [7] * len(kernels)
    assert [int(kernel.iter_cpu) for kernel in kernels] == [0] * len(kernels)  # takes iter's next
