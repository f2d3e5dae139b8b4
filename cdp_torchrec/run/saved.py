"""What a run directory holds: its checkpoints, another run, or something else; needs no torch."""

import os
from pathlib import Path

from cdp_torchrec.config import ConfigError
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.records import (
    BEST,
    CHECKPOINT,
    BestRecord,
    CheckpointError,
    read_record,
)

CHECKPOINTS = "checkpoints"
CONFIG = "config.toml"
METRICS = "metrics.jsonl"

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""Where the launcher says which attempt of an elastic job this is, from 0."""

_FILES = (CHECKPOINT, CONFIG, ".metadata")
_MOST_NAMES = 8


def saved_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints in the directory `checkpoints` of a run, oldest first."""
    return sorted(directory.glob("step-*"))


def named_directory(run: RunConfig) -> Path | None:
    """Directory of a run that has a name: its own, or that of its launcher's job."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return run.dir or (None if job == "none" else Path("runs") / job)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or the best (else the newest) one of a run directory.

    Raises:
        CheckpointError: there is none; says what is there instead.
    """
    if (path / CHECKPOINT).is_file():
        return _complete(path)
    directory = path / CHECKPOINTS
    if (directory / BEST).is_file():
        best = directory / read_record(BestRecord, directory / BEST).checkpoint
        if not best.is_dir():
            raise CheckpointError(
                f"{directory / BEST}: names {best.name}, which is not there; name one of "
                f"{_names(saved_checkpoints(directory))} yourself"
            )
        return _complete(best)
    found = saved_checkpoints(directory)
    if not found:
        raise CheckpointError(f"{path}: {_what_it_is(path)}")
    return _complete(found[-1])


def check_run_directory(run_dir: Path, *, resume: bool) -> None:
    """Whether a training may write there: where nothing is to continue, it begins.

    Raises:
        ConfigError: it holds another run, which this one shall not continue.
    """
    if (run_dir / METRICS).exists() and not (resume or is_restarted()):
        raise ConfigError(
            f"run.dir = '{run_dir}' holds another run: continue it with run.resume=true, or choose "
            "another directory"
        )


def is_restarted() -> bool:
    """Whether this is a later attempt of an elastic job."""
    return int(os.environ.get(RESTARTS, "0")) > 0


def _complete(checkpoint: Path) -> Path:
    missing = [name for name in _FILES if not (checkpoint / name).is_file()]
    if missing:
        raise CheckpointError(f"{checkpoint}: incomplete, without {' and '.join(missing)}")
    return checkpoint


def _what_it_is(path: Path) -> str:
    """Why a path is no run, and what to name instead."""
    if not path.exists():
        return f"no such directory{_runs_in(path.parent)}"
    if not path.is_dir():
        return "a file, neither a run directory nor a checkpoint"
    if (path / CONFIG).is_file() and (path / METRICS).is_file():
        return (
            "an unfinished run without a checkpoint: it is still before its first one, or was "
            "stopped before it; go on with run.resume=true"
        )
    if (path / "artifact.json").is_file():
        return "an exported artifact, neither a run directory nor a checkpoint"
    if (path / "schema.toml").is_file():
        return "a dataset directory, neither a run directory nor a checkpoint"
    if path.name == CHECKPOINTS and saved_checkpoints(path):
        return f"the checkpoints of a run; name the run, {path.parent}, or one of them"
    return f"neither a run directory nor a checkpoint{_runs_in(path)}"


def _runs_in(directory: Path) -> str:
    runs = sorted(run.parent for run in directory.glob(f"*/{CHECKPOINTS}"))
    return f"; runs in {directory}: {_names(runs)}" if runs else ""


def _names(paths: list[Path]) -> str:
    more = [f"and {len(paths) - _MOST_NAMES} more"] if len(paths) > _MOST_NAMES else []
    return ", ".join([*(path.name for path in paths[-_MOST_NAMES:]), *more])
