"""The training loop, where it ends before its time."""

import os
import signal
from pathlib import Path

import pytest
import torch

from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.interruption import Interrupted
from cdp_torchrec.experiment import train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.finite import NonFiniteError
from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.run.saved import CHECKPOINTS, EVALUATION, PREDICTIONS, saved_checkpoints
from tests.paths import CONFIGS
from tests.runs import losses, recorded

pytestmark = pytest.mark.usefixtures("one_rank")


def train(dataset: Path, run_dir: Path, *settings: str) -> None:
    """Batches of 64, of which nothing is logged in between."""
    common = [f"data.dir={dataset}", f"run.dir={run_dir}"]
    common += ["trainer.global_batch_size=64", "trainer.log_every_steps=1000"]
    layers = [str(CONFIGS / "interest" / "pooled.toml"), *common, *settings]
    train_experiment(load_config(ExperimentConfig, layers), torch.device("cpu"), quiet=True)


def interrupted(
    dataset: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, *settings: str, lr: float
) -> None:
    """Train; a signal comes at the third step, long before anything is logged."""
    steps = []

    def advance(monitor: Monitor) -> None:
        steps.append(monitor)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Monitor, "advance", advance)
    train(dataset, run_dir, f"optimizer.dense.lr={lr}", *settings)


def test_nothing_is_saved_of_a_model_that_a_signal_finds_diverged(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the steps since the last line of the log are saved unseen: every resume would go
    on from them, and end."""
    with pytest.raises(NonFiniteError, match="lower the learning rates"):
        interrupted(tiny_dataset, tmp_path / "run", monkeypatch, lr=1e30)
    assert saved_checkpoints(tmp_path / "run" / CHECKPOINTS) == []


def test_nothing_is_saved_of_a_model_that_its_very_last_update_ruined(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """The loss is taken before the update, and no later one would tell."""
    ruinous = ["optimizer.sparse.kind=rowwise_adagrad", "optimizer.sparse.lr=3e38"]
    with pytest.raises(
        NonFiniteError,
        match=r"step 1: its update left weights that are no numbers, so it is not saved: \S*t_.*; "
        "lower the learning rates",
    ):
        train(tiny_dataset, tmp_path / "run", *ruinous, "trainer.max_steps=1")
    assert saved_checkpoints(tmp_path / "run" / CHECKPOINTS) == []
    assert len(losses(tmp_path / "run")) == 1


def test_the_last_step_before_a_signal_is_logged(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        interrupted(tiny_dataset, tmp_path / "run", monkeypatch, lr=1e-3)
    [checkpoint] = saved_checkpoints(tmp_path / "run" / CHECKPOINTS)
    assert int(checkpoint.name.removeprefix("step-")) >= 3
    assert len(losses(tmp_path / "run")) == 1


def test_a_run_that_goes_on_has_no_measurement_of_where_it_was(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends it before it is measured again. Fails where evaluation.json is still that of
    another checkpoint than the best one, and so for its predictions."""
    run_dir, measured = tmp_path / "run", tmp_path / "run" / EVALUATION
    settings = (tiny_dataset, run_dir, monkeypatch, "run.resume=true")
    interrupted(*settings, "trainer.max_steps=2", lr=1e-3)
    assert measured.is_file()
    predictions = run_dir / PREDICTIONS
    predictions.touch()
    interrupted(*settings, "trainer.max_steps=2", lr=1e-3)
    assert measured.is_file() and predictions.is_file(), "nothing was left to train"
    with pytest.raises(Interrupted):
        interrupted(*settings, "trainer.max_steps=9", lr=1e-3)
    assert not measured.exists() and not predictions.exists()


def test_without_a_validation_slice_a_training_stops_for_checkpoints_alone(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """Fails where the pipeline is emptied for validations that never come."""
    settings = ["data.validation_fraction=0", "trainer.validate_every_steps=1"]
    settings += ["trainer.checkpoint_every_steps=3", "trainer.max_steps=4"]
    train(tiny_dataset, tmp_path / "run", *settings)
    assert recorded(tmp_path / "run", "step") == [3, 4], "the last step before each stop is logged"
    names = [path.name for path in saved_checkpoints(tmp_path / "run" / CHECKPOINTS)]
    assert names == ["step-00000003", "step-00000004"]
