"""Who made an artifact: Ed25519 over artifact.json, whose checksums cover every other file.

artifact.sig holds the plain signature, so that a key may stay where it is safe:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub
    openssl pkeyutl -sign -rawin -inkey key.pem -in DIR/artifact.json -out DIR/artifact.sig
"""

from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from cdp_torchrec.user_error import UserError


class SignatureError(UserError, RuntimeError):
    """A key cannot be read."""


def sign(content: bytes, key: Path) -> bytes:
    """Signature of a content, 64 bytes.

    Args:
        content: what is signed.
        key: PEM file of an Ed25519 private key without a password.

    Raises:
        SignatureError: it is none.
    """
    return _private_key(key).sign(content)


def check_signing_key(path: Path) -> None:
    """Whether `sign` will accept a key.

    Raises:
        SignatureError: it will not.
    """
    _private_key(path)


def read_public_keys(paths: Sequence[Path]) -> list[Ed25519PublicKey]:
    """Keys that are trusted.

    Args:
        paths: PEM files of Ed25519 public keys.

    Raises:
        SignatureError: one of them is none.
    """
    return [_public_key(path) for path in paths]


def is_signed(content: bytes, signature: bytes, keys: Sequence[Ed25519PublicKey]) -> bool:
    """Whether one of the trusted keys signed a content.

    Args:
        content: what was signed.
        signature: found beside it.
        keys: from `read_public_keys`.
    """
    return any(_verifies(key, signature, content) for key in keys)


def _verifies(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path}: no private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path}: a key of another kind than Ed25519")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    content = _read(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        found = ", but a private one" * (b"PRIVATE KEY" in content)
        raise SignatureError(f"{path}: no public key in PEM{found}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path}: a key of another kind than Ed25519")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignatureError(f"{path}: {error.strerror}") from error
