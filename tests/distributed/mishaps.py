"""What happens to a training: a signal, a full disk, a damaged or a lost checkpoint."""

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed.checkpoint as dcp

from cdp_torchrec import evaluation
from cdp_torchrec.distributed import interruption
from cdp_torchrec.distributed.interruption import Interrupted
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.monitor import Monitor


def train_on_a_full_disk(settings: ExperimentConfig) -> None:
    """While a checkpoint is written, no file may grow beyond 30 kB."""
    whole_save, limits = dcp.save, resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def save(*arguments: Any, **options: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        try:
            whole_save(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with mock.patch.object(dcp, "save", save):
        train(settings, torch.device("cpu"))


def interrupt(settings: ExperimentConfig) -> str:
    """Send SIGTERM to the last rank after its first step; what the training ended with."""
    with mock.patch.object(Monitor, "advance", _terminate_last_rank):
        return _end_of(settings)


def interrupt_measurement(settings: ExperimentConfig) -> str:
    """As `interrupt`, when the first batch of a validation or of the test split was scored."""
    with mock.patch.object(evaluation, "update_metrics", _terminate_last_rank):
        return _end_of(settings)


def _terminate_last_rank(*_: object) -> None:
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGTERM)


def _end_of(settings: ExperimentConfig) -> str:
    with mock.patch.object(interruption, "_EVERY_S", 0):
        try:
            train(settings, torch.device("cpu"))
        except Interrupted as end:
            return f"{end.exit_code}: {end}"
    return "it went on"


def copy_with_damage(run: Path, copy: Path) -> None:
    """Copy a run with a changed byte in the tensors of its newest checkpoint, at step 6."""
    if torch.distributed.get_rank() == 0:
        shutil.copytree(run, copy)
        file = copy / "checkpoints" / "step-00000006" / "__1_0.distcp"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x80
        file.write_bytes(content)
    torch.distributed.barrier()


def copy_until_step_3(run: Path, copy: Path) -> None:
    """Copy a run as it was at step 3; every rank may call it."""
    if torch.distributed.get_rank() == 0:
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "checkpoints" / "step-00000006")
        lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
        (copy / "metrics.jsonl").write_text("".join(lines[:4]))
    torch.distributed.barrier()
