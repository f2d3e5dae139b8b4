"""A signal after the last step ends a training with a line, and nothing is trained again."""

import os
import signal
from pathlib import Path

import pytest
import torch

from cdp_torchrec import experiment
from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.interruption import Interrupted
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.run.test_grown_tables import SETTINGS
from tests.runs import losses


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_stopped_while_it_is_measured_says_what_is_left(
    number: signal.Signals,
    tiny_dataset: Path,
    tmp_path: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def settings(*more: str) -> ExperimentConfig:
        own = [f"data.dir={tiny_dataset}", f"run.dir={tmp_path}"]
        return load_config(ExperimentConfig, [*SETTINGS, *own, *more])

    before = signal.getsignal(number)
    monkeypatch.setattr(experiment, "evaluate_test", lambda *_, **__: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as end:
        train(settings(), torch.device("cpu"))
    assert str(end.value) == (
        f"{number.name}: {tmp_path} is trained, and not measured on the test split yet; go on with "
        f"run.dir={tmp_path} run.resume=true"
    )
    assert signal.getsignal(number) == before
    trained = losses(tmp_path)
    monkeypatch.undo()
    assert train(settings("run.resume=true"), torch.device("cpu")).auc is not None
    assert losses(tmp_path) == trained
