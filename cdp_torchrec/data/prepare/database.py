"""DuckDB as the engine of preparation: bounded memory, everything else on disk.

The engine never opens a user's file: `tables.py` does, and its rows are loaded here. So nothing is
left to what an engine makes of names, types and paths.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import duckdb
import numpy as np
import pyarrow as pa

from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import stream_csv
from cdp_torchrec.data.prepare.tables import ParquetTable
from cdp_torchrec.data.schema import DatasetError

EngineName = Literal["duckdb", "spark"]


@dataclass(frozen=True)
class EngineLimits:
    """How much of the machine preparation may use, and what sorts and joins there."""

    memory_gib: float = 4.0
    """Memory of DuckDB; what does not fit goes to disk beside the output."""
    num_threads: int = 2
    engine: EngineName = "duckdb"
    """What makes a dataset of staging files: DuckDB, or Spark on a cluster as large as its own
    settings say. Logs are read, and days appended, by DuckDB in any case."""


class Rows(Protocol):
    """An answer that is small."""

    def fetchall(self) -> list[Any]:
        """All rows as tuples."""
        ...


class Stream(Protocol):
    """An answer of any size."""

    def to_arrow_reader(self, batch_size: int, /) -> pa.RecordBatchReader:
        """The rows, some at a time."""
        ...


class ClusterTables(Protocol):
    """Tables of another engine, which takes the statements that DuckDB takes."""

    def execute(self, query: str, /) -> Rows:
        """Run statements; the rows of the last."""
        ...

    def sql(self, query: str, /) -> Stream:
        """Ask for rows."""
        ...

    def load_parquet(self, name: str, table: ParquetTable) -> None:
        """Make a table of files."""
        ...


Tables = duckdb.DuckDBPyConnection | ClusterTables


@contextmanager
def open_tables(directory: Path, limits: EngineLimits) -> Generator[Tables]:
    """The engine that makes a dataset of staging files, with tables of its own in `directory`.

    Raises:
        DatasetError: Spark is wanted and not installed.
    """
    if limits.engine == "duckdb":
        with open_database(directory, limits) as connection:
            yield connection
        return
    try:
        from cdp_torchrec.data.prepare.spark.engine import open_spark
    except ImportError as error:
        raise DatasetError(
            f"engine 'spark': {error.name} is missing; pip install 'cdp_torchrec[spark]'"
        ) from error
    with open_spark(directory, limits) as tables:
        yield tables


@contextmanager
def open_database(directory: Path, limits: EngineLimits) -> Generator[duckdb.DuckDBPyConnection]:
    """A database in files of its own under `directory` (made here), closed at the end."""
    directory.mkdir(parents=True)
    directory = directory.resolve()  # the engine takes "~" and "file:" for more than names
    # Behind a "?" it looks for options, not for the rest of the file's name; memory spills to disk.
    database = ":memory:" if "?" in str(directory) else directory / "tables.duckdb"
    connection = duckdb.connect(
        database,
        config={
            # A name in a query is a table, never a variable of this program.
            "python_enable_replacements": False,
            "memory_limit": f"{limits.memory_gib}GiB",
            "threads": limits.num_threads,
            "temp_directory": str(directory / "spill"),
        },
    )
    try:
        # Time zones and clocks must not matter: timestamps stay integers everywhere.
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        # Nobody reads these tables when the process has ended, so they need not be on the disk.
        connection.execute("SET fsync_mode = 'NONE'; PRAGMA disable_checkpoint_on_shutdown")
        yield connection
    finally:
        connection.close()


def load_parquet(connection: Tables, name: str, table: ParquetTable) -> None:
    """Make the table `name` of these rows; `_file` and `_row` say where each comes from.

    Raises:
        DatasetError: a file is damaged, or holds a value that its column cannot.
    """
    if not isinstance(connection, duckdb.DuckDBPyConnection):
        connection.load_parquet(name, table)
        return
    fields = [*table.schema, pa.field("_file", pa.int32()), pa.field("_row", pa.int64())]
    _create(connection, name, pa.schema(fields))
    for block in table.blocks():
        rows = block.rows
        numbers = np.arange(block.first, block.first + len(rows))
        rows = rows.append_column("_file", pa.array(np.full(len(rows), block.file, np.int32)))
        _insert(connection, name, rows.append_column("_row", pa.array(numbers)))


def load_csv(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    path: Path,
    columns: Sequence[str],
    form: CsvFormat | None = None,
) -> None:
    """Make the table `name` of these columns, as strings, and `line`; `form` as `stream_csv`.

    Raises:
        DatasetError: a column is missing, or the file is damaged.
    """
    fields = [pa.field(column, pa.string()) for column in columns]
    _create(connection, name, pa.schema([*fields, pa.field("line", pa.int64())]))
    for rows in stream_csv(path, columns, form):
        _insert(connection, name, rows)


def _create(connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema) -> None:
    connection.register("_rows", schema.empty_table())
    connection.execute(f"CREATE TABLE {name} AS FROM _rows")
    connection.unregister("_rows")


def _insert(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.RecordBatch) -> None:
    connection.register("_rows", rows)
    connection.execute(f"INSERT INTO {name} FROM _rows")
    connection.unregister("_rows")


def sql_path(path: Path) -> str:
    """SQL string of a file to write."""
    return "'" + str(path.resolve()).replace("'", "''") + "'"


def scalar(connection: Tables, query: str) -> int:
    """The single integer that the query gives."""
    row = first_row(connection, query)
    assert row is not None
    return int(row[0])


def first_row(connection: Tables, query: str) -> tuple[Any, ...] | None:
    """The first row of a small result; None if it is empty."""
    # All rows are fetched: DuckDB 2 refuses the next query while a result is half read.
    rows = connection.execute(query).fetchall()
    return rows[0] if rows else None


@dataclass(frozen=True)
class Rule:
    """What no row of a table may be."""

    broken: str
    """SQL: condition of a bad row."""
    message: str
    """What is wrong with it."""
    found: str = "NULL"
    """SQL: the value that is to blame, shown behind the message."""


def null_rules(*columns: str) -> list[Rule]:
    """None of the columns may be null."""
    return [Rule(f"{name} IS NULL", f"'{name}' is null") for name in columns]


def list_rule(column: str, broken: str, message: str) -> Rule:
    """No element `x` of a list may be so.

    Args:
        column: SQL: the list.
        broken: SQL: condition of a bad element.
        message: what is wrong with it.
    """
    bad = f"list_filter({column}, lambda x: {broken})"
    return Rule(f"len({bad}) > 0", message, f"coalesce({bad}[1]::VARCHAR, 'null')")


def first_broken_rule(
    connection: Tables, table: str, rules: Sequence[Rule], key: Sequence[str]
) -> tuple[Any, ...] | None:
    """Find the first row of a table for which something is wrong, in one pass.

    Args:
        connection: holds the table.
        table: its name.
        rules: the first that is broken counts.
        key: columns that name a row; the first row is the first in their order.

    Returns:
        What is wrong, then the key; None if all rows are good.
    """
    cases = " ".join(f"WHEN {rule.broken} THEN {i}" for i, rule in enumerate(rules))
    found = " ".join(f"WHEN {i} THEN ({r.found})::VARCHAR" for i, r in enumerate(rules))
    names = ", ".join(key)
    bad = first_row(
        connection,
        f"""
        SELECT _rule, CASE _rule {found} END, {names}
        FROM (SELECT CASE {cases} END AS _rule, * FROM {table})
        WHERE _rule IS NOT NULL ORDER BY {names} LIMIT 1
        """,
    )
    if not bad:
        return None
    rule, value, *where = bad
    message = rules[rule].message
    return (message if value is None else f"{message}: {value}", *where)


def check_rows(
    connection: Tables,
    name: str,
    table: ParquetTable,
    rules: Sequence[Rule],
    *,
    named: str,
) -> None:
    """Check a table made by `load_parquet`.

    Args:
        connection: holds the table.
        name: of the table.
        table: its files.
        rules: what no row may be.
        named: the column by which errors name a row, beside its file and number.

    Raises:
        DatasetError: a rule is broken; names the first row in the order of the files.
    """
    bad = first_broken_rule(connection, name, rules, ("_file", "_row", named))
    if bad:
        message, file, row, key = bad
        raise DatasetError(f"{table.paths[file]}: row {row} ({named} {key}): {message}")


def check_lines(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, rules: Sequence[Rule]
) -> None:
    """Check a table made by `load_csv`.

    Raises:
        DatasetError: a rule is broken; names the first line.
    """
    bad = first_broken_rule(connection, name, rules, ("line",))
    if bad:
        message, line = bad
        raise DatasetError(f"{path}: line {line}: {message}")


def check_unique_lines(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, key: str
) -> None:
    """Check that no two rows of a table made by `load_csv` have the same key.

    Raises:
        DatasetError: two have; names both lines.
    """
    repeated = first_row(
        connection,
        f"""
        SELECT {key}, min(line), max(line) FROM {name}
        GROUP BY {key} HAVING count(*) > 1 ORDER BY {key} LIMIT 1
        """,
    )
    if repeated:
        value, first, last = repeated
        raise DatasetError(f"{path}: {key} {value} occurs in line {first} and line {last}")


def matches(column: str, pattern: str) -> str:
    """SQL: the whole text has this form; false where it is null."""
    return f"coalesce(regexp_full_match({column}, '{pattern}'), false)"
