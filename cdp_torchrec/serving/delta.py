"""What leads from one artifact to a later one: a directory with what the earlier one has not.

delta.json          version of the earlier artifact, checksum of every file here
delta.sig           signature of delta.json, if it was signed
artifact.json       that of the later artifact, which lists its files
rows/*              rows of tables that differ or are new (serving.tables)
...                 files of the later artifact that the earlier one has not, at their places: new
                    ids, schema, configuration, golden request, and the compiled dense part

Rows are compared bit for bit, so what a delta leads to is the later artifact, bit for bit.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdp_torchrec.serving.artifact import (
    MANIFEST,
    SIGNATURE,
    ArtifactError,
    Listing,
    Manifest,
    check_is_artifact,
    file_digest,
    listed_files,
    parse_listing,
    parse_manifest,
    read_trusted,
    write_listing,
)

DELTA = "delta.json"
DELTA_SIGNATURE = "delta.sig"
FORMAT_VERSION = 1


class DeltaManifest(Listing):
    """Contents of delta.json."""

    format_version: int = FORMAT_VERSION
    base: str
    """Version of the artifact that it begins from."""
    files: dict[str, str] = {}
    """SHA-256 of every other file, by its path in the delta."""


@dataclass(frozen=True)
class Step:
    """A directory of a chain: a full artifact, or a delta of what the one before it leads to."""

    directory: Path
    base: str | None
    """Version that it begins from; None: it is full."""
    manifest: Manifest
    """Of the artifact that it leads to."""
    files: Mapping[str, str]
    """SHA-256 of the files that it has."""


def is_delta(directory: Path) -> bool:
    """Whether a directory is a delta."""
    return (directory / DELTA).is_file()


def write_delta_manifest(directory: Path, base: str, *, signing_key: Path | None) -> None:
    """Complete a delta whose other files are there.

    Args:
        directory: of the delta.
        base: version that it begins from.
        signing_key: as in ExportConfig.

    Raises:
        SignatureError: the key cannot be read.
    """
    names = listed_files(directory, without=(DELTA, DELTA_SIGNATURE))
    files = {name: file_digest(directory / name) for name in names}
    write_listing(directory / DELTA, DeltaManifest(base=base, files=files), signing_key=signing_key)


def read_step(directory: Path, *, trusted_keys: Sequence[Path]) -> Step:
    """Read the listings of a directory; the files that they list are not looked at.

    Args:
        directory: of a full artifact or of a delta.
        trusted_keys: public keys, one of which must have signed it; none: anybody may have.

    Raises:
        ArtifactError: it is none, is altered or incomplete, of another version or machine, or
            nobody trusted signed it.
        SignatureError: a key cannot be read.
    """
    check_is_artifact(directory)
    path = directory / MANIFEST
    if not is_delta(directory):
        manifest = parse_manifest(path, read_trusted(path, trusted_keys=trusted_keys))
        return _complete(Step(directory, None, manifest, manifest.files), (MANIFEST, SIGNATURE))
    content = read_trusted(directory / DELTA, trusted_keys=trusted_keys)
    delta = parse_listing(directory / DELTA, content, DeltaManifest, format_version=FORMAT_VERSION)
    content = read_trusted(path, trusted_keys=())
    if hashlib.sha256(content).hexdigest() != delta.files.get(MANIFEST):
        raise ArtifactError(f"{path}: altered after the export (checksum)")
    step = Step(directory, delta.base, parse_manifest(path, content), delta.files)
    return _complete(step, (DELTA, DELTA_SIGNATURE))


def _complete(step: Step, without: Sequence[str]) -> Step:
    for file in listed_files(step.directory, without=without):
        if file not in step.files:
            raise ArtifactError(f"{step.directory / file}: is not part of the artifact: remove it")
    return step
