"""What a run keeps of its numbers."""

import json
import math
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.run.records import Progress


def test_what_is_undefined_is_null(tmp_path: Path) -> None:
    with Monitor(tmp_path, total_steps=2, quiet=True) as monitor:
        monitor.record("validation", 1, {"auc": 0.5, "gauc": math.nan})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
    assert (found["auc"], found["gauc"]) == (0.5, None)


def test_a_full_disk_is_said_with_what_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor(tmp_path, total_steps=2, quiet=True)
    with Path("/dev/full").open("a") as full:
        monkeypatch.setattr(monitor, "_file", full)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/metrics.jsonl'"):
            monitor.record("train", 1, {"loss": 0.5})
        with pytest.raises(OSError, match=r"metrics\.jsonl'"):
            monitor.__exit__(None, None, None)


def test_tensorboard_forgets_what_is_trained_again_and_has_no_undefined_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Monitor(tmp_path, total_steps=6, quiet=True) as monitor:
        for step in (2, 5):
            monitor.record("train", step, {"loss": 0.5, "gauc": math.nan})
    start = Progress(step=2, position=32)
    # TensorBoard reads its files in the order of their seconds, and a training that goes on has
    # imported torch since.
    a_second_later = time.time() + 1
    monkeypatch.setattr(time, "time", lambda: a_second_later)
    with Monitor(tmp_path, total_steps=6, start=start, quiet=True) as monitor:
        monitor.record("train", 3, {"loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [event.step for event in events.Scalars("train/loss")] == [2, 3]
