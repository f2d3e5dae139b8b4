"""Events of the RecSys Challenge 2019 log: read, checked row by row, and put in strict order."""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_stream import stream_csv
from cdp_torchrec.data.prepare.database import first_broken_rule, first_row
from cdp_torchrec.data.schema import DatasetError

COLUMNS = (
    "user_id",
    "session_id",
    "timestamp",
    "step",
    "action_type",
    "reference",
    "platform",
    "city",
    "device",
    "current_filters",
    "impressions",
    "prices",
)

IS_CLICKOUT = "action_type = 'clickout item'"
"""SQL: the event is a request."""
IS_ITEM_EVENT = """(
    (action_type IN ('clickout item', 'search for item') OR action_type LIKE 'interaction item %')
    AND regexp_full_match(reference, '[0-9]+')
)"""
"""SQL: the event is a behaviour; its reference is a hotel."""

_MS = 1000
"""Milliseconds of a second, and so the most events that a second of a user can hold."""


def split_list(column: str) -> str:
    """SQL: the parts of a '|'-list; null where the column is."""
    return f"string_split({column}, '|')"


def load_csv(
    connection: duckdb.DuckDBPyConnection, table: str, path: Path, columns: Sequence[str]
) -> None:
    """Make the table of these columns, as strings, and `line`.

    Raises:
        DatasetError: a column is missing, or the file is damaged.
    """
    declared = ", ".join(f"{name} VARCHAR" for name in columns)
    connection.execute(f"CREATE TABLE {table} ({declared}, line BIGINT)")
    for batch in stream_csv(path, columns):
        connection.register("batch", batch)
        connection.execute(f"INSERT INTO {table} FROM batch")
        connection.unregister("batch")


def load_events(connection: duckdb.DuckDBPyConnection, log: Path) -> None:
    """Make table `raw_events`: all strings, and `line`.

    Raises:
        DatasetError: the file is damaged, or a row makes no sense by itself.
    """
    load_csv(connection, "raw_events", log, COLUMNS)
    items, prices = split_list("impressions"), split_list("prices")
    rules = {
        "user_id IS NULL OR session_id IS NULL OR action_type IS NULL": (
            "user_id, session_id or action_type is empty"
        ),
        "try_cast(timestamp AS BIGINT) IS NULL": "timestamp is no whole number of seconds",
        "coalesce(try_cast(step AS BIGINT), 0) < 1": "step is no number from 1",
        f"{IS_CLICKOUT} AND len({items}) IS DISTINCT FROM len({prices})": (
            "impressions and prices are lists of unequal length"
        ),
        f"{IS_CLICKOUT} AND list_contains({items}, '')": "impressions holds an empty id",
        f"{IS_CLICKOUT} AND len(list_filter({prices}, "
        "lambda p: coalesce(try_cast(p AS DOUBLE), -1) < 0)) > 0": (
            "prices holds something else than a number from 0"
        ),
    }
    bad = first_broken_rule(connection, "raw_events", rules, ("line",))
    if bad:
        message, line = bad
        raise DatasetError(f"{log}: line {line}: {message}")


def order_events(connection: duckdb.DuckDBPyConnection, log: Path) -> None:
    """Replace `raw_events` by `events`: typed, timestamps in ms, strictly ordered within a user.

    The log counts whole seconds. Events of a user in one second are put one millisecond apart, in
    the order of their steps. A session id can come back later with steps from 1: such a return is
    a `visit` of its own (0, 1 ...).

    Raises:
        DatasetError: steps contradict the times, or a second holds too many events.
    """
    connection.execute("""
        CREATE TABLE stepped_events AS
        SELECT * REPLACE (timestamp::BIGINT AS timestamp, step::BIGINT AS step),
            lag(step::BIGINT) OVER session AS previous_step, lag(line) OVER session AS previous_line
        FROM raw_events
        WINDOW session AS (
            PARTITION BY user_id, session_id ORDER BY timestamp::BIGINT, step::BIGINT, line
        )
    """)
    bad = first_row(
        connection,
        """
        SELECT line, step, previous_line, previous_step, session_id FROM stepped_events
        WHERE step <= previous_step AND step <> 1 ORDER BY line LIMIT 1
        """,
    )
    if bad:
        line, step, previous_line, previous_step, session = bad
        raise DatasetError(
            f"{log}: line {line}: step {step} of session {session} does not come before step "
            f"{previous_step} of line {previous_line} in time, so their order is unknown"
        )
    crowded = first_row(
        connection,
        f"""
        SELECT user_id, timestamp, count(*) AS n, min(line) FROM stepped_events
        GROUP BY user_id, timestamp HAVING n > {_MS} ORDER BY user_id, timestamp LIMIT 1
        """,
    )
    if crowded:
        user, second, count, line = crowded
        raise DatasetError(
            f"{log}: line {line}: user {user} has {count} events in second {second}; "
            f"at most {_MS} can be put in order"
        )
    connection.execute(f"""
        CREATE TABLE events AS
        SELECT * EXCLUDE (start, previous_step, previous_line)
            REPLACE (timestamp * {_MS} + row_number() OVER second - 1 AS timestamp)
        FROM (
            SELECT *, min(timestamp) OVER (PARTITION BY user_id, session_id, visit) AS start
            FROM (
                SELECT *, count(*) FILTER (step <= previous_step) OVER (
                    PARTITION BY user_id, session_id ORDER BY timestamp, step, line
                ) AS visit
                FROM stepped_events
            )
        )
        WINDOW second AS (PARTITION BY user_id, timestamp ORDER BY start, session_id, visit, step)
    """)
    connection.execute("DROP TABLE raw_events; DROP TABLE stepped_events")
