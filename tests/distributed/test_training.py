"""The main job: it resumes, evaluates again, and is refused where it cannot be right."""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.records import CheckpointError
from cdp_torchrec.run.saved import find_checkpoint
from cdp_torchrec.stored_run import evaluate_run, open_run
from tests.distributed.mishaps import (
    copy_until_step_3,
    copy_with_damage,
    interrupt,
    interrupt_measurement,
    train_on_a_full_disk,
)
from tests.distributed.spawn import run_ranks
from tests.paths import CONFIGS
from tests.runs import losses

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

CPU = torch.device("cpu")


def config(dataset: Path, run_dir: Path, *overrides: str) -> ExperimentConfig:
    layer = Path(__file__).with_name("main_job.toml")
    data = [f"data.dir={dataset}", f"run.dir={run_dir}"]
    preset = str(CONFIGS / "interest" / "cdp_timestep.toml")
    return load_config(ExperimentConfig, [preset, str(layer), *data, *overrides])


@dataclass
class Message:
    """An expected error's text."""

    text: str


def error_of(action: Callable[[], Any]) -> Message | None:
    try:
        action()
    except (CheckpointError, ConfigError) as error:
        return Message(str(error))
    return None


def on_two_ranks(dataset: Path, folder: Path) -> dict[str, Any]:
    """Train, resume, change the plan and the optimizer, and make mistakes."""
    run = folder / "two"
    report = train(config(dataset, run), CPU)
    found: dict[str, Any] = {"auc": report.auc}
    train(config(dataset, folder / "adam", "optimizer.sparse.kind=adam"), CPU)
    resumed = folder / "resumed"
    copy_with_damage(run, resumed)
    copy_until_step_3(folder / "adam", folder / "adam_resumed")
    train(config(dataset, resumed, "run.resume=true"), CPU)
    train(
        config(dataset, folder / "adam_resumed", "run.resume=true", "optimizer.sparse.kind=adam"),
        CPU,
    )
    fork = (f"run.fork_from={folder / 'adam'}", "optimizer.sparse.kind=adam", "seed=3")
    train(config(dataset, folder / "fork", *fork), CPU)
    copy_until_step_3(folder / "fork", folder / "fork_resumed")
    train(config(dataset, folder / "fork_resumed", "run.resume=true", *fork), CPU)
    one_step = ("trainer.max_steps=1", "trainer.validate_every_steps=1")
    train(config(dataset, folder / "fresh", *fork[1:], *one_step), CPU)
    train(
        config(
            dataset,
            folder / "pruned",
            "trainer.keep_checkpoints=1",
            "trainer.checkpoint_every_steps=1",
        ),
        CPU,
    )
    interrupted = config(dataset, folder / "interrupted", "trainer.validate_every_steps=6")
    found["interrupted"] = interrupt(interrupted)
    train(
        interrupted.model_copy(update={"run": RunConfig(dir=interrupted.run.dir, resume=True)}), CPU
    )
    measured = folder / "measured"
    resume = config(dataset, measured, "run.resume=true")
    found["measured"] = [
        interrupt_measurement(config(dataset, measured)),
        interrupt_measurement(resume),  # in the validation that is due
        train(resume, CPU).auc,
        interrupt_measurement(resume),
    ]
    with mock.patch.dict(os.environ, TORCHELASTIC_RESTART_COUNT="1"):
        found["restarted"] = train(config(dataset, run), CPU).auc
    found["evaluated"] = evaluate_run(
        open_run(run, [], ExperimentConfig), CPU, write_predictions=True
    ).report.auc
    mistakes = {
        "occupied": config(dataset, run),
        "other_run": config(dataset, resumed, "run.resume=true", "seed=5"),
        "past_the_end": config(dataset, resumed, "run.resume=true", "trainer.max_steps=4"),
        "other_model": config(
            dataset, folder / "none", f"run.fork_from={resumed}", "model.embedding_dim=4"
        ),
        "other_module": config(
            dataset,
            folder / "none",
            f"run.fork_from={resumed}",
            "model.interest={kind='pooled',recency_segments=[1,4,16]}",
        ),
        "other_optimizer": config(
            dataset, folder / "none", f"run.fork_from={resumed}", "optimizer.sparse.kind=adam"
        ),
        "uneven": config(dataset, folder / "uneven", "trainer.global_batch_size=255"),
    }
    found["full_disk"] = error_of(lambda: train_on_a_full_disk(config(dataset, folder / "full")))
    found["mistakes"] = {n: error_of(lambda c=c: train(c, CPU)) for n, c in mistakes.items()}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def two_ranks(tiny_dataset: Path, folder: Path) -> dict[str, Any]:
    return run_ranks(2, on_two_ranks, tiny_dataset, folder)[0]


