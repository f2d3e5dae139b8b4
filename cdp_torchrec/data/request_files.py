"""Requests of one split, read by row groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.days import request_folder
from cdp_torchrec.data.schema import DatasetError, Schema
from cdp_torchrec.data.soft_labels import SoftLabels

REQUEST_COLUMNS = ("request_id", "user_id", "timestamp", "history_length")
CANDIDATE_COLUMNS = ("label", "history_rank")

_FOOTERS = 16
"""Files whose footers a process keeps: that of a full one takes 4 MiB, and longer to be read than
one of its row groups."""


@dataclass(frozen=True)
class ListColumn:
    """A list column: values of row i are values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Values of each row."""
        return self.offsets[1:] - self.offsets[:-1]

    def take(self, rows: np.ndarray) -> "ListColumn":
        """The bags of some rows, in their order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return ListColumn(self.values[places], offsets)


@dataclass(frozen=True)
class Impressions:
    """A run of impressions with their requests, column by column.

    Request columns have one element per request, candidate columns one per impression.
    """

    request: dict[str, np.ndarray]
    bags: dict[str, ListColumn]
    """List columns of requests."""
    candidate: dict[str, np.ndarray]
    request_index: np.ndarray
    """Request of each impression, [B]."""


def concatenate(parts: Sequence[Impressions]) -> Impressions:
    """The runs one after the other."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(part.request["request_id"]) for part in parts])
    return Impressions(
        request={n: np.concatenate([p.request[n] for p in parts]) for n in parts[0].request},
        bags={n: _concatenate_bags([p.bags[n] for p in parts]) for n in parts[0].bags},
        candidate={n: np.concatenate([p.candidate[n] for p in parts]) for n in parts[0].candidate},
        request_index=np.concatenate(
            [p.request_index + s for p, s in zip(parts, starts, strict=False)]
        ),
    )


def _concatenate_bags(bags: Sequence[ListColumn]) -> ListColumn:
    lengths = np.concatenate([bag.lengths for bag in bags])
    values = np.concatenate([bag.values for bag in bags])
    return ListColumn(values, np.concatenate([[0], np.cumsum(lengths)]))


@dataclass(frozen=True)
class _Block:
    """Where a row group lies, and which of its requests belong to the selection."""

    path: Path
    row_group: int
    first: int
    stop: int
    num_impressions: int

    @property
    def num_requests(self) -> int:
        return self.stop - self.first


class RequestFiles:
    """The requests [first, stop) of some periods of the log, counted in order of time."""

    def __init__(
        self,
        dataset: Path,
        schema: Schema,
        *periods: str,
        first: int = 0,
        stop: int | None = None,
        extra_columns: Sequence[str] = (),
        soft_labels: SoftLabels | None = None,
    ) -> None:
        """Index the row groups.

        Args:
            dataset: a dataset directory.
            schema: its schema.
            periods: "train", "test", or days that were appended, in the order of time.
            first: number of the first request wanted.
            stop: number behind the last request wanted; None: to the end.
            extra_columns: further candidate columns to read.
            soft_labels: what softens the labels; of all impressions of the periods.

        Raises:
            DatasetError: files are missing, damaged, empty, or lack a column.
        """
        assert soft_labels is None or first == 0  # rows of it are counted from the first request
        self._soft_labels = soft_labels
        self._dataset = dataset
        self._candidate_columns = [
            *CANDIDATE_COLUMNS,
            *(f.name for f in schema.features if f.level == "candidate"),
            *extra_columns,
        ]
        self._bag_columns = [f.name for f in schema.features if f.kind == "ids"]
        self._request_columns = list(
            dict.fromkeys(
                [
                    *REQUEST_COLUMNS,
                    *(f.name for f in schema.features if f.level == "request" and f.kind != "ids"),
                ]
            )
        )
        self.blocks = list(self._index(periods, first, stop))
        self._ends = np.cumsum([block.num_impressions for block in self.blocks])
        self.num_requests = sum(block.num_requests for block in self.blocks)
        self.num_impressions = sum(block.num_impressions for block in self.blocks)
        if not self.num_impressions:
            names = ", ".join(str(request_folder(dataset, period)) for period in periods)
            raise DatasetError(f"{names}: no requests in [{first}, {stop})")

    def _paths(self, periods: Sequence[str]) -> Iterator[Path]:
        for period in periods:
            folder = request_folder(self._dataset, period)
            paths = sorted(folder.glob("*.parquet"))
            if not paths:
                raise DatasetError(f"{folder}: no parquet files")
            yield from paths

    def _index(self, periods: Sequence[str], first: int, stop: int | None) -> Iterator[_Block]:
        begin = 0
        for path in self._paths(periods):
            metadata = self._metadata(path)
            leaf = _leaf_index(metadata, "label")
            for row_group in range(metadata.num_row_groups):
                group = metadata.row_group(row_group)
                end = begin + group.num_rows
                low = max(first, begin) - begin
                high = (end if stop is None else min(stop, end)) - begin
                begin = end
                if low >= high:
                    continue
                if (low, high) == (0, group.num_rows):
                    impressions = group.column(leaf).num_values
                else:
                    lists = _read_row_group(path, row_group, ["label"])["label"]
                    lengths = lists.combine_chunks().value_lengths().to_numpy()
                    impressions = int(lengths[low:high].sum())
                yield _Block(path, row_group, low, high, impressions)

    def _metadata(self, path: Path) -> pq.FileMetaData:
        metadata = _open(path).metadata
        found = metadata.schema.to_arrow_schema().names
        wanted = self._request_columns + self._bag_columns + self._candidate_columns
        missing = [name for name in wanted if name not in found]
        if missing:
            raise DatasetError(f"{path}: missing columns {missing}; it has {found}")
        return metadata

    def read(self, number: int) -> Impressions:
        """All selected impressions of a block, in file order.

        Raises:
            DatasetError: the row group is damaged, or the soft labels of its impressions are;
                names the file and the column.
        """
        block = self.blocks[number]
        columns = self._request_columns + self._bag_columns + self._candidate_columns
        table = _read_row_group(block.path, block.row_group, columns)
        table = table.slice(block.first, block.stop - block.first)
        lists = {name: _bag(table, name, block) for name in self._candidate_columns}
        offsets = lists["label"].offsets
        for name, bag in lists.items():
            if not np.array_equal(bag.offsets, offsets):
                row = int(np.flatnonzero(bag.offsets != offsets)[0]) - 1
                raise DatasetError(
                    f"{block.path}: row group {block.row_group}, request row {row}: column "
                    f"'{name}' and column 'label' have lists of unequal length"
                )
        labels = lists["label"].values
        wrong = labels[(labels != 0) & (labels != 1)]
        if wrong.size:
            raise DatasetError(f"{block.path}: column 'label' holds {wrong[0]}, allowed: 0 and 1")
        if self._soft_labels is not None:
            first = int(self._ends[number]) - block.num_impressions
            lists["label"] = ListColumn(self._soft_labels.soften(first, labels), offsets)
        return Impressions(
            request={name: _numbers(table[name], name, block) for name in self._request_columns},
            bags={name: _bag(table, name, block) for name in self._bag_columns},
            candidate={name: bag.values for name, bag in lists.items()},
            request_index=np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)),
        )


def _read_row_group(path: Path, row_group: int, columns: list[str]) -> pa.Table:
    file = _open(path)
    try:
        return file.read_row_group(row_group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: row group {row_group}: {error}") from error


@lru_cache(_FOOTERS)
def _footer(path: Path, size: int, changed_ns: int) -> pq.FileMetaData:
    """The footer of a file as it was at a moment."""
    return pq.read_metadata(path)


def _open(path: Path) -> pq.ParquetFile:
    try:
        now = path.stat()
        footer = _footer(path, now.st_size, now.st_mtime_ns)
        return pq.ParquetFile(path, metadata=footer, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: damaged or no parquet file: {error}") from error


def _leaf_index(metadata: pq.FileMetaData, name: str) -> int:
    group = metadata.row_group(0)
    for column in range(group.num_columns):
        if group.column(column).path_in_schema.split(".")[0] == name:
            return column
    raise AssertionError(name)


def _numbers(column: pa.ChunkedArray, name: str, block: _Block) -> np.ndarray:
    if column.null_count and not pa.types.is_floating(column.type):
        raise DatasetError(f"{block.path}: column '{name}' holds {column.null_count} nulls")
    return column.to_numpy()


def _bag(table: pa.Table, name: str, block: _Block) -> ListColumn:
    column = table[name].combine_chunks()
    if not isinstance(column, pa.ListArray | pa.LargeListArray):
        raise DatasetError(f"{block.path}: column '{name}' is {column.type}, expected a list")
    if column.null_count or (
        column.flatten().null_count and not pa.types.is_floating(column.type.value_type)
    ):
        raise DatasetError(f"{block.path}: column '{name}' holds nulls")
    offsets = column.offsets.to_numpy()
    return ListColumn(column.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0])
