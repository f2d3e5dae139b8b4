"""Commands of the package as processes that can be killed, forked from one that has imported all.

A process of its own for each of hundreds of commands would import torch for seconds each time.
"""

import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.spawn import FORKED

LIMIT_S = 900.0
"""What takes longer hangs. The longest command takes a few seconds on an idle machine, and faults
are also done in the background of a busy one."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """Exit code of the first rank that failed, minus the number of its signal if one ended it, 0
    if none failed; None: it was still running at the limit."""
    output: str
    """What its ranks said, on both channels."""

    @property
    def last_line(self) -> str:
        """The end of the story."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "(nothing said)"

    @property
    def has_traceback(self) -> bool:
        """Whether an exception reached the terminal."""
        return "Traceback (most recent call last)" in self.output or 'File "' in self.output


class Command:
    """A running command; on several ranks without a launcher, as if each had its own machine."""

    def __init__(self, folder: Path, name: str, *arguments: str, ranks: int = 1) -> None:
        """Start `cdp_torchrec <name> <arguments>`.

        Args:
            folder: where it starts, and its output goes to.
            name: of the command.
            arguments: its command line.
            ranks: number of processes.
        """
        self._output = folder / f"output-{time.monotonic_ns()}"
        job = {}
        if ranks > 1:
            job = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes = [
            FORKED.Process(
                target=_run,
                args=(name, arguments, folder, self._output, job | _place(rank, ranks)),
                daemon=True,
            )
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    @property
    def is_running(self) -> bool:
        """Whether any rank is."""
        return any(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        """Send a signal to a rank, if it is still there."""
        process = self.processes[rank]
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Wait for all ranks; what is left at the limit is killed."""
        deadline = time.monotonic() + limit_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        is_late = self.is_running
        for process in self.processes:
            process.kill()
            process.join()
        codes = [process.exitcode or 0 for process in self.processes]
        code = next((code for code in codes if code), 0)
        said = self._output.read_text(errors="replace") if self._output.exists() else ""
        return Ended(None if is_late else code, said)


def run(folder: Path, name: str, *arguments: str, ranks: int = 1) -> Ended:
    """Run a command to its end."""
    return Command(folder, name, *arguments, ranks=ranks).wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _place(rank: int, ranks: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}


def _run(
    name: str, arguments: Sequence[str], folder: Path, output: Path, job: dict[str, str]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(job)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    channel = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(channel, number)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = [name, *arguments]
    runpy.run_module(f"cdp_torchrec.commands.{name}", run_name="__main__", alter_sys=True)
