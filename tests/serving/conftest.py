"""One trained run and its artifact, for all tests of serving."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdp_torchrec.config import load_config
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.experiment import train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.model.ranking import RankingArch
from cdp_torchrec.serving import compile, export
from cdp_torchrec.serving import predictor as predictor_module
from cdp_torchrec.serving.artifact import GOLDEN, TABLES, read_manifest, write_manifest
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.delta_export import delta_between, export_delta
from cdp_torchrec.serving.export import export_run, raw_test_requests
from cdp_torchrec.serving.golden import GoldenRequest, stored_behaviours
from cdp_torchrec.serving.parts import open_vocabularies
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.ranker_export import RankerProgram
from cdp_torchrec.serving.request import Behaviours, Request
from cdp_torchrec.stored_run import open_run
from tests import untuned
from tests.conftest import MakeOnce
from tests.paths import CONFIGS
from tests.runs import one_rank

CPU = torch.device("cpu")
_RARE_IDS = (
    "data.vocabulary.item.min_count=40",
    "data.vocabulary.item.num_oov_rows=4",
    "data.vocabulary.user.min_count=20",
)


def short_run(
    dataset: Path,
    run_dir: Path,
    preset: str,
    *settings: str,
    vocabulary: Sequence[str] = _RARE_IDS,
    batch_size: int = 256,
) -> Path:
    """A run of an interest module whose scores depend on every part of a request."""
    layers = [
        str(CONFIGS / "interest" / f"{preset}.toml"),
        f"data.dir={dataset}",
        f"run.dir={run_dir}",
        *vocabulary,
        "data.history.count_segments=[1, 2]",
        "data.history.count_ages=[0.5, 7.5]",
        "data.history.dayparts=3",
        "model.interaction.history_counts=true",
        "model.embedding_dim=8",
        "optimizer.sparse.kind=rowwise_adagrad",
        "optimizer.sparse.lr=0.1",
        f"trainer.global_batch_size={batch_size}",
        "trainer.max_steps=40",
    ]
    with one_rank():
        config = load_config(ExperimentConfig, [*layers, *settings])
        train_experiment(config, CPU, num_bootstrap=0, quiet=True)
    return run_dir


def export_untuned(
    run_dir: Path, output: Path, *settings: str, delta_from: Path | None = None
) -> Path:
    """Its artifact, compiled as fast as can be."""
    with one_rank(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile, "_INDUCTOR_CPU", untuned.INDUCTOR)
        run = open_run(run_dir, settings, ExportedConfig)
        if delta_from is None:
            return export_run(run, CPU, output=output).directory
        return export_delta(run, CPU, delta_from, output=output).directory


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense parts run as they are, for what does not depend on compiling them: half a minute each.

    Their file is the digest of their weights.
    """
    programs: dict[str, RankerProgram] = {}

    def keep(
        arch: RankingArch, layout: object, inputs: Mapping[str, Tensor], package: Path, **_: object
    ) -> None:
        weights = b"".join(tensor.numpy().tobytes() for tensor in arch.state_dict().values())
        digest = hashlib.sha256(weights).hexdigest()
        programs[digest] = RankerProgram(arch.eval(), list(inputs))
        package.write_text(digest)

    class Uncompiled:
        def __init__(self, path: Path, names: Sequence[str], *, num_runners: int) -> None:
            self._program = programs[path.read_text()]

        def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
            return self._program(*inputs.values())

    monkeypatch.setattr(export, "export_ranker", keep)
    monkeypatch.setattr(predictor_module, "Ranker", Uncompiled)


def trained_on(artifact: Path, later: Path, *, seed: int) -> Path:
    """The artifact after another day: some rows of two tables differ."""
    shutil.copytree(artifact, later)
    generator = np.random.default_rng(seed)
    for path in (later / TABLES).glob("[iu]*-00000-*.npy"):
        rows = np.load(path)
        rows[generator.permutation(len(rows))[: len(rows) // 5]] += 1
        np.save(path, rows)
    return complete(later)


def complete(artifact: Path) -> Path:
    """Another golden request and listing, which fit what was changed."""
    manifest = read_manifest(artifact)
    golden = GoldenRequest.from_json(json.loads((artifact / GOLDEN).read_text()))
    scores = Predictor.load(artifact, manifest).score(golden.request)
    (artifact / GOLDEN).write_text(json.dumps(replace(golden, probabilities=scores).to_json()))
    write_manifest(artifact, manifest.model_copy(update={"files": {}}))
    return artifact


@pytest.fixture(scope="session")
def trained_run(tiny_dataset: Path, make_once: MakeOnce) -> Path:
    """A short run of CDP."""
    steps = "model.interest.num_inference_steps=2"
    return make_once("cdp", lambda folder: short_run(tiny_dataset, folder, "cdp_timestep", steps))


@pytest.fixture(scope="session")
def artifact(trained_run: Path, make_once: MakeOnce) -> Path:
    """Its export; do not write into it."""
    candidates = "export.max_candidates=50"
    return make_once("artifact", lambda folder: export_untuned(trained_run, folder, candidates))


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, to spoil."""
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


@pytest.fixture(scope="session")
def days(artifact: Path, make_once: MakeOnce) -> Path:
    """Full artifacts `full-1` and `full-2`, `full-0` in a folder with the deltas in between."""

    def fill(folder: Path) -> None:
        released = folder / "released"
        shutil.copytree(artifact, released / "full-0")
        trained_on(artifact, folder / "full-1", seed=1)
        trained_on(folder / "full-1", folder / "full-2", seed=2)
        delta_between(
            folder / "full-1", released / "full-0", released / "delta-1", signing_key=None
        )
        delta_between(
            folder / "full-2", released / "delta-1", released / "delta-2", signing_key=None
        )

    return make_once("days", fill)


@pytest.fixture
def released(days: Path, tmp_path: Path) -> Path:
    """A copy of the base and its deltas, to spoil."""
    return Path(shutil.copytree(days / "released", tmp_path / "released"))


@pytest.fixture(scope="session")
def predictor(artifact: Path, tiny_dataset: Path) -> Predictor:
    return Predictor.open(str(artifact), history_store=str(tiny_dataset))


@pytest.fixture(scope="session")
def requests(artifact: Path) -> list[Request]:
    """Requests of the test split, without behaviours."""
    config = ExportedConfig.read(artifact)
    return raw_test_requests(config)[:60]


@pytest.fixture(scope="session")
def behaviours(artifact: Path, tiny_dataset: Path, requests: list[Request]) -> list[Behaviours]:
    """What the store knows about the user of each request."""
    reader = DatasetReader(ExportedConfig.read(artifact).data)
    vocabularies = open_vocabularies(artifact, reader.schema)
    return [
        stored_behaviours(request, reader.store, reader.schema.history, vocabularies, at_most=1000)
        for request in requests
    ]
