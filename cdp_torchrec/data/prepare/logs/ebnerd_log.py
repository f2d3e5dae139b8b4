"""The official EB-NeRD files: opened, checked column by column and row by row, made into tables.

requests    number, request_id, user_id, session_id, timestamp and the columns of behaviors.parquet
clicks      number, user_id, item, timestamp (of the list), known_at, opened, read_time, scroll
reads       user_id, item, opened, read_time, scroll: the two history files, each read once
articles    item and the attributes of articles.parquet, if that file is there

All times are milliseconds since the epoch; the log counts whole seconds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.column_types import (
    FLAG,
    INTEGER,
    NUMBER,
    TEXT,
    TIME,
    ColumnType,
    list_of,
)
from cdp_torchrec.data.prepare.database import (
    Rule,
    check_rows,
    first_row,
    list_rule,
    load_parquet,
    null_rules,
)
from cdp_torchrec.data.prepare.log_times import milliseconds_of
from cdp_torchrec.data.prepare.tables import ParquetTable, open_parquet
from cdp_torchrec.data.schema import DatasetError

LONGEST_READ_S = 1800
"""The log ends a visit of a page after half an hour."""

_SPLITS = ("train", "validation")


_BEHAVIORS = {
    "impression_id": INTEGER,
    "user_id": INTEGER,
    "session_id": INTEGER,
    "impression_time": TIME,
    "article_id": INTEGER,
    "article_ids_inview": list_of(INTEGER),
    "article_ids_clicked": list_of(INTEGER),
    "device_type": INTEGER,
    "is_sso_user": FLAG,
    "is_subscriber": FLAG,
    "gender": INTEGER,
    "postcode": INTEGER,
    "age": INTEGER,
    "read_time": NUMBER,
    "next_read_time": NUMBER,
    "next_scroll_percentage": NUMBER,
}
_HISTORY = {
    "user_id": INTEGER,
    "impression_time_fixed": list_of(TIME),
    "article_id_fixed": list_of(INTEGER),
    "read_time_fixed": list_of(NUMBER),
    "scroll_percentage_fixed": list_of(NUMBER),
}
_ARTICLES = {"article_id": INTEGER, "category": INTEGER}
_ARTICLE_EXTRAS = {
    "subcategory": list_of(INTEGER),
    "article_type": TEXT,
    "premium": FLAG,
    "body": TEXT,
    "published_time": TIME,
}


def load_requests(connection: duckdb.DuckDBPyConnection, source: Path) -> int:
    """Make tables `requests`, numbered in the order of time, and `clicks`.

    A row says when the list came on screen (`impression_time`) and for how long the page stayed
    (`read_time`): the click ended it. Only then, at `opened`, does the article open, and only then
    is the click known: `known_at`, the last millisecond of the page, because the next page, often
    the next request, carries the same second. Which of several clicks was read next is not said.

    Returns:
        Time of the first validation request, ms.

    Raises:
        DatasetError: files are missing or damaged, a row makes no sense, or the splits overlap.
    """
    files = [source / split / "behaviors.parquet" for split in _SPLITS]
    behaviors = _load(connection, "behaviors", files, _BEHAVIORS)
    rules = null_rules("impression_id", "user_id", "session_id", "impression_time")
    rules.append(Rule("coalesce(len(article_ids_inview), 0) = 0", "'article_ids_inview' is empty"))
    rules += [
        Rule(f"{name} IS NULL OR list_count({name}) < len({name})", f"'{name}' holds a null")
        for name in ("article_ids_inview", "article_ids_clicked")
    ]
    rules.append(
        Rule(
            "NOT list_has_all(article_ids_inview, article_ids_clicked)",
            "'article_ids_clicked' holds an article that is not in 'article_ids_inview'",
        )
    )
    rules += [
        Rule(_bad_seconds(name), f"'{name}' is no number of seconds from 0", name)
        for name in ("read_time", "next_read_time")
    ]
    check_rows(connection, "behaviors", behaviors, rules, named="impression_id")
    _check_repeats(connection, "behaviors", "impression_id", files[0].parents[1])
    test_from = _start_of_validation(connection, files)
    connection.execute(f"""
        CREATE TABLE requests AS
        SELECT row_number() OVER (ORDER BY timestamp, impression_id) - 1 AS number,
            impression_id AS request_id, *
        FROM (
            SELECT * EXCLUDE (impression_time, _file, _row),
                {milliseconds_of("impression_time::TIMESTAMP")} AS timestamp,
                1000 * coalesce(read_time::DOUBLE, {LONGEST_READ_S}) AS shown_ms
            FROM behaviors
        )
        ORDER BY number
    """)
    connection.execute(f"""
        CREATE TABLE clicks AS
        SELECT number, user_id, unnest(article_ids_clicked) AS item, timestamp,
            {_last_ms("timestamp", "shown_ms")} AS known_at,
            (timestamp + shown_ms)::BIGINT AS opened,
            CASE WHEN len(article_ids_clicked) = 1 THEN next_read_time END AS read_time,
            CASE WHEN len(article_ids_clicked) = 1 THEN next_scroll_percentage END AS scroll
        FROM requests
    """)
    return test_from


def load_reads(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `reads`; the files overlap: a read is one (user, article, time), the longest.

    Raises:
        DatasetError: files are missing or damaged, or a row makes no sense.
    """
    files = [source / split / "history.parquet" for split in _SPLITS]
    history = _load(connection, "history", files, _HISTORY)
    lists = [name for name in _HISTORY if name != "user_id"]
    rules = null_rules(*_HISTORY)
    rules += [
        Rule(f"len({name}) <> len({lists[0]})", f"'{lists[0]}' and '{name}' are of unequal length")
        for name in lists[1:]
    ]
    rules += [
        Rule(f"list_count({name}) < len({name})", f"'{name}' holds a null") for name in lists[:2]
    ]
    rules.append(
        list_rule(
            "read_time_fixed",
            _bad_seconds("x"),
            "'read_time_fixed' holds something else than a number of seconds from 0",
        )
    )
    check_rows(connection, "history", history, rules, named="user_id")
    connection.execute(f"""
        CREATE TABLE reads AS
        SELECT * FROM (
            SELECT user_id, unnest(article_id_fixed) AS item,
                {milliseconds_of("unnest(impression_time_fixed)::TIMESTAMP")} AS opened,
                unnest(read_time_fixed) AS read_time, unnest(scroll_percentage_fixed) AS scroll
            FROM history
        )
        QUALIFY row_number() OVER (
            PARTITION BY user_id, item, opened
            ORDER BY read_time DESC NULLS LAST, scroll DESC NULLS LAST
        ) = 1
    """)


