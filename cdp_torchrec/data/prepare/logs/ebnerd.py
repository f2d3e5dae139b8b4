"""EB-NeRD (news of Ekstra Bladet): from the official files to a dataset directory.

request    one row of behaviors.parquet: a list shown on the front page or under an article
query      the article under which the list was shown; none on the front page
item       article; how long it is in the log, views and clicks so far; with articles.parquet its
           category, type, length and age
context    hour, weekday, position in the list, list length, kind of page, how often the user was
           shown this article before
scene      device, how many requests of the session so far
history    every article read: both history files, and the clicks of the behaviors files

Point in time. The read time and scroll depth of a row are never its features, and what a user does
on a page counts from the moment the page is left:
* A behaviour is a finished read. Its time is the end of the read, so its action type, the bucket of
  read time and scroll depth, was known then. (With the time of opening, the history file of the
  next week would tell a request under an open article how long its user stays on that page.)
* A click of others counts from the moment at which it ended their page, not from the moment at
  which their list came on screen.
What the log knows is uneven: the history file of validation holds every read of the training week,
but reads of the test week are known only if they followed a logged list, so histories grow faster
in the training week.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import EngineLimits, open_database, sql_path
from cdp_torchrec.data.prepare.features import (
    candidate_id,
    candidate_number,
    request_id,
    request_number,
)
from cdp_torchrec.data.prepare.logs.ebnerd_log import (
    LONGEST_READ_S,
    last_ms_of_read,
    load_articles,
    load_reads,
    load_requests,
)
from cdp_torchrec.data.prepare.staging import (
    DatasetSpec,
    build_dataset,
    preparing,
    request_parts,
    staging_beside,
)
from cdp_torchrec.data.schema import DatasetError, Feature, Schema
from cdp_torchrec.progress import ProgressBar

logger = logging.getLogger(__name__)

_HOUR_MS = 3600 * 1000
_DAY_MS = 24 * _HOUR_MS
_REQUESTS_PER_FILE = 100_000
# Read time in seconds, scroll depth in percent; about thirds of the reads each.
_ACTION = """
    CASE WHEN read_time IS NULL THEN 'click' ELSE
        CASE WHEN read_time < 10 THEN 'short' WHEN read_time < 60 THEN 'medium' ELSE 'long' END
        || '/' ||
        CASE WHEN scroll IS NULL THEN 'unknown' WHEN scroll < 50 THEN 'top'
            WHEN scroll < 90 THEN 'part' ELSE 'end' END
    END
