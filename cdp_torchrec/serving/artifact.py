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
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from cdp_torchrec.config import Config
from cdp_torchrec.data.identity import DatasetDigest
from cdp_torchrec.serving.scratch import Scratch
from cdp_torchrec.serving.signature import SignatureError, check_signature, sign

FORMAT_VERSION = 2
MANIFEST = "artifact.json"
SIGNATURE = "artifact.sig"
RANKER = "ranker.pt2"
TABLES = "tables"
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


def write_manifest(
    directory: Path, manifest: Manifest, *, signing_key: Path | None = None
) -> Manifest:
    """Complete an artifact: checksums of all its files, artifact.json, and its signature.

    Raises:
        SignatureError: the key cannot be read.
    """
    checksums = {name: file_digest(directory / name) for name in _files(directory)}
    complete = manifest.model_copy(update={"files": checksums})
    fields = complete.model_dump(mode="json") | {"version": complete.version}
    content = json.dumps(fields, indent=2).encode()
    (directory / MANIFEST).write_bytes(content)
    if signing_key is not None:
        (directory / SIGNATURE).write_bytes(sign(content, signing_key))
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


def read_manifest(directory: Path, *, trusted_keys: Sequence[Path] = ()) -> Manifest:
    """Read artifact.json; the files that it lists are not looked at.

    Args:
        directory: of the artifact.
        trusted_keys: public keys, one of which must have signed it; none: anybody may have.

    Raises:
        ArtifactError: it is missing, altered, of another version, or nobody trusted signed it.
        SignatureError: a key cannot be read.
    """
    path = directory / MANIFEST
    check_is_artifact(directory)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the artifact: {error.strerror}") from error
    if trusted_keys:
        _check_signature(directory, content, trusted_keys)
    manifest = _parse(path, content)
    _check_machine(path, manifest)
    return manifest


def _check_signature(directory: Path, content: bytes, trusted_keys: Sequence[Path]) -> None:
    try:
        signature = (directory / SIGNATURE).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{directory}: is not signed, and trusted_keys allows signed artifacts only: export "
            "with export.signing_key, or sign it as cdp_torchrec/serving/README.md says"
        ) from error
    try:
        check_signature(content, signature, trusted_keys)
    except SignatureError as error:
        raise ArtifactError(f"{directory / SIGNATURE}: {error}") from error


def _parse(path: Path, content: bytes) -> Manifest:
    try:
        fields = json.loads(content)
        found = fields.get("format_version")
        if found != FORMAT_VERSION:
            raise ArtifactError(
                f"{path}: format {found!r}, this release reads {FORMAT_VERSION}: export the run "
                "again"
            )
        version = fields.pop("version", None)
        # strict=False: JSON has arrays where the manifest has tuples.
        manifest = Manifest.model_validate(fields, strict=False)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot read the artifact: {error}") from error
    if manifest.version != version:
        raise ArtifactError(f"{path}: was altered after the export")
    return manifest


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


@contextmanager
def verified(
    directory: Path, *, trusted_keys: Sequence[Path] = ()
) -> Generator[tuple[Path, Manifest]]:
    """The artifact's very bytes that were verified, as long as it takes to load them.

    Another writer of `directory` cannot come between: files are verified while they are copied to
    a private directory. Tables, which may be large, are links to what was opened and verified.

    Args:
        directory: of the artifact.
        trusted_keys: as `read_manifest`.

    Yields:
        A directory like that of the artifact, and its manifest.

    Raises:
        ArtifactError: as `read_manifest`, or a file is missing, altered, or not part of it.
        SignatureError: a key cannot be read.
    """
    manifest = read_manifest(directory, trusted_keys=trusted_keys)
    for file in _files(directory):
        if file not in manifest.files:
            raise ArtifactError(f"{directory / file}: is not part of the artifact: remove it")
    with Scratch() as scratch, ExitStack() as opened:
        private = scratch.path / "artifact"
        for name, checksum in manifest.files.items():
            _bring(directory / name, private / name, checksum, opened)
        try:
            yield private, manifest
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(private), str(directory))) from error


def _bring(file: Path, private: Path, checksum: str, opened: ExitStack) -> None:
    """Verify a file; afterwards exactly what was verified can be read at `private`."""
    private.parent.mkdir(parents=True, exist_ok=True)
    try:
        source = opened.enter_context(file.open("rb"))
        if private.parent.name == TABLES:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            private.symlink_to(f"/proc/self/fd/{source.fileno()}")
        else:
            content = source.read()
            digest = hashlib.sha256(content).hexdigest()
            private.write_bytes(content)
    except OSError as error:
        what = "missing" if isinstance(error, FileNotFoundError) else error.strerror
        raise ArtifactError(f"{file}: {what}") from error
    if digest != checksum:
        raise ArtifactError(f"{file}: altered after the export (checksum)")


def _files(directory: Path) -> list[str]:
    """All files of an artifact but the manifest and its signature, by their paths in it."""
    found = [
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() or path.is_symlink()
    ]
    return sorted(set(found) - {MANIFEST, SIGNATURE})


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