def test_resume_at_the_same_rank_count_is_bit_identical(
    two_ranks: dict[str, Any], folder: Path
) -> None:
    assert len(losses(folder / "two")) == 6
    assert losses(folder / "resumed") == losses(folder / "two")
    assert losses(folder / "adam_resumed") == losses(folder / "adam")


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(
    two_ranks: dict[str, Any], folder: Path
) -> None:
    names = {path.name for path in (folder / "resumed" / "checkpoints").iterdir()}
    assert names == {"step-00000003", "step-00000006", "damaged-step-00000006"}


def test_a_signal_to_one_rank_ends_all_after_the_same_step_and_loses_nothing(
    two_ranks: dict[str, Any], folder: Path
) -> None:
    run = f"{folder}/interrupted"
    assert re.fullmatch(
        rf"143: SIGTERM: stopped after step [1-5] of 6, with a checkpoint in {run}; go on with "
        rf"run\.dir={run} run\.resume=true",
        two_ranks["interrupted"],
    )
    assert losses(folder / "interrupted") == losses(folder / "two")


def test_a_signal_to_one_rank_cuts_off_what_is_measured_and_loses_nothing(
    two_ranks: dict[str, Any], folder: Path
) -> None:
    run = f"{folder}/measured"
    way_on = f"go on with run.dir={run} run.resume=true"
    cut_off = f"143: SIGTERM: stopped after step 3 of 6, with a checkpoint in {run}; {way_on}"
    unmeasured = f"143: SIGTERM: {run} is trained, and not measured on the test split yet; {way_on}"
    assert two_ranks["measured"] == [cut_off, cut_off, two_ranks["auc"], unmeasured]
    assert losses(folder / "measured") == losses(folder / "two")


def test_a_fork_starts_from_the_weights_of_its_parent_and_resumes_bit_identically(
    two_ranks: dict[str, Any], folder: Path
) -> None:
    assert losses(folder / "fork_resumed") == losses(folder / "fork")
    assert losses(folder / "fork")[0] < losses(folder / "fresh")[0]
    first, second = (folder / "fork_resumed" / "starts.jsonl").read_text().splitlines()
    assert json.loads(first)["checkpoint"].startswith(str(folder / "adam" / "checkpoints"))
    assert json.loads(first)["changed"] == {"seed": [0, 3]}
    assert (json.loads(second)["step"], json.loads(second)["changed"]) == (3, {})


def test_the_newest_and_the_best_checkpoint_are_kept(
    two_ranks: dict[str, Any], folder: Path
) -> None:
    checkpoints = folder / "pruned" / "checkpoints"
    best = find_checkpoint(folder / "pruned").name
    assert {path.name for path in checkpoints.iterdir()} == {"step-00000006", best}


def test_a_restarted_attempt_continues_by_itself(two_ranks: dict[str, Any]) -> None:
    assert two_ranks["restarted"] == two_ranks["auc"]