"""


_FEATURES = (
    request_id("user_id", "user", "user"),
    request_id("age", "user"),
    request_id("gender", "user"),
    request_id("postcode", "user"),
    request_id("subscriber", "user"),
    request_id("sso_user", "user"),
    request_id("query_id", "query", "item"),
    candidate_id("item_id", "item", "item"),
    candidate_number("log_age", "item"),
    candidate_number("log_views_hour", "item"),
    candidate_number("log_clicks_hour", "item"),
    candidate_number("log_views_day", "item"),
    candidate_number("log_clicks_day", "item"),
    candidate_number("log_views", "item"),
    candidate_number("log_clicks", "item"),
    request_id("hour", "context"),
    request_id("weekday", "context"),
    request_id("page", "context"),
    candidate_id("position", "context"),
    request_number("list_length", "context"),
    candidate_number("log_user_views", "context"),
    candidate_number("log_user_view_age", "context"),
    request_id("device", "scene"),
    request_id("session_bucket", "scene"),
)
_CATEGORY = candidate_id("category_id", "item", "category")
_ATTRIBUTES = {
    "subcategory_id": candidate_id("subcategory_id", "item", "subcategory"),
    "article_type": candidate_id("article_type", "item"),
    "premium": candidate_id("premium", "item"),
    "body_bucket": candidate_id("body_bucket", "item"),
    "published": candidate_number("log_published_age", "item"),
}


def prepare_ebnerd(source: Path, output: Path, *, limits: EngineLimits | None = None) -> Schema:
    """Prepare the official files as a dataset directory; validation/ is the test split.

    Without articles.parquet there is no category and so no gate: the rest of the log says nothing
    of what an article is about.

    Args:
        source: directory of train/ and validation/, each with behaviors.parquet and
            history.parquet, and optionally articles.parquet.
        output: dataset directory to make; must not exist.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such directory")
    if not any((source / split).exists() for split in ("train", "validation")):
        raise DatasetError(f"{source}: expected the directory that holds train/ and validation/")
    limits = limits or EngineLimits()
    articles = source / "articles.parquet"
    has_category = articles.exists() or articles.is_symlink()  # a broken link is an error
    if not has_category:
        logger.warning("%s is not there: articles have no category, no gate", articles)
    with preparing(output), staging_beside(output) as staging:
        with (
            open_database(staging / "work", limits) as connection,
            ProgressBar("ebnerd", total=4, unit="stages") as bar,
        ):
            bar.begin("read")
            test_from = load_requests(connection, source)
            load_reads(connection, source)
            features = _FEATURES
            if has_category:
                attributes = load_articles(connection, articles)
                features += (_CATEGORY, *(_ATTRIBUTES[name] for name in attributes))
            bar.begin("count")
            _count_candidates(connection)
            bar.begin("requests")
            _stage_requests(connection, staging / "requests", features)
            bar.begin("behaviours")
            _stage_behaviours(connection, staging / "behaviours", has_category=has_category)
        shutil.rmtree(staging / "work")
        spec = DatasetSpec(
            name="ebnerd",
            source="EB-NeRD (Ekstra Bladet news)" + (", with articles" * has_category),
            features=features,
            test_from=test_from,
            category_entity="category" if has_category else None,
            action_entity="action",
        )
        return build_dataset(staging, output, spec, limits, log=source)


def _count_candidates(connection: duckdb.DuckDBPyConnection) -> None:
    """Make table `candidates`: a row per impression, and what was known of it just before.

    An article is in the log since its first list or read; a first time later than the request
    counts as unknown.
    """
    connection.execute("""
        CREATE TABLE events AS
        SELECT number, user_id, timestamp, unnest(article_ids_inview) AS item,
            generate_subscripts(article_ids_inview, 1) AS position,
            list_contains(article_ids_clicked, unnest(article_ids_inview)) AS label,
            false AS is_click
        FROM requests
        UNION ALL
        SELECT number, user_id, known_at, item, NULL, NULL, true FROM clicks
    """)
    connection.execute("""
        CREATE TABLE first_seen AS
        SELECT item, min(time) AS first_time FROM (
            SELECT item, timestamp AS time FROM events UNION ALL SELECT item, opened FROM reads
        ) GROUP BY item
    """)
    counts = ", ".join(
        f"count(*) FILTER ({condition}) OVER {window} AS {name}"
        for window in ("hour", "day", "ever")
        for name, condition in (
            (f"views_{window}", "NOT is_click"),
            (f"clicks_{window}", "is_click"),
        )
    )
    connection.execute(f"""
        CREATE TABLE candidates AS
        SELECT number, position, item, label, timestamp,
            CASE WHEN first_time < timestamp THEN timestamp - first_time END AS age, {counts},
            count(*) FILTER (NOT is_click) OVER same_user AS user_views,
            timestamp - max(timestamp) FILTER (NOT is_click) OVER same_user AS user_view_age
        FROM events JOIN first_seen USING (item)
        WINDOW
            hour AS (PARTITION BY item ORDER BY timestamp
                RANGE BETWEEN {_HOUR_MS} PRECEDING AND 1 PRECEDING),
            day AS (PARTITION BY item ORDER BY timestamp
                RANGE BETWEEN {_DAY_MS} PRECEDING AND 1 PRECEDING),
            ever AS (PARTITION BY item ORDER BY timestamp
                RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
            same_user AS (PARTITION BY item, user_id ORDER BY timestamp
                RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
        QUALIFY NOT is_click
        ORDER BY number, position
    """)
    connection.execute("DROP TABLE events; DROP TABLE first_seen")


