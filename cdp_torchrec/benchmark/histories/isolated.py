"""Measurements in a process of their own, with limits of time and memory."""

import ctypes
import multiprocessing
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from cdp_torchrec.benchmark import children
from cdp_torchrec.distributed.failure import MACHINE_ERRORS
from cdp_torchrec.user_error import UserError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_KIB_PER_MIB = 1024
_BYTES_PER_GIB = 1 << 30


class PassedLimit(StrEnum):
    """Why there is no result."""

    TIME = "time"
    MEMORY = "memory"


@dataclass(frozen=True)
class Limits:
    """What a process may take."""

    time_s: float
    """Wall-clock time, from the start of the interpreter to the result."""
    memory_gib: float
    """Memory of the whole process, libraries' data included."""


def run_isolated(
    function: Callable[[Argument], Result], argument: Argument, limits: Limits
) -> Result | PassedLimit:
    """`function(argument)` in a fresh process, or the limit that it passed.

    Args:
        function: a function of a module's top level.
        argument: can be pickled, as can the result.
        limits: the process is ended when it passes one of them.

    Raises:
        UserError: of the function.
        OSError: of the machine, such as a full disk.
        ChildProcessError: the process failed; its traceback is on stderr.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = children.start(_run, writer, function, argument, limits.memory_gib)
    writer.close()
    try:
        found = reader.recv() if reader.poll(limits.time_s) else PassedLimit.TIME
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:  # by the kernel, which ran out of memory first
            return PassedLimit.MEMORY
        raise ChildProcessError(
            f"{function.__name__}({argument}) failed with exit code {process.exitcode}"
        ) from None
    finally:
        process.kill()
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def reset_peak_memory() -> float:
    """Forget earlier peaks of this process; its resident memory now, in MiB. Linux only."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would serve unseen
    _CLEAR_REFS.write_text(_RESET_PEAK)
    return peak_memory_mib()


def peak_memory_mib() -> float:
    """Peak of the resident memory of this process since the last reset, in MiB. Linux only."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines["VmHWM"].removesuffix("kB")) / _KIB_PER_MIB


def _run(
    writer: Connection,
    function: Callable[[Argument], Result],
    argument: Argument,
    memory_gib: float,
) -> None:
    limit = int(memory_gib * _BYTES_PER_GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        result: Result | PassedLimit | Exception = function(argument)
    except (UserError, OSError) as error:
        if not (isinstance(error, UserError) or error.errno in MACHINE_ERRORS):
            raise
        result = error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        result = PassedLimit.MEMORY
    writer.send(result)


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has no exception class of its own for memory of the CPU.
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
