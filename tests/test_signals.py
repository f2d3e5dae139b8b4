"""A signal is heard in every segment and while a model is measured, and nothing is lost by it."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdp_torchrec import evaluation
from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.interruption import Interrupted, Interruption
from cdp_torchrec.evaluation import update_metrics
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.checkpoint import Checkpointer
from cdp_torchrec.run.records import CHECKPOINT, CheckpointRecord, read_record
from cdp_torchrec.run.saved import saved_checkpoints
from tests import runs

CPU = torch.device("cpu")
SETTINGS = (
    "model.embedding_dim=4",
    "model.interest.kind=pooled",
    "trainer.global_batch_size=16",
    "trainer.max_steps=4",
    "trainer.log_every_steps=1",
    "trainer.validate_every_steps=2",
    "trainer.keep_checkpoints=1",
)
CHANGES = {"seconds", "impressions_per_s", "memory_gib"}
"""From one run to the next."""


class KilledError(RuntimeError):
    """Stands for what no process can catch."""


def settings(dataset: Path, run_dir: Path, *more: str) -> ExperimentConfig:
    own = (f"data.dir={dataset}", f"run.dir={run_dir}")
    return load_config(ExperimentConfig, [*SETTINGS, *own, *more])


def at_first_batch(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], Any], split: int) -> None:
    """Let something happen when the first batch of a split has been scored, counted from 0."""
    seen: list[object] = []

    def update(metrics: Any, *arguments: Any) -> None:
        update_metrics(metrics, *arguments)
        if metrics not in seen:
            seen.append(metrics)
            if len(seen) == split + 1:
                happen()

    monkeypatch.setattr(evaluation, "update_metrics", update)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line.keys() - CHANGES} for line in lines]


def records(run_dir: Path) -> list[CheckpointRecord]:
    """Of the checkpoints that are kept; sizes and digests of files say the tensors."""
    kept = [read_record(path / CHECKPOINT) for path in saved_checkpoints(run_dir / "checkpoints")]
    of_run = {"checksum": "", "files": {n: f for n, f in kept[0].files.items() if "distcp" in n}}
    return [record.model_copy(update=of_run) for record in kept]


def check_goes_on(dataset: Path, run_dir: Path, whole: Path) -> None:
    """A run that goes on ends with the numbers and the tensors of one that nothing has stopped."""
    train(settings(dataset, run_dir, "run.resume=true"), CPU)
    assert metrics(run_dir) == metrics(whole)
    assert records(run_dir) == records(whole)


@pytest.fixture(scope="module")
def whole(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has stopped."""
    run_dir = tmp_path_factory.mktemp("whole")
    with runs.one_rank():
        train(settings(tiny_dataset, run_dir), CPU)
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "number", "said"),
    [
        (0, signal.SIGTERM, "stopped after step 2 of 4, with a checkpoint in {run}"),
        (1, signal.SIGINT, "stopped after step 4 of 4, with a checkpoint in {run}"),
        (2, signal.SIGTERM, "{run} is trained, and not measured on the test split yet"),
    ],
)
def test_a_training_that_is_stopped_while_it_is_measured_goes_on_to_the_same_numbers(
    number: signal.Signals,
    split: int,
    said: str,
    whole: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(number)
    at_first_batch(monkeypatch, lambda: os.kill(os.getpid(), number), split)
    with pytest.raises(Interrupted) as end:
        train(settings(tiny_dataset, tmp_path), CPU)
    way_on = f"go on with run.dir={tmp_path} run.resume=true"
    assert str(end.value) == f"{number.name}: {said.format(run=tmp_path)}; {way_on}"
    assert signal.getsignal(number) == before
    assert records(tmp_path)[-1].progress.validation_is_due == (split < 2)
    monkeypatch.undo()
    check_goes_on(tiny_dataset, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["while it is measured", "before the result is kept"])
def test_a_validation_that_was_killed_is_made_again(
    where: str,
    whole: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill(*_: object) -> None:
        raise KilledError

    if where == "while it is measured":
        at_first_batch(monkeypatch, kill, 0)
    else:
        monkeypatch.setattr(Checkpointer, "add_validation", kill)
    with pytest.raises(KilledError):
        train(settings(tiny_dataset, tmp_path), CPU)
    monkeypatch.undo()
    check_goes_on(tiny_dataset, tmp_path, whole)


def test_a_signal_is_heard_after_one_long_step_in_every_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Interruption(CPU, world_size=1) as interruption:
        for _ in range(3):  # steps that take no time
            interruption.after_step()
        interruption.agree()  # between two segments
        signal.raise_signal(signal.SIGTERM)
        now += 9
        interruption.after_step()
        assert interruption.signal == signal.SIGTERM
