"""A disk of a given size, where the system lets a test have one."""

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class NoDiskError(RuntimeError):
    """Nobody but root may mount, and not everywhere."""


@contextmanager
def small_disk(place: Path, size: int) -> Generator[Path]:
    """A tmpfs of `size` bytes at `place`, as long as it is needed.

    Raises:
        NoDiskError: the system refuses it; says why.
    """
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(line, capture_output=True, text=True)
    except OSError as error:
        raise NoDiskError(f"mount: {error.strerror}") from error
    if mounted.returncode:
        raise NoDiskError(mounted.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
