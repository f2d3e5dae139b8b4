"""The other layout: each request brings a copy of its history, as list columns of its file."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.history.store import Behaviours, BehaviourSource, Slices
from cdp_torchrec.data.request_files import ListColumn

_COLUMNS = ("history_item", "history_category", "history_timestamp")


def write_inline(dataset: Path, store: BehaviourSource, output: Path) -> None:
    """Copies of the training requests, each with the behaviours before it.

    Args:
        dataset: dataset directory.
        store: its behaviours.
        output: directory to make, with files of the same names and row groups.
    """
    output.mkdir()
    for path in sorted((dataset / "train").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            writer: pq.ParquetWriter | None = None
            for number in range(file.num_row_groups):
                table = file.read_row_group(number)
                user, before = (table[name].to_numpy() for name in ("user_id", "timestamp"))
                behaviours, slices = store.recent(user, before)
                rows = slices.rows()
                offsets = pa.array(np.append(0, np.cumsum(slices.lengths)), pa.int32())
                assert behaviours.category is not None
                columns = (behaviours.item, behaviours.category, behaviours.timestamp)
                for name, column in zip(_COLUMNS, columns, strict=True):
                    lists = pa.ListArray.from_arrays(offsets, pa.array(column[rows]))
                    table = table.append_column(name, lists)
                writer = writer or pq.ParquetWriter(output / path.name, table.schema)
                writer.write_table(table, row_group_size=len(table))
            if writer is not None:
                writer.close()


class InlineHistories:
    """What a store answers, from the copies; a user is named by the number of the request."""

    def __init__(self, directory: Path) -> None:
        """Args: what `write_inline` has made."""
        self._groups: list[tuple[Path, int, int]] = []
        """File, row group and first request of each."""
        first = 0
        for path in sorted(directory.glob("*.parquet")):
            metadata = pq.read_metadata(path)
            for number in range(metadata.num_row_groups):
                self._groups.append((path, number, first))
                first += metadata.row_group(number).num_rows
        self._firsts = np.array([first for _, _, first in self._groups])
        self._read: OrderedDict[int, tuple[ListColumn, ...]] = OrderedDict()

    def recent(self, user: np.ndarray, before: np.ndarray) -> tuple[Behaviours, Slices]:
        """The histories of some requests; the copies hold nothing that is not before them."""
        (item, category, timestamp), slices = self._lists(user)
        return Behaviours(item, timestamp, None, category), slices

    def gated(
        self, user: np.ndarray, category: np.ndarray, before: np.ndarray
    ) -> tuple[Behaviours, Slices]:
        """Those in one category: all of a copy are looked at."""
        (item, categories, timestamp), slices = self._lists(user)
        lengths = slices.lengths
        passes = categories == np.repeat(category, lengths)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        kept = np.bincount(owner[passes], minlength=len(lengths))
        ends = np.cumsum(kept)
        return Behaviours(item[passes], timestamp[passes], None, None), Slices(ends - kept, ends)

    def _lists(self, request: np.ndarray) -> tuple[tuple[np.ndarray, ...], Slices]:
        """Columns of the requests, one request after the other."""
        group = np.searchsorted(self._firsts, request, side="right") - 1
        parts = []
        for number in np.unique(group):
            lists = self._row_group(int(number))
            rows = request[group == number] - self._firsts[number]
            parts.append([bag.take(rows) for bag in lists])
        columns = tuple(
            np.concatenate([bag.values for bag in bags]) for bags in zip(*parts, strict=True)
        )
        lengths = np.concatenate([bags[0].lengths for bags in parts])
        ends = np.cumsum(lengths)
        return columns, Slices(ends - lengths, ends)

    def _row_group(self, number: int) -> tuple[ListColumn, ...]:
        """Columns of a row group; the last two that were read are kept."""
        if number not in self._read:
            path, place, _ = self._groups[number]
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(place, columns=list(_COLUMNS), use_threads=False)
            lists = [table[name].combine_chunks() for name in _COLUMNS]
            self._read[number] = tuple(
                ListColumn(column.flatten().to_numpy(), column.offsets.to_numpy())
                for column in lists
            )
            if len(self._read) > 2:
                self._read.popitem(last=False)
        return self._read[number]
