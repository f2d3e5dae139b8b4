"""Checksums of a dataset at rest: whether its files still are what the preparation wrote.

`manifest.json` lists every file of the dataset with its size, SHA-256 of each 64 MiB of it, and a
digest of a few blocks spread over it. The last is compared whenever a dataset is opened, in
milliseconds whatever its size: a file that was exchanged, cut, reversed or shifted shows there. A
single flipped bit of a large file shows only when all of it is read: `find_damage`.

It guards against accidents, not against somebody who writes a manifest of his own.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

from pydantic import NonNegativeInt, ValidationError

from cdp_torchrec.config import Config
from cdp_torchrec.data.days import DAY, MERGED, parts, superseded
from cdp_torchrec.data.schema import SCHEMA, DatasetError
from cdp_torchrec.data.summary import SUMMARY
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.whole_file import write_whole

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
CHUNK = 64 << 20
"""Bytes that one checksum covers; the work of several threads and ranks is cut there."""

Folder = Literal["counts", "history", "requests", "test", "train", "vocabulary"]
"""Where the files of a dataset lie, beside its schema, or those of an appended day or a merged
store, beside what says which it is."""

_FOLDERS: tuple[Folder, ...] = get_args(Folder)
_ABOUT = (SCHEMA, SUMMARY, DAY, MERGED)
_READ = 1 << 20
_BLOCK = 4096
_BLOCKS = 16
_MOST_FILES = 64
"""Files of a folder whose blocks are compared at open; of requests there may be thousands."""
_MOST_NAMES = 8
_MIB = 1 << 20
_UNREADABLE = "cannot be read"


class FileRecord(Config):
    """What a file of the dataset is."""

    size: NonNegativeInt
    """Bytes."""
    sha256: tuple[str, ...]
    """Of each CHUNK bytes; of a file of at most 64 MiB, that of the file."""
    sample: str
    """SHA-256 of _BLOCKS blocks of _BLOCK bytes from its begin to its end."""


class Manifest(Config):
    """Contents of manifest.json."""

    format_version: int = FORMAT_VERSION
    files: dict[str, FileRecord]
    """By path in the dataset: all but this one and the first configuration, which people edit."""

    @property
    def digest(self) -> str:
        """Of all contents, so that a damaged manifest does not accuse other files."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def contents(self, *folders: str) -> dict[str, tuple[str, ...]]:
        """Checksums of the files in some folders, by path."""
        return {p: r.sha256 for p, r in self.files.items() if p.split("/")[0] in folders}


def write_manifest(dataset: Path) -> None:
    """Write the manifest of a dataset, or of a day or store in it, whose files are all there."""
    paths = [*_files_in(dataset, _FOLDERS), *(n for n in _ABOUT if (dataset / n).is_file())]
    files = {path: (dataset / path).stat().st_size for path in paths}
    digests = dict(_digests(dataset, files, "checksums", active=True))
    records = {
        path: FileRecord(
            size=size,
            sha256=tuple(digests[path, start] for start in _starts(size)),
            sample=_sample(dataset / path),
        )
        for path, size in files.items()
    }
    manifest = Manifest(files=records)
    fields = manifest.model_dump(mode="json") | {"digest": manifest.digest}
    write_whole(dataset / MANIFEST, json.dumps(fields, indent=1))


def read_manifest(dataset: Path) -> Manifest:
    """Read the manifest.

    Raises:
        DatasetError: it is missing, damaged, or of another format.
    """
    path = dataset / MANIFEST
    again = "prepare the dataset again with `cdp_torchrec prepare_data`"
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot read the checksums of the dataset: {error.strerror}; {again}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is damaged, no JSON: {error}; {again}") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version not in (None, FORMAT_VERSION):
        raise DatasetError(
            f"{path}: format {version!r}, this release reads {FORMAT_VERSION}; {again}"
        )
    written = fields.pop("digest", None) if version else None
    try:
        # strict=False: JSON has arrays where the manifest has tuples.
        manifest = Manifest.model_validate(fields, strict=False)
    except ValidationError:
        manifest = None
    if manifest is None or manifest.digest != written:
        raise DatasetError(f"{path}: is damaged, or was changed after the preparation; {again}")
    return manifest


