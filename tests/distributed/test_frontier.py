"""A CDP run is distilled and measured as a user does it, on the tiny dataset."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from cdp_torchrec.benchmark.latency.command import open_cdp_run
from cdp_torchrec.benchmark.latency.frontier import measure_run
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.distill.config import DistillExperimentConfig
from cdp_torchrec.distill.run import distill_run
from cdp_torchrec.distributed.verified_dataset import verify_dataset
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run import fit
from cdp_torchrec.run.checksums import record_file
from cdp_torchrec.run.records import CheckpointError, read_record
from cdp_torchrec.run.saved import find_checkpoint
from cdp_torchrec.serving import export
from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.stored_run import evaluate_run, open_run
from tests.distributed.spawn import run_ranks
from tests.other_codes import with_other_codes, with_other_requests
from tests.paths import CONFIGS

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

CPU = torch.device("cpu")


def load_run(interest: str, dataset: Path, run_dir: Path, *overrides: str) -> ExperimentConfig:
    settings = [
        f"data.dir={dataset}",
        f"run.dir={run_dir}",
        "trainer.global_batch_size=256",
        "trainer.max_steps=3",
        *overrides,
    ]
    layers = [CONFIGS / "quickstart.toml", CONFIGS / "interest" / f"{interest}.toml"]
    return load_config(ExperimentConfig, [*map(str, layers), *settings])


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Everything in the run's checkpoint that is whole on one rank, by name."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = run_dir / "tensors.pt"
    dcp_to_torch_save(find_checkpoint(run_dir), file)
    return torch.load(file, weights_only=False)["model"]


def distill_on_two_ranks(dataset: Path, folder: Path) -> dict[str, Any]:
    """Of a run that was trained with a plan for two ranks."""
    train(load_run("cdp_timestep", dataset, folder / "planned", "run.verify=true"), CPU)
    plan = f"sharding.plan={folder / 'planned' / 'plan.json'}"
    train(load_run("cdp_timestep", dataset, folder / "run", plan), CPU)
    settings = ["distill.max_steps=4", "distill.teacher_steps=6"]
    distilled = distill_run(open_run(folder / "run", settings, DistillExperimentConfig), CPU)
    again = evaluate_run(
        open_run(folder / "run-student", [], ExperimentConfig), CPU, write_predictions=False
    ).report
    damaged = error_of(lambda: verify_dataset(folder / "damaged"))
    return {"distilled": distilled, "again": again, "damaged": damaged}


def mistake_on_one_rank(dataset: Path, folder: Path) -> list[str]:
    train(load_run("pooled", dataset, folder / "pooled"), CPU)
    said = []
    actions: list[Callable[[Path], object]] = [
        lambda run: distill_run(open_run(run, [], DistillExperimentConfig), CPU),
        lambda run: open_cdp_run(run, []),
    ]
    for action in actions:
        try:
            action(folder / "pooled")
        except ConfigError as error:
            said.append(str(error))
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def on_two_ranks(tiny_dataset: Path, folder: Path) -> list[dict[str, Any]]:
    shutil.copytree(tiny_dataset, folder / "damaged")
    for name in ("history/by_time/item.npy", "test/part-00000.parquet"):
        path = folder / "damaged" / name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with_other_codes(tiny_dataset, folder / "other-codes")
    with_other_requests(tiny_dataset, folder / "other-requests")
    return run_ranks(2, distill_on_two_ranks, tiny_dataset, folder)


@pytest.fixture(scope="module")
def distilled(on_two_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return on_two_ranks[0]


def test_a_student_is_a_run_of_one_step_that_evaluates_like_any_other(
    distilled: dict[str, Any], folder: Path
) -> None:
    assert distilled["again"].gauc == pytest.approx(distilled["distilled"].student.gauc, abs=1e-9)
    config = load_config(ExperimentConfig, [str(folder / "run-student" / "config.toml")])
    assert config.model.interest.kind == "cdp"
    assert config.model.interest.num_inference_steps == 1
    written = json.loads((folder / "run-student" / "distillation.json").read_text())
    assert written["teacher_steps"] == 6


def test_everything_but_the_denoiser_is_the_teachers(
    distilled: dict[str, Any], folder: Path
) -> None:
    before, after = tensors(folder / "run"), tensors(folder / "run-student")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".interest.denoiser." in name for name in changed)


def test_a_run_without_a_reverse_process_is_refused(tiny_dataset: Path, folder: Path) -> None:
    said = run_ranks(1, mistake_on_one_rank, tiny_dataset, folder)[0]
    assert len(said) == 2
    assert all("model.interest.kind = 'pooled'" in message for message in said)


def use_on_one_rank(folder: Path) -> dict[str, Any]:
    """Evaluate, distill, measure, and export as far as the compiler, what two ranks trained."""
    run, other_requests = folder / "run", folder / "other-requests"
    settings = ["distill.max_steps=1", f"distill.dir={folder / 'one-rank-student'}"]
    return {
        "evaluated": evaluate_run(
            open_run(run, [], ExperimentConfig), CPU, write_predictions=False
        ).report.gauc,
        "distilled": distill_run(
            open_run(run, settings, DistillExperimentConfig), CPU
        ).teacher.gauc,
        "measured": [
            timing.name for timing in measure_run(open_cdp_run(run, MEASURED), CPU).timings
        ],
        "exported": error_of(lambda: export_without_compiling(run)),
        "exported damaged": error_of(lambda: export_damaged(run, folder / "damaged")),
        "planned": error_of(lambda: evaluate_planned(run, folder / "planned" / "plan.json")),
        "other_keys": error_of(lambda: evaluate_with_other_keys(run)),
        "other_format": error_of(lambda: open_run(of_other_format(run), [], ExperimentConfig)),
        "other_config": error_of(lambda: open_run(of_other_config(run), [], ExperimentConfig)),
        "resumed on other requests": error_of(
            lambda: train(load_run("cdp_timestep", other_requests, run, "run.resume=true"), CPU)
        ),
        "evaluated on other requests": evaluate_run(
            open_run(run, [f"data.dir={other_requests}"], ExperimentConfig),
            CPU,
            write_predictions=False,
        ).report.gauc,
        "wrong_override": error_of(lambda: open_run(run, ["model.deep=3"], ExperimentConfig)),
    } | {f"{name} on other codes": said for name, said in use_on_other_codes(run).items()}


def use_on_other_codes(run: Path) -> dict[str, str]:
    """What is said to a run with a dataset of the same counts."""
    dataset = run.parent / "other-codes"
    other = [f"data.dir={dataset}"]
    return {
        "evaluated": error_of(lambda: open_run(run, other, ExperimentConfig)),
        "distilled": error_of(lambda: open_run(run, other, DistillExperimentConfig)),
        "measured": error_of(lambda: open_cdp_run(run, other)),
        "exported": error_of(lambda: open_run(run, other, ExportedConfig)),
        "resumed": error_of(
            lambda: train(load_run("cdp_timestep", dataset, run, "run.resume=true"), CPU)
        ),
    }


MEASURED = [
    "benchmark.candidates=[5]",
    "benchmark.num_inference_steps=[2]",
    'benchmark.forms=["eager"]',
    "benchmark.num_requests=1",
    "benchmark.num_rounds=1",
    "benchmark.quality=false",
]


def error_of(action: Callable[[], Any]) -> str:
    with pytest.raises((ArtifactError, CheckpointError, ConfigError, DatasetError)) as raised:
        action()
    return f"{raised.type.__name__}: {raised.value}"


def export_without_compiling(run: Path) -> None:
    def compiler(*_: object, **__: object) -> None:
        raise ArtifactError("arrived at the compiler")

    with mock.patch.object(export, "export_ranker", compiler):
        settings = ["export.parity_impressions=500"]
        export.export_run(open_run(run, settings, ExportedConfig), CPU)


def export_damaged(run: Path, dataset: Path) -> None:
    def read(*_: object) -> None:
        raise ArtifactError("something was read before")

    settings = [f"data.dir={dataset}", "run.verify=true"]
    with mock.patch.object(export, "raw_test_requests", read):
        export.export_run(open_run(run, settings, ExportedConfig), CPU)


def evaluate_planned(run: Path, plan: Path) -> None:
    evaluate_run(
        open_run(run, [f"sharding.plan={plan}"], ExperimentConfig), CPU, write_predictions=False
    )


def evaluate_with_other_keys(run: Path) -> None:
    problems = ["not part of this model: model.scores.bias"]
    with mock.patch.object(fit, "_key_problems", lambda *_, **__: problems):
        evaluate_run(open_run(run, [], ExperimentConfig), CPU, write_predictions=False)


def of_other_format(run: Path) -> Path:
    old = Path(shutil.copytree(find_checkpoint(run), run.parent / "old_format"))
    record = json.loads((old / "checkpoint.json").read_text())
    (old / "checkpoint.json").write_text(json.dumps(record | {"format_version": 9}))
    return old


def of_other_config(run: Path) -> Path:
    old = Path(shutil.copytree(find_checkpoint(run), run.parent / "old_config"))
    layer = old / "config.toml"
    layer.write_text(layer.read_text() + "\n[model.deep]\nlayers = 3\n")
    record = read_record(old / "checkpoint.json")
    record.files["config.toml"] = record_file(layer)
    (old / "checkpoint.json").write_text(record.sealed())
    return old


@pytest.fixture(scope="module")
def used(distilled: dict[str, Any], folder: Path) -> dict[str, Any]:
    return run_ranks(1, use_on_one_rank, folder)[0]


def test_a_run_with_a_plan_of_two_ranks_is_used_on_one(
    used: dict[str, Any], distilled: dict[str, Any], folder: Path
) -> None:
    layer = (folder / "run" / "config.toml").read_text()
    assert f'plan = "{folder / "planned" / "plan.json"}"' in layer
    trained = json.loads((folder / "run" / "evaluation.json").read_text())["gauc"]
    assert used["evaluated"] == pytest.approx(trained, abs=1e-6)
    assert used["measured"] == ["none", "pooled", "cdp 2 steps"]
    assert used["exported"] == "ArtifactError: arrived at the compiler"
    assert not (folder / "run" / "export").exists()
    assert used["distilled"] == pytest.approx(used["evaluated"], abs=1e-6)


def test_ranks_that_read_a_share_of_a_damaged_dataset_all_name_all_of_it(
    on_two_ranks: list[dict[str, Any]], folder: Path
) -> None:
    first, second = (result["damaged"] for result in on_two_ranks)
    assert first == second
    assert first.startswith(f"DatasetError: {folder / 'damaged'}: damaged or changed")
    assert "history/by_time/item.npy: other bytes" in first
    assert "test/part-00000.parquet: other bytes" in first


def test_a_run_is_not_used_on_another_preparation_of_its_log(
    used: dict[str, Any], folder: Path
) -> None:
    assert used["evaluated on other codes"].startswith("CheckpointError: ")
    assert str(folder / "other-codes") in used["evaluated on other codes"]
    for name in ("evaluated", "distilled", "measured", "exported", "resumed"):
        assert "ids in both, other codes" in used[f"{name} on other codes"]


def test_a_run_goes_on_with_its_own_requests_only_and_is_measured_on_others(
    used: dict[str, Any], folder: Path
) -> None:
    said = used["resumed on other requests"]
    assert said.startswith("CheckpointError: ") and "\n" not in said
    assert "other requests, another history or other soft labels than those of " in said
    assert str(folder / "other-requests") in said
    assert used["evaluated on other requests"] == used["evaluated"]  # of the same test split


def test_an_export_verifies_the_dataset_before_it_reads_it(used: dict[str, Any]) -> None:
    assert used["exported damaged"].startswith("DatasetError: ")
    assert "test/part-00000.parquet: other bytes" in used["exported damaged"]


def test_a_plan_that_is_named_again_is_used(used: dict[str, Any]) -> None:
    assert "does not fit" in used["planned"]
    assert "world_size: 2 in the plan, 1 in this job" in used["planned"]


def test_a_run_of_another_release_says_which_and_what_to_do(used: dict[str, Any]) -> None:
    assert used["other_format"].startswith("CheckpointError: ")
    assert "has format 9, was written by cdp_torchrec 0.1.0" in used["other_format"]
    assert "use the release that wrote it, or train again" in used["other_format"]
    for name in ("other_config", "other_keys"):
        assert used[name].startswith("CheckpointError: ")
        assert "cdp_torchrec 0.1.0" in used[name]
        assert "se that release" in used[name] and "train again" in used[name]
    assert "model.deep: unknown key" in used["other_config"]
    assert "not part of this model: model.scores.bias" in used["other_keys"]
    # A user's own mistake is no question of releases.
    assert used["wrong_override"].startswith("ConfigError: bad config\n  model.deep: unknown key")
