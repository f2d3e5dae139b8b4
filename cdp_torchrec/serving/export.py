"""From a checkpoint to an artifact that provably scores like it."""

import gc
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from cdp_torchrec import __version__
from cdp_torchrec.config import ConfigError, dump_toml
from cdp_torchrec.data.days import day_folder, read_schema, vocabulary_paths
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import Entity, Schema
from cdp_torchrec.data.tables.vocabulary_digest import vocabulary_digest
from cdp_torchrec.distributed.verified_dataset import verify_dataset
from cdp_torchrec.evaluation import EvaluationSettings, evaluate
from cdp_torchrec.model.embedding_sets import build_ranking_arch
from cdp_torchrec.progress import Stages
from cdp_torchrec.serving.artifact import (
    GOLDEN,
    MANIFEST,
    RANKER,
    TABLES,
    ArtifactError,
    Manifest,
    base_version,
    write_manifest,
)
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.golden import GoldenRequest, stored_behaviours
from cdp_torchrec.serving.parity import Parity, compare, raw_requests
from cdp_torchrec.serving.parts import (
    open_encoder,
    open_inputs,
    open_layout,
    open_store,
    open_vocabularies,
)
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.ranker_export import check_compiler, export_ranker
from cdp_torchrec.serving.request import Behaviours, Request
from cdp_torchrec.serving.signature import check_signing_key
from cdp_torchrec.serving.table_export import write_tables
from cdp_torchrec.serving.weights import load_weights
from cdp_torchrec.stopped_by_signals import stopped_by_signals
from cdp_torchrec.stored_run import StoredRun
from cdp_torchrec.whole_file import remove_leftovers_of, whole_directory, why_unwritable

_EXAMPLE_REQUESTS = 3


@dataclass(frozen=True)
class Exported:
    """A finished artifact."""

    directory: Path
    manifest: Manifest
    parity: Parity


@dataclass(frozen=True)
class Made:
    """An artifact that proved to score like the trainer."""

    manifest: Manifest
    parity: Parity
    requests: Sequence[Request]
    """What it was proven with."""


def export_run(
    run: StoredRun[ExportedConfig], device: torch.device, *, output: Path | None = None
) -> Exported:
    """Export a checkpoint and prove that it scores alike.

    Args:
        run: the run, and its section `export`.
        device: where the artifact will compute.
        output: directory to make; `<run>/export` if not given.

    Raises:
        ConfigError: a setting is wrong, or the directory exists.
        SignatureError: export.signing_key is no key.
        CheckpointError: there is no checkpoint, or it does not fit the dataset.
        DatasetError: run.verify has found damage.
        ArtifactError: it cannot be compiled, or scores differently; nothing is left behind.
    """
    directory = output or run.directory / "export"
    check_export(run.config, directory)
    stages = Stages("export", total=5)
    with stopped_by_signals("nothing was exported"), whole_directory(directory) as partial:
        made = make_artifact(partial, run, device, stages)
    return Exported(directory, made.manifest, made.parity)


def make_artifact(
    directory: Path, run: StoredRun[ExportedConfig], device: torch.device, stages: Stages
) -> Made:
    """Fill the directory of an artifact, in 5 stages; as `export_run`.

    Args:
        directory: an empty one.
        run: as in `export_run`.
        device: as in `export_run`.
        stages: told of each.
    """
    config = run.config
    if config.run.verify:
        verify_dataset(config.data.dir)
    stages.begin(f"read test requests of {config.data.dir}")
    requests = raw_test_requests(config)
    num_impressions = sum(len(request.candidates["item_id"]) for request in requests)
    with tempfile.TemporaryDirectory() as scratch:
        predictions = Path(scratch, "predictions.parquet")
        # First: what does not fit together shows itself before the half minute of compiling.
        stages.begin(f"score {num_impressions:,} impressions as in training")
        _score_by_trainer(run, device, predictions)
        gc.collect()  # a sharded model is a web of cycles, with its tables in it
        stages.begin(f"compile the model of {run.checkpoint}; takes half a minute")
        manifest = _write(directory, run, requests[:_EXAMPLE_REQUESTS], device)
        predictor = Predictor.load(directory, manifest, history_store=config.data.dir)
        stages.begin(f"score {len(requests):,} requests as in serving, from raw ids")
        parity = compare(predictor, requests, predictions)
    if not parity.max_difference <= config.tolerance:
        raise ArtifactError(
            "the artifact scores differently from the trainer, nothing was exported "
            f"(export.tolerance = {config.tolerance:.0e}):\n{parity.table()}"
        )
    stages.begin("check and complete the artifact")
    golden = _golden(directory, config, predictor, requests)
    (directory / GOLDEN).write_text(json.dumps(golden.to_json(), indent=1))
    manifest = write_manifest(
        directory,
        manifest.model_copy(update={"parity": parity.to_json()}),
        signing_key=config.export.signing_key,
    )
    return Made(manifest, parity, requests)


def check_export(config: ExportedConfig, directory: Path) -> None:
    """What can be known to fail before anything is read or built.

    Args:
        config: of the run and of its export.
        directory: to make; what an export that was killed left half-written there is removed.

    Raises:
        ConfigError: it exists or cannot be made, or the model cannot be exported.
        SignatureError: export.signing_key is no key.
        ArtifactError: there is no compiler.
    """
    if dist.get_world_size() > 1:
        raise ConfigError(f"export runs on one rank, found {dist.get_world_size()}")
    check_output(directory, config.export.signing_key)
    check_compiler()


