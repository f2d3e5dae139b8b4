"""A training ends where validation says so, and its result is the best checkpoint's."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cdp_torchrec.config import load_config
from cdp_torchrec.experiment import Trained, train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.run.records import Progress, Validation
from cdp_torchrec.run.saved import CHECKPOINTS, find_checkpoint, saved_checkpoints
from cdp_torchrec.trainer import Trainer
from tests.paths import CONFIGS

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(Monitor, "say", lambda self, line: lines.append(line))
    return lines


def train(
    dataset: Path,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: Sequence[float | None],
    *settings: str,
    end: int = 7,
    every: int = 1,
) -> Trained:
    """Validate every so many steps; what is measured after step n is values[n - 1]."""
    layers = [str(CONFIGS / "interest" / "pooled.toml"), f"data.dir={dataset}", *settings]
    layers += [f"run.dir={run_dir}", "run.resume=true", "trainer.global_batch_size=64"]
    layers += [f"trainer.validate_every_steps={every}", "trainer.keep_checkpoints=1"]
    config = load_config(ExperimentConfig, [*layers, f"trainer.max_steps={end}"])

    def measured(trainer: Trainer, progress: Progress) -> Validation | None:
        value = values[progress.step - 1]
        metric = config.trainer.validation_metric
        return None if value is None else Validation(metric=metric, value=value)

    monkeypatch.setattr(Trainer, "_measure", measured)
    return train_experiment(config, torch.device("cpu"), num_bootstrap=0, quiet=True)


def step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def kept(run_dir: Path) -> list[int]:
    return [step(path) for path in saved_checkpoints(run_dir / CHECKPOINTS)]


@pytest.mark.parametrize(
    ("values", "metric", "last", "best"),
    [
        ([0.5, 0.6, 0.6, 0.55], "gauc", 4, 2),  # an equal one is no better
        ([0.5, 0.6, 0.5, 0.7, 0.6, 0.6], "auc", 6, 4),  # in a row
        ([0.5, 0.4, 0.45, 0.4], "log_loss", 4, 2),  # less is better
        ([0.5, None, 0.4], "gauc", 3, 1),  # an undefined one is none
    ],
)
def test_so_many_validations_in_a_row_without_a_better_one_are_the_end(
    values: list[float | None],
    metric: str,
    last: int,
    best: int,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    run_dir = tmp_path / "run"
    settings = ("trainer.patience=2", f"trainer.validation_metric={metric}")
    trained = train(tiny_dataset, run_dir, monkeypatch, values, *settings)
    assert trained.progress.step == last
    assert kept(run_dir) == [best, last]
    assert step(find_checkpoint(run_dir)) == best
    assert said[-1] == (
        f"stopped early at step {last}: 2 validations without a better {metric} than "
        f"{values[best - 1]:.4f}"
    )


def test_patience_counts_on_where_a_run_goes_on(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Fails where a resume begins with new patience, or has forgotten what the best one was."""
    run_dir, values = tmp_path / "run", [0.5, 0.6, 0.55, 0.57, 0.58]
    train(tiny_dataset, run_dir, monkeypatch, values, "trainer.patience=3", end=3)
    trained = train(tiny_dataset, run_dir, monkeypatch, values, "trainer.patience=3")
    assert trained.progress.step == 5
    assert kept(run_dir) == [2, 5]


def test_without_patience_a_training_goes_to_its_end(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    trained = train(tiny_dataset, tmp_path / "run", monkeypatch, [0.9] + [0.5] * 6)
    assert trained.progress.step == 7
    assert kept(tmp_path / "run") == [1, 7]
    assert not any("stopped early" in line for line in said)


def test_a_run_goes_on_in_the_rhythm_of_its_validations(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """It ended at step 3, and every second step is validated: 4 comes next, not 5."""
    run_dir, values = tmp_path / "run", [0.5, 0.5, 0.5, 0.6, 0.5, 0.5, 0.5]
    for end in (3, 7):
        train(tiny_dataset, run_dir, monkeypatch, values, end=end, every=2)
    assert kept(run_dir) == [4, 7]
