"""RecSys Challenge 2019 (trivago hotel search): from the official files to a dataset directory.

request    one `clickout item` event; its impressions are the candidates, the clicked one has label 1
query      the last destination, poi or item searched for in the session, else the city; filters
item       hotel; category: its city; price, price rank and price tier; optional metadata
context    hour, weekday, position in the list, step in the session, filters, list length
scene      device, platform (country site), last kind of search action, sort order
history    every event of the user on a hotel: looking at images, clicking out, searching for it ...

The log has no time of day below a second, so the events of a user within one second get
milliseconds in the order of their steps: histories are strictly ordered, and the clickout of a
request is no part of its own history.
"""

import logging
import shutil
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_stream import find_csv, stream_csv
from cdp_torchrec.data.prepare.database import (
    EngineLimits,
    first_row,
    open_database,
    scalar,
    sql_string,
)
from cdp_torchrec.data.prepare.staging import (
    DatasetSpec,
    build_dataset,
    engine_errors,
    staging_beside,
)
from cdp_torchrec.data.schema import DatasetError, Feature, Kind, Level, Role, Schema

logger = logging.getLogger(__name__)

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
_CLICKOUT = "action_type = 'clickout item'"
_ITEM_EVENT = """(
    (action_type IN ('clickout item', 'search for item') OR action_type LIKE 'interaction item %')
    AND regexp_full_match(reference, '[0-9]+')
)"""
# Share of the list that is not dearer.
_PRICE_RANK = "cume_dist() OVER (PARTITION BY number ORDER BY price)"
_DAY_MS = 24 * 3600 * 1000
_REQUESTS_PER_FILE = 200_000


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
        OSError: the dataset cannot be written.
    """
    limits = limits or EngineLimits()
    log = find_csv(source, "train.csv", "events.csv")
    if log is None:
        raise DatasetError(f"{source}: neither train.csv nor events.csv there (plain, .gz or .xz)")
    metadata = find_csv(source, "item_metadata.csv")
    with staging_beside(output) as staging:
        with engine_errors(str(log)), open_database(staging / "work", limits) as connection:
            _load_events(connection, log)
            _order_events(connection, log)
            num_dropped = _number_requests(connection, log)
            if test_from is None:
                test_ms = scalar(connection, "SELECT max(timestamp) FROM requests")
                test_ms -= test_ms % _DAY_MS
            else:
                midnight = datetime(test_from.year, test_from.month, test_from.day, tzinfo=UTC)
                test_ms = round(midnight.timestamp()) * 1000
            _load_items(connection, metadata, test_ms)
            _stage_requests(connection, staging / "requests", metadata is not None)
            _stage_behaviours(connection, staging / "behaviours")
        shutil.rmtree(staging / "work")
        spec = DatasetSpec(
            name="trivago",
            source=f"RecSys Challenge 2019 (trivago), {log.name}; {num_dropped} clickouts left out",
            features=features(metadata is not None),
            test_from=test_ms,
            category_entity="category",
            action_entity="action",
        )
        return build_dataset(staging, output, spec, limits)


def features(has_metadata: bool) -> tuple[Feature, ...]:
    """Columns of the requests and their roles."""

    def make(role: Role, level: Level, kind: Kind, **entities: str | None) -> list[Feature]:
        return [
            Feature(name=name, role=role, level=level, kind=kind, entity=entity)
            for name, entity in entities.items()
        ]

    same = {name: name for name in ("hour", "weekday", "step_bucket")}
    scene = {name: name for name in ("device", "platform", "search_source", "sort_order")}
    return (
        *make("user", "request", "id", user_id="user"),
        *make("query", "request", "id", query_id="query"),
        *make("query", "request", "ids", query_filters="filter"),
        *make("item", "candidate", "id", item_id="item", category_id="category"),
        *make("item", "candidate", "id", price_tier="price_tier"),
        *make("item", "candidate", "number", log_price=None, price_rank=None),
        *(make("item", "candidate", "id", star_rating="star_rating") if has_metadata else []),
        *(make("item", "candidate", "number", num_properties=None) if has_metadata else []),
        *make("context", "request", "id", **same),
        *make("context", "candidate", "id", position="position"),
        *make("context", "request", "number", num_filters=None, list_length=None),
        *make("scene", "request", "id", **scene),
    )


def _load_events(connection: duckdb.DuckDBPyConnection, log: Path) -> None:
    """Make table `raw_events`, all strings and `line`, and check each row by itself."""
    _load_csv(connection, "raw_events", log, COLUMNS)
    rules = {
        "user_id IS NULL OR session_id IS NULL OR action_type IS NULL": (
            "user_id, session_id or action_type is empty"
        ),
        "try_cast(timestamp AS BIGINT) IS NULL": "timestamp is no whole number of seconds",
        "coalesce(try_cast(step AS BIGINT), 0) < 1": "step is no number from 1",
        f"{_CLICKOUT} AND len({_split('impressions')}) <> len({_split('prices')})": (
            "impressions and prices are of unequal length"
        ),
        f"{_CLICKOUT} AND len(list_filter({_split('prices')}, "
        "lambda p: coalesce(try_cast(p AS DOUBLE), -1) < 0)) > 0": "prices holds no number",
    }
    cases = " ".join(f"WHEN {condition} THEN {i}" for i, condition in enumerate(rules))
    bad = first_row(connection, f"""
        SELECT * FROM (SELECT line, CASE {cases} END AS rule FROM raw_events)
        WHERE rule IS NOT NULL ORDER BY line LIMIT 1
    """)
    if bad:
        raise DatasetError(f"{log}: line {bad[0]}: {list(rules.values())[bad[1]]}")


def _order_events(connection: duckdb.DuckDBPyConnection, log: Path) -> None:
    """Make table `events`: typed, with `visit` and a timestamp that is strict within a user.

    A session id can come back later with steps from 1: that is another visit.
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
    bad = first_row(connection, """
        SELECT line, step, previous_line, previous_step, session_id FROM stepped_events
        WHERE step <= previous_step AND step <> 1 ORDER BY line LIMIT 1
    """)
    if bad:
        line, step, previous_line, previous_step, session = bad
        raise DatasetError(
            f"{log}: line {line}: step order of session {session} is unknown: step {step} is "
            f"not earlier in time than step {previous_step} of line {previous_line}"
        )
    connection.execute("""
        CREATE TABLE events AS
        SELECT * EXCLUDE (start, previous_step, previous_line)
            REPLACE (timestamp * 1000 + row_number() OVER second - 1 AS timestamp)
        FROM (
            SELECT *, min(timestamp) OVER (PARTITION BY user_id, session_id, visit) AS start
            FROM (
                SELECT *, sum((step <= previous_step)::INTEGER) OVER (
                    PARTITION BY user_id, session_id ORDER BY timestamp, step, line
                ) AS visit
                FROM stepped_events
            )
        )
        WINDOW second AS (PARTITION BY user_id, timestamp ORDER BY start, session_id, visit, step)
    """)
    crowded = first_row(connection, """
        SELECT user_id, timestamp // 1000 AS second, count(*) AS n
        FROM events GROUP BY ALL HAVING n > 1000 ORDER BY ALL LIMIT 1
    """)
    connection.execute("DROP TABLE raw_events; DROP TABLE stepped_events")
    if crowded:
        raise DatasetError(
            f"{log}: user {crowded[0]} has {crowded[2]} events in second {crowded[1]}; "
            "at most 1000 can be put in order"
        )


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
        WHERE {_CLICKOUT} AND list_contains({_split("impressions")}, reference)
        ORDER BY number
    """)
    num_requests = scalar(connection, "SELECT count(*) FROM requests")
    num_clickouts = scalar(connection, f"SELECT count(*) FROM events WHERE {_CLICKOUT}")
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


def _load_items(
    connection: duckdb.DuckDBPyConnection, metadata: Path | None, test_ms: int
) -> None:
    """Make table `items` (item, city, price_tier) from the log before the test split, and
    `metadata` (item, star_rating, num_properties).

    The log names the city of the search, not of the hotel, so a hotel's city is the one under
    which it was seen most often.
    """
    connection.execute(f"""
        CREATE TABLE items AS
        WITH seen AS (
            SELECT unnest({_split("impressions")}) AS item, city FROM requests
            WHERE timestamp < {test_ms}
            UNION ALL
            SELECT reference AS item, city FROM events
            WHERE {_ITEM_EVENT} AND timestamp < {test_ms}
        ), ranked AS (
            SELECT item, {_PRICE_RANK} AS price_rank FROM (
                SELECT number, unnest({_split("impressions")}) AS item,
                    unnest({_split("prices")})::DOUBLE AS price
                FROM requests WHERE timestamp < {test_ms}
            )
        ), tiers AS (
            -- Rounded, so that the order of summation does not matter.
            SELECT item, percent_rank() OVER (ORDER BY round(avg(price_rank), 9)) AS share
            FROM ranked GROUP BY item
        ), cities AS (
            SELECT item, city FROM seen WHERE city IS NOT NULL GROUP BY item, city
            QUALIFY row_number() OVER (PARTITION BY item ORDER BY count(*) DESC, city) = 1
        )
        SELECT item, city, 1 + least(4, floor(5 * share))::INTEGER AS price_tier
        FROM cities FULL JOIN tiers USING (item)
    """)
    if metadata is None:
        return
    _load_csv(connection, "raw_metadata", metadata, ("item_id", "properties"))
    repeated = first_row(connection, """
        SELECT item_id, min(line), max(line) FROM raw_metadata
        GROUP BY item_id HAVING count(*) > 1 ORDER BY item_id LIMIT 1
    """)
    if repeated:
        raise DatasetError(
            f"{metadata}: item {repeated[0]} occurs in line {repeated[1]} and line {repeated[2]}"
        )
    connection.execute(f"""
        CREATE TABLE metadata AS
        SELECT item_id AS item, len({_split("properties")}) AS num_properties,
            list_filter({_split("properties")}, lambda p: regexp_full_match(p, '[1-5] Star'))[1]
                AS star_rating
        FROM raw_metadata
    """)


def _stage_requests(
    connection: duckdb.DuckDBPyConnection, directory: Path, has_metadata: bool
) -> None:
    directory.mkdir()
    columns = [f.name for f in features(has_metadata) if f.level == "candidate"] + ["label"]
    lists = ", ".join(f"list({name} ORDER BY position) AS {name}" for name in columns)
    num_requests = scalar(connection, "SELECT count(*) FROM requests")
    for start in range(0, num_requests, _REQUESTS_PER_FILE):
        within = f"WHERE number >= {start} AND number < {start + _REQUESTS_PER_FILE}"
        path = directory / f"part-{start // _REQUESTS_PER_FILE:05d}.parquet"
        connection.execute(f"""
            COPY (
                WITH listed AS (
                    SELECT number, reference, city AS request_city,
                        unnest({_split("impressions")}) AS item_id,
                        unnest({_split("prices")})::DOUBLE AS price,
                        generate_subscripts({_split("impressions")}, 1) AS position
                    FROM requests {within}
                ), candidates AS (
                    SELECT *, (item_id = reference)::INTEGER AS label,
                        coalesce(items.city, request_city) AS category_id,
                        CASE WHEN price > 0 THEN ln(price) END AS log_price,
                        {_PRICE_RANK} AS price_rank
                    FROM listed LEFT JOIN items ON items.item = item_id
                    {"LEFT JOIN metadata ON metadata.item = item_id" if has_metadata else ""}
                )
                SELECT concat_ws('/', user_id, session_id, visit, step) AS request_id,
                    user_id, timestamp,
                    coalesce(last_search, city) AS query_id,
                    coalesce({_split("current_filters")}, []) AS query_filters,
                    timestamp // 3600000 % 24 AS hour,
                    (timestamp // {_DAY_MS} + 3) % 7 AS weekday,
                    length(bin(step)) AS step_bucket,
                    coalesce(len({_split("current_filters")}), 0) AS num_filters,
                    len(label) AS list_length,
                    device, platform,
                    coalesce(search_source, 'none') AS search_source,
                    coalesce(sort_order, 'none') AS sort_order,
                    l.* EXCLUDE (number)
                FROM (FROM requests {within})
                JOIN (SELECT number, {lists} FROM candidates GROUP BY number) l USING (number)
                ORDER BY number
            ) TO {sql_string(str(path))} (FORMAT parquet)
        """)


def _stage_behaviours(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    directory.mkdir()
    connection.execute(f"""
        COPY (
            SELECT user_id, reference AS item, coalesce(items.city, events.city) AS category,
                action_type AS action, timestamp
            FROM events LEFT JOIN items ON items.item = reference WHERE {_ITEM_EVENT}
        ) TO {sql_string(str(directory / "part-00000.parquet"))} (FORMAT parquet)
    """)


def _load_csv(
    connection: duckdb.DuckDBPyConnection, table: str, path: Path, columns: Sequence[str]
) -> None:
    """Make the table of these columns, as strings, and `line`."""
    declared = ", ".join(f"{name} VARCHAR" for name in columns)
    connection.execute(f"CREATE TABLE {table} ({declared}, line BIGINT)")
    for batch in stream_csv(path, columns):
        connection.register("batch", batch)
        connection.execute(f"INSERT INTO {table} FROM batch")
        connection.unregister("batch")


def _split(column: str) -> str:
    """SQL: the parts of a '|'-list; null where the column is."""
    return f"string_split({column}, '|')"
