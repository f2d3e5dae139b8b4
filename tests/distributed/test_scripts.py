"""The scripts of launch/ as a newcomer types them, from the checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.commands import run_command
from tests.paths import ROOT

pytestmark = pytest.mark.distributed

BIN = Path(sys.executable).parent


def run(*command: str | Path, fails: bool = False) -> str:
    """What the command prints; with `fails`, on stderr too."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def trained(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of the quickstart's configuration on the tiny dataset, 2 ranks."""
    run_dir = tmp_path_factory.mktemp("runs") / "quickstart"
    line = ["torchx", "run", "dist.ddp", "-j", "1x2", "launch/train.py"]
    settings = ["trainer.max_steps=4", "trainer.global_batch_size=256"]
    run(*line, f"data.dir={tiny_dataset}", f"run.dir={run_dir}", *settings)
    return run_dir


def test_the_launch_line_trains_and_measures(trained: Path) -> None:
    result = json.loads((trained / "evaluation.json").read_text())
    assert {"auc", "uauc", "gauc", "auc_interval", "strata"} <= set(result)
    for name in ("config.toml", "plan.json", "environment.json", "metrics.jsonl", "checkpoints"):
        assert (trained / name).exists(), name


def test_a_run_is_measured_again_by_one_rank(trained: Path) -> None:
    before = json.loads((trained / "evaluation.json").read_text())
    ended = run_command("evaluate", trained, "--predictions")
    assert ended.codes == [0] and "GAUC" in ended.said
    assert (trained / "predictions.parquet").is_file()
    after = json.loads((trained / "evaluation.json").read_text())
    assert after["gauc"] == pytest.approx(before["gauc"], abs=1e-4)


def test_a_finished_run_is_not_overwritten(trained: Path) -> None:
    ended = run_command("train", trained / "config.toml")
    assert ended.codes == [1]
    assert "holds another run: continue it with run.resume=true" in ended.said
    assert "Traceback" not in ended.said


@pytest.mark.slow
def test_reference_scorers_of_a_dataset_are_measured_by_two_ranks(tiny_dataset: Path) -> None:
    ended = run_command("evaluate", tiny_dataset, world_size=2)
    assert ended.codes == [0, 0]
    assert all(f"{name} " in ended.said for name in ("popularity", "position_click_rate", "bayes"))
    assert ended.said.count("last_touched") == 1, "rank 0 alone speaks"


def test_help_documents_every_key() -> None:
    text = run(sys.executable, "launch/train.py", "--help")
    assert "torchx run dist.ddp -j 1x4 launch/train.py" in text
    for key in ("run.dir", "data.dir", "trainer.max_steps", "seed", "optimizer.sparse.lr"):
        assert key in text


def test_a_wrong_key_is_named_on_all_ranks_and_ends_the_job() -> None:
    line = ["torchx", "run", "dist.ddp", "-j", "1x2", "launch/train.py"]
    said = run(*line, "trainer.max_step=3", fails=True)
    assert "trainer.max_step: unknown key (did you mean 'max_steps'?)" in said
