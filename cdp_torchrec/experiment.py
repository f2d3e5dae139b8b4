"""Composition root: from a configuration to a trained and measured model, on one screen."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cdp_torchrec.config import dump_toml
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.dataset import Dataset, make_if_missing, open_dataset
from cdp_torchrec.data.loader import EvaluationBatches, Share, TrainBatches
from cdp_torchrec.data.plausibility import check_plausible
from cdp_torchrec.data.pooling_factors import measure_pooling_factors
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import SplitName
from cdp_torchrec.data.tables.hashed_tables import describe_collisions
from cdp_torchrec.data.workers import BatchLoader
from cdp_torchrec.distributed.interruption import Interruption, going_on_by
from cdp_torchrec.distributed.parallelize import Parallelized, parallelize
from cdp_torchrec.distributed.plans.job import pose_problem
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.distributed.verified_dataset import verify_dataset
from cdp_torchrec.evaluation import EvaluationSettings, evaluate
from cdp_torchrec.experiment_config import ExperimentConfig, check_against_data
from cdp_torchrec.metrics import MetricReport
from cdp_torchrec.model.ranking_model import RankingModel
from cdp_torchrec.model.sparse_arch import is_table
from cdp_torchrec.model.train_task import TrainTask
from cdp_torchrec.predictions import PredictionFile
from cdp_torchrec.run.checkpoint import Checkpointer
from cdp_torchrec.run.config import TrainerConfig
from cdp_torchrec.run.directory import open_run_directory, write_run_files
from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.run.records import Progress
from cdp_torchrec.run.saved import EVALUATION, PREDICTIONS, find_checkpoint
from cdp_torchrec.run.starts import record_start
from cdp_torchrec.trainer import Trainer
from cdp_torchrec.training_start import load_start
from cdp_torchrec.whole_file import write_json


@dataclass(frozen=True)
class Experiment:
    """The parts of one run on this rank, ready to train or to evaluate."""

    config: ExperimentConfig
    device: torch.device
    data: Dataset
    loader: BatchLoader
    """Prepares the batches of all splits."""
    total_steps: int
    parallelized: Parallelized

    @property
    def model(self) -> RankingModel:
        """The ranking model inside the sharded task; its tables are this rank's share."""
        return self.parallelized.task.model

    def prediction_file(self, path: Path) -> PredictionFile:
        """A file for predictions about this dataset."""
        return PredictionFile(path, self.config.data.dir, self.data.schema)


@dataclass(frozen=True)
class Trained:
    """A finished run; the model is that of its best checkpoint."""

    experiment: Experiment
    run_dir: Path
    progress: Progress
    """Where the training ended, which may be behind the best checkpoint."""
    report: MetricReport
    """Metrics of the test split."""


def train(config: ExperimentConfig, device: torch.device) -> MetricReport:
    """Train a model, and measure its best checkpoint on the test split; collective.

    Args:
        config: the run.
        device: where this rank computes.

    Returns:
        Metrics of the test split, also written to `<run.dir>/evaluation.json`.
    """
    return train_experiment(config, device).report


def train_experiment(
    config: ExperimentConfig,
    device: torch.device,
    *,
    num_bootstrap: int = 200,
    quiet: bool = False,
    way_on: str | None = None,
) -> Trained:
    """As `train`, for callers that go on with the trained model; collective.

    Args:
        config: the run.
        device: where this rank computes.
        num_bootstrap: replicates of the user bootstrap on the test split.
        quiet: no progress bar and no lines in the terminal.
        way_on: what goes on after a signal, in words; None: a resume of the run.
    """
    prepare_synthetic(config.data)
    doubts = check_plausible(config.data)
    experiment = build_experiment(config, device)
    with (
        open_run_directory(config.run) as run_dir,
        going_on_by(way_on or f"go on with run.dir={run_dir} run.resume=true"),
    ):
        return _train_in(run_dir, experiment, doubts, num_bootstrap=num_bootstrap, quiet=quiet)


