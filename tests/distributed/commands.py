"""Run a command of the package as its own process or ranks, forked like those of `spawn`.

What a launcher adds is tested in test_launch.py and test_scripts.py; this is for what a command
itself does, which would otherwise wait for its imports.
"""

import os
import runpy
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.spawn import FORKED
from tests.paths import ROOT


@dataclass(frozen=True)
class Ended:
    """Of all ranks together."""

    codes: list[int | None]
    """Exit codes."""
    said: str
    """Standard output, then standard error, rank after rank."""


def run_command(name: str, *arguments: object, world_size: int = 1) -> Ended:
    """What `cdp_torchrec NAME ARGUMENTS` does in the checkout; on several ranks as by torchrun."""
    line = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        processes = [
            FORKED.Process(target=_rank, args=(name, line, rank, world_size, port, Path(folder)))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        said = [path.read_text() for path in sorted(Path(folder).iterdir())]
    return Ended([process.exitcode for process in processes], "".join(said))


def _rank(name: str, line: list[str], rank: int, world_size: int, port: int, folder: Path) -> None:
    for stream, kind in ((sys.stdout, "out"), (sys.stderr, "err")):
        with (folder / f"{rank}-{kind}").open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    if world_size > 1:
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    os.chdir(ROOT)
    sys.argv = [name, *line]
    runpy.run_module(f"cdp_torchrec.commands.{name}", run_name="__main__", alter_sys=True)
