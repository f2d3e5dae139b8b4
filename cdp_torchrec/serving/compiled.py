"""The compiled model in memory: nothing of it stays on the disk, and it can be unloaded.

torch's own loader unpacks to a directory of its own, which a kill leaves behind, and keeps every
library that it ever loaded: a server that reloads grows.
"""

import struct
import threading
import weakref
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdp_torchrec.known_versions import minor
from cdp_torchrec.serving.scratch import Scratch

# ELF64: places in its header, in a section's and in a symbol's.
_SECTIONS, _SECTION = struct.Struct("<Q"), struct.Struct("<4xI16xQQ16xQ")
_SECTION_SIZE_AND_COUNT = struct.Struct("<HH")
_DYNAMIC_SYMBOLS = 11
_UNIQUE, _WEAK = 10, 2
_LOADS_FOLDERS = minor(torch.__version__) not in ("2.11", "2.12")
"""Whether torch loads an unpacked package, too."""


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
    threading.Thread(target=holder.clear, name="unloader").start()


def load_compiled(path: Path, *, num_runners: int) -> Compiled:
    """Load a package.

    Args:
        path: the package, `<name>.pt2`.
        num_runners: computations at the same time.

    Raises:
        OSError, RuntimeError, zipfile.BadZipFile: it cannot be loaded.
    """
    scratch = Scratch()
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(scratch.path)
        [root] = (entry for entry in scratch.path.iterdir() if entry.is_dir())
        for library in root.rglob("*.so"):
            _allow_unloading(library)
        loader = _loader(root if _LOADS_FOLDERS else _packed(root), num_runners)
    except BaseException:
        scratch.remove()
        raise
    if any(root.rglob("*.cubin")):
        # Kernels of a GPU are read when they first run.
        weakref.finalize(loader, scratch.remove)
    else:
        scratch.remove()
    return Compiled(loader)


def _loader(package: Path, num_runners: int) -> Any:
    return torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, num_runners, -1)


def _packed(root: Path) -> Path:
    """A folder as the archive that it was; torch unpacks it into a folder of its own again."""
    package = root.with_suffix(".pt2")
    with zipfile.ZipFile(package, "w") as archive:
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(root.parent))
    return package


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
