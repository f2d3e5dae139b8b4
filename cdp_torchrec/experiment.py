"""Composition root: from a configuration to a trained and measured model, on one screen."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeInt, model_validator

from cdp_torchrec.checkpoint import (
    Checkpointer,
    CheckpointError,
    Progress,
    find_checkpoint,
    saved_checkpoints,
)
from cdp_torchrec.config import Config, ConfigError, dump_toml, load_config
from cdp_torchrec.config_errors import ConfigConflicts
from cdp_torchrec.data.assemble import BatchAssembler, HistoryConfig
from cdp_torchrec.data.history import HistoryStore
from cdp_torchrec.data.layout import FeatureLayout, VocabularyConfig, build_layout
from cdp_torchrec.data.loader import EvaluationBatches, Share, TrainBatches
from cdp_torchrec.data.requests import ImpressionOrder, RequestFiles
from cdp_torchrec.data.schema import Schema, load_schema
from cdp_torchrec.data.synthetic import make_synthetic
from cdp_torchrec.data.world import SyntheticConfig
from cdp_torchrec.distributed.optimizers import OptimizerConfig
from cdp_torchrec.distributed.parallelize import Parallelized, parallelize
from cdp_torchrec.distributed.sharding import ShardingConfig, describe_plan
from cdp_torchrec.environment import describe_environment
from cdp_torchrec.evaluation import EvaluationSettings, evaluate
from cdp_torchrec.metrics import MetricReport
from cdp_torchrec.model.ranking import ModelConfig, RankingModel
from cdp_torchrec.model.train_task import TrainTask
from cdp_torchrec.monitor import Monitor
from cdp_torchrec.trainer import Trainer, TrainerConfig

logger = logging.getLogger(__name__)


class RunConfig(Config):
    """Where the results go."""

    dir: Path | None = None
    """Directory of the run; without it, a new one under runs/."""
    resume: bool = False
    """Continue from the newest checkpoint in run.dir."""


class DataConfig(Config):
    """The dataset and how it is read."""

    dir: Path
    """Dataset directory, made by launch/prepare_data.py."""
    synthetic: SyntheticConfig | None = None
    """Make this synthetic log at data.dir if nothing is there yet."""
    exclude_features: tuple[str, ...] = ()
    """Features that are not read at all, such as the weekday of a log of two days."""
    vocabulary: Mapping[str, VocabularyConfig] = {}
    """Handling of rare ids by entity; the defaults for all that are not named."""
    history: HistoryConfig = HistoryConfig()
    """How much of the gated history is read."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training requests, the latest ones, held out for validation."""


