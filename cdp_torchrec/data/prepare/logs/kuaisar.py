"""KuaiSAR (search and recommendation of Kuaishou): from the official files to a dataset directory.

request    a search session: the results shown for one search
query      the keyword, whole and as a bag of its (anonymised) terms
item       what was shown, mostly videos; its type, author and category
context    hour and weekday in Beijing, length of the list
scene      where the search came from
history    clicks of the user, in searches and on recommendations
label      clicked

Point in time. A click of a search has the time of its session, one on a recommendation that of the
delivery: the files have no other, and the videos of a delivery are watched for minutes. Both count
for searches of a later time only. Recommendations are history, never requests.

The files have no position, no page and no client. Lists stand in the order of the file, of which
nobody says what it means, so it is no feature. Two in five sessions have no click, because the
first result plays by itself; the documentation allows to take it for clicked, which is not done.
"""

import logging
from datetime import date
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import first_row, needed_csv
from cdp_torchrec.data.prepare.database import (
    EngineLimits,
    Rule,
    check_lines,
    check_unique_lines,
    load_csv,
    matches,
    scalar,
)
from cdp_torchrec.data.prepare.features import (
    candidate_id,
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
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import Schema

logger = logging.getLogger(__name__)

_HOUR_MS = 3600 * 1000
_BEIJING_MS = 8 * _HOUR_MS
_LEVELS = ("first", "second", "third")
_UNKNOWN = "'0', '\u7a7a', 'empty'"  # the second one says "empty" in Chinese
_KEYWORD = r"\s*\[\s*([0-9]+\s*(,\s*[0-9]+\s*)*)?\]\s*"

_FEATURES = (
    request_id("user_id", "user", "user"),
    request_id("search_activity", "user"),
    request_id("recommendation_activity", "user"),
    request_id("onehot_1", "user"),
    request_id("onehot_2", "user"),
    request_id("query_id", "query", "query"),
    request_ids("query_terms", "query", "term"),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    candidate_id("category_1", "item"),
    candidate_id("category_3", "item"),
    candidate_id("item_type", "item"),
    candidate_id("author", "item"),
    request_id("hour", "context"),
    request_id("weekday", "context"),
    request_number("list_length", "context"),
    request_id("search_source", "scene"),
)


def prepare_kuaisar(
    source: Path,
    output: Path,
    *,
    test_from: date | None = None,
    limits: EngineLimits | None = None,
) -> Schema:
    """Prepare the official files as a dataset directory.

    Args:
        source: directory of `src_inter.csv`, `rec_inter.csv`, `item_features.csv` and
            `user_features.csv`; plain, .gz or .xz.
        output: dataset directory to make; must not exist.
        test_from: first day (in Beijing) of the test split; None: the last day with searches.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    return prepare_log(
        source, output, lambda db: read_kuaisar(db, source, test_from=test_from), limits
    )


def read_kuaisar(
    connection: duckdb.DuckDBPyConnection, source: Path, *, test_from: date | None = None
) -> DatasetSpec:
    """Make the tables of `prepare_log` of the files.

    Raises:
        DatasetError: files are missing, damaged or inconsistent.
    """
    _load_searches(connection, source)
    _load_recommendations(connection, source)
    _load_items(connection, source)
    _load_users(connection, source)
    _make_requests(connection, source / "src_inter.csv")
    _make_candidates(connection)
    _make_behaviours(connection)
    return DatasetSpec(
        name="kuaisar",
        source="KuaiSAR (Kuaishou): searches, with the clicks on recommendations as history",
        features=_FEATURES,
        test_from=start_of_test(connection, test_from, utc_offset_ms=_BEIJING_MS),
        category_entity="category",
        action_entity="action",
    )


def _load_searches(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `searches`: a row for each item shown in a session, in the order of the file."""
    path = needed_csv(source, "src_inter.csv")
    columns = ("user_id", "search_session_id", "search_session_timestamp", "keyword")
    columns += ("search_source", "item_id", "item_type", "click_cnt")
    load_csv(connection, "raw_searches", path, columns)
    rules = [
        Rule(f"{name} IS NULL", f"{name} is empty")
        for name in ("user_id", "search_session_id", "item_id")
    ]
    rules.append(_time_rule("search_session_timestamp"))
    rules.append(
        Rule(
            f"NOT {matches('click_cnt', '[0-9]{1,9}([.]0+)?')}",
            "click_cnt is no number of clicks",
            "click_cnt",
        )
    )
    check_lines(connection, "raw_searches", path, rules)
    num_unreadable = scalar(
        connection,
        f"SELECT count(*) FROM raw_searches "
        f"WHERE keyword IS NOT NULL AND NOT {matches('keyword', _KEYWORD)}",
    )
    if num_unreadable:
        logger.warning(
            "%s: the keyword of %d lines is no list such as [20, 34, 3]: they have no query",
            path,
            num_unreadable,
        )
    connection.execute(f"""
        CREATE TABLE searches AS
        SELECT user_id, search_session_id AS session, {_time("search_session_timestamp")} AS moment,
            CASE WHEN {matches("keyword", _KEYWORD)}
                THEN regexp_extract_all(keyword, '[0-9]+') ELSE [] END AS terms,
            search_source, item_id AS item, item_type, (click_cnt::DOUBLE > 0) AS is_click, line
        FROM raw_searches;
        DROP TABLE raw_searches
    """)


def _load_recommendations(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `watched`: the clicks on recommendations."""
    path = needed_csv(source, "rec_inter.csv")
    load_csv(connection, "raw_watched", path, ("user_id", "item_id", "timestamp", "click"))
    rules = [
        Rule("user_id IS NULL OR item_id IS NULL", "user_id or item_id is empty"),
        _time_rule("timestamp"),
        Rule(f"NOT {matches('click', '[01]([.]0+)?')}", "click is neither 0 nor 1", "click"),
    ]
    check_lines(connection, "raw_watched", path, rules)
    connection.execute(f"""
        CREATE TABLE watched AS
        SELECT user_id, item_id AS item, {_time("timestamp")} AS timestamp
        FROM raw_watched WHERE click::DOUBLE = 1;
        DROP TABLE raw_watched
    """)


def _load_items(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `items` (item, category_1, category_id, category_3, author).

    A category is the path to it, so that a level counts under its own parent.
    """
    path = needed_csv(source, "item_features.csv")
    columns = [f"{level}_level_category_id" for level in _LEVELS]
    load_csv(connection, "raw_items", path, ("item_id", "author_id", *columns))
    check_lines(connection, "raw_items", path, [Rule("item_id IS NULL", "item_id is empty")])
    check_unique_lines(connection, "raw_items", path, "item_id")
    known = [f"CASE WHEN lower({name}) NOT IN ({_UNKNOWN}) THEN {name} END" for name in columns]
    connection.execute(f"""
        CREATE TABLE items AS
        SELECT item_id AS item, nullif(author_id, '0') AS author, {known[0]} AS category_1,
            {" || '/' || ".join(known[:2])} AS category_id,
            {" || '/' || ".join(known)} AS category_3
        FROM raw_items;
        DROP TABLE raw_items
    """)


def _load_users(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `users`. The files spell one of its columns in two ways."""
    path = needed_csv(source, "user_features.csv")
    form = CsvFormat()
    header = form.cells(first_row(path, form))
    activity = "reco_active_level" if "reco_active_level" in header else "rec_active_level"
    columns = ("user_id", "search_active_level", activity, "onehot_feat1", "onehot_feat2")
    load_csv(connection, "raw_users", path, columns)
    check_lines(connection, "raw_users", path, [Rule("user_id IS NULL", "user_id is empty")])
    check_unique_lines(connection, "raw_users", path, "user_id")
    connection.execute(f"""
        CREATE TABLE users AS
        SELECT user_id, search_active_level AS search_activity,
            {activity} AS recommendation_activity, onehot_feat1 AS onehot_1,
            onehot_feat2 AS onehot_2
        FROM raw_users;
        DROP TABLE raw_users
    """)


def _make_requests(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Make table `requests`: a session is one request, at its first moment."""
    num_several = scalar(
        connection,
        """
        SELECT count(*) FROM (
            SELECT 1 FROM searches GROUP BY user_id, session
            HAVING count(DISTINCT terms) > 1 OR count(DISTINCT moment) > 1
        )
        """,
    )
    if num_several:
        logger.warning(
            "%s: %d sessions have several keywords or times: the first ones count",
            path,
            num_several,
        )
    connection.execute(f"""
        CREATE TABLE rows AS
        SELECT *,
            (timestamp + {_BEIJING_MS}) // {_HOUR_MS} % 24 AS hour,
            ((timestamp + {_BEIJING_MS}) // {DAY_MS} + 3) % 7 AS weekday,
            nullif(array_to_string(query_terms, ' '), '') AS query_id
        FROM (
            SELECT user_id || '/' || session AS request_id, user_id, session,
                min(moment) AS timestamp, arg_min(terms, line) AS query_terms,
                arg_min(search_source, line) AS search_source,
                count(DISTINCT item) AS list_length
            FROM searches GROUP BY user_id, session
        )
        LEFT JOIN users USING (user_id)
    """)
    number_requests(connection, "rows", order="timestamp, request_id")


def _make_candidates(connection: duckdb.DuckDBPyConnection) -> None:
    """Make view `candidates`; an item that a list repeats is clicked if it is anywhere."""
    connection.execute("""
        CREATE VIEW candidates AS
        SELECT number, place, item AS item_id, category_id, category_1, category_3, item_type,
            author, label
        FROM (
            SELECT number, item, min(line) AS place, arg_min(item_type, line) AS item_type,
                max(is_click)::INTEGER AS label
            FROM searches JOIN requests USING (user_id, session)
            GROUP BY number, item
        )
        LEFT JOIN items USING (item)
    """)


def _make_behaviours(connection: duckdb.DuckDBPyConnection) -> None:
    """Make view `behaviours`: what was clicked, of both kinds."""
    connection.execute("""
        CREATE VIEW behaviours AS
        SELECT user_id, item, category_id AS category, action, timestamp
        FROM (
            SELECT user_id, item, 'recommendation' AS action, timestamp FROM watched
            UNION ALL
            -- From the last moment of a session on: it is never history of itself.
            SELECT user_id, item, 'search', max(moment) OVER (PARTITION BY user_id, session)
            FROM searches QUALIFY is_click
        )
        LEFT JOIN items USING (item)
    """)


def _time_rule(column: str) -> Rule:
    return Rule(
        f"NOT coalesce(try_cast({column} AS DOUBLE) BETWEEN 1e12 AND 4e12, false)",
        f"{column} is no time from 2001 to 2096 in milliseconds",
        column,
    )


def _time(column: str) -> str:
    return f"{column}::DOUBLE::BIGINT"
