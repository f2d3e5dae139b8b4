"""Feature hashing: a row for every id, known or not, and how many ids share one.

The hash is of the text of an id, so it does not depend on a vocabulary, its order or its day.
"""

# V ids

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xxhash

from cdp_torchrec.data.config import VocabularyConfig


@dataclass(frozen=True)
class IdHash:
    """XXH64 of the UTF-8 text of an id, modulo the number of buckets."""

    num_buckets: int
    seed: int = 0

    @classmethod
    def of(cls, config: VocabularyConfig) -> "IdHash | None":
        """The hash that gives each id of an entity its row; None where the vocabulary does."""
        size = config.hash_bucket_size
        return None if size is None else cls(size, config.hash_seed)

    def bucket(self, raw: str) -> int:
        """Bucket of an id, in [0, num_buckets)."""
        return _digest(raw, self.seed) % self.num_buckets

    def buckets(self, raw: Iterable[str]) -> np.ndarray:
        """Buckets of ids, int64 [V]."""
        return (digests(raw, self.seed) % np.uint64(self.num_buckets)).astype(np.int64)


@dataclass(frozen=True)
class Collisions:
    """How much of a vocabulary shares its bucket with another id of it."""

    ids: float
    """Share of the distinct ids."""
    occurrences: float
    """Share of the occurrences in training, of the impressions that is for ids of candidates."""


def digests(raw: Iterable[str], seed: int) -> np.ndarray:
    """XXH64 of each id, uint64 [V]."""
    return np.fromiter((_digest(text, seed) for text in raw), dtype=np.uint64)


def measure_collisions(buckets: np.ndarray, counts: np.ndarray) -> Collisions:
    """Collisions of a vocabulary.

    Args:
        buckets: of each id, not negative, [V].
        counts: training count of each id, [V].
    """
    order = np.argsort(buckets, kind="stable")
    is_same = buckets[order[1:]] == buckets[order[:-1]]
    shared = np.zeros(len(buckets), dtype=bool)
    shared[order[1:][is_same]] = True
    shared[order[:-1][is_same]] = True
    return Collisions(
        ids=float(shared.mean()) if len(buckets) else 0.0,
        occurrences=float(counts[shared].sum() / max(int(counts.sum()), 1)),
    )


def _digest(raw: str, seed: int) -> int:
    return xxhash.xxh64_intdigest(raw.encode(errors="surrogatepass"), seed)
