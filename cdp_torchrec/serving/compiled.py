"""The compiled model in memory: nothing of it stays on the disk, and it can be unloaded.

torch's own loader unpacks to a directory of its own, which a kill leaves behind, and keeps every
library that it ever loaded: a server that reloads grows.
"""

import fcntl
import os
import shutil
import struct
import tempfile
import threading
import time
import weakref
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_PREFIX = "cdp_ranker-"
_LOCK = "lock"
_YOUNG_S = 60.0

# ELF64: places in its header, in a section's and in a symbol's.
_SECTIONS, _SECTION = struct.Struct("<Q"), struct.Struct("<4xI16xQQ16xQ")
_SECTION_SIZE_AND_COUNT = struct.Struct("<HH")
_DYNAMIC_SYMBOLS = 11
_UNIQUE, _WEAK = 10, 2


class Compiled:
    """A loaded package.

    Its library is unmapped some time after the last reference is gone, once every thread that ran
    it has ended: it keeps a variable per thread that called it.
    """

    def __init__(self, loader: Any) -> None:
        """Args: torch's AOTIModelPackageLoader."""
        # The only reference: its destructor calls the library, too.
        self._loader = [loader]
        at_the_end: Any = weakref.finalize(self, _drop_in_a_thread_that_ends, self._loader)
        at_the_end.atexit = False  # the process ends anyway

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Outputs of inputs."""
        # Without the signature that AOTICompiledModel parses at every call, for a list of tensors.
        return self._loader[0].boxed_run(inputs)


def _drop_in_a_thread_that_ends(holder: list[Any]) -> None:
    threading.Thread(target=holder.clear, name="unloader", daemon=True).start()


def load_compiled(path: Path, *, num_runners: int) -> Compiled:
    """Load a package.

    Args:
        path: the package, `<name>.pt2`.
        num_runners: computations at the same time.

    Raises:
        OSError, RuntimeError, zipfile.BadZipFile: it cannot be loaded.
    """
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = (folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        [root] = (entry for entry in folder.iterdir() if entry.is_dir())
        for library in root.rglob("*.so"):
            _allow_unloading(library)
        loader = torch._C._aoti.AOTIModelPackageLoader(str(root), "model", False, num_runners, -1)
    except BaseException:
        _remove(folder, lock)
        raise
    if any(root.rglob("*.cubin")):
        # Kernels of a GPU are read when they first run.
        weakref.finalize(loader, _remove, folder, lock)
    else:
        _remove(folder, lock)
    return Compiled(loader)


def _remove(folder: Path, lock: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def remove_leftovers() -> None:
    """Remove what processes that were killed had unpacked: nobody holds its lock."""
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


def _allow_unloading(library: Path) -> None:
    """Make symbols that are unique in a process, which g++ marks so, ordinary weak ones.

    The loader of glibc never unmaps a library with a unique symbol.
    """
    content = bytearray(library.read_bytes())
    if content[:5] != b"\x7fELF\x02":
        return
    (sections,) = _SECTIONS.unpack_from(content, 0x28)
    size, count = _SECTION_SIZE_AND_COUNT.unpack_from(content, 0x3A)
    for number in range(count):
        kind, start, length, step = _SECTION.unpack_from(content, sections + number * size)
        if kind == _DYNAMIC_SYMBOLS:
            for info in range(start + 4, start + length, step):
                if content[info] >> 4 == _UNIQUE:
                    content[info] = _WEAK << 4 | content[info] & 0xF
    library.write_bytes(content)
