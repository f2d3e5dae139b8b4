"""Tables of any log in the engine: the columns that a mapping names, all as text or lists of it.

Text and parquet look alike from here on, so that a rule on a value is the same for both. Columns
get names of our own: those of a log may be anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from cdp_torchrec.data.prepare.column_types import CODE_OR_LIST, VALUE_OR_LIST
from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import stream_csv
from cdp_torchrec.data.prepare.database import Rule, first_broken_rule
from cdp_torchrec.data.prepare.log_times import milliseconds_of
from cdp_torchrec.data.prepare.table_config import TableConfig
from cdp_torchrec.data.prepare.tables import find_files, open_parquet
from cdp_torchrec.data.schema import DatasetError

_SUFFIXES = ("", ".gz", ".xz")


@dataclass(frozen=True)
class Column:
    """A column that was loaded."""

    sql: str
    """Its name in the engine."""
    is_list: bool = False
    is_timestamp: bool = False
    """It has parquet's type for moments, and is stored as milliseconds."""
    has_zone: bool = False
    """Such a moment is in UTC."""


@dataclass(frozen=True)
class RawTable:
    """Rows of some files in the engine, with `_file` and `_row`."""

    name: str
    """Table in the engine."""
    paths: tuple[Path, ...]
    columns: Mapping[str, Column]
    """By the name that they have in the files."""
    row: str
    """What errors call the number of a row."""
    has_header: bool

    def sql(self, column: str) -> str:
        """SQL: a column that has one value in each row.

        Raises:
            DatasetError: it has lists.
        """
        if self.columns[column].is_list:
            raise DatasetError(
                f"{self.paths[0]}: column '{column}' has lists, but one value a row is needed"
            )
        return self.columns[column].sql

    def first(self, column: str) -> str:
        """SQL: the value that a column has in each row; of a list, its first element."""
        found = self.columns[column]
        return f"nullif({found.sql}[1], '')" if found.is_list else found.sql

    def elements(self, column: str, separator: str | None) -> str:
        """SQL: the list that a column has in each row, or that its text means.

        Raises:
            DatasetError: it has no lists, and there is no separator.
        """
        found = self.columns[column]
        if found.is_list:
            return found.sql
        if separator is None:
            raise DatasetError(
                f"{self.paths[0]}: column '{column}' has no lists; a separator would tell how "
                "its text is cut"
            )
        return f"string_split({found.sql}, {quoted(separator)})"

    def check(self, connection: duckdb.DuckDBPyConnection, rules: Sequence[Rule]) -> None:
        """Check all rows.

        Raises:
            DatasetError: a rule is broken; names file, row and value.
        """
        if not rules:
            return
        bad = first_broken_rule(connection, self.name, rules, ("_file", "_row"))
        if bad:
            message, file, row = bad
            raise DatasetError(f"{self.place(file, row)}: {message}{self.hint(row)}")

    def place(self, file: int, row: int) -> str:
        """A row, for people."""
        return f"{self.paths[file]}: {self.row} {row}"

    def hint(self, row: int) -> str:
        """What may be the matter with a row, in words behind an error."""
        if row == 1 and self.row == "line" and not self.has_header:
            return "; is it a header? Then leave out `columns`"
        return ""


def quoted(text: str) -> str:
    """SQL: a text."""
    return "'" + text.replace("'", "''") + "'"


def load_table(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    config: TableConfig,
    folder: Path,
    columns: Mapping[str, bool],
) -> RawTable:
    """Make the table `name` of some columns.

    Args:
        connection: to make it in.
        name: of the table.
        config: its files.
        folder: where they lie.
        columns: to load; whether they hold ids, which no floating point number is.

    Raises:
        DatasetError: a file is missing or damaged, is not written as told, or lacks a column.
    """
    paths = _find_files(config, folder)
    if config.format == "parquet":
        return _load_parquet(connection, name, paths, columns, config.missing)
    form = csv_format(config)
    internal = {column: f"c{number}" for number, column in enumerate(columns)}
    _create(connection, name, dict.fromkeys(internal.values(), "VARCHAR"))
    num_rows = 0
    for file, path in enumerate(paths):
        for batch in stream_csv(path, list(columns), form, may_be_empty=True):
            num_rows += len(batch)
            arrays = [*batch.columns[:-1], _constant(file, len(batch)), batch.columns[-1]]
            _insert(connection, name, arrays, [*internal.values(), "_file", "_row"])
    if not num_rows:
        raise DatasetError(f"{paths[0]}: the file has no rows")
    loaded = {column: Column(sql) for column, sql in internal.items()}
    return RawTable(name, paths, loaded, "line", not config.columns)


