"""What a run directory holds: its checkpoints, another run, or something else; needs no torch."""

import json
import os
from pathlib import Path

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.schema import SCHEMA
from cdp_torchrec.run.checksums import verify
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.records import CHECKPOINT, CheckpointError, Validation, read_record
from cdp_torchrec.whole_file import why_unwritable

CHECKPOINTS = "checkpoints"
CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.parquet"
DISTILLATION = "distillation.json"
"""What only the run of a student has."""
METRICS = "metrics.jsonl"
PLAN = "plan.json"
TENSORBOARD = "tensorboard"
LOCK = "lock"
ARTIFACT = "artifact.json"
"""What an exported artifact has, beside the schema of a dataset."""

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""Where the launcher says which attempt of an elastic job this is, from 0."""

_MOST_NAMES = 8


def saved_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints in the directory `checkpoints` of a run, oldest first.

    Raises:
        CheckpointError: nobody can say, because it may not be read.
    """
    try:
        return sorted(path for path in directory.iterdir() if path.name.startswith("step-"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror}") from error


def best_checkpoint(directory: Path) -> tuple[Path, Validation] | None:
    """The best checkpoint by validation in the directory `checkpoints` of a run, if one has any.

    Raises:
        CheckpointError: a record is damaged or of another format, or they are of several metrics.
    """
    best: tuple[Path, Validation] | None = None
    for path in saved_checkpoints(directory):
        found = read_record(path / CHECKPOINT).validation
        if found is None:
            continue
        if best is not None and found.metric != best[1].metric:
            raise CheckpointError(
                f"{directory}: {best[0].name} was chosen by {best[1].metric}, {path.name} by "
                f"{found.metric}; name one of them yourself"
            )
        if best is None or found.is_better_than(best[1]):
            best = path, found
    return best


def named_directory(run: RunConfig) -> Path | None:
    """Directory of a run that has a name: its own, or that of its launcher's job."""
    job = job_name()
    return run.dir or (None if job is None else Path("runs") / job)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or the best (else the newest) one of a run directory.

    Its settings are verified here, its tensors when they are loaded.

    Raises:
        CheckpointError: there is none; says what is there instead.
        DamagedCheckpointError: it, or a record that may be of the best one, is damaged.
    """
    if (path / CHECKPOINT).is_file():
        return _readable(path)
    best = best_checkpoint(path / CHECKPOINTS)
    if best is not None:
        return _readable(best[0])
    found = saved_checkpoints(path / CHECKPOINTS)
    if not found:
        raise CheckpointError(f"{path}: {_what_it_is(path)}")
    return _readable(found[-1])


def check_run_directory(run_dir: Path, *, resume: bool) -> None:
    """Whether a training may write there: where nothing is to continue, it begins.

    A run that ended before its first checkpoint left nothing to continue from: it begins again,
    resumed or not.

    Raises:
        ConfigError: it holds another run, which this one shall not continue, or is something else
            than a run, or cannot be written.
        CheckpointError: the checkpoints of a finished run are gone.
    """
    folders = (run_dir, run_dir / CHECKPOINTS, run_dir / TENSORBOARD)
    reasons = (why_unwritable(folder) for folder in folders)
    if reason := next(filter(None, reasons), None) or _is_something_else(run_dir):
        raise ConfigError(f"run.dir = '{run_dir}': {reason}")
    has_checkpoints = bool(saved_checkpoints(run_dir / CHECKPOINTS))
    if not has_checkpoints and not _is_finished(run_dir / METRICS):
        return
    if not (resume or is_restarted(run_dir)):
        raise ConfigError(
            f"run.dir = '{run_dir}' holds another run: continue it with run.resume=true, or choose "
            "another directory"
        )
    if resume and (run_dir / DISTILLATION).is_file():
        raise ConfigError(
            f"run.dir = '{run_dir}': a distilled student, whose training is over: go on with its "
            f"teacher and distill again, or begin another run with run.fork_from={run_dir}"
        )
    if not has_checkpoints:
        raise CheckpointError(f"run.resume: {run_dir}/checkpoints is gone or empty")


def holds_run(directory: Path) -> bool:
    """Whether a training has written there."""
    return (directory / METRICS).exists() or bool(saved_checkpoints(directory / CHECKPOINTS))


def is_dataset(path: Path) -> bool:
    """Whether a directory is a dataset."""
    return (path / SCHEMA).is_file() and not (path / ARTIFACT).is_file()


def _is_something_else(path: Path) -> str | None:
    """What a path is that no run may be begun in; None: nothing of that kind."""
    if (path / CHECKPOINT).is_file():
        return "a checkpoint; name a run"
    is_other = any((path / mark).is_file() for mark in (ARTIFACT, SCHEMA))
    is_other = is_other or bool(saved_checkpoints(path))
    return _what_it_is(path) if is_other else None


def _is_finished(metrics: Path) -> bool:
    """Whether a run was measured on the test split, which is the last thing it does."""
    lines = metrics.read_bytes().splitlines() if metrics.is_file() else []
    return bool(lines) and b'"kind": "test"' in lines[-1]


def is_restarted(run_dir: Path) -> bool:
    """Whether this is a later attempt of the job that a run belongs to.

    A launcher counts only its own restarts: where a lost node comes back, or a scheduler starts the
    whole job again, it is the job's name that tells. And it counts the attempts that were refused:
    a run of another job is none of theirs.
    """
    job, is_later = job_name(), int(os.environ.get(RESTARTS, "0")) > 0
    try:
        of_run = json.loads((run_dir / ENVIRONMENT).read_bytes())["job"]
    except (OSError, ValueError, KeyError):
        return is_later
    return of_run == job and (is_later or job is not None)


def job_name() -> str | None:
    """The launcher's name of this job, the same on all nodes and attempts; None: it has none."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if job == "none" else job


def _readable(checkpoint: Path) -> Path:
    record = read_record(checkpoint / CHECKPOINT)
    verify(checkpoint, record, [CONFIG])
    return checkpoint


def _what_it_is(path: Path) -> str:
    """Why a path is no run, and what to name instead."""
    if not path.exists():
        return f"no such directory{_runs_in(path.parent)}"
    if not path.is_dir():
        return "a file, neither a run directory nor a checkpoint"
    if (path / CONFIG).is_file() and (path / METRICS).is_file():
        if _is_finished(path / METRICS):
            return f"a finished run whose {CHECKPOINTS} are gone"
        return (
            "an unfinished run without a checkpoint: it is still before its first one, or was "
            "stopped before it; go on with run.resume=true"
        )
    if any(path.glob("*.distcp")):
        return f"a checkpoint without its {CHECKPOINT}"
    if (path / ARTIFACT).is_file():
        return "an exported artifact, neither a run directory nor a checkpoint"
    if (path / SCHEMA).is_file():
        return "a dataset directory, neither a run directory nor a checkpoint"
    if path.name == CHECKPOINTS and saved_checkpoints(path):
        return f"the checkpoints of a run; name the run, {path.parent}, or one of them"
    return f"neither a run directory nor a checkpoint{_runs_in(path)}"


def _runs_in(directory: Path) -> str:
    runs = sorted(run.parent for run in directory.glob(f"[!.]*/{CHECKPOINTS}"))
    return f"; runs in {directory}: {_names(runs)}" if runs else ""


def _names(paths: list[Path]) -> str:
    more = [f"and {len(paths) - _MOST_NAMES} more"] if len(paths) > _MOST_NAMES else []
    return ", ".join([*(path.name for path in paths[-_MOST_NAMES:]), *more])
