"""A training that is stopped or killed at some step is continued to the last bit."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import CONFIGS, ROOT
from tests.runs import losses
from tests.whole_matrix import WHOLE_MATRIX

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 24
SETTINGS = (
    str(CONFIGS / "interest" / "cdp.toml"),
    "trainer.global_batch_size=256",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_steps=1",
    "trainer.checkpoint_every_steps=7",
    "trainer.validate_every_steps=8",
)
MOMENTS = [(signal.SIGKILL, 17), (signal.SIGTERM, 9), (signal.SIGINT, 3)]
CASES = [(ranks, *moment) for ranks in (1, 2) for moment in MOMENTS]
if not WHOLE_MATRIX:  # else test_signals.py and test_training.py do the like
    CASES = [(2, signal.SIGKILL, 17)]


def start(
    ranks: int, dataset: Path, run_dir: Path, *more: str, log: Path
) -> "subprocess.Popen[bytes]":
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
        launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    line = [*launcher, "launch/train.py", *SETTINGS, f"data.dir={dataset}", f"run.dir={run_dir}"]
    with log.open("w") as file:
        return subprocess.Popen(
            [*line, *more],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, list[float]]:
    """Number of ranks, and the losses of a training of theirs that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    job = start(request.param, tiny_dataset, folder / "run", log=folder / "log")
    assert job.wait() == 0, (folder / "log").read_text()
    return request.param, losses(folder / "run")


@pytest.mark.parametrize(("whole", "number", "step"), CASES, indirect=["whole"])
def test_it_goes_on_to_the_same_losses(
    whole: tuple[int, list[float]],
    number: signal.Signals,
    step: int,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    ranks, expected = whole
    run_dir, log = tmp_path / "run", tmp_path / "log"
    job = start(ranks, tiny_dataset, run_dir, log=log)
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert job.poll() is None, log.read_text()
        time.sleep(0.01)
    # Killed is a rank, without its launcher; stopped is the whole job, as by a scheduler.
    rank_zero = re.findall(r"process (\d+)", (run_dir / "lock").read_text())
    os.kill(int(rank_zero[0]) if number == signal.SIGKILL else job.pid, number)
    code = job.wait(timeout=60)
    assert code != 0
    if number != signal.SIGKILL:
        assert re.search(r"stopped after step \d+ of \d+, with a checkpoint", log.read_text())
    if ranks == 1:
        assert code == (-number if number == signal.SIGKILL else 128 + number)
    job = start(ranks, tiny_dataset, run_dir, "run.resume=true", log=log)
    assert job.wait() == 0, log.read_text()
    assert losses(run_dir) == expected
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert all(re.fullmatch(r"step-\d{8}", name) for name in names), names
