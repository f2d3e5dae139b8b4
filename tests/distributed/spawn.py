"""Run a function on several gloo ranks, each in a process of its own."""

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Results of `function(*arguments)` on each rank; it must be importable."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _run, (world_size, folder, function, arguments), nprocs=world_size, start_method="spawn"
        )
        return [
            pickle.loads((Path(folder) / f"result-{rank}").read_bytes())
            for rank in range(world_size)
        ]


def _run(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
    )
    from cdp_torchrec.environment import quiet_libraries

    quiet_libraries()
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    result = function(*arguments)
    (Path(folder) / f"result-{rank}").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
