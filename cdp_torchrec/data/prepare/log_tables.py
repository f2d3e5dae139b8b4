"""From the tables that a converter makes of its log to a dataset directory.

A converter reads its files into an engine of its own and leaves three tables (or views) there:

    requests     number (0, 1 ... in the order of time), request_id, user_id, timestamp, and the
                 features of the request
    candidates   number, place (order in the list), the features of the candidate, label (not read
                 of rows that are to be scored)
    behaviours   user_id, item, timestamp, category and action where the dataset has them, and the
                 attributes of the spec
"""

import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import EngineLimits, open_database, scalar, sql_path
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.staging import build_dataset, request_parts
from cdp_torchrec.data.prepare.workplace import preparing, staging_beside
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.progress import ProgressBar

DAY_MS = 24 * 3600 * 1000
_REQUESTS_PER_FILE = 200_000


def prepare_log(
    source: Path,
    output: Path,
    read: Callable[[duckdb.DuckDBPyConnection], DatasetSpec],
    limits: EngineLimits | None = None,
) -> Schema:
    """Make the dataset directory `output`; all of it or nothing.

    Args:
        source: where the log lies; errors about the log as a whole name it.
        output: dataset directory to make; must not exist. Everything in between lies beside it.
        read: makes the three tables, and says what their columns mean.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: what `read` finds wrong with the log, or the checks of all logs; `output`
            exists.
        PreparationError: the dataset cannot be written.
    """
    limits = limits or EngineLimits()
    with preparing(output), staging_beside(output) as staging:
        spec = stage_log(source, staging, read, limits)
        return build_dataset(staging, output, spec, limits, log=source)


def stage_log(
    source: Path,
    staging: Path,
    read: Callable[[duckdb.DuckDBPyConnection], DatasetSpec],
    limits: EngineLimits,
) -> DatasetSpec:
    """Write the three tables of a log as staging files.

    Args:
        source: where the log lies.
        staging: directory that gets `requests/` and `behaviours/`.
        read: makes the three tables, and says what their columns mean.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: what `read` finds wrong with the log.
    """
    with (
        open_database(staging / "work", limits) as connection,
        ProgressBar(source.resolve().name, total=3, unit="stages") as bar,
    ):
        bar.begin("read")
        spec = read(connection)
        bar.begin("requests")
        _stage_requests(connection, staging / "requests", spec, [*_of_candidates(spec), "label"])
        bar.begin("behaviours")
        _stage_behaviours(connection, staging / "behaviours", spec)
    shutil.rmtree(staging / "work")
    return spec


def stage_new_requests(
    source: Path,
    staging: Path,
    read: Callable[[duckdb.DuckDBPyConnection], DatasetSpec],
    limits: EngineLimits,
) -> list[Path]:
    """Write requests that are to be scored as staging files without labels.

    Args:
        source: where their rows lie.
        staging: directory that gets `requests/`.
        read: makes the tables `requests` and `candidates`, and says what their columns mean.
        limits: memory and threads of the engine.

    Returns:
        The files, in the order of the requests.

    Raises:
        DatasetError: what `read` finds wrong with the rows.
    """
    with (
        open_database(staging / "work", limits) as connection,
        ProgressBar(source.resolve().name, total=2, unit="stages") as bar,
    ):
        bar.begin("read")
        spec = read(connection)
        bar.begin("requests")
        files = _stage_requests(connection, staging / "requests", spec, _of_candidates(spec))
    shutil.rmtree(staging / "work")
    return files


def number_requests(
    connection: duckdb.DuckDBPyConnection, table: str, *, order: str, added: str = ""
) -> None:
    """Make table `requests` of a table of them, which is dropped: numbered.

    Args:
        connection: holds the table.
        table: its name; it has a unique `request_id`.
        order: SQL: in which order they are numbered.
        added: SQL: further columns, which may depend on `number`.
    """
    # The window holds ids only: rows with long lists would have to fit into it.
    connection.execute(f"""
        CREATE TABLE request_numbers AS
        SELECT request_id, row_number() OVER (ORDER BY {order}) - 1 AS number FROM {table};
        CREATE TABLE requests AS
        SELECT number, {added + ", " if added else ""}{table}.*
        FROM {table} JOIN request_numbers USING (request_id) ORDER BY number;
        DROP TABLE request_numbers; DROP TABLE {table}
    """)


def start_of_test(
    connection: duckdb.DuckDBPyConnection,
    test_from: date | None,
    *,
    last_days: int = 1,
    utc_offset_ms: int = 0,
) -> int:
    """Where the test split begins, in ms: the midnight of a day.

    Args:
        connection: holds the table `requests`.
        test_from: that day; None: the first of the last days with requests.
        last_days: how many these are.
        utc_offset_ms: of the clock of the log.
    """
    if test_from is not None:
        midnight = datetime(test_from.year, test_from.month, test_from.day, tzinfo=UTC)
        return round(midnight.timestamp()) * 1000 - utc_offset_ms
    last = scalar(connection, "SELECT coalesce(max(timestamp), 0) FROM requests") + utc_offset_ms
    return last - last % DAY_MS - (last_days - 1) * DAY_MS - utc_offset_ms


def _of_candidates(spec: DatasetSpec) -> list[str]:
    return [f'"{feature.name}"' for feature in spec.candidate_features()]


def _stage_requests(
    connection: duckdb.DuckDBPyConnection,
    directory: Path,
    spec: DatasetSpec,
    candidate: Sequence[str],
) -> list[Path]:
    """Write the requests with lists of these columns of their candidates."""
    directory.mkdir()
    connection.execute(f"""
        CREATE TABLE ordered_candidates AS
        SELECT number, place, {", ".join(candidate)} FROM candidates ORDER BY number, place
    """)
    lists = ", ".join(f"list({name} ORDER BY place) AS {name}" for name in candidate)
    single = "".join(f', "{f.name}"' for f in spec.request_features())
    parts = list(request_parts(connection, directory, size=_REQUESTS_PER_FILE))
    for within, path in parts:
        connection.execute(f"""
            COPY (
                SELECT request_id, user_id, timestamp{single}, listed.* EXCLUDE (number)
                FROM (FROM requests {within})
                LEFT JOIN (
                    SELECT number, {lists} FROM ordered_candidates {within} GROUP BY number
                ) listed USING (number)
                ORDER BY number
            ) TO {sql_path(path)} (FORMAT parquet)
        """)
    connection.execute("DROP TABLE ordered_candidates")
    return [path for _, path in parts]


def _stage_behaviours(
    connection: duckdb.DuckDBPyConnection, directory: Path, spec: DatasetSpec
) -> None:
    directory.mkdir()
    names = [name for name, _ in spec.behaviour_columns()]
    columns = ", ".join([*names, *(f'"{attribute.name}"' for attribute in spec.attributes)])
    path = sql_path(directory / "part-00000.parquet")
    connection.execute(
        f"COPY (SELECT {columns}, timestamp FROM behaviours) TO {path} (FORMAT parquet)"
    )
