"""Run a function on several gloo ranks, each in a process of its own."""

import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

# Ranks are forked from a process that has imported what takes seconds and has done nothing else:
# each case has new processes, and the imports are waited for once.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.distributed.preloaded"])


def start_forkserver() -> None:
    """Start the process that ranks are forked from; loader workers then come from it, too."""
    forkserver.ensure_running()


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Results of `function(*arguments)` on each rank; it must be importable.

    Raises:
        ProcessRaisedException: a rank failed; the message is its traceback.
        ProcessExitedException: a rank ended without one.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _run,
            (world_size, folder, function, arguments),
            nprocs=world_size,
            start_method="forkserver",
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
