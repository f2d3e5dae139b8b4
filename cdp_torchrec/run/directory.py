"""The directory of a run: who may write there, and what lies beside the checkpoints."""

import hashlib
import os
import platform
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist

from cdp_torchrec.config import Config, ConfigError, dump_toml
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.environment import describe_environment
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.lock import locked
from cdp_torchrec.run.saved import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    LOCK,
    METRICS,
    PLAN,
    RESTARTS,
    TENSORBOARD,
    check_run_directory,
    is_restarted,
    job_name,
    named_directory,
    saved_checkpoints,
)
from cdp_torchrec.whole_file import why_unwritable, write_json, write_whole


@contextmanager
def open_run_directory(config: RunConfig) -> Generator[Path]:
    """Hold the directory of this run, the same on all ranks; collective.

    A run that nobody named gets a new directory, whatever other runs start at the same moment; a
    restarted attempt of an elastic job finds that of the attempts before it.

    Raises:
        RunInUseError: another job is at work there, whatever it has written.
        ConfigError: it holds another run, which this one shall not continue, or cannot be written.
        CheckpointError: the checkpoints of a finished run are gone.
    """
    with ExitStack() as held:
        yield from_rank_zero(lambda: _directory(config, held), purpose="open the run's directory")


def _directory(config: RunConfig, held: ExitStack) -> Path:
    """As `open_run_directory`, on one rank."""
    named = named_directory(config)
    is_made_here = named is None or not named.exists()
    run_dir = named or _unnamed()
    try:
        check_run_directory(run_dir, resume=config.resume)
    except ConfigError:
        if (run_dir / LOCK).is_file() and not why_unwritable(run_dir):
            with locked(run_dir):  # that another job is at work there says more
                pass
        raise
    run_dir.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(run_dir))
    held.callback(_remove_unused, run_dir, with_directory=is_made_here)
    if not saved_checkpoints(run_dir / CHECKPOINTS):
        # An attempt that ended before its first checkpoint left nothing to continue from, so that
        # this one begins again, and so do its numbers.
        (run_dir / METRICS).unlink(missing_ok=True)
        shutil.rmtree(run_dir / TENSORBOARD, ignore_errors=True)
    return run_dir


def _remove_unused(run_dir: Path, *, with_directory: bool) -> None:
    """A training that was refused before it began leaves nothing."""
    if [path.name for path in run_dir.iterdir()] == [LOCK]:
        (run_dir / LOCK).unlink()
        if with_directory:
            run_dir.rmdir()


def _unnamed() -> Path:
    """A directory under runs/: a new one, or that of the attempts before this one."""
    parent = Path("runs")
    mark = secrets.token_hex(3)
    if RESTARTS in os.environ:
        # A job of torchrun without an id: only the launcher itself outlives an attempt.
        launcher = f"{platform.node()} {os.getppid()}"
        mark = hashlib.sha256(launcher.encode()).hexdigest()[:6]
        former = sorted(parent.glob(f"*-{mark}"))
        if former and is_restarted(former[-1]):
            return former[-1]
    while True:
        run_dir = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{mark}"
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            if run_dir.exists():
                time.sleep(0.1)  # until another second has begun
                continue
        except OSError:
            pass
        return run_dir  # where it was not made, the check of every directory tells why


def write_run_files(run_dir: Path, config: Config, plan_json: str) -> None:
    """Resolved config, sharding plan and environment; rank 0 writes.

    Args:
        run_dir: directory of the run.
        config: of the run.
        plan_json: the plan as a plan file has it.
    """
    if dist.get_rank() != 0:
        return
    write_whole(run_dir / CONFIG, dump_toml(config))
    write_whole(run_dir / PLAN, plan_json)
    write_json(run_dir / ENVIRONMENT, describe_environment() | {"job": job_name()})
