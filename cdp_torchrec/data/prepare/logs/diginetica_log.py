"""The official Diginetica files: read, checked row by row, and their sessions put in time.

queries     query, session, timeframe, tokens, category, items; without test queries
clicks      query, item
events      session, item, action (view, click, purchase), timeframe
products    item, category, log_price
sessions    session, user_id, start (ms since the epoch)
"""

import logging
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import first_row, needed_csv
from cdp_torchrec.data.prepare.database import (
    Rule,
    check_lines,
    check_unique_lines,
    list_rule,
    load_csv,
    matches,
    scalar,
)
from cdp_torchrec.data.prepare.log_tables import DAY_MS
from cdp_torchrec.data.schema import DatasetError

logger = logging.getLogger(__name__)

_FORM = CsvFormat(delimiter=";", missing=("NA",))
_VIEW_COLUMNS = ("sessionId", "userId", "itemId", "timeframe", "eventdate")
_ITEMS = "string_split(items, ',')"


def load_queries(connection: duckdb.DuckDBPyConnection, source: Path) -> int:
    """Make tables `queries` and `moments`; returns how many test queries are left out."""
    path = needed_csv(source, "train-queries.csv")
    columns = ("queryId", "sessionId", "userId", "timeframe", "eventdate", "searchstring.tokens")
    columns += ("categoryId", "items", "is.test")
    load_csv(connection, "raw_queries", path, columns, _FORM)
    is_test = """lower("is.test")"""
    rules = [
        *_event_rules("queryId", "sessionId"),
        Rule(f"coalesce({is_test} NOT IN ('true', 'false'), true)", "is.test is no TRUE or FALSE"),
        list_rule(_ITEMS, "x = ''", "items holds an empty id"),
    ]
    check_lines(connection, "raw_queries", path, rules)
    check_unique_lines(connection, "raw_queries", path, "queryId")
    num_test = scalar(connection, f"SELECT count(*) FILTER ({is_test} = 'true') FROM raw_queries")
    num_empty = scalar(
        connection,
        f"SELECT count(*) FILTER ({is_test} = 'false' AND items IS NULL) FROM raw_queries",
    )
    if num_empty:
        logger.warning("%s: %d queries left out: their list of items is empty", path, num_empty)
    connection.execute(f"""
        CREATE TABLE queries AS
        SELECT queryId AS query, sessionId AS session, timeframe::BIGINT AS timeframe,
            "searchstring.tokens" AS tokens, nullif(categoryId, '0') AS category,
            {_ITEMS} AS items
        FROM raw_queries WHERE {is_test} = 'false' AND items IS NOT NULL;
        CREATE TABLE moments AS
        SELECT sessionId AS session, userId AS raw_user, timeframe::BIGINT AS timeframe,
            {_day("eventdate")} AS day
        FROM raw_queries WHERE {is_test} = 'false' AND items IS NOT NULL;
        DROP TABLE raw_queries
    """)
    if scalar(connection, "SELECT count(*) FROM queries") == 0:
        raise DatasetError(f"{path}: no query that is no test query has items")
    return num_test


