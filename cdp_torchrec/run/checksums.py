"""Whether the files of a checkpoint are what was written."""

from collections.abc import Collection
from pathlib import Path

import xxhash

from cdp_torchrec.run.records import (
    CheckpointError,
    CheckpointRecord,
    DamagedCheckpointError,
    FileRecord,
)

_CHUNK = 1 << 22


def record_file(path: Path) -> FileRecord:
    """Size and digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = xxhash.xxh3_128()
    size = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size=size, digest=digest.hexdigest())


def record_text(text: str) -> FileRecord:
    """Size and digest of a text file."""
    content = text.encode()
    return FileRecord(size=len(content), digest=xxhash.xxh3_128_hexdigest(content))


def verify(checkpoint: Path, record: CheckpointRecord, read: Collection[str]) -> None:
    """Compare a checkpoint with its record: the sizes of all files, and the content of some.

    Args:
        checkpoint: its directory.
        record: of the checkpoint.
        read: names of the files that are read.

    Raises:
        DamagedCheckpointError: files are missing or are others; names them.
        CheckpointError: a file may not be read.
    """
    problems = [
        problem
        for name, written in record.files.items()
        if (problem := _problem(checkpoint / name, written, read=name in read))
    ]
    if problems:
        raise DamagedCheckpointError("; ".join(problems))


def _problem(path: Path, written: FileRecord, *, read: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != written.size:
            return f"{path}: is damaged: it has {size:,} bytes instead of {written.size:,}"
        if read and record_file(path) != written:
            return f"{path}: is damaged: its checksum does not match"
    except FileNotFoundError:
        return f"{path}: is missing"
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None