def check_output(directory: Path, signing_key: Path | None) -> None:
    """Whether a directory can be made, and signed; as `check_export`."""
    if directory.exists():
        raise ConfigError(f"{directory} exists: name another one with --output, or remove it")
    for parent in directory.resolve().parents:
        if (parent / MANIFEST).is_file():
            raise ConfigError(
                f"{directory}: lies in the artifact {parent}, which could not be opened with files "
                "that are not its own: name another one with --output"
            )
    if reason := why_unwritable(directory):
        raise ConfigError(f"{directory}: cannot be made: {reason}")
    if signing_key is not None:
        check_signing_key(signing_key)
    remove_leftovers_of(directory)


def raw_test_requests(config: ExportedConfig) -> list[Request]:
    """The first requests of the test split in raw ids, export.parity_impressions in all.

    Raises:
        ConfigError: one is longer than the artifact will serve.
    """
    reader = DatasetReader(config.data)
    order = reader.impressions("test")
    stop = min(config.export.parity_impressions, order.num_impressions)
    vocabularies = open_vocabularies(config.data.dir, reader.schema)
    impressions = order.take(0, 0, stop)
    longest = int(np.bincount(impressions.request_index).max())
    if longest > config.export.max_candidates:
        raise ConfigError.of(
            [
                f"export.max_candidates = {config.export.max_candidates}: a request of the test "
                f"split has {longest} candidates; expected {longest} or more"
            ]
        )
    return list(raw_requests(impressions, reader.schema, vocabularies))


def _write(
    partial: Path,
    run: StoredRun[ExportedConfig],
    examples: Sequence[Request],
    device: torch.device,
) -> Manifest:
    """Everything but the golden request; the manifest is not yet complete."""
    config = run.config
    schema = read_schema(config.data)
    (partial / "config.toml").write_text(dump_toml(config))
    schema.save(partial)
    for name, entity in schema.entities.items():
        _copy_vocabulary(name, schema, config.data.dir, partial, entity)
    layout = open_layout(partial, config)
    width = config.model.embedding_dim
    shapes = {entity: (table.num_embeddings, width) for entity, table in layout.tables.items()}
    weights = load_weights(run.checkpoint, shapes)
    write_tables(
        partial / TABLES,
        weights.tables,
        owners=weights.owners,
        storage=config.export.tables,
        num_shards=config.export.table_shards,
    )
    arch = build_ranking_arch(layout, config.model)
    arch.load_state_dict(weights.dense)
    encoder = open_encoder(partial, schema, config)
    builder = open_inputs(partial, schema, config, history_store=config.data.dir)
    inputs = builder.build([encoder.encode(request) for request in examples])
    on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
    export_ranker(
        arch.to(device),
        layout,
        on_device,
        partial / RANKER,
        max_history_length=config.data.history.max_length,
    )
    return Manifest(
        package_version=__version__,
        torch_version=base_version(),
        device="cuda" if device.type == "cuda" else "cpu",
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        name=f"{schema.name}-{config.model.interest.kind}",
        inputs=tuple(inputs),
        dataset_digest=schema.digest(),
    )


def _copy_vocabulary(
    name: str, schema: Schema, dataset: Path, artifact: Path, entity: Entity
) -> None:
    """Copy a vocabulary, and read the copy: codes of it are what the tables were trained with."""
    paths = vocabulary_paths(dataset, schema.days, name)
    copies = vocabulary_paths(artifact, schema.days, name)
    counts = [day_folder(dataset, day.name) / "counts" / paths[0].name for day in schema.days]
    places = [day_folder(artifact, day.name) / "counts" / paths[0].name for day in schema.days]
    for path, copy in zip([*paths, *counts], [*copies, *places], strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    try:
        found = vocabulary_digest(*copies)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{paths[0]}: cannot read the vocabulary: {error}") from error
    if found != entity.digest:
        raise ArtifactError(
            f"{paths[0]}: its ids are not those that schema.toml was written with: it was "
            "changed after the preparation; restore it, or prepare the dataset again"
        )


def _score_by_trainer(
    run: StoredRun[ExportedConfig], device: torch.device, predictions: Path
) -> None:
    """Score the first test impressions the way that training measures them."""
    verified = run.config.run.model_copy(update={"verify": False})  # before all else
    experiment = run.load(device, run.config.model_copy(update={"run": verified}))
    evaluate(
        experiment.parallelized.model,
        experiment.parallelized.optimizer,
        experiment.data.test.first(run.config.export.parity_impressions),
        EvaluationSettings(
            device, predictions=experiment.prediction_file(predictions), description="trainer"
        ),
    )


def _golden(
    artifact: Path, config: ExportedConfig, predictor: Predictor, requests: Sequence[Request]
) -> GoldenRequest:
    """The first request whose user has behaviours before it, with them."""
    schema = read_schema(config.data)
    store = open_store(config.data.dir, schema, artifact)
    vocabularies = open_vocabularies(artifact, schema)

    def behaviours(request: Request) -> Behaviours:
        return stored_behaviours(
            request, store, schema.history, vocabularies, at_most=config.export.max_history
        )

    request = next((r for r in requests if behaviours(r).item), requests[0])
    request = replace(request, history=behaviours(request))
    return GoldenRequest(request, predictor.score(request))
