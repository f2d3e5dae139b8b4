"""The directory of a run: who may write there, and what lies beside the checkpoints."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cdp_torchrec.config import Config, ConfigError, dump_toml
from cdp_torchrec.environment import describe_environment
from cdp_torchrec.run.checkpoint import CheckpointError, saved_checkpoints
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.whole_file import write_whole


def open_run_directory(config: RunConfig) -> Path:
    """Directory of this run, the same on all ranks; collective.

    Raises:
        ConfigError: it holds another run, and this one shall not continue it.
        CheckpointError: there is nothing to continue.
    """
    # A restarted attempt of an elastic job has the same id, so it finds its own checkpoints.
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    name = job if job != "none" else time.strftime("%Y%m%d-%H%M%S")
    shared = [str(config.dir or Path("runs") / name)]
    dist.broadcast_object_list(shared)
    run_dir = Path(shared[0])
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if (run_dir / "metrics.jsonl").exists() and not (config.resume or restarted):
        raise ConfigError(
            f"run.dir = '{run_dir}' holds another run: continue it with run.resume=true, or choose "
            "another directory"
        )
    if config.resume and not saved_checkpoints(run_dir / "checkpoints"):
        raise CheckpointError(f"run.resume: there is no checkpoint in {run_dir}/checkpoints")
    # No rank may find what the first one writes next.
    dist.barrier()
    return run_dir


def write_run_files(run_dir: Path, config: Config, plan_json: str) -> None:
    """Resolved config, sharding plan and environment; rank 0 writes.

    Args:
        run_dir: directory of the run.
        config: of the run.
        plan_json: the plan as a plan file has it.
    """
    if dist.get_rank() != 0:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(dump_toml(config))
    write_whole(run_dir / "plan.json", plan_json)
    write_json(run_dir / "environment.json", describe_environment())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is whole whenever it is there."""
    write_whole(path, json.dumps(content, indent=2))
