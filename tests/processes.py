"""Processes that tests start and end."""

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(happened: Callable[[], object], *, within_s: float = 120) -> None:
    """Return as soon as something has happened; fail where it does not."""
    until = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process has not ended, waited for or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
