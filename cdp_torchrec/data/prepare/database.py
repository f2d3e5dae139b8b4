"""DuckDB as the engine of preparation: bounded memory, everything else on disk."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb


@dataclass(frozen=True)
class EngineLimits:
    """How much of the machine preparation may use."""

    memory_gib: float = 4.0
    """Memory of DuckDB; what does not fit goes to disk beside the output."""
    num_threads: int = 2


@contextmanager
def open_database(directory: Path, limits: EngineLimits) -> Generator[duckdb.DuckDBPyConnection]:
    """A database in files of its own under `directory` (made here), closed at the end."""
    directory.mkdir(parents=True)
    connection = duckdb.connect(
        directory / "tables.duckdb",
        config={
            "memory_limit": f"{limits.memory_gib}GiB",
            "threads": limits.num_threads,
            "temp_directory": str(directory / "spill"),
        },
    )
    try:
        # Time zones and clocks must not matter: timestamps stay integers everywhere.
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        yield connection
    finally:
        connection.close()


def sql_paths(paths: list[Path]) -> str:
    """SQL list of file names."""
    return "[" + ", ".join(sql_string(str(path)) for path in paths) + "]"


def sql_string(text: str) -> str:
    """SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The single integer that the query gives."""
    row = first_row(connection, query)
    assert row is not None
    return int(row[0])


def first_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...] | None:
    """The first row of a small result; None if it is empty."""
    # All rows are fetched: DuckDB 2 refuses the next query while a result is half read.
    rows = connection.execute(query).fetchall()
    return rows[0] if rows else None


def first_broken_rule(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    rules: Mapping[str, str],
    key: Sequence[str],
) -> tuple[Any, ...] | None:
    """Find the first row of a table for which something is wrong, in one pass.

    Args:
        connection: holds the table.
        table: its name.
        rules: SQL condition of a bad row -> what is wrong with it; the first that holds counts.
        key: columns that name a row; the first row is the first in their order.

    Returns:
        What is wrong, then the key; None if all rows are good.
    """
    cases = " ".join(f"WHEN {condition} THEN {i}" for i, condition in enumerate(rules))
    names = ", ".join(key)
    bad = first_row(
        connection,
        f"""
        SELECT _rule, {names} FROM (SELECT CASE {cases} END AS _rule, {names} FROM {table})
        WHERE _rule IS NOT NULL ORDER BY {names} LIMIT 1
        """,
    )
    return bad and (list(rules.values())[bad[0]], *bad[1:])