def _stage_requests(
    connection: duckdb.DuckDBPyConnection, directory: Path, features: Sequence[Feature]
) -> None:
    directory.mkdir()
    columns = {
        "item_id": "item",
        "label": "label::INTEGER",
        "log_age": _log("age / 1000"),
        "log_views_hour": _log("views_hour"),
        "log_clicks_hour": _log("clicks_hour"),
        "log_views_day": _log("views_day"),
        "log_clicks_day": _log("clicks_day"),
        "log_views": _log("views_ever"),
        "log_clicks": _log("clicks_ever"),
        "log_user_views": _log("user_views"),
        "log_user_view_age": _log("user_view_age / 1000"),
        "log_published_age": _log(
            "CASE WHEN published <= timestamp THEN (timestamp - published) / 1000 END"
        ),
    }
    names = [f.name for f in features if f.level == "candidate"] + ["label"]
    lists = ", ".join(
        f"list({columns.get(name, name)} ORDER BY position) AS {name}" for name in names
    )
    join = "LEFT JOIN articles USING (item)" if _CATEGORY in features else ""
    connection.execute("""
        CREATE TABLE sessions AS
        SELECT number, count(*) OVER (
            PARTITION BY user_id, session_id ORDER BY timestamp
            RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS num_earlier FROM requests ORDER BY number
    """)
    for within, path in request_parts(connection, directory, size=_REQUESTS_PER_FILE):
        connection.execute(f"""
            COPY (
                SELECT request_id, user_id, timestamp,
                    age, gender, postcode,
                    is_subscriber::VARCHAR AS subscriber, is_sso_user::VARCHAR AS sso_user,
                    article_id AS query_id,
                    timestamp // {_HOUR_MS} % 24 AS hour,
                    (timestamp // {_DAY_MS} + 3) % 7 AS weekday,
                    CASE WHEN article_id IS NULL THEN 'front' ELSE 'article' END AS page,
                    len(article_ids_inview) AS list_length,
                    device_type AS device,
                    length(bin(num_earlier + 1)) AS session_bucket,
                    l.* EXCLUDE (number)
                FROM (FROM requests {within})
                JOIN (FROM sessions {within}) USING (number)
                JOIN (
                    SELECT number, {lists} FROM (FROM candidates {within}) {join} GROUP BY number
                ) l USING (number)
                ORDER BY number
            ) TO {sql_path(path)} (FORMAT parquet)
        """)


def _log(count: str) -> str:
    return f"ln(1 + {count})"


def _stage_behaviours(
    connection: duckdb.DuckDBPyConnection, directory: Path, *, has_category: bool
) -> None:
    """Stage the reads of the history files and the clicks that are not among them.

    The training week's clicks come again as reads in the history of validation. Both name the
    article; the read tells the exact moment of opening, within a visit's length after the list.
    """
    directory.mkdir()
    category = ", category_id AS category" if has_category else ""
    join = "LEFT JOIN articles USING (item)" if has_category else ""
    path = directory / "part-00000.parquet"
    connection.execute(f"""
        COPY (
            WITH behaviours AS (
                FROM reads
                UNION ALL
                SELECT user_id, item, opened, max(read_time), max(scroll)
                FROM clicks ANTI JOIN reads
                    ON reads.user_id = clicks.user_id AND reads.item = clicks.item
                    AND reads.opened >= clicks.timestamp
                    AND reads.opened <= clicks.timestamp + {1000 * LONGEST_READ_S}
                GROUP BY user_id, item, opened
            )
            SELECT user_id, item, {_ACTION} AS action, {last_ms_of_read()} AS timestamp{category}
            FROM behaviours {join}
        ) TO {sql_path(path)} (FORMAT parquet)
    """)