def _train_in(
    run_dir: Path,
    experiment: Experiment,
    doubts: Sequence[str],
    *,
    num_bootstrap: int,
    quiet: bool,
) -> Trained:
    config, parallelized = experiment.config, experiment.parallelized
    checkpointer = make_checkpointer(experiment, run_dir)
    start = load_start(config, parallelized, checkpointer, total_steps=experiment.total_steps)
    record_start(run_dir, config, start.progress, start.checkpoint)
    write_run_files(run_dir, config, parallelized.plan_json)
    total_steps = experiment.total_steps
    if is_rank_zero() and start.progress.step < total_steps:
        for name in (EVALUATION, PREDICTIONS):  # of where the run was
            (run_dir / name).unlink(missing_ok=True)
    with (
        closing(experiment.loader),
        Monitor(run_dir, total_steps=total_steps, start=start.progress, quiet=quiet) as monitor,
    ):
        for doubt in doubts:
            monitor.say(f"warning: {config.data.dir}: {doubt}")
        monitor.say(_summary(experiment, run_dir))
        for note in (*start.notes, *_collisions(experiment)):
            monitor.say(note)
        if config.model.compile:
            monitor.say("model.compile: the first step waits for compilers")
        progress = Trainer(
            config.trainer,
            parallelized,
            experiment.data,
            experiment.loader,
            checkpointer,
            monitor,
            total_steps=total_steps,
            device=experiment.device,
        ).train(start.progress)
        with Interruption(experiment.device, world_size=dist.get_world_size()) as interruption:

            def after_batch() -> None:
                interruption.after_step()
                interruption.end_if_asked(
                    f"{run_dir} is trained, and not measured on the test split yet"
                )

            checkpointer.load(find_checkpoint(run_dir), parallelized.model, parallelized.optimizer)
            report = evaluate_test(experiment, num_bootstrap=num_bootstrap, after_batch=after_batch)
            write_evaluation(run_dir, report, experiment.data.reader)
        monitor.record("test", progress.step, report.main_metrics())
    return Trained(experiment, run_dir, progress, report)


def evaluate_test(
    experiment: Experiment,
    *,
    num_bootstrap: int = 200,
    predictions: PredictionFile | None = None,
    after_batch: Callable[[], None] | None = None,
) -> MetricReport:
    """Metrics of the test split with intervals; collective."""
    settings = EvaluationSettings(
        experiment.device,
        experiment.loader,
        num_bootstrap=num_bootstrap,
        predictions=predictions,
        description="test",
        after_batch=after_batch,
    )
    parallelized = experiment.parallelized
    return evaluate(parallelized.model, parallelized.optimizer, experiment.data.test, settings)


def evaluate_training(
    experiment: Experiment, *, predictions: PredictionFile | None = None
) -> MetricReport:
    """The same of the whole training split, with the held-out requests, in its order; collective.

    Most of it the model has been trained on: these are no measure of what it is worth.
    """
    data, parallelized = experiment.data, experiment.parallelized
    batches = data.test.of(data.reader.impressions("train"))
    with closing(_loader([batches], experiment.config.trainer, experiment.device)) as loader:
        settings = EvaluationSettings(
            experiment.device,
            loader,
            num_bootstrap=200,
            predictions=predictions,
            description="train",
        )
        return evaluate(parallelized.model, parallelized.optimizer, batches, settings)


def write_evaluation(
    directory: Path, report: MetricReport, reader: DatasetReader, split: SplitName = "test"
) -> None:
    """Write EVALUATION; on rank 0."""
    if is_rank_zero():
        about_data: dict[str, Any] = {"training_digest": reader.training_digest}
        if split == "test":
            about_data = {"bayes": dict(reader.schema.bayes), "test_digest": reader.test_digest}
        write_json(directory / EVALUATION, report.to_dict() | about_data)


