"""A process beside each rank that ends ranks which are stopped, as by SIGSTOP (Linux).

The heartbeat misses a rank from the moment when all have joined to the end of its work. A rank that
is stopped before or after that would keep its launcher waiting. This process sees all ranks of the
launcher, from the first one's start to the end of its own, and no rank has to answer it.
"""

import contextlib
import os
import platform
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cdp_torchrec.distributed.failure import ERROR_FILE, record_for_launcher

_HEARTBEAT_FIRST_S = 2.0
"""Where the heartbeat misses a rank too, all ranks get to know: it needs up to a tenth longer than
the limit, and a moment to say so."""
_LONGEST_PAUSE_S = 1.0
_FEWEST_PAUSES = 10
"""In the time that a rank may be stopped."""
_TURN_S = 0.2
"""Between the watchers of a node, so that one of them speaks."""
_ENDED = (OSError, ValueError)
"""What reading about a process comes to when it has just ended."""


class StopWatch:
    """Watches the ranks of this rank's launcher."""

    def __init__(self, limit_s: float) -> None:
        """Start the process; it ends with this one.

        Args:
            limit_s: how long a rank may be stopped, in seconds.
        """
        rank, launcher = os.getpid(), os.getppid()
        hears, self._tell = os.pipe()
        if os.fork() == 0:
            try:
                for number in (signal.SIGINT, signal.SIGTERM):  # which a rank may outlive
                    signal.signal(number, signal.SIG_IGN)
                _watch(rank, launcher, hears, limit_s)
            finally:
                os._exit(0)
        os.close(hears)

    def set_limit(self, limit_s: float) -> None:
        """Another limit, in seconds."""
        os.write(self._tell, f"{limit_s}\n".encode())


def stopped_ranks(launcher: int) -> dict[int, str]:
    """Numbers of the ranks of a launcher that are stopped now, by their process ids."""
    stopped = filter(_is_stopped, _children(launcher))
    return {pid: rank for pid in stopped if (rank := _variable(pid, "RANK"))}


def _watch(rank: int, launcher: int, hears: int, limit_s: float) -> None:
    """Count how often in a row each rank is seen stopped, until this one's rank has ended.

    As the heartbeat, by pauses of this process and not by a clock: when a whole job that was
    stopped goes on, none of its ranks is late.
    """
    own = os.pidfd_open(rank)
    events = select.poll()
    for descriptor in (own, hears):
        events.register(descriptor, select.POLLIN)
    seen: dict[int, int] = {}
    while True:
        pause_s = min(limit_s / _FEWEST_PAUSES, _LONGEST_PAUSE_S)
        happened = dict(events.poll(pause_s * 1000))
        if own in happened:
            return
        if hears in happened:
            limit_s = float(os.read(hears, 100).split()[-1])
            continue
        stopped = stopped_ranks(launcher)
        seen = {pid: seen.get(pid, 0) + 1 for pid in stopped}
        for pid, number in stopped.items():
            stopped_s = seen[pid] * pause_s
            if stopped_s > 1.1 * limit_s + _HEARTBEAT_FIRST_S:
                time.sleep(_TURN_S * int(os.environ.get("LOCAL_RANK", "0")))
                _end(pid, number, stopped_s)


def _end(pid: int, number: str, stopped_s: float) -> None:
    """End a rank, if it is still stopped, with a line that its launcher repeats at the end."""
    with contextlib.suppress(*_ENDED):
        process = os.pidfd_open(pid)
        if not _is_stopped(pid):
            return
        message = (
            f"rank {number} (process {pid} on {platform.node()}) has been stopped for "
            f"{stopped_s:.0f} s and is ended; ranks.silence_limit_s says how long that may last"
        )
        print(f"error: {message}", file=sys.stderr, flush=True)
        if file := _variable(pid, ERROR_FILE):
            record_for_launcher(message, message, file)
        signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


def _children(process: int) -> Iterator[int]:
    for of_thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(*_ENDED):
            yield from map(int, of_thread.read_text().split())


def _is_stopped(pid: int) -> bool:
    """By a signal; a debugger's stop is another state."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (*_ENDED, IndexError):
        return False


def _variable(pid: int, name: str) -> str | None:
    """Of the environment that a process was started with."""
    with contextlib.suppress(*_ENDED):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            key, _, value = entry.partition(b"=")
            if key.decode() == name:
                return value.decode()
    return None
