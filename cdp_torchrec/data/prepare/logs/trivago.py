"""RecSys Challenge 2019 (trivago hotel search): from the official files to a dataset directory.

request    one `clickout item` event; impressions are the candidates, label 1 is the clicked one
query      the last destination, poi or item searched for in the session, else the city; filters
item       hotel; category: its city; price, price rank and price tier; optional metadata
context    hour, weekday, position in the list, step in the session, filters, list length
scene      device, platform (country site), last kind of search action, sort order
history    every event of the user on a hotel: looking at images, clicking out, searching for it ...

What is known of a hotel, its category and price tier, comes from what was seen strictly before the
request (`trivago_items.py`); a hotel seen for the first time has the city of the request and no
tier. A list may hold the clicked hotel twice: its first place counts as the click, and the others
are left out, because whether they were clicked is not said.

The log has a list only if it was clicked, and the time of the click, not of the display. So the
request happens at the click: its history holds what its user did between seeing the list and
clicking, for example looking at images of a hotel in it, which a ranker that makes the list would
not have.

The log has no time of day below a second, so the events of a user within one second get
milliseconds in the order of their steps: histories are strictly ordered, and the clickout of a
request is no part of its own history.
"""

import logging
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_tables import find_csv
from cdp_torchrec.data.prepare.database import (
    EngineLimits,
    check_unique_lines,
    load_csv,
    open_database,
    scalar,
    sql_path,
)
from cdp_torchrec.data.prepare.features import (
    candidate_id,
    candidate_number,
    request_id,
    request_ids,
    request_number,
)
from cdp_torchrec.data.prepare.log_tables import DAY_MS, start_of_test
from cdp_torchrec.data.prepare.logs.trivago_items import PRICE_RANK, SECOND, follow_items
from cdp_torchrec.data.prepare.logs.trivago_log import (
    IS_CLICKOUT,
    IS_ITEM_EVENT,
    load_events,
    order_events,
    split_list,
)
from cdp_torchrec.data.prepare.staging import (
    DatasetSpec,
    build_dataset,
    preparing,
    request_parts,
    staging_beside,
)
from cdp_torchrec.data.schema import DatasetError, Feature, Schema

logger = logging.getLogger(__name__)

_REQUESTS_PER_FILE = 200_000


_FEATURES = (
    request_id("user_id", "user", "user"),
    request_id("query_id", "query", "query"),
    request_ids("query_filters", "query", "filter"),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    candidate_id("price_tier", "item"),
    candidate_number("log_price", "item"),
    candidate_number("price_rank", "item"),
    request_id("hour", "context"),
    request_id("weekday", "context"),
    candidate_id("position", "context"),
    request_id("step_bucket", "context"),
    request_number("num_filters", "context"),
    request_number("list_length", "context"),
    request_id("device", "scene"),
    request_id("platform", "scene"),
    request_id("search_source", "scene"),
    request_id("sort_order", "scene"),
)
_METADATA_FEATURES = (
    candidate_id("star_rating", "item"),
    candidate_number("num_properties", "item"),
)


def prepare_trivago(
    source: Path,
    output: Path,
    *,
    test_from: date | None = None,
    limits: EngineLimits | None = None,
) -> Schema:
    """Prepare the official files as a dataset directory.

    Args:
        source: directory of `train.csv` (or `events.csv`) and optionally `item_metadata.csv`;
            plain, .gz or .xz.
        output: dataset directory to make; must not exist.
        test_from: first day (UTC) of the test split; None: the day of the last request.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    limits = limits or EngineLimits()
    log = find_csv(source, "train.csv", "events.csv")
    if log is None:
        raise DatasetError(f"{source}: neither train.csv nor events.csv there (plain, .gz or .xz)")
    metadata = find_csv(source, "item_metadata.csv")
    features = (*_FEATURES, *(_METADATA_FEATURES if metadata else ()))
    with preparing(output), staging_beside(output) as staging:
        with open_database(staging / "work", limits) as connection:
            load_events(connection, log)
            order_events(connection, log)
            num_dropped = _number_requests(connection, log)
            test_ms = start_of_test(connection, test_from)
            follow_items(connection)
            if metadata:
                _load_metadata(connection, metadata)
            _stage_requests(connection, staging / "requests", features)
            _stage_behaviours(connection, staging / "behaviours")
        shutil.rmtree(staging / "work")
        spec = DatasetSpec(
            name="trivago",
            source=f"RecSys Challenge 2019 (trivago), {log.name}; {num_dropped} clickouts left out",
            features=features,
            test_from=test_ms,
            category_entity="category",
            action_entity="action",
        )
        return build_dataset(staging, output, spec, limits, log=log)


def _number_requests(connection: duckdb.DuckDBPyConnection, log: Path) -> int:
    """Make table `requests`, numbered; returns how many clickouts lack the clicked item."""
    searches = "'search for destination', 'search for poi', 'search for item'"
    connection.execute(f"""
        CREATE TABLE requests AS
        SELECT row_number() OVER (ORDER BY timestamp, user_id) - 1 AS number, *
        FROM (
            SELECT *,
                last_value(CASE WHEN action_type IN ({searches}) THEN reference END IGNORE NULLS)
                    OVER visit AS last_search,
                last_value(CASE WHEN action_type = 'change of sort order' THEN reference END
                    IGNORE NULLS) OVER visit AS sort_order,
                last_value(CASE WHEN action_type IN ({searches}, 'filter selection',
                    'change of sort order') THEN action_type END IGNORE NULLS)
                    OVER visit AS search_source
            FROM events WINDOW visit AS (PARTITION BY user_id, session_id, visit ORDER BY step)
        )
        WHERE {IS_CLICKOUT} AND list_contains({split_list("impressions")}, reference)
        ORDER BY number
    """)
    num_requests = scalar(connection, "SELECT count(*) FROM requests")
    num_clickouts = scalar(connection, f"SELECT count(*) FROM events WHERE {IS_CLICKOUT}")
    num_dropped = num_clickouts - num_requests
    if num_requests == 0:
        raise DatasetError(f"{log}: none of {num_clickouts} clickouts has its item in impressions")
    if num_dropped:
        logger.warning(
            "%s: %d of %d clickouts left out: the clicked item is not in impressions",
            log,
            num_dropped,
            num_clickouts,
        )
    return num_dropped


def _load_metadata(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Make table `metadata` (item, star_rating, num_properties)."""
    load_csv(connection, "raw_metadata", path, ("item_id", "properties"))
    check_unique_lines(connection, "raw_metadata", path, "item_id")
    connection.execute(f"""
        CREATE TABLE metadata AS
        SELECT item_id AS item, len({split_list("properties")}) AS num_properties,
            list_filter({split_list("properties")}, lambda p: regexp_full_match(p, '[1-5] Star'))[1]
                AS star_rating
        FROM raw_metadata
    """)


