"""Raw ids and their codes, the numbers that requests and behaviours are stored with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cdp_torchrec.data.schema import DatasetError, Schema
from cdp_torchrec.data.tables.id_hash import IdHash, digests
from cdp_torchrec.data.tables.stored_vocabulary import stored_ids
from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.request import RequestError

MISSING = 0
LARGEST_CODE = 2**31 - 1
_LONGEST_ID = 1024


class Vocabulary:
    """The codes 1..num_ids of one entity, and codes beyond them for ids that it does not know."""

    def __init__(self, raw: list[str], id_hash: IdHash | None = None) -> None:
        """Make a vocabulary.

        Args:
            raw: ids in the order of their codes.
            id_hash: what gives ids their rows; None: the vocabulary does.
        """
        self._raw = raw
        self._hash = id_hash
        self._codes = {text: code for code, text in enumerate(raw, start=1)}

    @classmethod
    def open(
        cls, dataset: Path, schema: Schema, entity: str, id_hash: IdHash | None = None
    ) -> "Vocabulary":
        """Read the vocabulary of an artifact or a dataset.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        try:
            return cls(stored_ids(dataset, schema, entity).to_pylist(), id_hash)
        except DatasetError as error:
            raise ArtifactError(str(error)) from error

    def __len__(self) -> int:
        return len(self._raw)

    def codes(self, values: Iterable[Any], *, field: str) -> np.ndarray:
        """Codes of raw ids, int64; 0 for None.

        An unknown id gets the same code beyond num_ids every time, so that it falls on one
        out-of-vocabulary row and still equals itself in a history. With a hash, it falls on its
        bucket: the remainder of what lies beyond num_ids.

        Args:
            values: ids as a client sent them; None: missing.
            field: where they stand in the request, for errors.

        Raises:
            RequestError: a value is no id.
        """
        # Texts that are known, nearly all, need no Python code each.
        values = list(values)
        try:
            codes = list(map(self._codes.get, values))
        except TypeError:  # something that cannot be a key is no id either
            codes = [None] * len(values)
        if None in codes:
            codes = [
                self._code(value, field) if code is None else code
                for value, code in zip(values, codes, strict=True)
            ]
        return np.array(codes, dtype=np.int64)

    def raw(self, codes: np.ndarray) -> list[str | None]:
        """Raw ids of codes 0..num_ids; None for 0."""
        return [self._raw[code - 1] if code else None for code in codes.tolist()]

    def _code(self, value: object, field: str) -> int:
        if value is None:
            return MISSING
        text = _text(value, field)
        known = self._codes.get(text)
        if known is not None:
            return known
        if text.startswith("-") and not isinstance(value, str):
            raise RequestError(field, f"found the negative id {text}")
        unknown = LARGEST_CODE - len(self._raw)
        if self._hash is not None:
            unknown -= unknown % self._hash.num_buckets
            digest = int(digests([text], self._hash.seed)[0])
            return len(self._raw) + 1 + digest % unknown
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        return len(self._raw) + 1 + int.from_bytes(digest) % unknown


def _text(value: object, field: str) -> str:
    """An id as the preparation writes it."""
    match value:
        case str():
            if len(value) > _LONGEST_ID:
                raise RequestError(field, f"found an id of more than {_LONGEST_ID} characters")
            return value
        case bool() | np.bool_():
            return "true" if value else "false"
        case int() | np.integer():
            if abs(int(value)) >= 2**63:
                raise RequestError(field, "an id beyond 64 bits")
            return str(value)
    raise RequestError(field, f"ids are strings or integers, found {type(value).__name__}")
