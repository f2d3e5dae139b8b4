"""Avito Context Ad Clicks (Kaggle 2015): from the official files to a dataset directory.

request    a search that showed contextual ads; these are its candidates
query      the search text, whole and as a bag of words; category and parameters of the search
item       ad; its category and the one above, region, price, click rate so far
context    position, hour, weekday, place of the search, length of the list
scene      device, browser, operating system, logged in or not
history    ads viewed, phone numbers asked for, contextual ads clicked
label      clicked

Only contextual ads (ObjectType 3) are candidates: of others it is not said whether they were
clicked, and a missing label is no 0. Views are mostly of others, so the category is what connects a
history with the candidates. A click on a contextual ad has the time of its search and counts for
later searches only. HistCTR is the click rate of the ad before, as the files have it.

testSearchStream.tsv has no labels and is not read: the last day of the training file is the test.
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
from cdp_torchrec.data.prepare.logs.avito_log import (
    load_ads,
    load_impressions,
    load_searches,
    load_users,
    load_visits,
)
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import Schema

_FEATURES = (
    request_id("user_id", "user", "user"),
    request_id("query_id", "query", "query"),
    request_ids("query_terms", "query", "term"),
    request_id("query_category", "query", "category"),
    request_ids("query_params", "query", "query_param"),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    candidate_id("category_parent", "item"),
    candidate_id("item_location", "item", "location"),
    candidate_number("log_price", "item"),
    candidate_number("hist_ctr", "item"),
    candidate_id("position", "context"),
    request_id("hour", "context"),
    request_id("weekday", "context"),
    request_id("location", "context"),
    request_number("list_length", "context"),
    request_id("device", "scene"),
    request_id("agent", "scene"),
    request_id("os", "scene"),
    request_id("logged_on", "scene"),
)


def prepare_avito(
    source: Path,
    output: Path,
    *,
    test_from: date | None = None,
    limits: EngineLimits | None = None,
) -> Schema:
    """Prepare the official files as a dataset directory.

    Args:
        source: directory of `trainSearchStream.tsv`, `SearchInfo.tsv`, `AdsInfo.tsv`,
            `Category.tsv`, `UserInfo.tsv`, `VisitsStream.tsv` and `PhoneRequestsStream.tsv`;
            plain, .gz or .xz.
        output: dataset directory to make; must not exist.
        test_from: first day of the test split; None: the last day with searches.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    return prepare_log(
        source, output, lambda db: read_avito(db, source, test_from=test_from), limits
    )


def read_avito(
    connection: duckdb.DuckDBPyConnection, source: Path, *, test_from: date | None = None
) -> DatasetSpec:
    """Make the tables of `prepare_log` of the files.

    Raises:
        DatasetError: files are missing, damaged or inconsistent.
    """
    load_impressions(connection, source)
    load_searches(connection, source)
    load_ads(connection, source)
    load_users(connection, source)
    load_visits(connection, source)
    _make_requests(connection)
    _make_candidates(connection)
    _make_behaviours(connection)
    return DatasetSpec(
        name="avito",
        source="Avito Context Ad Clicks (Kaggle 2015), contextual ads of trainSearchStream",
        features=_FEATURES,
        test_from=start_of_test(connection, test_from),
        category_entity="category",
        action_entity="action",
    )


def _make_requests(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(f"""
        CREATE TABLE rows AS
        SELECT search, search AS request_id, user_id, timestamp,
            text AS query_id, coalesce(regexp_extract_all(text, '[^\\s]+'), []) AS query_terms,
            category AS query_category, params AS query_params,
            timestamp // {DAY_MS // 24} % 24 AS hour, (timestamp // {DAY_MS} + 3) % 7 AS weekday,
            location, list_length, device, agent, os, logged_on
        FROM searches
        JOIN (
            SELECT search, count(DISTINCT ad) AS list_length FROM impressions GROUP BY search
        ) USING (search)
        LEFT JOIN users USING (user_id)
    """)
    number_requests(connection, "rows", order="timestamp, request_id")


def _make_candidates(connection: duckdb.DuckDBPyConnection) -> None:
    """Make view `candidates`; an ad that a search shows twice is clicked if it is anywhere."""
    connection.execute("""
        CREATE VIEW candidates AS
        SELECT number, position AS place, position, shown.ad AS item_id,
            ads.category AS category_id, parent AS category_parent,
            ads.location AS item_location, ln(1 + price) AS log_price, hist_ctr, label
        FROM (
            SELECT search, ad, min(position) AS position, arg_min(hist_ctr, position) AS hist_ctr,
                max(is_click) AS label
            FROM impressions GROUP BY search, ad
        ) shown
        JOIN requests USING (search)
        LEFT JOIN ads ON ads.ad = shown.ad
        LEFT JOIN parents ON parents.category = ads.category
    """)


def _make_behaviours(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE VIEW behaviours AS
        SELECT user_id, ad AS item, category, action, timestamp
        FROM (
            FROM visits
            UNION ALL
            SELECT DISTINCT user_id, ad, 'click', timestamp
            FROM impressions JOIN searches USING (search) WHERE is_click = 1
        )
        LEFT JOIN ads USING (ad)
    """)
