"""Diginetica (CIKM Cup 2016, personalised e-commerce search): to a dataset directory.

request    a row of train-queries.csv that is no test query: a search, or a category that was opened
query      the search tokens, whole and as a bag; the category that was opened
item       product; its category and price
context    position in the default order, weekday, time since the session began, length of the list
scene      whether the list answers a search or shows a category
history    views, clicks and purchases of the user
label      the product was clicked in the list of this query

What the files do not say, and what stands in for it:
* **The time of day.** A row has a day, and milliseconds since the first query of its session, which
  can go on for weeks. A session is put where the days of all its rows come right, as early as they
  allow. So gaps within a session are exact, and days are; hours are not, and are no feature.
* **The user** of two rows in three, NA: the session stands in for it. A session is of a user only
  if its first row says so: a login, such as for a purchase, is not known before.
* **The order of two sessions of one user on the same day.** Such sessions stand alone, each as a
  user of its own: otherwise what happened later could count as history.

Clicks of test queries are not in the files, so test queries are left out. `duration`, how long the
list stayed on screen, is known too late to be read.
"""

from datetime import date
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import EngineLimits
from cdp_torchrec.data.prepare.features import (
    candidate_id,
    candidate_number,
    request_id,
    request_ids,
    request_number,
)
from cdp_torchrec.data.prepare.log_tables import (
    DAY_MS,
    number_requests,
    prepare_log,
    start_of_test,
)
from cdp_torchrec.data.prepare.logs.diginetica_log import (
    load_events,
    load_products,
    load_queries,
    place_sessions,
)
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import Schema

_FEATURES = (
    request_id("user_id", "user", "user"),
    request_id("query_id", "query", "query"),
    request_ids("query_terms", "query", "term"),
    request_id("query_category", "query", "category"),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    candidate_number("log_price", "item"),
    candidate_id("position", "context"),
    request_id("weekday", "context"),
    request_number("log_session_age", "context"),
    request_number("list_length", "context"),
    request_id("search_source", "scene"),
)


def prepare_diginetica(
    source: Path,
    output: Path,
    *,
    test_from: date | None = None,
    limits: EngineLimits | None = None,
) -> Schema:
    """Prepare the official files as a dataset directory.

    Args:
        source: directory of the six files of `dataset-train`; plain, .gz or .xz.
        output: dataset directory to make; must not exist.
        test_from: first day of the test split; None: the last seven days with requests.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    return prepare_log(
        source, output, lambda db: read_diginetica(db, source, test_from=test_from), limits
    )


def read_diginetica(
    connection: duckdb.DuckDBPyConnection, source: Path, *, test_from: date | None = None
) -> DatasetSpec:
    """Make the tables of `prepare_log` of the files.

    Raises:
        DatasetError: files are missing, damaged or inconsistent.
    """
    num_test = load_queries(connection, source)
    load_events(connection, source)
    load_products(connection, source)
    num_alone = place_sessions(connection)
    _make_requests(connection)
    _make_candidates(connection)
    _make_behaviours(connection)
    return DatasetSpec(
        name="diginetica",
        source=f"CIKM Cup 2016 (Diginetica); {num_test} test queries left out, {num_alone} "
        "sessions stand alone because another one of their user shares a day with them",
        features=_FEATURES,
        test_from=start_of_test(connection, test_from, last_days=7),
        category_entity="category",
        action_entity="action",
    )


def _make_requests(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(f"""
        CREATE TABLE rows AS
        SELECT query AS request_id, query, user_id, start + timeframe AS timestamp,
            tokens AS query_id, coalesce(string_split(tokens, ','), []) AS query_terms,
            category AS query_category, items,
            ((start + timeframe) // {DAY_MS} + 3) % 7 AS weekday,
            ln(1 + timeframe / 1000) AS log_session_age, len(items) AS list_length,
            CASE WHEN tokens IS NULL THEN 'category' ELSE 'search' END AS search_source
        FROM queries JOIN sessions USING (session)
    """)
    number_requests(connection, "rows", order="timestamp, request_id")


def _make_candidates(connection: duckdb.DuckDBPyConnection) -> None:
    """Make view `candidates`; of a product that a list repeats, the first place counts."""
    connection.execute("""
        CREATE VIEW candidates AS
        WITH listed AS (
            SELECT number, query, unnest(items) AS item, generate_subscripts(items, 1) AS position
            FROM requests
        ), first AS (
            SELECT number, query, item, min(position) AS position FROM listed GROUP BY ALL
        )
        SELECT number, position AS place, position, first.item AS item_id,
            category AS category_id, log_price, (c.item IS NOT NULL)::INTEGER AS label
        FROM first
        LEFT JOIN (SELECT DISTINCT query, item FROM clicks) c
            ON c.query = first.query AND c.item = first.item
        LEFT JOIN products ON products.item = first.item
    """)


def _make_behaviours(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE VIEW behaviours AS
        SELECT user_id, item, category, action, start + timeframe AS timestamp
        FROM events JOIN sessions USING (session) LEFT JOIN products USING (item)
    """)