def load_articles(connection: duckdb.DuckDBPyConnection, path: Path) -> Sequence[str]:
    """Make table `articles`: item, category_id, and what else the file says of an article.

    `total_inviews`, `total_pageviews` and `total_read_time` are never read: they are counted over
    the whole log, and so know the clicks to be predicted.

    Returns:
        Names of the attributes beside the category: subcategory_id (the first one), article_type,
        premium, body_bucket (1 + floor(log2) of its characters) and published (ms).

    Raises:
        DatasetError: the file is damaged, lacks a column, or repeats an article.
    """
    articles = _load(connection, "raw_articles", [path], _ARTICLES, _ARTICLE_EXTRAS)
    check_rows(connection, "raw_articles", articles, null_rules("article_id"), named="article_id")
    _check_repeats(connection, "raw_articles", "article_id", path)
    extras = [name for name in _ARTICLE_EXTRAS if name in articles.schema.names]
    columns = {
        "subcategory": ("subcategory_id", "subcategory[1]"),
        "article_type": ("article_type", "article_type"),
        "premium": ("premium", "premium::VARCHAR"),
        "body": ("body_bucket", "length(bin(length(body)))"),
        "published_time": ("published", milliseconds_of("published_time::TIMESTAMP")),
    }
    selected = "".join(f", {columns[name][1]} AS {columns[name][0]}" for name in extras)
    connection.execute(f"""
        CREATE TABLE articles AS
        SELECT article_id AS item, category AS category_id{selected} FROM raw_articles
    """)
    return [columns[name][0] for name in extras]


def last_ms_of_read() -> str:
    """SQL: the last millisecond of a read; the next page carries the second in which it ends."""
    return _last_ms("opened", "1000 * coalesce(read_time::DOUBLE, 0)")


def _last_ms(start: str, duration_ms: str) -> str:
    return f"({start} + greatest(0, {duration_ms} - 1))::BIGINT"


def _bad_seconds(value: str) -> str:
    """SQL: a number that is known, and is negative, infinite or not a number."""
    return f"NOT coalesce({value} >= 0 AND isfinite({value}::DOUBLE), true)"


def _load(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    files: Sequence[Path],
    columns: Mapping[str, ColumnType],
    optional: Mapping[str, ColumnType] | None = None,
) -> ParquetTable:
    table = open_parquet(files, columns, optional)
    for path, num_rows in zip(table.paths, table.num_rows, strict=True):
        if num_rows == 0:
            raise DatasetError(f"{path}: the file has no rows")
    load_parquet(connection, name, table)
    return table


def _check_repeats(
    connection: duckdb.DuckDBPyConnection, view: str, key: str, source: Path
) -> None:
    repeated = first_row(
        connection,
        f"SELECT {key}, count(*) AS n FROM {view} GROUP BY {key} "
        f"HAVING n > 1 ORDER BY {key} LIMIT 1",
    )
    if repeated:
        raise DatasetError(f"{source}: {key} {repeated[0]} occurs {repeated[1]} times")


def _start_of_validation(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> int:
    """Time of the first validation request, after the last training request."""
    row = first_row(
        connection,
        f"""
        SELECT max(time) FILTER (NOT later), min(time) FILTER (later) FROM (
            SELECT {milliseconds_of("impression_time::TIMESTAMP")} AS time,
                _file = 1 AS later
            FROM behaviors
        )
        """,
    )
    assert row is not None
    last, first = row
    if last >= first:
        raise DatasetError(
            f"{files[1]}: 'impression_time' starts at {utc(first)}, but {files[0]} runs until "
            f"{utc(last)}; validation must come after training"
        )
    return first
