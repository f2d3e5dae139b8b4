"""A process that does not outlive the one that started it, however that one ended (Linux).

A rank ends with torchrun, and as a command, the launcher of a local TorchX job ends with it:

    python -m cdp_torchrec.distributed.launcher PARENT COMMAND ...
"""

import ctypes
import os
import select
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_RANKS_TIME_S = "PET_SHUTDOWN_TIMEOUT", 30.0
"""How long torchrun waits for its ranks after SIGTERM: the variable that says so, and its default.
"""
_END_S = 10.0
"""For torchrun's own end, after that of its ranks."""


def kill_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends; elsewhere than on Linux do nothing.

    Args:
        parent: the parent's process id; if it has ended already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        _end_without(parent)


def kill_with_launcher() -> None:
    """Let the kernel kill this rank when its launcher ends, or end at once if it has."""
    parent = os.getppid()
    kill_with_parent(parent)
    # An orphan belongs to the first process, which in a container may be the launcher itself.
    if parent == 1 and sys.platform == "linux" and not _is_python(parent):
        os.kill(os.getpid(), signal.SIGTERM)


def _is_python(process: int) -> bool:
    command = Path(f"/proc/{process}/cmdline").read_bytes()
    return b"python" in command or b"torch" in command


def run_with_parent(parent: int, command: list[str]) -> None:
    """Become a command that gets SIGTERM when the parent ends; torchrun passes it to its ranks.

    A child of the command's watches. The kernel would send the signal once for each thread of the
    parent, and torchrun, told a second time, leaves without its ranks. One that has not left long
    after its ranks had to is killed, and they with it: nobody is there any more to do that.

    Args:
        parent: the parent's process id.
        command: a program and its arguments.
    """
    if sys.platform != "linux":
        os.execvp(command[0], command)
    watched, own = os.pidfd_open(parent), os.pidfd_open(os.getpid())
    _end_without(parent)
    if os.fork() == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)  # who reads the command's output need not wait for the watcher
        either = select.poll()
        for process in (watched, own):
            either.register(process, select.POLLIN)
        if own not in dict(either.poll()):
            _stop(own)
        os._exit(0)
    os.execvp(command[0], command)


def _stop(process: int) -> None:
    """SIGTERM, and in the end SIGKILL, to the process of a descriptor."""
    signal.pidfd_send_signal(process, signal.SIGTERM)
    ended = select.poll()
    ended.register(process, select.POLLIN)
    variable, default_s = _RANKS_TIME_S
    patience_s = float(os.environ.get(variable, default_s)) + _END_S
    if not ended.poll(1000 * patience_s):
        signal.pidfd_send_signal(process, signal.SIGKILL)


def _end_without(parent: int) -> None:
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    run_with_parent(int(sys.argv[1]), sys.argv[2:])
