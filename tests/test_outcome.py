"""The end of a training says what was reached, and in words what is wrong."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdp_torchrec import outcome
from cdp_torchrec.config import load_config
from cdp_torchrec.coverage import Coverage, measure_coverage
from cdp_torchrec.data.loader import Share
from cdp_torchrec.data.request_files import RequestFiles
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.experiment import open_data, train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.metrics import ImpressionMetrics, MetricReport
from cdp_torchrec.metrics.report import Interval
from cdp_torchrec.outcome import (
    blind_spots,
    describe_outcome,
    idle_settings,
    success,
    weak_metrics,
)
from tests.paths import CONFIGS

pytestmark = pytest.mark.usefixtures("one_rank")


def config_of(dataset: Path, *settings: str, interest: str = "cdp") -> ExperimentConfig:
    layers = [str(CONFIGS / "interest" / f"{interest}.toml"), f"data.dir={dataset}"]
    return load_config(ExperimentConfig, [*layers, *settings])


@pytest.fixture(scope="module")
def report() -> MetricReport:
    """Of a model that ranks well and is calibrated."""
    labels = torch.tensor([1.0, 0, 0, 0] * 50)
    metrics = ImpressionMetrics(strata={})
    metrics.update(
        probability=torch.where(labels > 0, 0.7, 0.1),
        labels=labels,
        user_id=torch.arange(200) // 8,
        request_id=torch.arange(200) // 4,
        weights=torch.ones(200),
        strata={},
    )
    return metrics.compute(num_bootstrap=0)


COVERED = Coverage(
    with_history=0.9, with_gated_history=0.5, has_gate=True, own_rows={"item_id": 0.4}
)


def test_a_good_training_gets_no_words_of_warning(report: MetricReport, tmp_path: Path) -> None:
    position = replace(report, auc=0.6, uauc=0.6, gauc=0.6)
    assert list(weak_metrics(report, {"position": position})) == []
    assert list(blind_spots(COVERED, config_of(tmp_path))) == []
    assert list(idle_settings(config_of(tmp_path), has_validation=True, total_steps=100)) == []


@pytest.mark.parametrize("clicks", [0, 200])
def test_a_test_split_of_one_label_is_no_success_and_said_so(clicks: int) -> None:
    """On some days no click is logged. Fails where an undefined AUC beats another."""

    def undefined(probability: torch.Tensor) -> MetricReport:
        metrics = ImpressionMetrics(strata={})
        metrics.update(
            probability=probability,
            labels=torch.full((200,), float(clicks > 0)),
            user_id=torch.arange(200) // 8,
            request_id=torch.arange(200) // 4,
            weights=torch.ones(200),
            strata={},
        )
        return metrics.compute(num_bootstrap=4)

    report = undefined(torch.full((200,), clicks / 200))
    references = {"position": undefined(torch.linspace(0, 1, 200))}
    assert list(success(report, references)) == []
    (problem,) = weak_metrics(report, references)
    assert problem.startswith(f"{clicks} of the 200 test impressions are clicks: there is no pair")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ne": 4.1}, "NE 4.100 is not below 1: the probabilities are worse than the click rate"),
        ({"calibration": 12.8}, "calibration 12.80: the model predicts 12.80 clicks for every"),
        ({"calibration": 0.1}, "calibration 0.10"),
        ({"gauc": 0.45}, "GAUC 0.4500 is not above 0.5, which any random order reaches"),
        ({"auc": 0.5}, "AUC 0.5000 is not above 0.5"),
        ({"gauc": math.nan}, "GAUC is undefined: no test request has candidates with and without"),
        ({"auc": 0.55}, "AUC 0.5500 is no better than 0.6000 of the untrained scorer position"),
        ({"gauc": 0.7}, "GAUC 0.7000 is no better than 0.7000 of the untrained scorer position"),
    ],
)
def test_a_weak_metric_is_named_in_words(
    report: MetricReport, change: dict[str, Any], words: str
) -> None:
    references = {
        "position": replace(report, auc=0.6, uauc=0.6, gauc=0.7),
        "popularity": replace(report, auc=0.5, uauc=0.5, gauc=0.5),
        "bayes": report,
    }
    found = "\n".join(weak_metrics(replace(report, **change), references))
    assert words in found
    assert "bayes" not in found


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({"with_history": 0.0}, [], "no test request has a single behaviour before it, so there"),
        ({"with_history": 0.0}, [], "model.interest.kind = cdp: compare user_id and timestamp"),
        (
            {"with_history": 0.0},
            ["model.interaction.history_counts=true", "data.history.count_segments=[1]"],
            "cdp and model.interaction.history_counts",
        ),
        ({"with_gated_history": 0.0}, [], "the category gate never passes a behaviour"),
        ({"own_rows": {"query_id": 0.0}}, [], 'data.exclude_features=["query_id"]'),
    ],
)
def test_what_never_matches_is_named_in_words(
    tmp_path: Path, change: dict[str, Any], settings: list[str], words: str
) -> None:
    assert words in "\n".join(
        blind_spots(replace(COVERED, **change), config_of(tmp_path, *settings))
    )


def test_what_does_not_go_through_the_gate_has_something_to_read(tmp_path: Path) -> None:
    """Fails where a module of the whole history is said to have nothing to read."""
    shut = replace(COVERED, with_gated_history=0.0)
    (words,) = blind_spots(shut, config_of(tmp_path, interest="din"))
    assert "so model.interest.kind = din meets no category twice: the categories" in words
    counts = "model.interaction.history_counts=true"
    (words,) = blind_spots(shut, config_of(tmp_path, counts, interest="din"))
    assert "nothing to read for model.interaction.history_counts and model.interest.kind" in words


@pytest.mark.parametrize(
    ("change", "settings", "interest"),
    [
        ({"with_history": 0.0}, [], "none"),
        ({"with_gated_history": 0.0, "has_gate": False}, [], "cdp"),
        ({"own_rows": {"item_id": 0.0}}, ['model.interaction.exclude=["item_id"]'], "cdp"),
    ],
)
def test_what_nobody_reads_may_be_empty(
    tmp_path: Path, change: dict[str, Any], settings: list[str], interest: str
) -> None:
    config = config_of(tmp_path, *settings, interest=interest)
    assert list(blind_spots(replace(COVERED, **change), config)) == []


@pytest.mark.parametrize(("low", "words"), [(0.55, "but not shown to be"), (0.65, "beats every")])
def test_a_lead_within_the_interval_is_no_victory(
    report: MetricReport, low: float, words: str
) -> None:
    references = {"position": replace(report, auc=0.6, uauc=0.6, gauc=0.6)}
    (said,) = success(replace(report, gauc=0.7, gauc_interval=Interval(low, 0.8)), references)
    assert words in said


def test_parts_of_the_day_that_nobody_reads_are_called_idle(tmp_path: Path) -> None:
    settings = ["data.history.dayparts=6"]
    words = "data.history.dayparts = 6 had no effect: model.interest.kind = none reads"
    (found,) = idle_settings(
        config_of(tmp_path, *settings, interest="none"), has_validation=True, total_steps=100
    )
    assert found.startswith(words)
    for interest in ("ddrm", "ldiffrec"):  # they read items, whenever
        config = config_of(tmp_path, *settings, interest=interest)
        (found,) = idle_settings(config, has_validation=True, total_steps=100)
        assert found.startswith(words.replace("none", interest.removeprefix("l")))
    for interest in ("pooled", "din", "cdp"):
        config = config_of(tmp_path, *settings, interest=interest)
        assert not list(idle_settings(config, has_validation=True, total_steps=100))


def test_a_search_among_too_few_behaviours_is_called_idle(tmp_path: Path) -> None:
    def found(interest: str, max_length: int) -> list[str]:
        config = config_of(tmp_path, f"data.history.max_length={max_length}", interest=interest)
        return list(idle_settings(config, has_validation=True, total_steps=100))

    (by_score,) = found("twin", 100)
    assert by_score.startswith("model.interest.num_kept = 100 had no effect: no search happens")
    assert found("twin", 101) == found("sim_hard", 51) == found("din", 2) == found("cdp", 2) == []
    (by_query,) = found("qin", 100)
    assert by_query.startswith("model.interest.num_query_kept = 200 had no effect")


@pytest.mark.parametrize(
    ("key", "value"), [("patience", 2), ("validation_metric", "auc"), ("validate_every_steps", 9)]
)
def test_what_only_a_validation_reads_is_called_idle_without_one(
    key: str, value: object, tmp_path: Path
) -> None:
    settings = ["data.validation_fraction=0", "trainer.checkpoint_every_steps=5"]
    config = config_of(tmp_path, f"trainer.{key}={value}", *settings)
    words = f"trainer.{key} = {value} had no effect: data.validation_fraction = 0.0 holds out no"
    (found,) = idle_settings(config, has_validation=False, total_steps=100)
    assert found.startswith(words)
    assert not list(idle_settings(config, has_validation=True, total_steps=100))


def test_without_validations_their_rhythm_may_be_that_of_checkpoints(tmp_path: Path) -> None:
    config = config_of(tmp_path, "trainer.validate_every_steps=9", "data.validation_fraction=0")
    assert not list(idle_settings(config, has_validation=False, total_steps=100))


def test_steps_that_the_epochs_do_not_have_are_called_idle(tmp_path: Path) -> None:
    """Who asks for 101 steps and says nothing of epochs gets one epoch, and would not be told."""
    config = config_of(tmp_path, "trainer.max_steps=101")
    (found,) = idle_settings(config, has_validation=True, total_steps=100)
    assert found == (
        "trainer.max_steps = 101 had no effect: trainer.max_epochs = 1 ends the training at step "
        "100."
    )
    assert not list(idle_settings(config, has_validation=True, total_steps=101))


def test_a_fraction_below_one_request_is_called_idle(tmp_path: Path) -> None:
    config = config_of(tmp_path, "data.validation_fraction=1e-9")
    words = "data.validation_fraction = 1e-09 had no effect: it is less than one request"
    assert words in "\n".join(idle_settings(config, has_validation=False, total_steps=100))


@pytest.mark.parametrize("key", ["count_segments", "count_ages"])
def test_what_tells_counts_apart_that_the_tower_does_not_learn_is_called_idle(
    tmp_path: Path, key: str
) -> None:
    config = config_of(
        tmp_path, f"data.history.{key}=[1]", "model.interaction.history_counts=false"
    )
    (found,) = idle_settings(config, has_validation=True, total_steps=100)
    assert found.startswith(f"data.history.{key} had no effect")


@pytest.mark.parametrize("optimizer", ["sparse", "dense"])
def test_a_warm_up_that_the_training_does_not_outlast_is_said(
    optimizer: str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, f"optimizer.{optimizer}.schedule.warmup_steps=100")
    (found,) = idle_settings(config, has_validation=True, total_steps=100)
    assert found.startswith(f"optimizer.{optimizer}.schedule.warmup_steps = 100 is not below the")
    assert not list(idle_settings(config, has_validation=True, total_steps=101))


def test_a_search_beside_a_plan_that_is_given_is_called_idle(tmp_path: Path) -> None:
    settings = ["sharding.plan=plan.json", "sharding.search=torchrec"]
    (found,) = idle_settings(config_of(tmp_path, *settings), has_validation=True, total_steps=100)
    assert found == "sharding.search had no effect: sharding.plan is taken as it is."


def test_coverage_counts_histories_and_rows(tiny_dataset: Path) -> None:
    config = config_of(tiny_dataset, "data.vocabulary.item.min_count=60")
    data = open_data(config, share=Share(0, 1), global_batch_size=256)
    found = measure_coverage(data)
    order = ImpressionOrder(RequestFiles(tiny_dataset, data.schema, "test"), seed=None)
    impressions = order.take(0, 0, order.num_impressions)
    history = impressions.request["history_length"][impressions.request_index]
    touched = impressions.candidate["history_rank"] >= 0
    assert found.with_history == pytest.approx(np.mean(history > 0))
    assert found.has_gate
    assert np.mean(touched) < found.with_gated_history < found.with_history
    kept = impressions.candidate["item_id"] <= data.layout.tables["item"].num_kept
    assert 0 < kept.mean() < 1
    assert found.own_rows["item_id"] == pytest.approx(kept.mean())
    assert all(0 < share <= 1 for share in found.own_rows.values())


def test_a_failed_training_says_so_in_its_last_lines(tiny_dataset: Path, tmp_path: Path) -> None:
    config = config_of(tiny_dataset, f"run.dir={tmp_path / 'a run'}", "trainer.max_steps=1")
    trained = train_experiment(config, torch.device("cpu"), num_bootstrap=0, quiet=True)
    table, words, following = describe_outcome(trained).split("\n\n")
    rows = {line.split("  ")[0] for line in table.splitlines()}
    assert rows == {
        "test split",
        "this run",
        "popularity",
        "category_share",
        "category_click_rate",
        "position_click_rate",
        "last_touched",
        "true probabilities",
    }
    lines = words.splitlines()
    assert lines[0] == "SOMETHING IS WRONG:"
    assert max(map(len, lines[:-1])) <= 100
    told = words.replace("\n  ", " ")
    assert "is no better than" in told and "of the untrained scorer last_touched" in told
    assert "the training took 1 steps only" in told
    assert lines[-1].endswith(f"are in {tiny_dataset / 'starter.toml'}.")
    assert f"cdp_torchrec export '{tmp_path}/a run'" in following
    assert f"tensorboard --logdir '{tmp_path}/a run/tensorboard'" in following


@pytest.mark.slow
def test_a_training_that_beats_the_untrained_scorers_says_by_how_much(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    interest = str(CONFIGS / "interest" / "pooled.toml")
    layers = [str(tiny_dataset / "starter.toml"), interest, f"run.dir={tmp_path / 'run'}"]
    config = load_config(ExperimentConfig, layers)
    trained = train_experiment(config, torch.device("cpu"), num_bootstrap=0, quiet=True)
    words = describe_outcome(trained).split("\n\n")[1].splitlines()
    assert words[0].startswith(f"GAUC {trained.report.gauc:.4f} beats every untrained scorer; the")
    assert not any("starter" in line for line in words)


@pytest.mark.parametrize(
    "content", [None, b"= [trainer", b"\xff", b"trainer = 3", b"[[" * 5000, b"[trainer]\nx = [[1]]"]
)
def test_a_starter_that_hands_have_spoilt_is_no_end_of_a_training(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "starter.toml").write_bytes(content)
    layer = str(CONFIGS / "quickstart.toml")
    config = load_config(ExperimentConfig, [layer, f"data.dir={tmp_path}"])
    (hint,) = outcome._starter_hint(config)
    assert ("prepare_data starter" in hint) == (content != b"[trainer]\nx = [[1]]")
