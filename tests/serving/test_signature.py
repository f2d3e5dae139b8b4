"""An artifact is served if somebody trusted signed it, and as it was when it was verified."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cdp_torchrec.serving.artifact import MANIFEST, SIGNATURE, ArtifactError
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.release import find_release, opened
from cdp_torchrec.serving.signature import SignatureError, is_signed, read_public_keys, sign


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Files of a private key and of its public key."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def key(tmp_path: Path) -> tuple[Path, Path]:
    return make_key(tmp_path, "ours")


def sign_artifact(artifact: Path, private: Path) -> None:
    (artifact / SIGNATURE).write_bytes(sign((artifact / MANIFEST).read_bytes(), private))


def test_an_artifact_signed_by_one_of_the_trusted_keys_is_served(
    copied: Path, key: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = key
    _, other = make_key(tmp_path, "other")
    sign_artifact(copied, private)
    assert Predictor.open(copied, trusted_keys=[other, public]).metadata.version
    with pytest.raises(ArtifactError, match="not signed by any of the trusted keys"):
        Predictor.open(copied, trusted_keys=[other])


def test_an_unsigned_artifact_is_refused_once_keys_are_named(
    artifact: Path, key: tuple[Path, Path]
) -> None:
    with pytest.raises(ArtifactError, match="is not signed, and trusted_keys allows"):
        Predictor.open(artifact, trusted_keys=[key[1]])


def test_a_trusted_key_that_is_none_is_no_fault_of_the_artifact(
    artifact: Path, copied: Path, key: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = key
    sign_artifact(copied, private)
    for unsigned_or_signed in (artifact, copied):
        for none, words in ((tmp_path / "lost.pub", "No such file"), (private, "a private one")):
            with pytest.raises(SignatureError, match=rf"{none.name}: .*{words}"):
                Predictor.open(unsigned_or_signed, trusted_keys=[public, none])


def test_a_manifest_changed_after_signing_is_refused(copied: Path, key: tuple[Path, Path]) -> None:
    private, public = key
    sign_artifact(copied, private)
    path = copied / MANIFEST
    path.write_bytes(path.read_bytes() + b"\n")
    assert Predictor.open(copied).metadata.version
    with pytest.raises(ArtifactError, match="not signed by any"):
        Predictor.open(copied, trusted_keys=[public])


@pytest.mark.parametrize("name", ["more.txt", "tables/more.npy", "vocabulary/more.parquet"])
def test_a_file_that_the_manifest_does_not_list_is_refused(copied: Path, name: str) -> None:
    (copied / name).write_bytes(b"anything")
    with pytest.raises(ArtifactError, match=f"{name}: is not part of the artifact"):
        Predictor.open(copied)


def test_what_is_loaded_is_what_was_verified_whoever_writes_meanwhile(copied: Path) -> None:
    before = {
        path.relative_to(copied): path.read_bytes() for path in copied.rglob("*") if path.is_file()
    }
    del before[Path(MANIFEST)]
    with opened(find_release(copied)) as files:
        shutil.rmtree(copied)
        for name, content in before.items():
            (copied / name).parent.mkdir(parents=True, exist_ok=True)
            (copied / name).write_bytes(content[::-1])
        assert {name: (files / name).read_bytes() for name in before} == before
        [table] = (files / "tables").glob("position-*.npy")
        assert np.load(table, mmap_mode="r").size
    assert not files.exists()


def test_keys_that_are_none_are_refused(tmp_path: Path, key: tuple[Path, Path]) -> None:
    private, public = key
    with pytest.raises(SignatureError, match="no private key"):
        sign(b"content", public)
    with pytest.raises(SignatureError, match="no public key in PEM, but a private one"):
        read_public_keys([private])
    for read in (lambda path: sign(b"content", path), lambda path: read_public_keys([path])):
        with pytest.raises(SignatureError, match="nothing: No such file or directory"):
            read(tmp_path / "nothing")
    rsa = generate_private_key(65537, 2048)
    path = tmp_path / "rsa.pem"
    path.write_bytes(rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(SignatureError, match="another kind than Ed25519"):
        sign(b"content", path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_keys_and_signatures_are_those_of_openssl(tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"anything")
    for line in (
        "genpkey -algorithm ed25519 -out key.pem",
        "pkey -in key.pem -pubout -out key.pub",
        "pkeyutl -sign -rawin -inkey key.pem -in content -out content.sig",
    ):
        subprocess.run(["openssl", *line.split()], cwd=tmp_path, check=True)
    signature = (tmp_path / "content.sig").read_bytes()
    assert is_signed(b"anything", signature, read_public_keys([tmp_path / "key.pub"]))
    assert sign(b"anything", tmp_path / "key.pem") == signature
