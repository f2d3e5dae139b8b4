"""The official EB-NeRD files: opened, checked column by column and row by row, made into tables.

requests    number, request_id, user_id, session_id, timestamp and the columns of behaviors.parquet
clicks      number, user_id, item, timestamp (of the list), known_at, opened, read_time, scroll
reads       user_id, item, opened, read_time, scroll: the two history files, each read once
articles    item and the attributes of articles.parquet, if that file is there

All times are milliseconds since the epoch; the log counts whole seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.database import (
    first_broken_rule,
    first_row,
    sql_paths,
    sql_string,
)
from cdp_torchrec.data.schema import DatasetError

LONGEST_READ_S = 1800
"""The log ends a visit of a page after half an hour."""

_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class _Type:
    """A family of parquet types that a column may have."""

    expected: str
    accepts: Callable[[pa.DataType], bool]


def _list_of(element: _Type) -> _Type:
    def accepts(kind: pa.DataType) -> bool:
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return is_list and element.accepts(kind.value_type)

    return _Type(f"list of {element.expected}", accepts)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


_INTEGER = _Type("integer", pa.types.is_integer)
_NUMBER = _Type("number", _is_number)
_TIME = _Type("timestamp", pa.types.is_timestamp)
_FLAG = _Type("boolean", pa.types.is_boolean)
_TEXT = _Type("string", _is_text)

_BEHAVIORS = {
    "impression_id": _INTEGER,
    "user_id": _INTEGER,
    "session_id": _INTEGER,
    "impression_time": _TIME,
    "article_id": _INTEGER,
    "article_ids_inview": _list_of(_INTEGER),
    "article_ids_clicked": _list_of(_INTEGER),
    "device_type": _INTEGER,
    "is_sso_user": _FLAG,
    "is_subscriber": _FLAG,
    "gender": _INTEGER,
    "postcode": _INTEGER,
    "age": _INTEGER,
    "read_time": _NUMBER,
    "next_read_time": _NUMBER,
    "next_scroll_percentage": _NUMBER,
}
_HISTORY = {
    "user_id": _INTEGER,
    "impression_time_fixed": _list_of(_TIME),
    "article_id_fixed": _list_of(_INTEGER),
    "read_time_fixed": _list_of(_NUMBER),
    "scroll_percentage_fixed": _list_of(_NUMBER),
}
_ARTICLES = {"article_id": _INTEGER, "category": _INTEGER}
_ARTICLE_EXTRAS = {
    "subcategory": _list_of(_INTEGER),
    "article_type": _TEXT,
    "premium": _FLAG,
    "body": _TEXT,
    "published_time": _TIME,
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
    _open_files(connection, "behaviors", files, _BEHAVIORS)
    rules = {
        f"{name} IS NULL": f"'{name}' is null"
        for name in ("impression_id", "user_id", "session_id", "impression_time")
    }
    rules["coalesce(len(article_ids_inview), 0) = 0"] = "'article_ids_inview' is empty"
    for name in ("article_ids_inview", "article_ids_clicked"):
        rules[f"{name} IS NULL OR list_count({name}) < len({name})"] = f"'{name}' holds a null"
    rules["NOT list_has_all(article_ids_inview, article_ids_clicked)"] = (
        "'article_ids_clicked' holds an article that is not in 'article_ids_inview'"
    )
    for name in ("read_time", "next_read_time"):
        rules[_bad_seconds(name)] = f"'{name}' is no number of seconds from 0"
    _check_rows(connection, "behaviors", "impression_id", rules)
    _check_repeats(connection, "behaviors", "impression_id", files[0].parents[1])
    test_from = _start_of_validation(connection, files)
    connection.execute(f"""
        CREATE TABLE requests AS
        SELECT row_number() OVER (ORDER BY timestamp, impression_id) - 1 AS number,
            impression_id AS request_id, *
        FROM (
            SELECT * EXCLUDE (impression_time, _file, _row),
                epoch_ms(impression_time::TIMESTAMP) AS timestamp,
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
    _open_files(connection, "history", files, _HISTORY)
    lists = [name for name in _HISTORY if name != "user_id"]
    rules = {f"{name} IS NULL": f"'{name}' is null" for name in _HISTORY}
    rules |= {
        f"len({name}) <> len({lists[0]})": f"'{lists[0]}' and '{name}' are of unequal length"
        for name in lists[1:]
    }
    rules |= {f"list_count({name}) < len({name})": f"'{name}' holds a null" for name in lists[:2]}
    rules[f"len(list_filter(read_time_fixed, lambda s: {_bad_seconds('s')})) > 0"] = (
        "'read_time_fixed' holds something else than a number of seconds from 0"
    )
    _check_rows(connection, "history", "user_id", rules)
    connection.execute("""
        CREATE TABLE reads AS
        SELECT * FROM (
            SELECT user_id, unnest(article_id_fixed) AS item,
                epoch_ms(unnest(impression_time_fixed)::TIMESTAMP) AS opened,
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
    found = _read_schema(path).names
    extras = {name: kind for name, kind in _ARTICLE_EXTRAS.items() if name in found}
    _open_files(connection, "raw_articles", [path], _ARTICLES | extras)
    _check_rows(
        connection, "raw_articles", "article_id", {"article_id IS NULL": "'article_id' is null"}
    )
    _check_repeats(connection, "raw_articles", "article_id", path)
    columns = {
        "subcategory": ("subcategory_id", "subcategory[1]"),
        "article_type": ("article_type", "article_type"),
        "premium": ("premium", "premium::VARCHAR"),
        "body": ("body_bucket", "length(bin(length(body)))"),
        "published_time": ("published", "epoch_ms(published_time::TIMESTAMP)"),
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


def _read_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: damaged or cut off parquet file: {error}") from error


def _open_files(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    files: Sequence[Path],
    columns: Mapping[str, _Type],
) -> None:
    """Make a view of these columns, `_file` and `_row`."""
    for path in files:
        if not path.is_file():
            raise DatasetError(f"{path}: no such file; the official layout has it there")
        schema = _read_schema(path)
        for name, column in columns.items():
            if name not in schema.names:
                raise DatasetError(f"{path}: column '{name}' is missing, found {schema.names}")
            kind = schema.field(name).type
            if not column.accepts(kind):
                raise DatasetError(
                    f"{path}: column '{name}' is of type {kind}, expected {column.expected}"
                )
        if pq.read_metadata(path).num_rows == 0:
            raise DatasetError(f"{path}: the file has no rows")
    connection.execute(f"""
        CREATE VIEW {view} AS
        SELECT {", ".join(columns)}, filename AS _file, file_row_number AS _row
        FROM read_parquet({sql_paths(list(files))}, filename = true, file_row_number = true)
    """)


def _check_rows(
    connection: duckdb.DuckDBPyConnection, view: str, named: str, rules: Mapping[str, str]
) -> None:
    bad = first_broken_rule(connection, view, rules, ("_file", "_row", named))
    if bad:
        message, path, row, name = bad
        raise DatasetError(f"{path}: row {row} ({named} {name}): {message}")


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
            SELECT epoch_ms(impression_time::TIMESTAMP) AS time,
                _file = {sql_string(str(files[1]))} AS later
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
