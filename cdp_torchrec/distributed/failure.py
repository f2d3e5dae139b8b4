"""What an error is in words, for people and for the launcher."""

import contextlib
import errno
import os
import time
import traceback
from pathlib import Path

from cdp_torchrec.user_error import UserError
from cdp_torchrec.whole_file import write_json

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where the launcher says in which file it looks for a rank's error."""

MACHINE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EMFILE", "ENFILE", "ENOMEM")
}
"""What the operating system says about itself and not about a file: disk full, and the like."""

_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "Storage size calculation overflowed",
)
"""What torch says where Python would raise a MemoryError."""

_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "failed to recv, got 0 bytes",
    "NCCL communicator was aborted",
    "ncclRemoteError",
)
"""What gloo, the TCP store and NCCL say on the ranks that survive another one's end."""


def describe(error: Exception, *, rank: int, world_size: int) -> tuple[str, str]:
    """One line for the launcher, and the full report for people.

    Args:
        error: ends the script.
        rank: of this process.
        world_size: number of ranks.
    """
    where = f"rank {rank}: " if world_size > 1 else ""
    if isinstance(error, UserError):
        return f"{where}{error}", f"{where}error: {error}"
    if lost_peer(error, world_size=world_size):
        # On another node: here, the launcher would have stopped this rank.
        message = f"{where}another rank has ended, or its node is gone; its own output says why"
        return message, f"{where}error: {message.removeprefix(where)} ({error})"
    if isinstance(error, OSError) and (error.filename or error.errno in MACHINE_ERRORS):
        place = f": {error.filename!r}" if error.filename else ""
        return f"{where}{error.strerror}{place}", f"{where}error: {error.strerror}{place}"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
        message = f"{where}out of memory: {error}".rstrip(": ")
        return message, f"{where}error: {message.removeprefix(where)}"
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without run_main
    report = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    return f"{where}{type(error).__name__}: {error}", where + report


def lost_peer(error: BaseException | None, *, world_size: int) -> bool:
    """Whether a collective broke off because another rank had ended."""
    while error is not None:
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_LOST):
            return world_size > 1
        error = error.__cause__
    return False


def record_for_launcher(message: str, report: str, file: str | None = None) -> None:
    """Leave an error where torchrun looks for a rank's root cause (its error-file format).

    Where it cannot be left, as on a full disk, the rank ends as it would: with its own output.

    Args:
        message: one line.
        report: all that is known.
        file: of the rank; this process's own, if not given.
    """
    path = file or os.environ.get(ERROR_FILE)
    if path:
        extra = {"py_callstack": report, "timestamp": str(int(time.time()))}
        # Whole or not at all: the launcher, which stops a rank when another one fails, ends the
        # job instead of restarting it if it reads half a file.
        with contextlib.suppress(OSError):
            write_json(Path(path), {"message": {"message": message, "extraInfo": extra}})
