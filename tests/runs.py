"""What tests of runs have in common: a rank to run on, and what was recorded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cdp_torchrec.distributed.process_group import init_process_group

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""Values of a parameter `device`: what is said of a GPU is checked on the CPU as far as it goes."""


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def one_rank_on(device: str) -> Iterator[torch.device]:
    """The same with its device: gloo on the CPU, NCCL on a GPU; without one the test is skipped."""
    if device == "cpu":
        with one_rank():
            yield torch.device("cpu")
        return
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    chosen = init_process_group()
    try:
        assert (chosen.type, dist.get_backend()) == ("cuda", "nccl")
        yield chosen
    finally:
        dist.destroy_process_group()


def recorded(run_dir: Path, name: str) -> list[Any]:
    """A value of each line that a training has logged in metrics.jsonl, such as its loss."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["kind"] == "train"]


def losses(run_dir: Path) -> list[float]:
    """Of each step that a training has logged."""
    return recorded(run_dir, "loss")
