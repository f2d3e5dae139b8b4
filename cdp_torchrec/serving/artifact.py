"""The exported artifact: a directory whose every file is known by its checksum.

artifact.json       format and library versions, inputs, parity, checksum of every file
config.toml         the resolved configuration of the run and of the export
schema.toml         features, entities, history
vocabulary/*        raw ids in the order of their codes
tables/*            embedding tables
ranker.pt2          the compiled dense part
golden.json         a request with its scores, checked at every load
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cdp_torchrec.config import Config
from cdp_torchrec.data.identity import DatasetDigest

FORMAT_VERSION = 2
MANIFEST = "artifact.json"
RANKER = "ranker.pt2"
TABLES = "tables"
VOCABULARY = "vocabulary"
GOLDEN = "golden.json"


class ArtifactError(RuntimeError):
    """An artifact, or the history store beside it, cannot be made or served."""

    user_error = True


class Manifest(Config):
    """Contents of artifact.json."""

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

    @property
    def version(self) -> str:
        """Digest of everything above: artifacts that may score differently differ in it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def base_version() -> str:
    """Version of torch without the part that names its build, such as "+cpu"."""
    import torch

    return torch.__version__.split("+")[0]


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Complete an artifact: checksums of all its files, and artifact.json."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    checksums = {path.relative_to(directory).as_posix(): file_digest(path) for path in files}
    complete = manifest.model_copy(update={"files": checksums})
    fields = complete.model_dump(mode="json") | {"version": complete.version}
    (directory / MANIFEST).write_text(json.dumps(fields, indent=2))
    return complete


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


def read_manifest(directory: Path) -> Manifest:
    """Read artifact.json and verify every file.

    Raises:
        ArtifactError: something is missing, altered, or of another version; names it.
    """
    import torch

    path = directory / MANIFEST
    check_is_artifact(directory)
    try:
        fields = json.loads(path.read_text())
        found = fields.get("format_version")
        if found != FORMAT_VERSION:
            raise ArtifactError(
                f"{path}: format {found!r}, this release reads {FORMAT_VERSION}: export the run "
                "again"
            )
        version = fields.pop("version", None)
        # strict=False: JSON has arrays where the manifest has tuples.
        manifest = Manifest.model_validate(fields, strict=False)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise ArtifactError(f"{path}: cannot read the artifact: {error}") from error
    if manifest.version != version:
        raise ArtifactError(f"{path}: was altered after the export")
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
    for name, checksum in manifest.files.items():
        file = directory / name
        if not file.is_file():
            raise ArtifactError(f"{file}: missing")
        if file_digest(file) != checksum:
            raise ArtifactError(f"{file}: altered after the export (checksum)")
    return manifest


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