def build_experiment(config: ExperimentConfig, device: torch.device) -> Experiment:
    """Open the dataset, build the model and shard it; collective.

    Raises:
        ConfigError: the configuration does not fit the dataset or the number of ranks.
        DatasetError: the dataset is incomplete or damaged.
    """
    share = Share(dist.get_rank(), dist.get_world_size())
    check_against_data(config, share.world_size)
    if config.run.verify:
        verify_dataset(config.data.dir)
    trainer = config.trainer
    data = open_data(config, share=share, global_batch_size=trainer.global_batch_size)
    total_steps = trainer.max_epochs * data.steps_per_epoch
    total_steps = min(total_steps, trainer.max_steps or total_steps)
    torch.manual_seed(config.seed)
    parallelized = parallelize(
        plan_problem(config, data, device),
        config.optimizer,
        device=device,
        max_steps=total_steps,
        embedding_init_std=config.model.embedding_init_std,
        seed=config.seed,
    )
    loader = _loader(data.sources, trainer, device)
    return Experiment(config, device, data, loader, total_steps, parallelized)


def _loader(
    sources: Sequence[TrainBatches | EvaluationBatches],
    trainer: TrainerConfig,
    device: torch.device,
) -> BatchLoader:
    pinned = device.type == "cuda"
    return BatchLoader(sources, num_workers=trainer.num_workers, pin_memory=pinned)


def plan_problem(config: ExperimentConfig, data: Dataset, device: torch.device) -> PlanProblem:
    """The model of a configuration, and what its tables need a plan for; collective.

    Raises:
        ConfigError: the named hardware is unknown, or not what the ranks compute on.
    """
    model = RankingModel(data.layout, config.model)
    for one in model.ranking_arch.sets:
        one.over_arch.start_at(data.schema.splits["train"].click_rate)
    return pose_problem(
        TrainTask(model),
        config.sharding,
        config.optimizer.sparse,
        device=device,
        batch_size=config.trainer.global_batch_size // dist.get_world_size(),
        pooling_factors=measure_pooling_factors(data.train),
    )


def open_data(config: ExperimentConfig, *, share: Share, global_batch_size: int) -> Dataset:
    """The dataset as the model reads it, in batches of any size.

    Raises:
        ConfigError: the configuration does not fit the dataset.
        DatasetError: the dataset is incomplete or damaged.
    """
    return open_dataset(
        config.data,
        history=config.model.interest.history,
        history_counts=config.model.interaction.history_counts,
        global_batch_size=global_batch_size,
        share=share,
        seed=config.seed,
    )


def prepare_synthetic(config: DataConfig) -> None:
    """Make the synthetic log of a configuration on first use; collective."""
    if dist.get_rank() == 0:
        make_if_missing(config)
    dist.barrier()


def make_checkpointer(experiment: Experiment, run_dir: Path) -> Checkpointer:
    """The checkpoints of a run."""
    return Checkpointer(
        run_dir,
        dataset=experiment.config.data.dir,
        dataset_digest=experiment.data.schema.digest(),
        training_digest=experiment.data.reader.training_digest,
        config_toml=dump_toml(experiment.config),
        plan_json=experiment.parallelized.plan_json,
        keep_last=experiment.config.trainer.keep_checkpoints,
        mode=experiment.config.trainer.checkpoint_mode,
    )


def _collisions(experiment: Experiment) -> list[str]:
    data = experiment.data
    return describe_collisions(experiment.config.data.dir, data.schema, data.layout.tables)


def _summary(experiment: Experiment, run_dir: Path) -> str:
    model = experiment.parallelized.model
    tables = sum(p.numel() for n, p in model.named_parameters() if is_table(n))
    dense = sum(p.numel() for n, p in model.named_parameters() if not is_table(n))
    return (
        f"{run_dir}: {experiment.config.model.interest.kind} on {experiment.data.schema.name}, "
        f"{dist.get_world_size()} ranks ({experiment.device.type}), "
        f"{tables:,} sparse parameters on rank 0, {dense:,} dense, "
        f"{experiment.total_steps} steps of {experiment.config.trainer.global_batch_size} "
        "impressions"
    )
