"""A process that does not outlive the one that started it, however that one ended.

A rank ends with torchrun, and as a command, the launcher of a local TorchX job ends with it:

    python -m cdp_torchrec.distributed.launcher PARENT COMMAND ...

The kernel sends the signal (Linux). Elsewhere nothing is done.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals, *, parent: int) -> None:
    """Let the kernel send this process a signal when its parent ends.

    Args:
        number: the signal.
        parent: the parent's process id; if it has ended already, the signal comes at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


if __name__ == "__main__":
    # torchrun passes SIGTERM on, and gives its ranks time for a checkpoint.
    end_with_parent(signal.SIGTERM, parent=int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
