"""An embedding table of a dataset: on which row each id falls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from cdp_torchrec.data.config import ManagedCollisionConfig, VocabularyConfig
from cdp_torchrec.data.schema import DatasetError, Schema
from cdp_torchrec.data.tables.id_hash import IdHash
from cdp_torchrec.data.tables.stored_vocabulary import Counts, stored_counts, stored_ids


@dataclass(frozen=True)
class Table:
    """An embedding table: row 0 is "missing", then out-of-vocabulary rows, then frequent ids.

    An id that becomes frequent on a day that was appended gets the next row: no row ever moves.

    With a hash, row 0 is "missing" and the others are buckets. With managed collision, the model
    maps ids to rows by itself.
    """

    entity: str
    num_oov_rows: int
    num_kept: int
    """Codes 1..num_kept have a row of their own."""
    num_ids: int
    """Largest code that the dataset may contain."""
    managed_collision: ManagedCollisionConfig | None = None
    dropout: float = 0.0
    """Probability that an id stands on its shared row in training."""
    later: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), compare=False)
    """Codes that got a row of their own on appended days, in the order of their rows, int64."""
    hash_bucket_size: int | None = None
    """Rows that ids fall on by a hash; None: by the vocabulary."""
    buckets: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), compare=False)
    """Bucket of the codes from 1 on, int64; a code beyond them is of an id that only serving
    meets, and holds its bucket (serving/vocabulary.py)."""

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        if self.hash_bucket_size is not None:
            return 1 + self.hash_bucket_size
        if self.managed_collision is not None:
            return self.managed_collision.zch_size
        return 1 + self.num_oov_rows + self.num_kept + len(self.later)

    def has_own_row(self, codes: np.ndarray) -> np.ndarray:
        """Whether each id has a row that it shares with none; with managed collision, may have."""
        if self.managed_collision is not None:
            return codes > 0
        if self.hash_bucket_size is not None:
            return (codes > 0) & self._alone[self.rows(codes)]
        return (codes > 0) & ((codes <= self.num_kept) | self._later_row(codes)[1])

    def rows(self, codes: np.ndarray) -> np.ndarray:
        """Embedding rows of id codes, int64, same shape; the codes, with managed collision.

        Raises:
            DatasetError: a code is negative or larger than the entity's num_ids.
        """
        codes = codes.astype(np.int64, copy=False)
        if not codes.size:
            return codes
        smallest, largest = codes.min(), codes.max()
        if not (smallest >= 0 and largest <= self.num_ids):
            raise DatasetError(
                f"entity '{self.entity}': found id code {largest} (smallest {smallest}), "
                f"the schema allows 0 to {self.num_ids}"
            )
        if self.managed_collision is not None:
            return codes
        if self.hash_bucket_size is not None:
            return self._hashed(codes, self.hash_bucket_size)
        rows = codes + self.num_oov_rows
        if largest > self.num_kept:
            rare = codes > self.num_kept
            rows[rare] = self.shared_rows(codes[rare])
            if len(self.later):
                later, found = self._later_row(codes)
                rows[found] = later[found]
        if smallest == 0:
            rows[codes == 0] = 0
        return rows

    def _hashed(self, codes: np.ndarray, num_buckets: int) -> np.ndarray:
        known = len(self.buckets)
        rows = 1 + (codes - known - 1) % num_buckets
        found = (codes > 0) & (codes <= known)
        rows[found] = 1 + self.buckets[codes[found] - 1]
        rows[codes == 0] = 0
        return rows

    @cached_property
    def _alone(self) -> np.ndarray:
        """Whether at most one id falls on each row."""
        return np.bincount(1 + self.buckets, minlength=self.num_embeddings) < 2

    def shared_rows(self, codes: np.ndarray) -> np.ndarray:
        """The out-of-vocabulary row that each id has if it has none of its own."""
        return 1 + codes % self.num_oov_rows

    def _later_row(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row that each id got on an appended day, and whether it did."""
        if not len(self.later):
            return np.zeros(codes.shape, dtype=np.int64), np.zeros(codes.shape, dtype=bool)
        rising, order = self._rising
        place = np.minimum(np.searchsorted(rising, codes), len(rising) - 1)
        return 1 + self.num_oov_rows + self.num_kept + order[place], rising[place] == codes

    @cached_property
    def _rising(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.later)
        return self.later[order], order


def stored_table(dataset: Path, schema: Schema, entity: str, config: VocabularyConfig) -> Table:
    """The table of an entity of a dataset, by the counts of its vocabulary.

    Raises:
        DatasetError: a vocabulary file is missing or damaged.
    """
    id_hash = IdHash.of(config)
    if id_hash is not None:
        return Table(
            entity,
            config.num_oov_rows,
            num_kept=0,
            num_ids=schema.entities[entity].num_ids,
            hash_bucket_size=id_hash.num_buckets,
            buckets=id_hash.buckets(_texts(dataset, schema, entity)),
        )
    counts = stored_counts(dataset, schema, entity)
    # Counts fall with the code, so the kept ids are a prefix.
    num_kept = int(np.searchsorted(-counts[0].count, -config.min_count, side="right"))
    return Table(
        entity,
        config.num_oov_rows,
        num_kept,
        schema.entities[entity].num_ids,
        config.managed_collision,
        config.dropout,
        later=_later(counts, config.min_count, schema.entities[entity].num_ids),
    )


def _texts(dataset: Path, schema: Schema, entity: str) -> Iterator[str]:
    for chunk in stored_ids(dataset, schema, entity).iterchunks():
        yield from chunk.to_pylist()


def _later(counts: Sequence[Counts], min_count: int, num_ids: int) -> np.ndarray:
    """Codes that became frequent on appended days: day by day, in a day by code."""
    total = np.zeros(num_ids + 1, dtype=np.int64)
    found = [np.zeros(0, dtype=np.int64)]
    for number, stage in enumerate(counts):
        before = total[stage.code]
        total[stage.code] += stage.count
        if number > 0:
            found.append(stage.code[(before < min_count) & (total[stage.code] >= min_count)])
    return np.concatenate(found)