def check_at_open(dataset: Path, folder: Folder) -> None:
    """Compare names, sizes and a few blocks of the files of a folder; milliseconds.

    Args:
        dataset: dataset directory.
        folder: the part of it that will be read.

    Raises:
        DatasetError: a file is missing, unknown, or not what the preparation wrote; names them.
    """
    manifest = read_manifest(dataset)
    prefixes = (f"{folder}/", *_ABOUT)
    wanted = {path: r for path, r in manifest.files.items() if path.startswith(prefixes)}
    problems = _wrong_files(dataset, manifest, wanted, [folder])
    stride = max(1, -(-len(wanted) // _MOST_FILES))
    for path in {*list(wanted)[::stride]} - problems.keys():
        try:
            same = _sample(dataset / path) == wanted[path].sample
        except OSError as error:
            problems[path] = f"{_UNREADABLE}: {error.strerror}"
        else:
            if not same:
                problems[path] = "other bytes than the preparation wrote"
    if problems:
        raise damaged(dataset, problems)


def find_damage(
    dataset: Path, *, share: tuple[int, int] = (0, 1), active: bool = True
) -> dict[str, str]:
    """Read all files and compare them, those of appended days and of a merged store, too.

    Args:
        dataset: dataset directory.
        share: number of this rank and of all ranks that share the work.
        active: whether this process shows a progress bar.

    Returns:
        What is wrong with each damaged file, by its path in the dataset.

    Raises:
        DatasetError: there is no readable manifest.
    """
    files, unread = dataset_files(dataset), superseded(dataset)
    problems: dict[str, str] = {}
    for part in parts(dataset):
        folders = [folder for folder in _FOLDERS if part / folder not in unread]
        manifest, inside = read_manifest(part), part.relative_to(dataset)
        wanted = {p: r for p, r in manifest.files.items() if (inside / p).as_posix() in files}
        wrong = _wrong_files(part, manifest, wanted, folders)
        problems |= {(inside / path).as_posix(): what for path, what in wrong.items()}
    sizes = {path: r.size for path, r in files.items() if path not in problems}
    for (path, start), found in _digests(dataset, sizes, "verify", share=share, active=active):
        if found != files[path].sha256[start // CHUNK]:
            where = f"other bytes from byte {start:,} on" if start else "other bytes"
            problems.setdefault(path, found if found.startswith(_UNREADABLE) else where)
    return problems


def dataset_files(dataset: Path) -> dict[str, FileRecord]:
    """All files of a dataset with its days that are read, by path in it.

    Raises:
        DatasetError: there is no readable manifest.
    """
    unread = superseded(dataset)
    return {
        (part / path).relative_to(dataset).as_posix(): record
        for part in parts(dataset)
        for path, record in read_manifest(part).files.items()
        if not any((part / path).is_relative_to(folder) for folder in unread)
    }


def damaged(dataset: Path, problems: Mapping[str, str], *, most: int = _MOST_NAMES) -> DatasetError:
    """The error about a dataset whose files are not what its preparation wrote.

    Args:
        dataset: dataset directory.
        problems: what is wrong, by path.
        most: files that are named.
    """
    lines = [f"{path}: {problems[path]}" for path in sorted(problems)]
    advice = "restore these files, or prepare the dataset again"
    if len(lines) > most:
        lines[most:] = [f"and {len(lines) - most:,} more files"]
        advice += f"; `cdp_torchrec prepare_data verify {dataset}` names all"
    head = f"{dataset}: damaged or changed after its preparation"
    return DatasetError("\n  ".join([head, *lines, advice]))


def _files_in(dataset: Path, folders: Sequence[Folder]) -> list[str]:
    found = [path for folder in folders for path in (dataset / folder).rglob("*")]
    return sorted(path.relative_to(dataset).as_posix() for path in found if path.is_file())


def _wrong_files(
    dataset: Path,
    manifest: Manifest,
    wanted: Mapping[str, FileRecord],
    folders: Sequence[Folder],
) -> dict[str, str]:
    """Files that are missing, of another size, or not the preparation's, by their paths."""
    problems = {}
    for path, record in wanted.items():
        try:
            size = (dataset / path).stat().st_size
        except FileNotFoundError:
            problems[path] = "missing"
        except OSError as error:
            problems[path] = f"{_UNREADABLE}: {error.strerror}"
        else:
            if size != record.size:
                problems[path] = f"{size:,} bytes, the preparation wrote {record.size:,}"
    for path in _files_in(dataset, folders):
        name = path.split("/")[-1]
        # A reader might take it for a part of the dataset.
        is_read = name.endswith(".parquet") or not name.startswith(".")
        if is_read and path not in manifest.files:
            problems[path] = "not written by the preparation"
    return problems


def _sample(path: Path) -> str:
    """Digest of blocks of a file: all of a small one, else spread from its begin to its end."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        last = max(size - _BLOCK, 0)
        for number in range(_BLOCKS if last else 1):
            digest.update(os.pread(file.fileno(), _BLOCK, last * number // (_BLOCKS - 1)))
    return digest.hexdigest()


def _starts(size: int) -> range:
    """Where the chunks of a file begin; an empty file has one."""
    return range(0, max(size, 1), CHUNK)


def _digests(
    dataset: Path,
    sizes: dict[str, int],
    name: str,
    *,
    share: tuple[int, int] = (0, 1),
    active: bool,
) -> Iterator[tuple[tuple[str, int], str]]:
    """SHA-256 of the chunks, or a sentence on why one cannot be read, by path and begin."""
    rank, world_size = share
    chunks = [(path, start) for path, size in sizes.items() for start in _starts(size)]
    mine = chunks[rank::world_size]
    threads = max(1, len(os.sched_getaffinity(0)) // world_size)
    pool = ThreadPoolExecutor(threads)
    total = sum(min(sizes[path] - start, CHUNK) for path, start in mine)
    try:
        with ProgressBar(name, total=total // _MIB, unit="MiB", active=active) as bar:
            done = 0
            found = pool.map(lambda chunk: _chunk_digest(dataset / chunk[0], chunk[1]), mine)
            for (path, start), digest in zip(mine, found, strict=True):
                before, done = done, done + min(sizes[path] - start, CHUNK)
                bar.advance(done // _MIB - before // _MIB)
                yield (path, start), digest
    finally:
        pool.shutdown(cancel_futures=True)


def _chunk_digest(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            left = CHUNK
            while piece := file.read(min(left, _READ)):
                digest.update(piece)
                left -= len(piece)
    except OSError as error:
        return f"{_UNREADABLE}: {error.strerror}"
    return digest.hexdigest()
