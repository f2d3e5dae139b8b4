"""The exported artifact: a directory whose every file is known by its checksum.

artifact.json       format and library versions, inputs, parity, checksum of every file
artifact.sig        signature of artifact.json, if it was signed
config.toml         the resolved configuration of the run and of the export
schema.toml         features, entities, history
vocabulary/*        raw ids in the order of their codes
tables/*            embedding tables
ranker.pt2          the compiled dense part
golden.json         a request with its scores, checked at every load
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from cdp_torchrec.config import Config
from cdp_torchrec.data.identity import DatasetDigest
from cdp_torchrec.serving.signature import is_signed, read_public_keys, sign
from cdp_torchrec.user_error import UserError

FORMAT_VERSION = 3
MANIFEST = "artifact.json"
SIGNATURE = "artifact.sig"
RANKER = "ranker.pt2"
TABLES = "tables"
GOLDEN = "golden.json"


class ArtifactError(UserError, RuntimeError):
    """An artifact, or the history store beside it, cannot be made or served."""


class Listing(Config):
    """A file that lists the others beside it by their checksums, and that may be signed."""

    @property
    def version(self) -> str:
        """Digest of all that it says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


ListingT = TypeVar("ListingT", bound=Listing)


class Manifest(Listing):
    """Contents of artifact.json. Artifacts that may score differently have another `version`."""

    format_version: int = FORMAT_VERSION
    package_version: str
    """Of cdp_torchrec."""
    torch_version: str
    """The compiled ranker is loaded by this version only."""
    device: Literal["cpu", "cuda"]
    cpu_capability: str
    """Vector instructions that the ranker was compiled for."""
    name: str
    """Dataset and interest module."""
    inputs: tuple[str, ...]
    """Names of the ranker's input tensors, in their order."""
    dataset_digest: DatasetDigest
    """Which raw id has which code, and what the features are, as in the run's checkpoint."""
    parity: dict[str, float] = {}
    """What the parity gate measured."""
    files: dict[str, str] = {}
    """SHA-256 of every other file, by its path in the artifact."""


def base_version() -> str:
    """Version of torch without the part that names its build, such as "+cpu"."""
    import torch

    return torch.__version__.split("+")[0]


def write_manifest(
    directory: Path, manifest: Manifest, *, signing_key: Path | None = None
) -> Manifest:
    """Complete an artifact: checksums of all its files, artifact.json, and its signature.

    Raises:
        SignatureError: the key cannot be read.
    """
    names = listed_files(directory, without=(MANIFEST, SIGNATURE))
    checksums = {name: file_digest(directory / name) for name in names}
    complete = manifest.model_copy(update={"files": checksums})
    write_listing(directory / MANIFEST, complete, signing_key=signing_key)
    return complete


def write_listing(path: Path, listing: Listing, *, signing_key: Path | None) -> None:
    """Write a listing, and beside it its signature where there is a key.

    Raises:
        SignatureError: the key cannot be read.
    """
    fields = listing.model_dump(mode="json") | {"version": listing.version}
    content = json.dumps(fields, indent=2).encode()
    path.write_bytes(content)
    if signing_key is not None:
        path.with_suffix(".sig").write_bytes(sign(content, signing_key))


def check_is_artifact(directory: Path) -> None:
    """Whether there is an artifact, of whatever version; needs no torch.

    Raises:
        ArtifactError: there is none.
    """
    if not (directory / MANIFEST).is_file():
        what = f"{MANIFEST} is missing" if directory.is_dir() else "no such directory"
        raise ArtifactError(
            f"{directory} is no artifact: {what}. Make one with `cdp_torchrec export RUN`"
        )


def read_manifest(directory: Path, *, trusted_keys: Sequence[Path] = ()) -> Manifest:
    """Read artifact.json; the files that it lists are not looked at.

    Args:
        directory: of the artifact.
        trusted_keys: public keys, one of which must have signed it; none: anybody may have.

    Raises:
        ArtifactError: it is missing, altered, of another version, or nobody trusted signed it.
        SignatureError: a key cannot be read.
    """
    check_is_artifact(directory)
    path = directory / MANIFEST
    return parse_manifest(path, read_trusted(path, trusted_keys=trusted_keys))


def parse_manifest(path: Path, content: bytes) -> Manifest:
    """What artifact.json says; it is checked that the artifact can be served here.

    Args:
        path: of artifact.json, for errors.
        content: of it.

    Raises:
        ArtifactError: it is altered, of another version, or for another machine.
    """
    manifest = parse_listing(path, content, Manifest, format_version=FORMAT_VERSION)
    _check_machine(path, manifest)
    return manifest


def read_trusted(path: Path, *, trusted_keys: Sequence[Path]) -> bytes:
    """The bytes of a listing.

    Raises:
        ArtifactError: it cannot be read, or keys are given and none of them signed it.
        SignatureError: a key cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the artifact: {error.strerror}") from error
    if not trusted_keys:
        return content
    keys = read_public_keys(trusted_keys)
    try:
        signature = path.with_suffix(".sig").read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path.parent}: is not signed, and trusted_keys allows signed artifacts only: export "
            "with export.signing_key, or sign it as cdp_torchrec/serving/README.md says"
        ) from error
    if not is_signed(content, signature, keys):
        named = ", ".join(str(key) for key in trusted_keys)
        raise ArtifactError(
            f"{path.with_suffix('.sig')}: not signed by any of the trusted keys ({named})"
        )
    return content


def parse_listing(
    path: Path, content: bytes, kind: type[ListingT], *, format_version: int
) -> ListingT:
    """What a listing says.

    Args:
        path: of it, for errors.
        content: of it.
        kind: what it is.
        format_version: that this release reads.

    Raises:
        ArtifactError: it is altered, or of another version.
    """
    try:
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise ValueError("expected a JSON object")
        found = fields.get("format_version")
        if found != format_version:
            raise ArtifactError(
                f"{path}: format {found!r}, this release reads {format_version}: export the run "
                "again"
            )
        version = fields.pop("version", None)
        # strict=False: JSON has arrays where the listing has tuples.
        listing = kind.model_validate(fields, strict=False)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot read the artifact: {error}") from error
    if listing.version != version:
        raise ArtifactError(f"{path}: was altered after the export")
    return listing


def _check_machine(path: Path, manifest: Manifest) -> None:
    import torch

    if manifest.torch_version != base_version():
        raise ArtifactError(
            f"{path}: compiled by torch {manifest.torch_version}, this is {base_version()}: export "
            "the run again"
        )
    here = torch.backends.cpu.get_cpu_capability()
    if manifest.device == "cpu" and manifest.cpu_capability != here:
        raise ArtifactError(
            f"{path}: compiled for {manifest.cpu_capability}, this CPU has {here}: export the run "
            "on a machine like this one"
        )
    if manifest.device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError(f"{path}: compiled for CUDA, which is not available here")


def listed_files(directory: Path, *, without: Sequence[str]) -> list[str]:
    """All files of a directory but some, by their paths in it."""
    found = [
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() or path.is_symlink()
    ]
    return sorted(set(found) - {*without})


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
