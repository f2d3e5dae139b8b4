"""Temporary directories; what a process that was killed left is removed by the next."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Self

_PREFIX = "cdp_scratch-"
_LOCK = "lock"
_YOUNG_S = 60.0


class Scratch:
    """A new directory that only this user can read, until `remove` or the end of the context."""

    def __init__(self) -> None:
        remove_leftovers()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.path / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove it with what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def remove_leftovers() -> None:
    """Remove the directories of processes that were killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            found = folder.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _YOUNG_S:
                continue  # of another user, or perhaps not locked yet
            # Whatever others have put there is not followed.
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
        except OSError:
            continue  # in use, or gone
