"""A signal is heard in every segment, and after the last step it ends a training with a line."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from cdp_torchrec import experiment
from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.interruption import Interrupted, Interruption
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


def test_a_signal_is_heard_after_one_long_step_in_every_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Interruption(torch.device("cpu"), world_size=1) as interruption:
        now += 9
        interruption.after_step(failed=False)
        interruption.agree(failed=False)  # between two segments
        signal.raise_signal(signal.SIGTERM)
        now += 9
        interruption.after_step(failed=False)
        assert interruption.signal == signal.SIGTERM
