"""How often a run was started, from where, and with which settings changed: starts.jsonl."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cdp_torchrec.config import Config, ConfigError, load_toml
from cdp_torchrec.config.changes import find_changes
from cdp_torchrec.environment import release
from cdp_torchrec.run.records import Progress
from cdp_torchrec.run.saved import CONFIG
from cdp_torchrec.whole_file import write_whole

STARTS = "starts.jsonl"


@dataclass(frozen=True, kw_only=True)
class Start:
    """One line of the file."""

    time: str
    """Local, with its distance to UTC."""
    release: str | None
    """Of cdp_torchrec."""
    num_ranks: int
    step: int
    """Where it began."""
    checkpoint: str | None
    """What it began from; of another run where this one is a fork. None: from nothing."""
    changed: dict[str, tuple[Any, Any]]
    """Settings other than those of the start before, or of the forked checkpoint: old and new."""


def record_start(
    run_dir: Path, config: Config, progress: Progress, checkpoint: Path | None
) -> None:
    """Add a line, while config.toml is still that of the start before; rank 0 writes.

    Args:
        run_dir: directory of the run.
        config: what is run now.
        progress: where it begins.
        checkpoint: what it begins from.
    """
    if dist.get_rank() != 0:
        return
    before = run_dir / CONFIG
    if not before.is_file() and checkpoint is not None:
        before = checkpoint / CONFIG
    start = Start(
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        release=release(),
        num_ranks=dist.get_world_size(),
        step=progress.step,
        checkpoint=None if checkpoint is None else str(checkpoint),
        changed=_changed(before, config),
    )
    path = run_dir / STARTS
    # As it is: a record for people, whose damage must not end the run.
    former = path.read_bytes() if path.is_file() else b""
    write_whole(path, former + json.dumps(asdict(start)).encode() + b"\n")


def _changed(before: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    try:
        old = load_toml(type(config), before) if before.is_file() else config
    except ConfigError:
        return {}  # of another release, before the first checkpoint: a run that begins again
    changes = find_changes(old, config)
    return {c.key: (c.old, c.new) for c in changes if not c.key.startswith("run.")}
