"""What faults are done to: a small dataset, a run with its result, an artifact with its scores."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.command import LIMIT_S, Command, Ended, run
from tests.paths import CONFIGS

STEPS = 24
CHECKPOINT_EVERY = 4
INTERRUPTED_AT = 16
"""Where the run that faults are done to has been stopped."""

_SYNTHETIC = [
    "num_users=300",
    "num_categories=4",
    "items_per_category=30",
    "history_days=10",
    "train_days=7",
    "num_candidates=8",
]


class ChaosError(RuntimeError):
    """What must work without any fault did not."""


@dataclass(frozen=True)
class World:
    """Made once, read by all faults; each of them spoils a copy."""

    folder: Path

    @property
    def dataset(self) -> Path:
        """A synthetic log."""
        return self.folder / "dataset"

    @property
    def finished(self) -> Path:
        """A run of STEPS steps."""
        return self.folder / "finished"

    @property
    def interrupted(self) -> Path:
        """The same run, stopped at INTERRUPTED_AT."""
        return self.folder / "interrupted"

    @property
    def artifact(self) -> Path:
        """Export of the finished run."""
        return self.folder / "artifact"

    def result(self) -> object:
        """What the finished run has measured on the test split."""
        return result_of(self.finished)

    def result_on_two_ranks(self, scratch: Path) -> object:
        """The same of a run on two ranks, which sum in another order; it is made on first use."""
        run_dir = self.folder / "two_ranks"
        if not (run_dir / "evaluation.json").exists():
            _succeed(train(scratch, self.dataset, run_dir, ranks=2))
        return result_of(run_dir)


def make_world(folder: Path, *, artifact: bool) -> World:
    """Make all of it; `artifact` takes a minute more, for the compiler.

    Raises:
        ChaosError: a command failed although nothing was done to it.
    """
    world = World(folder)
    folder.mkdir(parents=True, exist_ok=True)
    output = ["--output", str(world.dataset)]
    _succeed(run(folder, "prepare_data", "synthetic", *output, *synthetic_settings()))
    _succeed(train(folder, world.dataset, world.finished))
    _succeed(train(folder, world.dataset, world.interrupted, steps=INTERRUPTED_AT))
    (world.interrupted / "evaluation.json").unlink()
    if artifact:
        arguments = [str(world.finished), "--output", str(world.artifact)]
        command = Command(folder, "export", *arguments, "export.max_candidates=50")
        _succeed(command.wait(10 * LIMIT_S))  # for the compiler
    return world


def synthetic_settings() -> Sequence[str]:
    """Of the dataset."""
    return _SYNTHETIC


def train_arguments(dataset: Path, run_dir: Path, *, steps: int = STEPS) -> list[str]:
    """The line of a job script: it starts the run, or goes on with it."""
    return [
        str(CONFIGS / "interest" / "cdp.toml"),
        f"data.dir={dataset}",
        f"run.dir={run_dir}",
        "run.resume=true",
        "data.validation_fraction=0.1",
        "model.embedding_dim=8",
        "optimizer.sparse.kind=rowwise_adagrad",
        "optimizer.sparse.lr=0.1",
        "trainer.global_batch_size=64",
        f"trainer.max_steps={steps}",
        f"trainer.checkpoint_every_steps={CHECKPOINT_EVERY}",
        f"trainer.validate_every_steps={2 * CHECKPOINT_EVERY}",
        "trainer.log_every_steps=1",
    ]


def train(
    folder: Path, dataset: Path, run_dir: Path, *settings: str, steps: int = STEPS, ranks: int = 1
) -> Ended:
    """Train to the end."""
    arguments = [*train_arguments(dataset, run_dir, steps=steps), *settings]
    return run(folder, "train", *arguments, ranks=ranks)


def result_of(run_dir: Path) -> object:
    """Its evaluation, to the last bit."""
    return json.loads((run_dir / "evaluation.json").read_text())


def copy_of(original: Path, place: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, place, symlinks=True))


def _succeed(ended: Ended) -> None:
    if ended.code != 0:
        raise ChaosError(f"exit code {ended.code} without any fault:\n{ended.output}")