class ExperimentConfig(Config):
    """Everything that decides a run."""

    seed: NonNegativeInt = 0
    """Seed of the initial parameters, the order of impressions and all noise."""
    run: RunConfig = RunConfig()
    """Where the results go."""
    data: DataConfig
    """The dataset and how it is read."""
    model: ModelConfig
    """The ranking model."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Sparse and dense optimizer."""
    sharding: ShardingConfig = ShardingConfig()
    """Where the tables live."""
    trainer: TrainerConfig = TrainerConfig()
    """The training loop."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        recent, kept = sum(self.model.interest.recency_segments), self.data.history.max_length
        if recent >= kept:
            raise ConfigConflicts(
                [
                    (
                        "data.history.max_length",
                        f"must exceed the {recent} behaviours of model.interest.recency_segments",
                    )
                ]
            )
        return self


@dataclass(frozen=True)
class Experiment:
    """The parts of one run on this rank, ready to train or to evaluate."""

    config: ExperimentConfig
    schema: Schema
    layout: FeatureLayout
    device: torch.device
    train: TrainBatches
    validation: EvaluationBatches | None
    test: EvaluationBatches
    steps_per_epoch: int
    total_steps: int
    parallelized: Parallelized


def train(config: ExperimentConfig, device: torch.device) -> MetricReport:
    """Train a model, and measure its best checkpoint on the test split; collective.

    Args:
        config: the run.
        device: where this rank computes.

    Returns:
        Metrics of the test split, also written to `<run.dir>/evaluation.json`.
    """
    prepare_synthetic(config.data)
    experiment = build_experiment(config, device)
    run_dir = open_run_directory(config)
    write_run_files(run_dir, experiment)
    checkpointer = make_checkpointer(experiment, run_dir)
    model, optimizer = experiment.parallelized.model, experiment.parallelized.optimizer
    progress = Progress(step=0, position=0)
    checkpoints = saved_checkpoints(checkpointer.directory)
    if checkpoints:
        progress = checkpointer.load(checkpoints[-1], model, optimizer)
    with Monitor(run_dir, total_steps=experiment.total_steps, first_step=progress.step) as monitor:
        monitor.say(_summary(experiment, run_dir, progress))
        progress = Trainer(
            config.trainer,
            experiment.parallelized,
            experiment.train,
            experiment.validation,
            checkpointer,
            monitor,
            total_steps=experiment.total_steps,
            steps_per_epoch=experiment.steps_per_epoch,
            device=device,
        ).train(progress)
        checkpointer.load(find_checkpoint(run_dir), model, optimizer)
        report = evaluate_test(experiment, run_dir)
        point = {name: getattr(report, name) for name in ("auc", "uauc", "gauc", "log_loss")}
        monitor.record("test", progress.step, point)
    return report


def evaluate_run(
    path: Path, overrides: Sequence[str], device: torch.device, *, write_predictions: bool
) -> MetricReport:
    """Measure a checkpoint, or the best one of a run, on the test split; collective.

    Args:
        path: run directory or checkpoint.
        overrides: key=value over the run's configuration, such as another data.dir.
        device: where this rank computes.
        write_predictions: also write predictions.parquet beside evaluation.json.

    Raises:
        CheckpointError: there is no checkpoint, or it does not fit the dataset.
    """
    checkpoint = find_checkpoint(path)
    run_dir = checkpoint.parent.parent
    config = load_config(ExperimentConfig, [str(checkpoint / "config.toml"), *overrides])
    experiment = build_experiment(config, device)
    make_checkpointer(experiment, run_dir).load(
        checkpoint, experiment.parallelized.model, experiment.parallelized.optimizer
    )
    predictions = run_dir / "predictions.parquet" if write_predictions else None
    return evaluate_test(experiment, run_dir, predictions=predictions)


def evaluate_test(
    experiment: Experiment, run_dir: Path, *, predictions: Path | None = None
) -> MetricReport:
    """Metrics of the test split with intervals, written to `<run_dir>/evaluation.json`."""
    report = evaluate(
        experiment.parallelized.model,
        experiment.parallelized.optimizer,
        experiment.test,
        EvaluationSettings(
            experiment.device,
            experiment.config.trainer.num_workers,
            num_bootstrap=200,
            predictions=predictions,
            description="test",
        ),
    )
    if dist.get_rank() == 0:
        result = report.to_dict() | {"bayes": dict(experiment.schema.bayes)}
        partial = run_dir / ".evaluation.json.partial"
        partial.write_text(json.dumps(result, indent=2))
        partial.rename(run_dir / "evaluation.json")
    return report


def build_experiment(config: ExperimentConfig, device: torch.device) -> Experiment:
    """Open the dataset, build the model and shard it; collective.

    Raises:
        ConfigError: the configuration does not fit the dataset or the number of ranks.
        DatasetError: the dataset is incomplete or damaged.
    """
    schema = load_schema(config.data.dir)
    try:
        schema = schema.without(config.data.exclude_features)
    except ValueError as error:
        raise ConfigError.of([f"data.exclude_features: {error}"]) from error
    share = Share(dist.get_rank(), dist.get_world_size())
    check_against_schema(config, schema, share.world_size)
    segments = config.model.interest.recency_segments
    layout = build_layout(
        config.data.dir,
        schema,
        vocabulary=config.data.vocabulary,
        num_segments=config.model.interest.num_segments,
    )
    batch_size = config.trainer.global_batch_size // share.world_size
    assembler = make_assembler(config, schema, layout, segments, batch_size)
    train_files, validation_files, test_files = open_splits(config.data, schema)

    def evaluation_batches(files: RequestFiles) -> EvaluationBatches:
        return EvaluationBatches(
            ImpressionOrder(files, seed=None),
            assembler,
            global_batch_size=config.trainer.global_batch_size,
            share=share,
        )

    steps_per_epoch = train_files.num_impressions // config.trainer.global_batch_size
    total_steps = config.trainer.max_epochs * steps_per_epoch
    total_steps = min(total_steps, config.trainer.max_steps or total_steps)
    train_batches = TrainBatches(
        ImpressionOrder(train_files, seed=config.seed),
        assembler,
        global_batch_size=config.trainer.global_batch_size,
        share=share,
    )
    torch.manual_seed(config.seed)
    parallelized = parallelize(
        TrainTask(RankingModel(layout, config.model)),
        sharding=config.sharding,
        optimizer=config.optimizer,
        device=device,
        batch_size=batch_size,
        max_steps=total_steps,
        embedding_init_std=config.model.embedding_init_std,
        seed=config.seed,
    )
    return Experiment(
        config=config,
        schema=schema,
        layout=layout,
        device=device,
        train=train_batches,
        validation=evaluation_batches(validation_files) if validation_files else None,
        test=evaluation_batches(test_files),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        parallelized=parallelized,
    )


def open_splits(
    config: DataConfig, schema: Schema
) -> tuple[RequestFiles, RequestFiles | None, RequestFiles]:
    """Training, validation (if any) and test requests."""
    requests = schema.splits["train"].requests
    held_out = int(config.validation_fraction * requests)
    stop = requests - held_out
    return (
        RequestFiles(config.dir, schema, "train", stop=stop),
        RequestFiles(config.dir, schema, "train", first=stop) if held_out else None,
        RequestFiles(config.dir, schema, "test"),
    )


def make_assembler(
    config: ExperimentConfig,
    schema: Schema,
    layout: FeatureLayout,
    segments: tuple[int, ...],
    batch_size: int,
) -> BatchAssembler:
    """The assembler of a configuration's batches."""
    gate = schema.history.category_entity
    return BatchAssembler(
        layout,
        HistoryStore(
            config.data.dir / "history",
            schema.history,
            num_categories=schema.entities[gate].num_ids if gate else 0,
        ),
        batch_size=batch_size,
        recency_segments=segments,
        max_history_length=config.data.history.max_length,
        category_feature=schema.gate_feature(),
        seed=config.seed,
    )


