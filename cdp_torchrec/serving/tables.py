"""Embedding tables of an artifact: memory-mapped files, in full or reduced precision.

tables/<entity>-00000-of-00002.npy      rows of a table, in shards of equally many rows
rows/<entity>-index.npy                 of a delta: which rows differ or are new, int64 [K], rising
rows/<entity>-values.npy                of a delta: those rows, [K, W]
rows/<entity>-owners.npy                of a delta: ids that own those rows (serving.row_owners)

float32 and float16 files hold the rows [E, D]; int8 files hold FBGEMM's fused 8-bit row-wise
format, uint8 [E, D + 8]: the quantized row, then its scale and its minimum as float32.
"""

# E rows, D embedding dim, W width of a row as stored, K rows of a delta, P places of a lookup

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.config import TableStorage
from cdp_torchrec.serving.row_owners import RowOwners

ROWS = "rows"
STORED_DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.uint8}
"""Of the files, by precision."""
_COMPARED = 1 << 16
"""Rows that are compared at a time."""


@dataclass(frozen=True)
class _Table:
    """Rows as they were mapped, and the later ones of deltas beside them."""

    shards: tuple[np.ndarray, ...]
    """[E, W] in all, equally many rows each."""
    slots: np.ndarray | None = None
    """Place in `later` of each row, int32 [E]; -1: the row is that of the shards."""
    later: np.ndarray | None = None
    """[K, W]."""
    owners: RowOwners | None = None
    """Of a table with managed collision."""

    @property
    def num_embeddings(self) -> int:
        if self.slots is not None:
            return len(self.slots)
        return sum(len(shard) for shard in self.shards)

    def gather(self, rows: np.ndarray, *, out: np.ndarray) -> None:
        # "clip": the rows are valid by construction, but those that only `later` has are not here.
        if len(self.shards) == 1:
            self.shards[0].take(rows, axis=0, out=out, mode="clip")
        else:
            shard, row = np.divmod(rows, len(self.shards[0]))
            for number, values in enumerate(self.shards):
                wanted = shard == number
                out[wanted] = np.take(values, row[wanted], axis=0, mode="clip")
        if self.slots is not None and self.later is not None:
            slots = self.slots[rows]
            [places] = np.nonzero(slots >= 0)
            out[places] = self.later[slots[places]]

    def with_rows(self, index: np.ndarray, values: np.ndarray) -> "_Table":
        """With other values of some rows, and with rows behind those that are there."""
        before = self.num_embeddings
        slots = np.full(max(before, int(index[-1]) + 1), -1, dtype=np.int32)
        if self.slots is None or self.later is None:
            slots[index] = np.arange(len(index), dtype=np.int32)
            return replace(self, slots=slots, later=values)
        slots[:before] = self.slots
        known = slots[index] >= 0
        slots[index[~known]] = len(self.later) + np.arange((~known).sum(), dtype=np.int32)
        later = np.concatenate([self.later, values[~known]])
        later[slots[index[known]]] = values[known]
        return replace(self, slots=slots, later=later)


class Lookup(NamedTuple):
    """What is read of one table."""

    entity: str
    """Of the table."""
    ids: np.ndarray
    """Rows, int64; ids whose rows the model has assigned, of a table with managed collision."""
    num_places: int
    """Rows of the result, as many as there are ids, or more."""


