"""Parquet files of requests in raw ids: one row per request, lists with one element per candidate.

    request_id, user_id, timestamp (ms), the features of the artifact by name, and, if requests
    bring behaviours along, the lists history_item, history_timestamp (ms), history_category,
    history_action, and history_<name> of the attributes of the dataset's behaviours

The staging files that a dataset is prepared from are such files, too.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cdp_torchrec.data.prepare.column_types import ANY, NUMBER, list_of
from cdp_torchrec.data.prepare.tables import (
    Block,
    ParquetTable,
    check_names,
    find_parquet,
    open_parquet,
)
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.serving.predictor import PredictorMetadata
from cdp_torchrec.serving.request import Behaviours, Request
from cdp_torchrec.user_error import UserError

CHUNK = 1024
"""Requests that are read at once."""

_NAMES = ("request_id", "user_id", "timestamp")
_HISTORY = ("history_item", "history_timestamp", "history_category", "history_action")
_WRITTEN = ("request_id", "user_id", "item_id", "probability")


class RequestFileError(UserError, ValueError):
    """A file of requests cannot be read or scored; names the file, and the row if it is one."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file, one after the other."""

    path: Path
    first: int
    """Number of the first row in the file, from 0."""
    table: pa.Table

    def where(self, row: int) -> str:
        """How errors name a row of the chunk."""
        return _where(self.path, self.first + row)


class RequestFiles:
    """One file, or all files of a directory in the order of their names."""

    def __init__(self, path: Path, metadata: PredictorMetadata, *, keep: Sequence[str]) -> None:
        """Check that every file has what the artifact needs.

        Args:
            path: file or directory.
            metadata: of the artifact.
            keep: columns that will be written, too.

        Raises:
            RequestFileError: there is no such file, it is damaged, lacks a column, or a column has
                another type than in the other files.
        """
        if taken := sorted({*keep} & {*_WRITTEN}):
            raise RequestFileError(f"keep: {taken} are written in any case")
        self._metadata = metadata
        self._keep = keep
        with _named_errors():
            self._table = _open(path, metadata, keep)
        columns = self._table.schema.names
        if missing := [name for name in keep if name not in columns]:
            file, names = self._table.paths[0], self._table.names
            raise RequestFileError(f"keep: {file} has no column {missing}; it has {names}")
        self.num_requests = sum(self._table.num_rows)
        ignored: set[str] = set()
        if not metadata.reads_history:
            of_attributes = (f"history_{a.name}" for a in metadata.history_attributes)
            ignored = {*_HISTORY, *of_attributes} - {*keep}
        self.unread = [n for n in self._table.names if n not in columns or n in ignored]
        """Columns that have no effect."""

    def check_ids(self) -> None:
        """Whether each request has an id of its own, by which its scores can be found.

        Raises:
            RequestFileError: two have the same one, or a file is damaged.
        """
        field = self._table.schema.field("request_id")
        if not (pa.types.is_integer(field.type) or pa.types.is_string(field.type)):
            return  # the first row will be refused
        with _named_errors():
            blocks = list(replace(self._table, schema=pa.schema([field])).blocks())
        columns = [block.rows["request_id"].drop_null() for block in blocks]
        ids = pa.chunked_array(columns, field.type)
        if len(ids.unique()) < len(ids):
            self._refuse_repeated(blocks)

    def _refuse_repeated(self, blocks: Sequence[Block]) -> None:
        """Name the first request whose id is that of an earlier one."""
        seen: dict[Any, str] = {}
        for block in blocks:
            for row, request_id in enumerate(block.rows["request_id"].to_pylist(), block.first):
                where = _where(self._table.paths[block.file], row)
                if request_id is not None and request_id in seen:
                    raise RequestFileError(
                        f"{where}: request_id {request_id!r} is that of {seen[request_id]}, too: "
                        "every request needs its own"
                    )
                seen[request_id] = where

    def chunks(self, rank: int, world_size: int) -> Iterator[Chunk]:
        """Every `world_size`-th chunk, beginning with number `rank`.

        Raises:
            RequestFileError: a file is damaged.
        """
        with _named_errors():
            for number, block in enumerate(self._table.blocks(CHUNK)):
                if number % world_size == rank:
                    path = self._table.paths[block.file]
                    yield Chunk(path, block.first, pa.Table.from_batches([block.rows]))

    def requests(self, chunk: Chunk) -> list[Request]:
        """The requests of a chunk, not yet checked.

        Raises:
            RequestFileError: a column has moments that Python cannot hold.
        """
        try:
            rows = chunk.table.to_pylist()
        except (ValueError, OverflowError) as error:  # of nanoseconds, or beyond the year 9999
            kinds = {f.name: str(f.type) for f in chunk.table.schema if "timestamp" in str(f.type)}
            raise RequestFileError(
                f"{chunk.path}: parquet's own moments are not read, write integers: {kinds}"
            ) from error
        return [self._request(row) for row in rows]

    def written(self, chunk: Chunk, probability: np.ndarray) -> pa.Table:
        """Rows of the output: one per candidate.

        Args:
            chunk: whose requests were scored, so that its lists of items have no nulls.
            probability: float32, of all its candidates.

        Raises:
            RequestFileError: a list to keep has not one element per candidate.
        """
        table = chunk.table
        lengths = _lengths(table["item_id"])
        owner = pa.array(np.repeat(np.arange(len(table)), lengths))
        columns = {
            "request_id": table["request_id"].take(owner),
            "user_id": table["user_id"].take(owner),
            "item_id": table["item_id"].combine_chunks().flatten(),
            "probability": pa.array(probability, pa.float32()),
        }
        for name in self._keep:
            column = table[name]
            feature = self._metadata.features.get(name)
            if _is_list(column.type) and not (feature and feature.level == "request"):
                wrong = np.flatnonzero(_lengths(column) != lengths)
                if len(wrong):
                    row = int(wrong[0])
                    raise RequestFileError(
                        f"{chunk.where(row)}: column '{name}' to keep has "
                        f"{_lengths(column)[row]} elements, there are {lengths[row]} candidates"
                    )
                columns[name] = column.combine_chunks().flatten()
            else:
                columns[name] = column.take(owner)
        return pa.table(columns)

    def _request(self, row: dict[str, Any]) -> Request:
        features = {n: f for n, f in self._metadata.features.items() if n in row and n != "user_id"}
        for name in (n for n, f in features.items() if f.kind == "number"):
            row[name] = _missing_as_none(row[name])
        return Request(
            user=row["user_id"],
            timestamp_ms=row["timestamp"],
            features={n: row[n] for n, f in features.items() if f.level == "request"},
            # A list that is null is missing altogether.
            candidates={
                n: row[n]
                for n, f in features.items()
                if f.level == "candidate" and (row[n] is not None or n in self._needed)
            },
            history=self._behaviours(row),
            request_id=row["request_id"],
        )

    @property
    def _needed(self) -> tuple[str, ...]:
        return self._metadata.required_candidate_features

    def _behaviours(self, row: dict[str, Any]) -> Behaviours | None:
        """Those that the request brings along; only null lists stand for none brought."""
        columns = [*_HISTORY, *(f"history_{a.name}" for a in self._metadata.history_attributes)]
        if all(row.get(name) is None for name in columns):
            return None
        return Behaviours(
            item=row["history_item"],
            timestamp_ms=row["history_timestamp"],
            category=row.get("history_category"),
            action=row.get("history_action"),
            attributes={
                a.name: _missing_as_none(row[f"history_{a.name}"])
                for a in self._metadata.history_attributes
                if row.get(f"history_{a.name}") is not None
            },
        )


