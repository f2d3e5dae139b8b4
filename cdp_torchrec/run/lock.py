"""One job at a time writes into a run directory."""

import fcntl
import os
import platform
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cdp_torchrec.config import ConfigError
from cdp_torchrec.run.saved import LOCK, is_restarted


class RunInUseError(ConfigError):
    """Another process writes into a run directory."""


_RESTART_GRACE_S = 10.0
"""How long a restarted attempt waits for the process of the one before it to be gone."""


@contextmanager
def locked(run_dir: Path, *, file: Path | None = None) -> Generator[None]:
    """Hold a run directory; the lock ends with this process, however that ends.

    A POSIX lock: unlike that of flock(2), no child process keeps it. It works between machines
    that share the directory, too, if their file system has locks.

    Args:
        run_dir: directory of the run; it exists.
        file: what is locked; if not given, LOCK in the directory.

    Raises:
        RunInUseError: another process holds it; names the process and its machine.
    """
    with (file or run_dir / LOCK).open("a+") as held:
        deadline = time.monotonic() + (_RESTART_GRACE_S if is_restarted(run_dir) else 0.0)
        while not _acquired(held.fileno()):
            if time.monotonic() >= deadline:
                held.seek(0)
                holder = held.read().strip() or "another process"
                raise RunInUseError(
                    f"run.dir = '{run_dir}' is in use by {holder}: wait for its end, stop it, or "
                    "choose another directory"
                )
            time.sleep(0.1)
        held.truncate(0)
        held.write(f"process {os.getpid()} on {platform.node()}\n")
        held.flush()
        yield


def _acquired(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # as POSIX allows for a lock that is held
        return False
    except OSError:
        return True  # a file system without locks, where nobody can know
    return True