def test_adam_and_adagrad_differ(two_ranks: dict[str, Any], folder: Path) -> None:
    assert losses(folder / "adam")[-1] != pytest.approx(losses(folder / "two")[-1], abs=1e-5)


def test_a_run_is_evaluated_again_to_the_same_metrics(
    two_ranks: dict[str, Any], folder: Path
) -> None:
    assert two_ranks["evaluated"] == two_ranks["auc"]
    written = json.loads((folder / "two" / "evaluation.json").read_text())
    assert written["auc"] == two_ranks["auc"]
    assert {"uauc", "gauc", "log_loss", "strata", "bayes"} <= set(written)


def test_predictions_recompute_every_metric(two_ranks: dict[str, Any], folder: Path) -> None:
    table = pq.read_table(folder / "two" / "predictions.parquet")
    written = json.loads((folder / "two" / "evaluation.json").read_text())
    assert table.column_names == ["request_id", "user_id", "item_id", "label", "probability"]
    request, label, probability = (
        table[name].to_numpy() for name in ("request_id", "label", "probability")
    )
    assert roc_auc_score(label, probability) == pytest.approx(written["auc"])
    weights, aucs = [], []
    for one in np.unique(request):
        rows = request == one
        if 0 < label[rows].sum() < rows.sum():
            weights.append(rows.sum())
            aucs.append(roc_auc_score(label[rows], probability[rows]))
    assert np.average(aucs, weights=weights) == pytest.approx(written["gauc"])


def test_predictions_name_the_ids_of_the_log(
    two_ranks: dict[str, Any], tiny_dataset: Path, folder: Path
) -> None:
    table = pq.read_table(folder / "two" / "predictions.parquet")
    expected: dict[str, list[Any]] = {"request_id": [], "user_id": [], "item_id": [], "label": []}
    raw = {
        name: [
            None,
            *pq.read_table(tiny_dataset / "vocabulary" / f"{name}.parquet")["raw"].to_pylist(),
        ]
        for name in ("request", "user", "item")
    }
    for part in sorted((tiny_dataset / "test").glob("*.parquet")):
        for request in pq.read_table(part).to_pylist():
            for item, label in zip(request["item_id"], request["label"], strict=True):
                expected["request_id"].append(raw["request"][request["request_id"] + 1])
                expected["user_id"].append(raw["user"][request["user_id"]])
                expected["item_id"].append(raw["item"][item])
                expected["label"].append(label)
    assert {name: table[name].to_pylist() for name in expected} == expected


def test_training_starts_at_the_click_rate(
    two_ranks: dict[str, Any], tiny_dataset: Path, folder: Path
) -> None:
    rate = load_schema(tiny_dataset).splits["train"].click_rate
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    lines = (folder / "two" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["bce_loss"] == pytest.approx(entropy, rel=0.1)
    assert entropy < 0.9 * math.log(2), "a start at one half would pass too"


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        ("occupied", "holds another run: continue it with run.resume=true"),
        ("other_run", "seed = 5: the run has 0"),
        ("past_the_end", "is at step 6 already"),
        ("other_model", "model.embedding_dim = 4, in the checkpoint 8"),
        ("other_module", "model.interest.kind = pooled, in the checkpoint cdp"),
        ("other_optimizer", "optimizer.sparse.kind = adam, in the checkpoint rowwise_adagrad"),
        ("uneven", "trainer.global_batch_size = 255: not a multiple of the 2 ranks"),
    ],
)
def test_mistakes_end_with_a_message(two_ranks: dict[str, Any], mistake: str, text: str) -> None:
    message = two_ranks["mistakes"][mistake]
    assert message is not None
    assert text in message.text


def test_a_full_disk_leaves_no_half_written_checkpoint(
    two_ranks: dict[str, Any], folder: Path
) -> None:
    message = two_ranks["full_disk"]
    assert message is not None
    assert "step-00000003: cannot write the checkpoint" in message.text
    assert list((folder / "full" / "checkpoints").iterdir()) == []
