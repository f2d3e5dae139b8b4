"""Distillation of CDP's reverse process into one denoiser call.

A student is CDP with num_inference_steps = 1 whose denoiser was trained to return what the chain of
the teacher returns: nothing but the denoiser's weights is new, so that a student is a run like any
other. It starts as the teacher's own one-step sampler, by regression to the K-step map
(Luhman and Luhman 2021, arXiv 2101.02388); everything else stays bit-equal.
"""

import copy
import math
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.errors import check
from cdp_torchrec.config.keys import key_tree, tables_of
from cdp_torchrec.config.layers import Layers
from cdp_torchrec.distill.config import DistillConfig, DistillExperimentConfig, student_beside
from cdp_torchrec.distill.student import (
    cdp_interest,
    diverged,
    relative_error,
    train_student,
    training_inputs,
)
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.experiment import (
    Experiment,
    evaluate_test,
    make_checkpointer,
    write_evaluation,
)
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.interest import CdpConfig
from cdp_torchrec.metrics import MetricReport
from cdp_torchrec.model.config import ModelConfig
from cdp_torchrec.progress import Stages
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.directory import write_run_files
from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.run.saved import DISTILLATION
from cdp_torchrec.stopped_by_signals import stopped_by_signals
from cdp_torchrec.stored_run import StoredRun
from cdp_torchrec.undefined import json_ready, shown
from cdp_torchrec.whole_file import (
    remove_leftovers_of,
    whole_directory,
    why_unwritable,
    write_json,
)


@dataclass(frozen=True)
class Distilled:
    """A finished student."""

    run_dir: Path
    teacher_steps: int
    """K of the teacher."""
    one_step_error: float
    """Relative error of z* by the teacher's own one-step sampler: root mean square of the
    difference to z* of the teacher over that of z* itself, on unseen impressions."""
    student_error: float
    """The same of the student."""
    teacher: MetricReport
    """Test metrics of the teacher at K steps."""
    student: MetricReport
    """Test metrics of the student."""

    def table(self) -> str:
        """Both on the test split, and the errors."""
        lines = [f"{'':<10}{'auc':>10}{'uauc':>10}{'gauc':>10}  relative error of z*"]
        rows = (("teacher", self.teacher, 0.0), ("student", self.student, self.student_error))
        for name, report, error in rows:
            metrics = (report.auc, report.uauc, report.gauc)
            cells = "".join(f"{shown(metric, digits=5):>10}" for metric in metrics)
            lines.append(f"{name:<10}{cells}  {error:.4f}")
        lines.append(
            f"teacher: {self.teacher_steps} steps; its own one-step sampler has a relative error "
            f"of {self.one_step_error:.4f}"
        )
        return "\n".join([f"student: {self.run_dir}", *lines])


def distill_run(run: StoredRun[DistillExperimentConfig], device: torch.device) -> Distilled:
    """Train the student of a run; collective.

    Makes a run directory: config, checkpoint, metrics.jsonl, evaluation.json as a training does,
    and distillation.json. It is there when the student is finished, and not before.

    Args:
        run: the teacher's run, and its section `distill`.
        device: where this rank computes.

    Raises:
        ConfigError: the run has no chain to distill, or the student's directory is in use.
        CheckpointError: there is no checkpoint, or it does not fit the dataset.
        NonFiniteError: the student diverged.
    """
    config = run.config
    interest = _distillable(config.model)
    teacher_steps = config.distill.teacher_steps or interest.num_inference_steps
    if teacher_steps == 1:
        raise ConfigError(
            "the teacher is one denoiser call, as its student would be: set distill.teacher_steps "
            f"to 2 or more, at most {interest.max_inference_steps}"
        )
    student_dir = config.distill.dir or student_beside(run.directory)
    teacher_config = _with_steps(config, teacher_steps)
    student_config = _with_steps(config, 1, run=RunConfig(dir=student_dir))
    stopped = stopped_by_signals(f"nothing was distilled, {student_dir} is as it was")
    with stopped, _whole_student(student_dir) as partial:
        experiment = run.load(device, teacher_config)
        with closing(experiment.loader):
            distilled = _distill_into(partial, run, experiment, student_config, teacher_steps)
    return replace(distilled, run_dir=student_dir)


@contextmanager
def _whole_student(student_dir: Path) -> Generator[Path]:
    """A directory for all ranks to fill that becomes the student's at the end; collective.

    What a distillation that was killed left half-written is removed.

    Raises:
        ConfigError: the student's directory is in use, or cannot be made.
    """
    with ExitStack() as held:

        def begin() -> Path:
            if reason := why_unwritable(student_dir):
                raise ConfigError(f"distill.dir = '{student_dir}': {reason}")
            if student_dir.is_dir() and any(student_dir.iterdir()):
                raise ConfigError(
                    f"distill.dir = '{student_dir}' is not empty, and a student begins anew: "
                    "choose another directory, or remove it"
                )
            remove_leftovers_of(student_dir)
            return held.enter_context(whole_directory(student_dir))

        yield from_rank_zero(begin, purpose="make the student's directory")
        # Other ranks go on when it has its name.
        from_rank_zero(held.close, purpose="complete the student's directory")