def load_events(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make tables `clicks` and `events`, and add to `moments`. A row that is there twice is one."""
    connection.execute("""
        CREATE TABLE events (session VARCHAR, item VARCHAR, action VARCHAR, timeframe BIGINT)
    """)
    for name, action in (("train-item-views.csv", "view"), ("train-purchases.csv", "purchase")):
        path = needed_csv(source, name)
        load_csv(connection, "raw_events", path, _VIEW_COLUMNS, _event_form(path))
        check_lines(connection, "raw_events", path, _event_rules("sessionId", "itemId"))
        connection.execute(f"""
            INSERT INTO events
            SELECT DISTINCT sessionId, itemId, '{action}', timeframe::BIGINT FROM raw_events;
            INSERT INTO moments
            SELECT sessionId, userId, timeframe::BIGINT, {_day("eventdate")} FROM raw_events;
            DROP TABLE raw_events
        """)
    path = needed_csv(source, "train-clicks.csv")
    load_csv(connection, "raw_clicks", path, ("queryId", "timeframe", "itemId"), _FORM)
    check_lines(connection, "raw_clicks", path, _event_rules("queryId", "itemId")[:-1])
    # A click counts from its query on at the earliest: it is never history of its own list.
    connection.execute("""
        CREATE TABLE clicks AS
        SELECT queryId AS query, itemId AS item, min(timeframe::BIGINT) AS timeframe
        FROM raw_clicks GROUP BY ALL;
        INSERT INTO events
        SELECT session, item, 'click', greatest(clicks.timeframe, queries.timeframe)
        FROM clicks JOIN queries USING (query)
    """)
    num_unlisted = scalar(
        connection,
        """
        SELECT count(*) FROM clicks JOIN queries USING (query)
        WHERE NOT list_contains(items, item)
        """,
    )
    if num_unlisted:
        logger.warning("%s: %d clicks are on no item of their list", path, num_unlisted)
    connection.execute("DROP TABLE raw_clicks")


def load_products(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `products`."""
    categories, prices = (
        needed_csv(source, "product-categories.csv"),
        needed_csv(source, "products.csv"),
    )
    load_csv(connection, "raw_categories", categories, ("itemId", "categoryId"), _FORM)
    load_csv(connection, "raw_prices", prices, ("itemId", "pricelog2"), _FORM)
    price = Rule(
        "pricelog2 IS NOT NULL AND NOT coalesce(try_cast(pricelog2 AS DOUBLE) BETWEEN 0 AND 64, "
        "false)",
        "pricelog2 is no number from 0 to 64",
        "pricelog2",
    )
    for table, path, rules in (
        ("raw_categories", categories, []),
        ("raw_prices", prices, [price]),
    ):
        check_lines(connection, table, path, [Rule("itemId IS NULL", "itemId is empty"), *rules])
        check_unique_lines(connection, table, path, "itemId")
    # The price is rounded to a whole logarithm of 1 + price: 0 stands for one that is not known.
    connection.execute("""
        CREATE TABLE products AS
        SELECT itemId AS item, categoryId AS category,
            nullif(pricelog2::DOUBLE, 0) AS log_price
        FROM raw_categories FULL JOIN raw_prices USING (itemId);
        DROP TABLE raw_categories; DROP TABLE raw_prices
    """)


def place_sessions(connection: duckdb.DuckDBPyConnection) -> int:
    """Make table `sessions`; returns how many stand alone though their user is known.

    The start is the earliest at which no row lies before its day.
    """
    connection.execute(f"""
        CREATE TABLE spans AS
        SELECT session, raw_user, start, first_day,
            greatest(last_day, (start + last_timeframe) // {DAY_MS} * {DAY_MS}) AS last_day
        FROM (
            SELECT session, max(day - timeframe) AS start, min(day) AS first_day,
                max(day) AS last_day, first(raw_user ORDER BY timeframe, raw_user NULLS FIRST)
                    AS raw_user
            FROM moments GROUP BY session
        )
        LEFT JOIN (
            SELECT session, max(timeframe) AS last_timeframe FROM events GROUP BY session
        ) USING (session)
    """)
    num_contradicted = scalar(
        connection,
        f"""
        SELECT count(DISTINCT session) FROM moments JOIN spans USING (session)
        WHERE start + timeframe >= day + {DAY_MS}
        """,
    )
    if num_contradicted:
        logger.warning(
            "days and timeframes of %d sessions contradict each other: their days are not exact",
            num_contradicted,
        )
    connection.execute("""
        CREATE TABLE sessions AS
        SELECT session, start, raw_user IS NOT NULL AND shares_a_day AS is_alone,
            CASE WHEN raw_user IS NULL OR shares_a_day THEN 's' || session ELSE raw_user END
                AS user_id
        FROM (
            SELECT *, coalesce(first_day <= max(last_day) OVER earlier, false)
                OR coalesce(last_day >= min(first_day) OVER later, false) AS shares_a_day
            FROM spans
            WINDOW
                earlier AS (PARTITION BY raw_user ORDER BY first_day, session
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
                later AS (PARTITION BY raw_user ORDER BY first_day, session
                    ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING)
        );
        DROP TABLE moments; DROP TABLE spans
    """)
    return scalar(connection, "SELECT count(*) FILTER (is_alone) FROM sessions")


def _event_form(path: Path) -> CsvFormat:
    """Views come without a header from some places."""
    first = _FORM.cells(first_row(path, _FORM))
    if path.name.startswith("train-item-views") and first and first[0].isdigit():
        return CsvFormat(delimiter=";", missing=("NA",), names=_VIEW_COLUMNS)
    return _FORM


def _event_rules(*ids: str) -> list[Rule]:
    return [
        *(Rule(f"{name} IS NULL", f"{name} is empty") for name in ids),
        Rule(
            f"NOT {matches('timeframe', '[0-9]{1,12}')}",
            "timeframe is no whole number of milliseconds",
            "timeframe",
        ),
        Rule(f"{_day('eventdate')} IS NULL", "eventdate is no day such as 2016-05-09", "eventdate"),
    ]


def _day(column: str) -> str:
    """SQL: the midnight that begins a day, in ms; null if it is none."""
    return f"epoch_ms(try_strptime({column}, '%Y-%m-%d'))"