def _where(path: Path, row: int) -> str:
    return f"{path}, row {row} (from 0)"


def _open(path: Path, metadata: PredictorMetadata, keep: Sequence[str]) -> ParquetTable:
    """Check names and that types agree; the values are checked request by request."""
    paths = find_parquet(path) if path.is_dir() else [path]
    needed = [*_NAMES, *metadata.required_candidate_features]
    declared = dict.fromkeys([*needed, *metadata.features, *_HISTORY, *keep], ANY)
    for a in metadata.history_attributes:
        element = {"number": NUMBER, "id": ANY, "ids": list_of(ANY)}[a.kind]
        declared[f"history_{a.name}"] = list_of(element)
    for name, feature in metadata.features.items():
        if feature.kind == "number":
            declared[name] = list_of(NUMBER) if feature.level == "candidate" else NUMBER
    table = open_parquet(
        paths,
        {name: declared[name] for name in needed},
        optional={name: kind for name, kind in declared.items() if name not in needed},
    )
    of_attributes = {f"history_{a.name}" for a in metadata.history_attributes}
    if not of_attributes.union(_HISTORY).isdisjoint(table.schema.names):
        check_names(paths[0], table.names, ["history_item", "history_timestamp"])
    return table


@contextmanager
def _named_errors() -> Generator[None]:
    try:
        yield
    except DatasetError as error:
        raise RequestFileError(str(error)) from error


def _missing_as_none(value: Any) -> Any:
    """Numbers in which NaN, missing as in the files of a dataset, is None."""
    if isinstance(value, list):
        return [_missing_as_none(element) for element in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Length of each list, -1 for a null."""
    lengths = column.combine_chunks().value_lengths()
    return lengths.fill_null(-1).to_numpy()