def _stage_requests(
    connection: duckdb.DuckDBPyConnection, directory: Path, features: Sequence[Feature]
) -> None:
    directory.mkdir()
    columns = [f.name for f in features if f.level == "candidate"] + ["label"]
    has_metadata = set(_METADATA_FEATURES) <= set(features)
    metadata = ", star_rating, num_properties" if has_metadata else ""
    lists = ", ".join(f"list({name} ORDER BY position) AS {name}" for name in columns)
    for within, path in request_parts(connection, directory, size=_REQUESTS_PER_FILE):
        connection.execute(f"""
            COPY (
                WITH listed AS (
                    SELECT number, {SECOND} AS second, reference, city AS request_city,
                        unnest({split_list("impressions")}) AS item_id,
                        unnest({split_list("prices")})::DOUBLE AS price,
                        generate_subscripts({split_list("impressions")}, 1) AS position
                    FROM requests {within}
                ), candidates AS (
                    SELECT listed.*, (item_id = reference)::INTEGER AS label,
                        coalesce(item_cities.city, request_city) AS category_id, price_tier,
                        CASE WHEN price > 0 THEN ln(price) END AS log_price,
                        {PRICE_RANK} AS price_rank{metadata}
                    FROM listed
                    ASOF LEFT JOIN item_cities ON item_cities.item = item_id
                        AND item_cities.second < listed.second
                    ASOF LEFT JOIN item_tiers ON item_tiers.item = item_id
                        AND item_tiers.second < listed.second
                    {"LEFT JOIN metadata ON metadata.item = item_id" if has_metadata else ""}
                    -- Which of its places was clicked is not said: the first one counts.
                    QUALIFY label = 0
                        OR row_number() OVER (PARTITION BY number, item_id ORDER BY position) = 1
                )
                SELECT concat_ws('/', user_id, session_id, visit, step) AS request_id,
                    user_id, timestamp,
                    coalesce(last_search, city) AS query_id,
                    coalesce({split_list("current_filters")}, []) AS query_filters,
                    timestamp // 3600000 % 24 AS hour,
                    (timestamp // {DAY_MS} + 3) % 7 AS weekday,
                    length(bin(step)) AS step_bucket,
                    coalesce(len({split_list("current_filters")}), 0) AS num_filters,
                    len({split_list("impressions")}) AS list_length,
                    device, platform,
                    coalesce(search_source, 'none') AS search_source,
                    coalesce(sort_order, 'none') AS sort_order,
                    l.* EXCLUDE (number)
                FROM (FROM requests {within})
                JOIN (SELECT number, {lists} FROM candidates GROUP BY number) l USING (number)
                ORDER BY number
            ) TO {sql_path(path)} (FORMAT parquet)
        """)


def _stage_behaviours(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    directory.mkdir()
    connection.execute(f"""
        COPY (
            SELECT user_id, reference AS item, coalesce(item_cities.city, e.city) AS category,
                action_type AS action, timestamp
            FROM (SELECT *, {SECOND} AS second FROM events WHERE {IS_ITEM_EVENT}) e
            ASOF LEFT JOIN item_cities ON item_cities.item = reference
                AND item_cities.second < e.second
        ) TO {sql_path(directory / "part-00000.parquet")} (FORMAT parquet)
    """)
