"""Events of the RecSys Challenge 2019 log: read, checked row by row, and put in strict order."""

from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import Rule, check_lines, first_row, load_csv, matches
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

_FIRST_S, _LAST_S = 946_684_800, 4_102_444_799
_PRICE = "[0-9]{1,12}([.][0-9]{1,6})?"
_MS = 1000
"""Milliseconds of a second, and so the most events that a second of a user can hold."""


def split_list(column: str) -> str:
    """SQL: the parts of a '|'-list; null where the column is."""
    return f"string_split({column}, '|')"


def load_events(connection: duckdb.DuckDBPyConnection, log: Path) -> None:
    """Make table `raw_events`: all strings, and `line`.

    Raises:
        DatasetError: the file is damaged, or a row makes no sense by itself.
    """
    load_csv(connection, "raw_events", log, COLUMNS)
    items, prices = split_list("impressions"), split_list("prices")
    bad_prices = f"list_filter({prices}, lambda x: NOT {matches('x', _PRICE)})"
    rules = [
        Rule(
            "user_id IS NULL OR session_id IS NULL OR action_type IS NULL",
            "user_id, session_id or action_type is empty",
        ),
        # The engine would round 1541548801.7 and take 1e9: text is checked before it is a number.
        Rule(
            f"NOT {matches('timestamp', '[0-9]+')}",
            "timestamp is no whole number of seconds",
            "timestamp",
        ),
        Rule(
            f"NOT coalesce(try_cast(timestamp AS BIGINT) BETWEEN {_FIRST_S} AND {_LAST_S}, false)",
            "timestamp is no time from 2000 to 2099 in seconds since 1970 (milliseconds have 13 "
            "digits, seconds 10)",
            "timestamp",
        ),
        Rule(f"NOT {matches('step', '[1-9][0-9]{0,8}')}", "step is no number from 1", "step"),
        Rule(
            f"{IS_CLICKOUT} AND len({items}) IS DISTINCT FROM len({prices})",
            "impressions and prices are lists of unequal length",
        ),
        Rule(f"{IS_CLICKOUT} AND list_contains({items}, '')", "impressions holds an empty id"),
        Rule(
            f"{IS_CLICKOUT} AND len({bad_prices}) > 0",
            "prices holds something else than a number from 0",
            f"{bad_prices}[1]",
        ),
    ]
    check_lines(connection, "raw_events", log, rules)


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
