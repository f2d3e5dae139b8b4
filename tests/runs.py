"""What tests of runs have in common: a rank to run on, and what was recorded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def recorded(run_dir: Path, name: str) -> list[Any]:
    """A value of each line that a training has logged in metrics.jsonl, such as its loss."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["kind"] == "train"]


def losses(run_dir: Path) -> list[float]:
    """Of each step that a training has logged."""
    return recorded(run_dir, "loss")
