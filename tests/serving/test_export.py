"""An artifact scores like the trainer, or there is none."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor import config as inductor

from cdp_torchrec.config import ConfigError
from cdp_torchrec.interest.config.gated import CdpConfig
from cdp_torchrec.run.records import CheckpointError
from cdp_torchrec.serving import export
from cdp_torchrec.serving.artifact import RANKER, ArtifactError, read_manifest
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.export import export_run, raw_test_requests
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Behaviours
from cdp_torchrec.serving.weights import load_weights
from cdp_torchrec.stored_run import open_run
from tests.runs import DEVICES, losses, one_rank, one_rank_on
from tests.serving.conftest import CPU, export_untuned, short_run
from tests.whole_matrix import WHOLE_MATRIX


@pytest.fixture
def compiled_before(monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    """The package of the session's artifact instead of a new one: tables are not in it."""

    def copy(
        arch: object, layout: object, inputs: object, package: Path, *, max_history_length: int
    ) -> None:
        shutil.copyfile(artifact / RANKER, package)

    monkeypatch.setattr(export, "export_ranker", copy)


def test_the_artifact_scores_the_test_split_like_the_trainer(artifact: Path) -> None:
    parity = read_manifest(artifact).parity
    assert parity["num_impressions"] == 2504  # all
    assert parity["max_difference"] < 1e-6
    assert 0.5 < parity["artifact_gauc"] == pytest.approx(parity["trainer_gauc"], abs=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_an_export_for_a_device_is_compared_with_the_trainer_there(
    request: pytest.FixtureRequest, trained_run: Path, tmp_path: Path, device: str
) -> None:
    if device == "cpu":
        request.getfixturevalue("compiled_before")
    with one_rank_on(device) as here:
        run = open_run(trained_run, ["export.parity_impressions=100"], ExportedConfig)
        exported = export_run(run, here, output=tmp_path / "artifact")
    assert read_manifest(exported.directory).device == device
    assert exported.parity.max_difference < 1e-5


def test_a_signal_leaves_nothing_of_an_export(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(directory: Path, *_: object) -> None:
        (directory / "file").touch()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(export, "make_artifact", stopped)
    run = open_run(trained_run, [], ExportedConfig)
    with one_rank(), pytest.raises(SystemExit) as caught:
        export_run(run, CPU, output=tmp_path / "artifact")
    assert caught.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_needs_neither_run_nor_dataset(artifact: Path) -> None:
    files = {path.relative_to(artifact).parts[0] for path in artifact.rglob("*")}
    assert files == {
        "artifact.json",
        "config.toml",
        "golden.json",
        "ranker.pt2",
        "schema.toml",
        "tables",
        "vocabulary",
    }
    golden = json.loads((artifact / "golden.json").read_text())
    assert len(golden["request"]["history"]["item"]) > 0


@pytest.mark.usefixtures("compiled_before")
@pytest.mark.parametrize(
    ("tables", "at_most"),
    [
        pytest.param("float32", 1e-6, marks=pytest.mark.slow),
        pytest.param("float16", 1e-3, marks=pytest.mark.slow),
        ("int8", 2e-2),
    ],
)
def test_sharded_and_quantized_tables_say_how_far_scores_drift(
    trained_run: Path, tmp_path: Path, tables: str, at_most: float
) -> None:
    settings = [f"export.tables={tables}", "export.table_shards=3"]
    with one_rank():
        exported = export_run(
            open_run(trained_run, settings, ExportedConfig), CPU, output=tmp_path / "artifact"
        )
    assert len(list((tmp_path / "artifact" / "tables").glob("item-*"))) == 3
    drift = exported.parity.max_difference
    assert (1e-6 < drift if tables != "float32" else 0 <= drift) and drift <= at_most
    table = exported.parity.table()
    assert all(word in table for word in ("AUC", "UAUC", "GAUC", "trainer", "artifact", "change"))
    Predictor.open(tmp_path / "artifact")


@pytest.mark.usefixtures("compiled_before")
def test_a_difference_above_the_tolerance_leaves_nothing_behind(
    trained_run: Path, tmp_path: Path
) -> None:
    settings = ["export.tables=int8", "export.tolerance=1e-9", "export.parity_impressions=100"]
    with one_rank(), pytest.raises(ArtifactError, match="scores differently from the trainer"):
        export_run(
            open_run(trained_run, settings, ExportedConfig), CPU, output=tmp_path / "artifact"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("compiled_before")
def test_a_ranker_of_other_sampler_settings_does_not_pass_the_gate(
    trained_run: Path, tmp_path: Path
) -> None:
    """The package in place makes 2 steps, the trainer's path 4."""
    settings = ["model.interest.num_inference_steps=4", "export.parity_impressions=100"]
    with one_rank(), pytest.raises(ArtifactError, match="scores differently from the trainer"):
        export_run(
            open_run(trained_run, settings, ExportedConfig), CPU, output=tmp_path / "artifact"
        )


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_sampler_settings_are_those_of_the_export(trained_run: Path, tmp_path: Path) -> None:
    settings = ["model.interest.num_inference_steps=4", "model.interest.sampler=dpmpp_2m"]
    with one_rank():
        exported = export_run(
            open_run(trained_run, settings, ExportedConfig), CPU, output=tmp_path / "artifact"
        )
    assert exported.parity.max_difference < 1e-6
    interest = ExportedConfig.read(tmp_path / "artifact").model.interest
    assert isinstance(interest, CdpConfig) and interest.sampler == "dpmpp_2m"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "setting"),
    [
        ("dien", "model.interest.max_length=10"),
        *[(p, "model.interest.num_kept=10") for p in ("qin", "sim_soft", "twin") if WHOLE_MATRIX],
    ],
)
def test_a_graph_that_loops_or_searches_serves_requests_of_all_sizes(
    tiny_dataset: Path, tmp_path: Path, preset: str, setting: str
) -> None:
    run_dir = short_run(tiny_dataset, tmp_path / "run", preset, setting)
    artifact = export_untuned(run_dir, tmp_path / "artifact")
    assert read_manifest(artifact).parity["max_difference"] < 1e-6
    predictor = Predictor.open(artifact, history_store=tiny_dataset)
    config = ExportedConfig.read(artifact)
    nothing = Behaviours(item=[], timestamp_ms=[], category=[], action=[])
    for request in raw_test_requests(config)[:5]:
        for history in (None, nothing):
            eight = replace(request, history=history)
            scores = predictor.score(eight)
            for candidates in (1, 200):
                places = np.arange(candidates) % len(scores)
                columns = {k: [v[p] for p in places.tolist()] for k, v in eight.candidates.items()}
                found = predictor.score(replace(eight, candidates=columns))
                np.testing.assert_allclose(found, scores[places], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_a_hash_is_bit_equal_after_resume_and_export(tiny_dataset: Path, tmp_path: Path) -> None:
    def run(name: str, *settings: str) -> tuple[Path, torch.Tensor]:
        kept = "model.interest.num_kept=10"
        every = "trainer.checkpoint_every_steps=20"
        run_dir = short_run(tiny_dataset, tmp_path / name, "eta", kept, every, *settings)
        newest = sorted((run_dir / "checkpoints").iterdir())[-1]
        return run_dir, load_weights(newest, {}).dense["interest.hash.projections"]

    run_dir, drawn = run("run")
    shutil.copytree(run_dir, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000040")
    resumed, found = run("resumed", "run.resume=true")
    assert torch.equal(found, drawn)
    assert losses(resumed) == losses(run_dir)
    artifact = export_untuned(resumed, tmp_path / "artifact")
    assert read_manifest(artifact).parity["max_difference"] < 1e-6
    _, of_another_seed = run("other", "seed=5")
    assert not torch.equal(of_another_seed, drawn)


def test_what_cannot_be_exported_is_found_before_anything_is_compiled(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "export_ranker", None)
    with one_rank():
        with (
            inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
            pytest.raises(ArtifactError, match=r"needs a C\+\+17 compiler"),
        ):
            export_run(open_run(trained_run, [], ExportedConfig), CPU, output=tmp_path / "artifact")
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"cannot be made: .* is not a writable"):
            export_run(
                open_run(trained_run, [], ExportedConfig),
                CPU,
                output=tmp_path / "file" / "artifact",
            )
        with pytest.raises(CheckpointError, match=r"model\.embedding_dim = 4, in the checkpoint 8"):
            export_run(
                open_run(trained_run, ["model.embedding_dim=4"], ExportedConfig),
                CPU,
                output=tmp_path / "artifact",
            )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_list_that_is_longer_than_any_to_be_served_is_found_before_anything_is_scored(
    trained_run: Path,
) -> None:
    run = open_run(trained_run, ["export.max_candidates=3"], ExportedConfig)
    with pytest.raises(ConfigError, match=r"export.max_candidates = 3: .* 8 candidates"):
        raw_test_requests(run.config)


@pytest.mark.usefixtures("compiled_before")
def test_an_export_says_what_it_is_doing(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_rank():
        settings = ["export.parity_impressions=100"]
        export_run(
            open_run(trained_run, settings, ExportedConfig), CPU, output=tmp_path / "artifact"
        )
    said = [line for line in capsys.readouterr().err.splitlines() if " export " in line]
    assert [line.split()[3] for line in said] == ["1/5:", "2/5:", "3/5:", "4/5:", "5/5:"]
    assert "compile the model of" in said[2] and str(trained_run) in said[2]


def test_an_existing_directory_and_an_unknown_key_are_refused(
    trained_run: Path, artifact: Path
) -> None:
    with one_rank():
        with pytest.raises(ConfigError, match="exists"):
            export_run(open_run(trained_run, [], ExportedConfig), CPU, output=artifact)
        with pytest.raises(ConfigError, match=r"export\.tabels: unknown key"):
            export_run(open_run(trained_run, ["export.tabels=int8"], ExportedConfig), CPU)