def csv_format(config: TableConfig) -> CsvFormat:
    """How a text table of a mapping is written."""
    return CsvFormat(
        delimiter=config.delimiter,
        names=config.columns or None,
        quote=None if config.quote == "none" else config.quote,
        encoding=config.encoding,
        missing=config.missing,
    )


def _find_files(config: TableConfig, folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such directory")
    found: list[Path] = []
    for name in config.files:
        if "*" in name:
            paths = find_files(folder, name)
        else:
            paths = [p for p in (folder / f"{name}{end}" for end in _SUFFIXES) if p.exists()][:1]
        if not paths:
            there = sorted(path.name for path in folder.glob("[!.]*"))
            kinds = "" if "*" in name else " (nor with .gz or .xz)"
            raise DatasetError(f"{folder / name}: no such file{kinds}; there are {there[:20]}")
        found += paths
    return tuple(dict.fromkeys(found))


def _load_parquet(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    paths: tuple[Path, ...],
    columns: Mapping[str, bool],
    missing: Sequence[str],
) -> RawTable:
    nothing = f"IN ({', '.join(map(quoted, missing))})" if missing else ""
    kinds = {column: CODE_OR_LIST if ids else VALUE_OR_LIST for column, ids in columns.items()}
    table = open_parquet(paths, kinds)
    loaded, casts = {}, {}
    for number, field in enumerate(table.schema):
        sql, kind = f"c{number}", field.type
        is_list = pa.types.is_list(kind)
        is_moment = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        loaded[field.name] = Column(
            sql, is_list, is_moment, pa.types.is_timestamp(kind) and kind.tz is not None
        )
        casts[sql] = f"{sql}::VARCHAR{'[]' if is_list else ''}"
        if nothing and pa.types.is_string(kind):
            casts[sql] = f"CASE WHEN {sql} {nothing} THEN NULL ELSE {sql} END"
        elif nothing and is_list and pa.types.is_string(kind.value_type):
            element = f"CASE WHEN x {nothing} THEN NULL ELSE x END"
            casts[sql] = f"list_transform({sql}, lambda x: {element})"
        if is_moment:
            in_ns = pa.types.is_timestamp(kind) and kind.unit == "ns"
            # The engine rounds nanoseconds up on their way to a TIMESTAMP.
            ms = f"(epoch_ns({sql}) // 1000000)" if in_ns else milliseconds_of(f"{sql}::TIMESTAMP")
            casts[sql] = f"{ms}::VARCHAR"
        elif pa.types.is_floating(kind):  # a time is written in digits, not as 1.5e+18
            whole = f"{sql}::HUGEINT::VARCHAR"
            casts[sql] = (
                f"CASE WHEN abs({sql}) BETWEEN 1e15 AND 1e30 THEN {whole} "
                f"WHEN isnan({sql}) THEN NULL ELSE {sql}::VARCHAR END"  # a missing number
            )
    texts = {c.sql: "VARCHAR[]" if c.is_list else "VARCHAR" for c in loaded.values()}
    _create(connection, name, texts)
    for block in table.blocks():
        numbers = pa.array(np.arange(block.first, block.first + len(block.rows)))
        arrays = [*block.rows.columns, _constant(block.file, len(block.rows)), numbers]
        _insert(connection, name, arrays, [*casts, "_file", "_row"], list(casts.values()))
    if not any(table.num_rows):
        raise DatasetError(f"{paths[0]}: the file has no rows")
    return RawTable(name, paths, loaded, "row", True)


def _constant(value: int, length: int) -> pa.Array:
    return pa.array(np.full(length, value, np.int32))


def _create(connection: duckdb.DuckDBPyConnection, name: str, types: Mapping[str, str]) -> None:
    columns = ", ".join(f"{column} {kind}" for column, kind in types.items())
    connection.execute(f"CREATE TABLE {name} ({columns}, _file INTEGER, _row BIGINT)")


def _insert(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    arrays: Sequence[pa.Array],
    names: Sequence[str],
    casts: Sequence[str] | None = None,
) -> None:
    connection.register("_rows", pa.RecordBatch.from_arrays(list(arrays), names=list(names)))
    values = ", ".join([*(casts if casts is not None else names[:-2]), "_file", "_row"])
    connection.execute(f"INSERT INTO {name} SELECT {values} FROM _rows")
    connection.unregister("_rows")
