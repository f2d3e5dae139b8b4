"""What is served: a full artifact and the deltas that follow it, put together and verified."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from cdp_torchrec.serving.artifact import TABLES, ArtifactError, Manifest, read_manifest
from cdp_torchrec.serving.delta import Step, is_delta, read_step
from cdp_torchrec.serving.scratch import Scratch
from cdp_torchrec.serving.tables import ROWS
from cdp_torchrec.whole_file import DISK_FULL

_LINKED = (TABLES, ROWS)
"""Folders whose files, which may be large, are not copied."""


@dataclass(frozen=True)
class Release:
    """A full artifact, then deltas, each of the version that the one before leads to."""

    steps: tuple[Step, ...]

    @property
    def manifest(self) -> Manifest:
        """Of the artifact that all of them lead to."""
        return self.steps[-1].manifest

    @property
    def version(self) -> str:
        """Of the artifact that all of them lead to."""
        return self.manifest.version

    def up_to(self, version: str) -> "Release | None":
        """The first steps, which lead to a version; None: it is no version on the way."""
        for number, step in enumerate(self.steps, start=1):
            if step.manifest.version == version:
                return Release(self.steps[:number])
        return None

    def is_begin_of(self, other: "Release") -> bool:
        """Whether another one goes on from the version that this one leads to."""
        number = len(self.steps)
        return number < len(other.steps) and other.steps[:number] == self.steps


def find_release(
    directory: Path, *, served: Release | None = None, trusted_keys: Sequence[Path] = ()
) -> Release:
    """Read the listings of an artifact, or of a delta and of what it follows.

    The artifact that a delta begins from is one of those that led to what is served, or lies beside
    the delta, under any name.

    Args:
        directory: of a full artifact or of a delta.
        served: what is served already.
        trusted_keys: as `read_step`, for every directory.

    Raises:
        ArtifactError: a directory cannot be served, or what a delta begins from is not there.
        SignatureError: a key cannot be read.
    """
    steps = [read_step(directory, trusted_keys=trusted_keys)]
    while (base := steps[0].base) is not None:
        if served is not None and (known := served.up_to(base)) is not None:
            return Release((*known.steps, *steps))
        if base in [step.manifest.version for step in steps]:
            raise ArtifactError(f"{directory}: the deltas before it follow each other in a circle")
        found = _beside(steps[0].directory, base)
        steps.insert(0, read_step(found, trusted_keys=trusted_keys))
    return Release(tuple(steps))


def _beside(delta: Path, version: str) -> Path:
    for directory in sorted(delta.resolve().parent.iterdir()):
        if directory.name.startswith("."):
            continue  # still being written or copied, or a snapshot
        try:
            if directory.is_dir() and read_manifest(directory).version == version:
                return directory
        except (ArtifactError, OSError):
            continue  # something else, none of this machine, or one that may not be read
    raise ArtifactError(
        f"{delta}: is a delta of version {version}, which is neither served nor lies beside it in "
        f"{delta.resolve().parent}: bring what is missing in between, or take a full export"
    )


@contextmanager
def opened(release: Release, *, in_memory: int = 0) -> Generator[Path]:
    """The very bytes that were verified, as long as it takes to load them.

    Another writer cannot come between: files are verified while they are copied to a private
    directory. Tables, which may be large, are links to what was opened and verified.

    Args:
        release: what to put together.
        in_memory: its first steps, whose tables and rows are not needed.

    Yields:
        A directory like that of the full artifact that the release leads to, but that `tables` is
        that of its first step, and `rows/00001` and so on have the rows of the later ones.

    Raises:
        ArtifactError: a file is missing or altered.
    """
    with Scratch() as scratch, ExitStack() as files:
        private = scratch.path / "artifact"
        for number, step in enumerate(release.steps):
            for name, checksum in step.files.items():
                folder, _, file = name.rpartition("/")
                if number >= in_memory and folder == ROWS:
                    place = private / ROWS / f"{number:05d}" / file
                    _bring(step.directory / name, place, checksum, files)
                if number >= in_memory and folder == TABLES:
                    _bring(step.directory / name, private / name, checksum, files)
        for name, checksum in release.manifest.files.items():
            if name.partition("/")[0] != TABLES:
                source = _newest(release, name, checksum)
                try:
                    _bring(source / name, private / name, checksum, files)
                except ArtifactError as error:
                    if source == release.steps[-1].directory:
                        raise
                    delta = release.steps[-1].directory
                    raise ArtifactError(
                        f"{error}; the delta {delta} needs what it follows as it was: bring it "
                        "back, or take a full export"
                    ) from error
        try:
            yield private
        except ArtifactError as error:
            directory = release.steps[-1].directory
            raise ArtifactError(str(error).replace(str(private), str(directory))) from error


def _newest(release: Release, name: str, checksum: str) -> Path:
    """The last directory that has a file of the artifact."""
    for step in reversed(release.steps):
        if step.files.get(name) == checksum:
            return step.directory
    last = release.steps[-1].directory
    raise ArtifactError(f"{last / name}: missing in it and in what it is a delta of")


def row_folders(artifact: Path) -> list[Path]:
    """Folders with rows of deltas in a directory that `opened` gave, in their order."""
    return sorted((artifact / ROWS).glob("*"))


def check_follows(delta: Path, served: Release, *, trusted_keys: Sequence[Path]) -> None:
    """Whether a delta begins from what is served.

    Raises:
        ArtifactError: it does not.
        SignatureError: a key cannot be read.
    """
    if not is_delta(delta):
        raise ArtifactError(f"{delta}: is no delta: delta.json is missing")
    step = read_step(delta, trusted_keys=trusted_keys)
    if step.base == served.version:
        return
    if served.up_to(step.manifest.version) is not None:
        raise ArtifactError(
            f"{delta}: leads to version {step.manifest.version}, which was applied already; "
            f"{served.version} is served"
        )
    raise ArtifactError(
        f"{delta}: is a delta of version {step.base}, and {served.version} is served: apply the "
        "deltas in between first, or take a full export"
    )


def _bring(file: Path, private: Path, checksum: str, opened: ExitStack) -> None:
    """Verify a file; afterwards exactly what was verified can be read at `private`."""
    private.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.is_file():
        raise ArtifactError(f"{file}: is no regular file")  # a pipe would be waited for
    try:
        source = opened.enter_context(file.open("rb"))
        if file.parent.name in _LINKED:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            private.symlink_to(f"/proc/self/fd/{source.fileno()}")
        else:
            content = source.read()
            digest = hashlib.sha256(content).hexdigest()
            private.write_bytes(content)
    except OSError as error:
        what = "missing" if isinstance(error, FileNotFoundError) else error.strerror
        if error.errno in DISK_FULL:
            what = f"its private copy in {gettempdir()} cannot be written (TMPDIR): {what}"
        raise ArtifactError(f"{file}: {what}") from error
    if digest != checksum:
        raise ArtifactError(f"{file}: altered after the export (checksum)")
