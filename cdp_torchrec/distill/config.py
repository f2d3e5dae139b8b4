"""Settings of a distillation."""

from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from cdp_torchrec.config import Config
from cdp_torchrec.experiment_config import ExperimentConfig


def student_beside(run_dir: Path) -> Path:
    """Run directory of the student of a run, where nothing else is said."""
    return run_dir.with_name(f"{run_dir.name}-student")


class DistillConfig(Config):
    """How the student is trained."""

    dir: Path | None = None
    """Run directory of the student; without it that of the run, with "-student" behind its name."""
    teacher_steps: PositiveInt | None = None
    """K, denoiser calls of the teacher; without it those of the run. 2 or more; paper: 20."""
    max_steps: PositiveInt = 500
    """Optimizer steps, each on trainer.global_batch_size impressions of the training split."""
    lr: PositiveFloat = 3e-3
    """Learning rate of Adam at the start; it falls to zero on half a cosine."""
    num_validation_batches: PositiveInt = 20
    """Batches of unseen impressions on which the relative error is measured."""


class DistillExperimentConfig(ExperimentConfig):
    """A run, and how it is distilled."""

    distill: DistillConfig = DistillConfig()
    """The distillation."""
