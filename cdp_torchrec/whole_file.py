"""Files and directories that are whole whenever they are there.

Everything is written beside its place under a name of its own, brought to the disk, and gets its
place by one rename. An error leaves nothing behind; what was there before stays. While it is
written, it is locked, so that what killed processes left can be told from what others write.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

_MARK = ".partial-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write says when nothing more can be written."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, or replace one; directories around it are made.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """As `write_whole`, for what JSON can say."""
    write_whole(path, json.dumps(content, indent=2))


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A path to write to; the file there replaces `path` at the end, or vanishes on any error.

    Raises:
        OSError: it cannot be written, or `path` is a device, pipe or socket, whose place no file
            may take.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(errno.EEXIST, "is no regular file, and is not replaced", str(path))
    partial = beside(path)
    try:
        with naming(path):
            with held(partial):
                yield partial
                _bring_to_disk(partial)
                partial.replace(path)
            _bring_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Generator[Path]:
    """A directory to fill that becomes `path` at the end, or vanishes on any error.

    Raises:
        OSError: it cannot be made, or `path` is a directory that is not empty.
    """
    partial = beside(path)
    partial.mkdir()
    try:
        with naming(path):
            with held(partial):
                yield partial
                for inner in [*partial.rglob("*"), partial]:
                    _bring_to_disk(inner)
                _rename_to_new(partial, path)
            _bring_to_disk(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Let errors say what was not written: a full disk names nothing, or what was copied.

    What is named and lies elsewhere, such as among temporary files, keeps its name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        is_full = error.errno in DISK_FULL
        is_copy = error.filename2 is not None
        if is_full:  # pyarrow says it in more words
            error.strerror = os.strerror(error.errno)
        is_ours = is_full and (is_copy or _is_beside(error.filename, path))
        if error.filename is None or is_ours or _is_partial(error.filename, path):
            error.filename = str(path)
        raise


def remove_whole(path: Path) -> None:
    """Remove a directory so that nobody ever sees a part of it."""
    partial = beside(path)
    path.rename(partial)
    shutil.rmtree(partial)


def remove_leftovers_of(path: Path) -> None:
    """Remove what processes that were killed left half-written of a file or directory.

    Args:
        path: of it. What another process writes at the moment stays.
    """
    remove_leftovers(path.parent, escape(path.name))


def remove_leftovers(directory: Path, pattern: str) -> None:
    """As `remove_leftovers_of`, for all names of a pattern.

    Args:
        directory: where they wrote.
        pattern: of names, as `Path.glob` has them.
    """
    for partial in directory.glob(f".{pattern}{_MARK}*"):
        if is_held(partial):
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def why_unwritable(path: Path) -> str | None:
    """What keeps a file or directory from being made or written to; None: nothing."""
    try:
        there = next(
            parent
            for parent in (path, *path.absolute().parents)
            if parent.exists() or parent.is_symlink()
        )
    except OSError as error:  # a name that no file can have
        return error.strerror
    if not there.exists():
        return f"{there} is a link to nothing"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return f"{there} is not a writable directory"
    try:
        with tempfile.TemporaryFile(dir=there):  # /proc says that one may
            return None
    except OSError as error:
        return f"{there} cannot hold files: {error.strerror}"


def beside(path: Path) -> Path:
    """A name of its own: processes that share a directory may write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}{_MARK}{secrets.token_hex(4)}")


@contextmanager
def held(partial: Path) -> Generator[None]:
    """A lock that ends with this process, however it ends; a file that is not there is made."""
    kind = os.O_RDONLY if partial.is_dir() else os.O_RDONLY | os.O_CREAT
    descriptor = os.open(partial, kind, 0o666)
    try:
        with suppress(OSError):  # a file system without locks, where nobody can know
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process, which may be this one, has a lock on a file or directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _is_beside(name: object, path: Path) -> bool:
    return Path(str(name)).is_relative_to(path.parent)


def _is_partial(name: object, path: Path) -> bool:
    there = Path(str(name))
    return there.parent == path.parent and there.name.startswith(f".{path.name}{_MARK}")


def _rename_to_new(partial: Path, path: Path) -> None:
    try:
        partial.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            said = "is there: another process has made it meanwhile, and it stays as it is"
            raise FileExistsError(errno.EEXIST, said, str(path)) from error
        raise


def _bring_to_disk(path: Path) -> None:
    """A rename outlives a crash of the machine only if what it names does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