class EmbeddingTables:
    """Rows of the mapped tables as float32. They never change: a delta makes other tables."""

    def __init__(
        self, tables: Mapping[str, _Table], *, embedding_dim: int, storage: TableStorage
    ) -> None:
        """Args: the tables by entity, D, and the precision of the files; see `open`."""
        self._tables = dict(tables)
        self._embedding_dim = embedding_dim
        self._storage: TableStorage = storage
        self._width = embedding_dim + (8 if storage == "int8" else 0)

    @classmethod
    def open(
        cls,
        directory: Path,
        buckets: Mapping[str, int | None],
        *,
        embedding_dim: int,
        storage: TableStorage,
    ) -> Self:
        """Map the files.

        Args:
            directory: where `write_tables` wrote.
            buckets: of each table with managed collision, by entity; None for the others.
            embedding_dim: D.
            storage: precision of the files.

        Raises:
            ArtifactError: files are missing or unreadable.
        """
        tables = {}
        for entity, number in buckets.items():
            tables[entity] = _Table(_mapped_shards(directory, entity))
            if number is not None:
                owners = _mapped(directory / f"{entity}-owners.npy", entity)
                tables[entity] = replace(tables[entity], owners=RowOwners(owners, buckets=number))
        return cls(tables, embedding_dim=embedding_dim, storage=storage)

    def with_rows(self, folder: Path) -> Self:
        """These tables with the rows of a delta, which `write_rows` wrote.

        Raises:
            ArtifactError: files are unreadable, or do not fit the tables.
        """
        tables = dict(self._tables)
        for entity, table in self._tables.items():
            path = folder / f"{entity}-index.npy"
            if not path.exists():
                continue
            index, values = _mapped(path, entity), _mapped(folder / f"{entity}-values.npy", entity)
            expected = ((len(index), self._width), STORED_DTYPES[self._storage])
            if (values.shape, values.dtype.type) != expected or not _continues(index, table):
                raise ArtifactError(
                    f"{path}: the delta's rows of table '{entity}' do not continue its "
                    f"{table.num_embeddings} rows of width {self._width} ({self._storage})"
                )
            tables[entity] = table.with_rows(index, values)
            if table.owners is not None:
                owners = _mapped(folder / f"{entity}-owners.npy", entity)
                changed = table.owners.with_rows(index, owners)
                tables[entity] = replace(tables[entity], owners=changed)
        return type(self)(tables, embedding_dim=self._embedding_dim, storage=self._storage)

    def check(self, num_embeddings: Mapping[str, int], *, where: Path) -> None:
        """Whether the tables are as large as the model wants them.

        Args:
            num_embeddings: rows of each table, by entity.
            where: they were read, for the error.

        Raises:
            ArtifactError: they are not.
        """
        for entity, rows in num_embeddings.items():
            table = self._tables[entity]
            expected = (rows, self._width, STORED_DTYPES[self._storage])
            found = {(table.num_embeddings, s.shape[-1], s.dtype.type) for s in table.shards}
            if found != {expected}:
                raise ArtifactError(
                    f"{where}: table '{entity}' should have {rows} rows of width {self._width} "
                    f"({self._storage}), found {found or 'no file'}"
                )

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(self._tables)

    def num_embeddings(self, entity: str) -> int:
        """Rows of a table."""
        return self._tables[entity].num_embeddings

    def rows(self, entity: str, ids: np.ndarray) -> np.ndarray:
        """Rows that the model has assigned to ids of a table, int64; the ids, if it does not."""
        owners = self._tables[entity].owners
        return ids if owners is None else owners.rows(ids)

    def owners(self, entity: str) -> np.ndarray | None:
        """Id that owns each row of a table with managed collision, int64 [E]; None without."""
        owners = self._tables[entity].owners
        return None if owners is None else owners.owners

    def stored(self, entity: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a table as the files have them, [P, W].

        Args:
            entity: of the table.
            rows: int64 [P].
        """
        found = np.empty((len(rows), self._width), dtype=STORED_DTYPES[self._storage])
        self._tables[entity].gather(rows, out=found)
        return found

    def read(self, lookups: Sequence[Lookup]) -> Tensor:
        """Rows of several lookups one after the other, float32 [P, D]; 0 where there is none.

        Args:
            lookups: each has its places in the result, the rows the first of them.
        """
        total = sum(lookup.num_places for lookup in lookups)
        # Zeros are 0 in every precision.
        found = np.zeros((total, self._width), dtype=STORED_DTYPES[self._storage])
        start = 0
        for entity, ids, num_places in lookups:
            rows = self.rows(entity, ids)
            self._tables[entity].gather(rows, out=found[start : start + len(rows)])
            start += num_places
        stored = torch.from_numpy(found)
        if self._storage == "int8":
            return _dequantized(stored)
        return stored.float()


def _dequantized(rows: Tensor) -> Tensor:
    """Float32 [P, D] of rows in the fused format, [P, D + 8].

    FBGEMM's own operator gives the same, and would be all that serving needs of FBGEMM.
    """
    scale, minimum = rows[:, -8:].contiguous().view(torch.float32).split(1, dim=1)
    return torch.addcmul(minimum, rows[:, :-8].float(), scale)


def changed_rows(old: EmbeddingTables, new: EmbeddingTables, entity: str) -> np.ndarray:
    """Rows that differ in a bit or in their owner, and those that are new, int64, rising."""
    in_both, rows = old.num_embeddings(entity), new.num_embeddings(entity)
    found = [np.zeros(0, dtype=np.int64)]
    for start in range(0, in_both, _COMPARED):
        some = np.arange(start, min(start + _COMPARED, in_both))
        # As bytes: a number that is none equals nothing, and two zeros differ in their sign.
        bits = [tables.stored(entity, some).view(np.uint8) for tables in (old, new)]
        differs = (bits[0] != bits[1]).any(axis=1)
        before, after = old.owners(entity), new.owners(entity)
        if before is not None and after is not None:
            differs |= before[some] != after[some]
        found.append(some[differs])
    return np.concatenate([*found, np.arange(in_both, rows)])


def write_rows(folder: Path, tables: EmbeddingTables, entity: str, index: np.ndarray) -> None:
    """Write rows of a table for a delta; nothing where there are none.

    Args:
        folder: of the rows; made here.
        tables: what has them.
        entity: of the table.
        index: the rows, int64 [K], rising.
    """
    if not len(index):
        return
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{entity}-index.npy", index)
    np.save(folder / f"{entity}-values.npy", tables.stored(entity, index))
    owners = tables.owners(entity)
    if owners is not None:
        np.save(folder / f"{entity}-owners.npy", owners[index])


def _continues(index: np.ndarray, table: _Table) -> bool:
    """Whether rows can be those of a delta: rising, and no gap behind what is there."""
    if index.ndim != 1 or index.dtype != np.int64 or not len(index):
        return False
    new = np.arange(table.num_embeddings, index[-1] + 1)
    rises = index[0] >= 0 and bool((np.diff(index) > 0).all())
    return rises and np.array_equal(index[len(index) - len(new) :], new)


def _mapped_shards(directory: Path, entity: str) -> tuple[np.ndarray, ...]:
    return tuple(_mapped(p, entity) for p in sorted(directory.glob(f"{entity}-*-of-*.npy")))


def _mapped(path: Path, entity: str) -> np.ndarray:
    try:
        # A view without the memmap class, whose indexing is several times slower.
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot read table '{entity}': {error}") from error