def _distill_into(
    run_dir: Path,
    run: StoredRun[DistillExperimentConfig],
    experiment: Experiment,
    student_config: ExperimentConfig,
    teacher_steps: int,
) -> Distilled:
    config = run.config
    interest = _distillable(config.model)
    device, parallelized = experiment.device, experiment.parallelized
    student_experiment = Experiment(
        student_config,
        device,
        experiment.data,
        experiment.loader,
        config.distill.max_steps,
        parallelized,
    )
    write_run_files(run_dir, student_config, parallelized.plan_json)
    parallelized.model.eval()
    teacher = cdp_interest(experiment)
    student = copy.deepcopy(teacher)
    student.set_sampling(sampler=interest.sampler, num_inference_steps=1)
    stages = Stages("distill", total=4, active=is_rank_zero())
    stages.begin(f"score the test split with the teacher, {teacher_steps} steps")
    teacher_report = evaluate_test(experiment)
    stages.begin("measure the error of its own one-step sampler")
    before = relative_error(experiment, teacher, student, config.distill)
    stages.begin(f"train the student, {config.distill.max_steps} steps")
    with Monitor(run_dir, total_steps=config.distill.max_steps) as monitor:
        inputs = training_inputs(experiment, config.distill)
        train_student(teacher, student, inputs, config.distill, monitor)
    after = relative_error(experiment, teacher, student, config.distill)
    if math.isfinite(before) and not math.isfinite(after):  # the last step's own doing
        raise diverged(config.distill.max_steps, "relative error", after)
    teacher.denoiser.load_state_dict(student.denoiser.state_dict())
    teacher.set_sampling(sampler=interest.sampler, num_inference_steps=1)
    with make_checkpointer(student_experiment, run_dir) as checkpointer:
        checkpointer.save(
            replace(run.record.progress, validations_without_gain=0, validation_is_due=False),
            parallelized.model,
            parallelized.optimizer,
        )
    stages.begin("score the test split with the student")
    student_report = evaluate_test(student_experiment)
    write_evaluation(run_dir, student_report, student_experiment.data.reader)
    distilled = Distilled(run_dir, teacher_steps, before, after, teacher_report, student_report)
    if is_rank_zero():
        write_json(
            run_dir / DISTILLATION,
            json_ready(_as_json(distilled, run.directory, config.distill)),
        )
    return distilled


def _distillable(model: ModelConfig) -> CdpConfig:
    interest = model.interest
    if model.num_embedding_sets > 1:
        raise ConfigError(
            f"model.num_embedding_sets = {model.num_embedding_sets}: only a run of one set has one "
            "reverse process to distill"
        )
    if not isinstance(interest, CdpConfig):
        raise ConfigError(
            f"model.interest.kind = '{interest.kind}': only a run of 'cdp' has a "
            "reverse process to distill"
        )
    if interest.train_path == "unrolled" or interest.num_inference_steps == 0:
        raise ConfigError(
            f"model.interest.train_path = '{interest.train_path}', num_inference_steps = "
            f"{interest.num_inference_steps}: there is no sampler to distill; the run needs "
            "train_path 'chain' or 'x0_onestep', and at least one step"
        )
    return interest


def _with_steps(
    config: ExperimentConfig, num_inference_steps: int, run: RunConfig | None = None
) -> ExperimentConfig:
    """The run's configuration at another number of denoiser calls."""
    interest = Layers(key_tree(CdpConfig))
    steps = {"num_inference_steps": num_inference_steps}
    interest.add(tables_of(config.model.interest) | steps, "distill.teacher_steps")
    checked, mistakes = check(CdpConfig, interest)
    if checked is None:
        raise ConfigError.of(mistakes)
    sections = {name: getattr(config, name) for name in ExperimentConfig.model_fields}
    sections["model"] = config.model.model_copy(update={"interest": checked})
    if run is not None:
        sections["run"] = run
    return ExperimentConfig(**sections)


def _as_json(distilled: Distilled, path: Path, config: DistillConfig) -> dict[str, object]:
    return {
        "teacher": str(path),
        "teacher_steps": distilled.teacher_steps,
        "max_steps": config.max_steps,
        "lr": config.lr,
        "relative_error": {
            "one_step": distilled.one_step_error,
            "student": distilled.student_error,
        },
        "test": {
            "teacher": distilled.teacher.main_metrics(),
            "student": distilled.student.main_metrics(),
        },
    }
