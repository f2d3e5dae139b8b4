"""Where a preparation works: beside its output, where nothing is left of it however it ends.

Its directories carry the name of the output and are locked while it runs, so that the next
preparation of the same output can tell what a killed one left behind, and removes that.
"""

import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.stopped_by_signals import stopped_by_signals
from cdp_torchrec.user_error import UserError
from cdp_torchrec.whole_file import is_held, remove_leftovers, whole_directory, why_unwritable

logger = logging.getLogger(__name__)


class PreparationError(UserError, OSError):
    """The machine, not the log, stands in the way: disk or memory is full."""


class DatasetBusyError(DatasetError):
    """Another process adds to the dataset: what failed can be done a little later."""


@contextmanager
def preparing(output: Path) -> Generator[None]:
    """Around a whole preparation: one line says why `output` was not made.

    SIGTERM and SIGHUP end it as Ctrl-C does, after its directories are removed.

    Raises:
        DatasetError: `output` exists.
        PreparationError: `output` cannot be written, or memory is full.
    """
    if output.exists() or output.is_symlink():
        raise DatasetError(f"{output} exists; remove it or choose another output directory")
    if problem := why_unwritable(output.parent):
        raise PreparationError(f"{output} cannot be made: {problem}")
    outcome = "is not made, nothing will be left of it"
    with _explained(f"{output} was not made, nothing is left of it", f"{output} {outcome}"):
        yield


@contextmanager
def changing(dataset: Path) -> Generator[None]:
    """Around whatever adds to a dataset: one at a time, and one line says why it did not.

    SIGTERM and SIGHUP end it as Ctrl-C does. What one that was killed left behind is removed.

    Raises:
        DatasetBusyError: another process adds to it.
        PreparationError: the dataset cannot be written, or memory is full.
    """
    if problem := why_unwritable(dataset):
        raise PreparationError(f"{dataset} cannot be changed: {problem}")
    with held(dataset, f"{dataset}: another append or compact works on it; wait for its end"):
        for folder in dataset.iterdir():
            remove_leftovers(folder, "*")
        outcome = f"{dataset} is as it was"
        with _explained(outcome, f"{outcome}, nothing was added"):
            yield


@contextmanager
def _explained(outcome: str, stopping: str) -> Generator[None]:
    """Say what came of it, and why, if the machine stands in the way or somebody stops it."""
    with explained(outcome), stopped_by_signals(stopping):
        yield


@contextmanager
def explained(outcome: str) -> Generator[None]:
    """Say what came of it, and why, if the machine stands in the way.

    Raises:
        PreparationError: in place of the error of the engine or of a file.
    """
    try:
        yield
    except (duckdb.Error, OSError) as error:
        if isinstance(error, UserError):  # it has its own words
            raise
        raise PreparationError(f"{outcome}: {_reason(error)}") from error


@contextmanager
def staging_beside(output: Path) -> Generator[Path]:
    """A directory for staging files on the disk of `output`, removed at the end."""
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(output)
    directory = Path(tempfile.mkdtemp(prefix=f".{output.name}.staging-", dir=output.parent))
    try:
        with held(directory):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def dataset_beside(output: Path) -> Generator[Path]:
    """A directory to fill that becomes `output` at the end, or vanishes on any error.

    Raises:
        DatasetError: another process fills one for the same output.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if any(path.name.startswith(f".{output.name}.partial-") for path in _remove_abandoned(output)):
        raise DatasetError(f"{output}: another preparation writes it; wait for its end")
    with whole_directory(output) as partial:  # locked, as staging files are
        yield partial


def _remove_abandoned(output: Path) -> list[Path]:
    """Remove what killed preparations left; what others, or this one, work in at the moment."""
    at_work = []
    starts = (f".{output.name}.staging-", f".{output.name}.partial-")
    for path in output.parent.iterdir():
        if not (path.name.startswith(starts) and path.is_dir()):
            continue
        if is_held(path):
            at_work.append(path)
        else:
            logger.warning("removed %s, left behind by a preparation that was killed", path)
            shutil.rmtree(path, ignore_errors=True)
    return at_work


@contextmanager
def held(directory: Path, taken: str = "") -> Generator[None]:
    """A lock that ends with this process, however it ends; `taken` says that another has it.

    Raises:
        DatasetBusyError: another process has it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise (DatasetBusyError(taken) if taken else error) from None
        yield
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    """What stands in the way, in plain words; the engine's own are for its developers."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    if "max_temp_directory_size" in text:  # set by the engine, to what was free
        return os.strerror(errno.ENOSPC)
    if isinstance(error, duckdb.OutOfMemoryException):
        return "memory is full; give the engine more of it (--memory) or fewer threads (--threads)"
    return re.sub(r"^(\w+ )+Error: ", "", text.splitlines()[0]) if text else type(error).__name__
