"""The training loop: segments of pipelined steps between validations and checkpoints."""

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from cdp_torchrec.data.dataset import Dataset
from cdp_torchrec.data.workers import BatchLoader
from cdp_torchrec.distributed.interruption import Interruption
from cdp_torchrec.distributed.managed_collision import assign_counted_rows
from cdp_torchrec.distributed.parallelize import Parallelized
from cdp_torchrec.distributed.pipeline import train_pipeline
from cdp_torchrec.evaluation import EvaluationSettings, evaluate
from cdp_torchrec.model.train_task import TrainOutput
from cdp_torchrec.run.checkpoint import Checkpointer
from cdp_torchrec.run.config import TrainerConfig
from cdp_torchrec.run.finite import check_loss
from cdp_torchrec.run.monitor import Monitor, memory_gib
from cdp_torchrec.run.records import Progress, Validation


class Trainer:
    """Runs a sharded model over its training batches."""

    def __init__(
        self,
        config: TrainerConfig,
        parallelized: Parallelized,
        data: Dataset,
        loader: BatchLoader,
        checkpointer: Checkpointer,
        monitor: Monitor,
        *,
        total_steps: int,
        device: torch.device,
    ) -> None:
        """Put the parts together.

        Args:
            config: the loop's settings.
            parallelized: model and optimizer.
            data: training batches, and the validation slice if there is one.
            loader: prepares both.
            checkpointer: writes checkpoints.
            monitor: shows progress.
            total_steps: steps of the whole training.
            device: where this rank computes.
        """
        self._config = config
        self._model = parallelized.model
        self._task = parallelized.task
        self._optimizer = parallelized.optimizer
        self._prefetch = parallelized.prefetch
        self._loader = loader
        self._batches = data.train
        self._validation = data.validation
        self._checkpointer = checkpointer
        self._monitor = monitor
        self._total_steps = total_steps
        self._validate_every = config.validate_every_steps or data.steps_per_epoch
        self._checkpoint_every = config.checkpoint_every_steps or self._validate_every
        if data.validation is None:
            self._validate_every = self._checkpoint_every  # there is nothing else to stop for
        self._device = device
        self._best = checkpointer.best()
        self._interruption = Interruption(device, world_size=dist.get_world_size())

    def train(self, progress: Progress) -> Progress:
        """Train from a position to the end, or until validation stops improving.

        Raises:
            NonFiniteError: the loss or a weight became infinite or not a number.
            CheckpointError: a checkpoint could not be written.
            Interrupted: by SIGTERM or SIGINT; a checkpoint is written.
        """
        with self._interruption, self._checkpointer:
            if progress.validation_is_due:
                progress = self._validate(progress)
            while progress.step < self._total_steps and not self._is_stalled(progress):
                progress = self._segment(progress, self._next_stop(progress.step))
                progress = self._keep(progress)
        if progress.step < self._total_steps:
            best = "none" if self._best is None else f"{self._best.value:.4f}"
            self._monitor.say(
                f"stopped early at step {progress.step}: {self._config.patience} validations "
                f"without a better {self._config.validation_metric} than {best}"
            )
        return progress

    def _keep(self, progress: Progress) -> Progress:
        """Write a checkpoint and validate where they are due, or a signal asks for a checkpoint."""
        self._interruption.agree(failed=self._checkpointer.has_failed)
        validates = self._validation is not None and self._due(progress.step, self._validate_every)
        progress = replace(progress, validation_is_due=validates)
        is_asked = bool(self._interruption.signal)
        if validates or is_asked or self._due(progress.step, self._checkpoint_every):
            self._checkpointer.save(progress, self._model, self._optimizer)
        self._end_if_asked(progress)
        return self._validate(progress) if validates else progress

    def _validate(self, progress: Progress) -> Progress:
        """Measure the validation slice, and add the result to the checkpoint of this step."""
        validation = self._measure(progress)
        is_best = validation is not None and (
            self._best is None or validation.is_better_than(self._best)
        )
        since = 0 if is_best else progress.validations_without_gain + 1
        progress = replace(progress, validations_without_gain=since, validation_is_due=False)
        self._best = validation if is_best else self._best
        self._checkpointer.add_validation(progress, validation)
        return progress

    def _hear(self) -> None:
        """Hear about once a second what the other ranks know.

        Raises:
            CheckpointError: one of them could not write the checkpoint in flight.
        """
        self._interruption.after_step(failed=self._checkpointer.has_failed)
        if self._interruption.has_failed:
            self._checkpointer.finish()  # raises what failed

    def _end_if_asked(self, progress: Progress) -> None:
        """Where the checkpoint of this step has been begun.

        Raises:
            Interrupted: all ranks know of a signal; the checkpoint is there.
        """
        if self._interruption.signal:
            self._checkpointer.finish()  # before saying so
            self._interruption.end_if_asked(
                f"stopped after step {progress.step} of {self._total_steps}, with a checkpoint in "
                f"{self._checkpointer.run_dir}"
            )

    def _is_stalled(self, progress: Progress) -> bool:
        patience = self._config.patience
        return patience is not None and progress.validations_without_gain >= patience

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._total_steps

    def _next_stop(self, step: int) -> int:
        following = [
            (step // every + 1) * every for every in (self._validate_every, self._checkpoint_every)
        ]
        return min(*following, self._total_steps)

    def _segment(self, progress: Progress, stop: int) -> Progress:
        """Steps up to `stop`, through a pipeline that is empty again at its end."""
        self._model.train()
        pipeline = train_pipeline(
            self._model, self._optimizer, self._device, prefetch=self._prefetch
        )
        positions = self._batches.positions(progress.position, stop - progress.step)
        batches = self._loader.load(self._batches, positions)
        # Where a signal ends the segment, the pipeline finishes what it has begun.
        source = itertools.takewhile(lambda _: not self._interruption.signal, batches)
        started, first = time.perf_counter(), progress.step
        unlogged: tuple[TrainOutput, dict[str, float]] | None = None

        def log(output: TrainOutput, rates: dict[str, float]) -> None:
            nonlocal started, first
            now = time.perf_counter()
            speed = (progress.step - first) * self._config.global_batch_size / (now - started)
            started, first = now, progress.step
            self._log(progress.step, output, rates, speed)

        for step, position in zip(itertools.count(progress.step), positions, strict=False):
            rates = self._optimizer.set_learning_rates(step)
            is_logged = (step + 1) % self._config.log_every_steps == 0 or step + 1 == stop
            self._task.monitor(is_logged)
            try:
                output: TrainOutput = pipeline.progress(source)
            except StopIteration:
                break
            progress = replace(
                progress, step=step + 1, position=position + self._config.global_batch_size
            )
            self._monitor.advance()
            unlogged = None if is_logged else (output, rates)
            if is_logged:
                log(output, rates)
            self._hear()
        pipeline.detach()
        if unlogged is not None:  # a signal has ended the segment, and what is saved must be sound
            log(*unlogged)
        assign_counted_rows(self._model)
        return progress

    def _log(
        self, step: int, output: TrainOutput, rates: dict[str, float], impressions_per_s: float
    ) -> None:
        losses = {name: float(value) for name, value in average(output.losses).items()}
        check_loss(step, losses)
        monitors = {name: float(value) for name, value in average(output.monitors).items()}
        self._monitor.show({"loss": losses["loss"], "impressions/s": impressions_per_s} | losses)
        self._monitor.record(
            "train",
            step,
            losses
            | monitors
            | {f"lr_{name}": rate for name, rate in rates.items()}
            | {"impressions_per_s": impressions_per_s, "memory_gib": memory_gib(self._device)},
        )

    def _measure(self, progress: Progress) -> Validation | None:
        """The validation slice; None if the metric that decides is undefined."""

        def after_batch() -> None:
            self._hear()
            self._end_if_asked(progress)

        assert self._validation is not None
        report = evaluate(
            self._model,
            self._optimizer,
            self._validation,
            EvaluationSettings(
                self._device, self._loader, description="validate", after_batch=after_batch
            ),
        )
        point = report.main_metrics()
        self._monitor.record("validation", progress.step, point)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in point.items())
        self._monitor.say(f"step {progress.step}: validation {shown}")
        name = self._config.validation_metric
        value = point[name]
        # No request with both labels, say.
        return None if math.isnan(value) else Validation(metric=name, value=value)


def average(scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean of each scalar over the ranks; collective."""
    if not scalars:
        return {}
    names = sorted(scalars)
    stacked = torch.stack([scalars[name].float() for name in names])
    dist.all_reduce(stacked)
    return dict(zip(names, stacked / dist.get_world_size(), strict=True))