def check_against_schema(config: ExperimentConfig, schema: Schema, world_size: int) -> None:
    """Conflicts that only the dataset or the number of ranks reveals.

    Raises:
        ConfigError: names all of them.
    """
    problems = []
    names = [feature.name for feature in schema.features]
    for name in config.model.interaction.exclude:
        if name not in names:
            problems.append(
                f"model.interaction.exclude: the dataset has no feature '{name}'; it has {names}"
            )
    if config.trainer.global_batch_size % world_size:
        problems.append(
            f"trainer.global_batch_size = {config.trainer.global_batch_size}: not a multiple of "
            f"the {world_size} ranks"
        )
    if problems:
        raise ConfigError.of(problems)


def prepare_synthetic(config: DataConfig) -> None:
    """Make the synthetic dataset if the configuration has one and it is not there; collective."""
    if config.synthetic is not None and dist.get_rank() == 0 and not config.dir.exists():
        make_synthetic(config.synthetic, config.dir)
    dist.barrier()


def open_run_directory(config: ExperimentConfig) -> Path:
    """Directory of this run, the same on all ranks; collective.

    Raises:
        ConfigError: it holds another run, and this one shall not continue it.
    """
    # A restarted attempt of an elastic job has the same id, so it finds its own checkpoints.
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    name = job if job != "none" else time.strftime("%Y%m%d-%H%M%S")
    shared = [str(config.run.dir or Path("runs") / name)]
    dist.broadcast_object_list(shared)
    run_dir = Path(shared[0])
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if (run_dir / "metrics.jsonl").exists() and not (config.run.resume or restarted):
        raise ConfigError(
            f"run.dir = '{run_dir}' holds another run: continue it with run.resume=true, or choose "
            "another directory"
        )
    if config.run.resume and not saved_checkpoints(run_dir / "checkpoints"):
        raise CheckpointError(f"run.resume: there is no checkpoint in {run_dir}/checkpoints")
    dist.barrier()
    return run_dir


def write_run_files(run_dir: Path, experiment: Experiment) -> None:
    """Resolved config, sharding plan and environment, for later reading."""
    if dist.get_rank() != 0:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(dump_toml(experiment.config))
    plan = describe_plan(experiment.parallelized.plan)
    (run_dir / "plan.json").write_text(json.dumps(plan, indent=2))
    (run_dir / "environment.json").write_text(json.dumps(describe_environment(), indent=2))


def make_checkpointer(experiment: Experiment, run_dir: Path) -> Checkpointer:
    """The checkpoints of a run."""
    return Checkpointer(
        run_dir,
        schema_fingerprint=experiment.schema.fingerprint(),
        config_toml=dump_toml(experiment.config),
        keep_last=experiment.config.trainer.keep_checkpoints,
    )


def _summary(experiment: Experiment, run_dir: Path, progress: Progress) -> str:
    model = experiment.parallelized.model
    tables = sum(p.numel() for n, p in model.named_parameters() if ".embedding_bags." in n)
    dense = sum(p.numel() for n, p in model.named_parameters() if ".embedding_bags." not in n)
    start = f", resumed at step {progress.step}" if progress.step else ""
    return (
        f"{run_dir}: {experiment.config.model.interest.kind} on {experiment.schema.name}, "
        f"{dist.get_world_size()} ranks ({experiment.device.type}), "
        f"{tables:,} sparse parameters on rank 0, {dense:,} dense, "
        f"{experiment.total_steps} steps of {experiment.config.trainer.global_batch_size} "
        f"impressions{start}"
    )
