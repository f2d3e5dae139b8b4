"""Rows in partitions: in memory up to a bound, beyond it on disk; and their meeting on one rank."""

# n rows, P partitions, R ranks

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.metrics.ranks import Ranks


class Spool:
    """Collects rows of this rank and hands them back partition by partition.

    The temporary directory is created at the first overflow and removed with the object.
    """

    def __init__(
        self,
        *,
        dtype: np.dtype,
        num_partitions: int,
        max_rows_in_memory: int,
        directory: Path | None,
    ) -> None:
        self.counts = np.zeros(num_partitions, np.int64)
        """Rows of each partition, [P]."""
        self.max_rows_in_memory = max_rows_in_memory
        self._dtype = dtype
        self._parent = directory
        self._directory: Path | None = None
        self._rows: list[NDArray] = []
        self._partitions: list[NDArray[np.uint16]] = []
        self._rows_in_memory = 0
        self._in_order = False

    def like(self, *, num_partitions: int) -> "Spool":
        """An empty spool for the same kind of rows with the same bound."""
        return Spool(
            dtype=self._dtype,
            num_partitions=num_partitions,
            max_rows_in_memory=self.max_rows_in_memory,
            directory=self._parent,
        )

    def append(self, rows: NDArray, partition: NDArray[np.uint16]) -> None:
        """Add rows.

        Args:
            rows: structured rows, [n].
            partition: partition of each row in [0, P), [n].

        Raises:
            OSError: the disk cannot take an overflow.
        """
        self.counts += np.bincount(partition, minlength=len(self.counts))
        self._rows.append(rows)
        self._partitions.append(partition)
        self._rows_in_memory += len(rows)
        self._in_order = False
        if self._rows_in_memory > self.max_rows_in_memory:
            self._overflow()

    def read(self, first: int, last: int) -> NDArray:
        """All rows of the partitions first .. last - 1, ordered by partition within each source."""
        self._sort_memory()
        edges = np.searchsorted(self._partitions[0], [first, last])
        found = [self._rows[0][edges[0] : edges[1]]]
        if self._directory is not None:
            files = (self._file(partition) for partition in range(first, last))
            found += [np.fromfile(file, self._dtype) for file in files if file.exists()]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def chunks(self) -> Iterator[NDArray]:
        """All rows, about max_rows_in_memory at a time (at least one partition)."""
        chunk = (np.cumsum(self.counts) - self.counts) // self.max_rows_in_memory
        starts = np.flatnonzero(np.diff(chunk, prepend=-1))
        for first, last in zip(starts, [*starts[1:], len(chunk)], strict=True):
            yield self.read(int(first), int(last))

    def _sort_memory(self) -> None:
        if self._in_order:
            return
        partition = np.concatenate([np.empty(0, np.uint16), *self._partitions])
        order = np.argsort(partition, kind="stable")
        self._rows = [np.concatenate([np.empty(0, self._dtype), *self._rows])[order]]
        self._partitions = [partition[order]]
        self._in_order = True

    def _overflow(self) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="metrics-", dir=self._parent))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._sort_memory()
        rows, partition = self._rows[0], self._partitions[0]
        starts = np.flatnonzero(np.diff(partition.astype(np.int64), prepend=-1))
        try:
            for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
                with self._file(int(partition[first])).open("ab") as file:
                    file.write(rows[first:last].tobytes())
        except OSError as error:
            error.add_note(f"while spooling impressions to {self._directory}")
            raise
        self._rows, self._partitions, self._rows_in_memory = [], [], 0
        self._in_order = False

    def _file(self, partition: int) -> Path:
        assert self._directory is not None
        return self._directory / f"partition-{partition:05d}"


def num_rounds(spool: Spool, ranks: Ranks) -> int:
    """Rounds in which all rows can meet while each rank sends and gets about the bound at most."""
    rows_of_busiest_rank = ranks.max(int(spool.counts.sum()))
    return max(1, -(-rows_of_busiest_rank // spool.max_rows_in_memory))


def meet(spool: Spool, ranks: Ranks) -> Iterator[NDArray]:
    """Bring all rows of a partition, from all ranks, to one rank.

    Contiguous partitions form blocks of about equal size. Collective: every rank must exhaust
    the iterator.

    Yields:
        All ranks' rows of each block that this rank owns, except for empty blocks.
    """
    counts = ranks.sum(spool.counts)
    rounds = num_rounds(spool, ranks)
    before = np.cumsum(counts) - counts
    block = before * (rounds * ranks.size) // max(1, int(counts.sum()))
    edges = np.searchsorted(block, np.arange(rounds * ranks.size + 1)).tolist()
    for first_block in range(0, rounds * ranks.size, ranks.size):
        blocks = range(first_block, first_block + ranks.size)
        rows = ranks.route([spool.read(edges[b], edges[b + 1]) for b in blocks])
        if len(rows):
            yield rows
