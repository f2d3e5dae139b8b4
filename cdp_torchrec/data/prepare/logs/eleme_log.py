"""The official files of Ele.me: read, and checked row by row.

impressions    request_id, file, line, label, and the features of the candidate
states         request_id, user_id, file, timestamp, hour, weekday, time_type, the features of the
               user, and the lists items, categories, hours, weekdays and gaps: the first row of
               each request in each file

A request is what one user saw at one moment. Ids of -1 and -99 are missing ones. Times are in ms as
the files have them; `gaps` (timediff_list) stay in the unit of the file.
"""

import logging
import re
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import first_row
from cdp_torchrec.data.prepare.database import (
    Rule,
    check_lines,
    list_rule,
    load_csv,
    matches,
    scalar,
)
from cdp_torchrec.data.prepare.log_times import Clock
from cdp_torchrec.data.prepare.logs.eleme_times import request_clock
from cdp_torchrec.data.schema import DatasetError

logger = logging.getLogger(__name__)

COLUMNS = (
    *("label", "user_id", "gender", "visit_city", "avg_price", "is_supervip", "ctr_30", "ord_30"),
    *("total_amt_30", "shop_id", "item_id", "city_id", "district_id", "shop_aoi_id"),
    *("shop_geohash_6", "shop_geohash_12", "brand_id", "category_1_id"),
    *("merge_standard_food_id", "rank_7", "rank_30", "rank_90", "shop_id_list", "item_id_list"),
    *("category_1_id_list", "merge_standard_food_id_list", "brand_id_list", "price_list"),
    *("shop_aoi_id_list", "shop_geohash6_list", "timediff_list", "hours_list", "time_type_list"),
    *("weekdays_list", "times", "hours", "time_type", "weekdays", "geohash12"),
)
_LABELS = ("label", "clicked", "ctr")
"""What the first column of a file with a header is called."""
_FILE = re.compile(r"D[0-9]+_[0-9]+[.]csv([.]gz|[.]xz)?")

USER_IDS = {"gender": "gender", "visit_city": "visit_city", "supervip": "is_supervip"}
USER_NUMBERS = {
    "log_avg_price": "avg_price",
    "log_clicks": "ctr_30",
    "log_orders": "ord_30",
    "log_amount": "total_amt_30",
}
ITEM_IDS = {
    "item_id": "item_id",
    "category_id": "category_1_id",
    "shop": "shop_id",
    "brand": "brand_id",
    "food": "merge_standard_food_id",
    "district": "district_id",
    "area": "shop_aoi_id",
    "geohash": "shop_geohash_6",
    "city": "city_id",
}
ITEM_NUMBERS = {f"log_rank_{days}": f"rank_{days}" for days in (7, 30, 90)}
_ALIGNED = ("category_1_id_list", "hours_list", "weekdays_list")
"""Lists as long as item_id_list."""


def load_files(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make tables `impressions` and `states`.

    Raises:
        DatasetError: files are missing, damaged or inconsistent.
    """
    connection.execute(f"""
        CREATE TABLE impressions (
            request_id VARCHAR, file INTEGER, line BIGINT, label INTEGER,
            {", ".join(f"{name} VARCHAR" for name in ITEM_IDS)},
            {", ".join(f"{name} DOUBLE" for name in ITEM_NUMBERS)}
        );
        CREATE TABLE states (
            request_id VARCHAR, user_id VARCHAR, file INTEGER, timestamp BIGINT,
            {", ".join(f"{name} VARCHAR" for name in USER_IDS)},
            {", ".join(f"{name} DOUBLE" for name in USER_NUMBERS)},
            time_type VARCHAR, hour INTEGER, weekday INTEGER, items VARCHAR[],
            categories VARCHAR[], hours INTEGER[], weekdays INTEGER[], gaps DOUBLE[]
        )
    """)
    clock: Clock | None = None
    for file, path in enumerate(_found(source)):
        _load_raw(connection, path)
        clock = clock or request_clock(connection, path)
        check_lines(connection, "raw", path, _rules(clock))
        _add_rows(connection, path, file, clock)


def _found(source: Path) -> list[Path]:
    if not source.is_dir():
        raise DatasetError(f"{source}: no such directory")
    paths = sorted(path for path in source.iterdir() if _FILE.fullmatch(path.name))
    if not paths:
        raise DatasetError(f"{source}: no D1_0.csv or the like there (plain, .gz or .xz)")
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(path.name.partition(".")[0], path)
        if other != path:
            raise DatasetError(f"{source}: {other.name} and {path.name} are the same file")
    return paths


def _load_raw(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Make table `raw` of a file, which may have a header."""
    headless = CsvFormat(names=COLUMNS, quote=None)
    first = headless.cells(first_row(path, headless))[:1]
    has_header = bool(first) and first[0] in _LABELS
    label = first[0] if has_header else "label"
    needed = [label, "user_id", *USER_IDS.values(), *USER_NUMBERS.values()]
    needed += [*ITEM_IDS.values(), *ITEM_NUMBERS.values(), "item_id_list", *_ALIGNED]
    needed += ["timediff_list", "times", "hours", "time_type", "weekdays"]
    load_csv(connection, "raw", path, needed, CsvFormat(quote=None) if has_header else headless)
    if label != "label":
        connection.execute(f"ALTER TABLE raw RENAME COLUMN {label} TO label")


def _rules(clock: Clock) -> list[Rule]:
    hour = "try_cast(hours AS INTEGER) BETWEEN 0 AND 23"
    numbers = [*USER_NUMBERS.values(), *ITEM_NUMBERS.values()]
    return [
        Rule(f"NOT {matches('label', '[01]([.]0+)?')}", "label is neither 0 nor 1", "label"),
        Rule(f"{_known('user_id')} IS NULL", "there is no user_id"),
        Rule(f"{clock.milliseconds} IS NULL", clock.unreadable, "times"),
        Rule(clock.is_impossible, "times is no time from 1990 to 2099", "times"),
        Rule(f"NOT coalesce({hour}, false)", "hours is no hour from 0 to 23", "hours"),
        Rule(f"NOT {matches('weekdays', '[0-7]')}", "weekdays is no day from 0 to 7", "weekdays"),
        *(
            Rule(
                f"{name} IS NOT NULL AND try_cast({name} AS DOUBLE) IS NULL",
                f"{name} is no number",
                name,
            )
            for name in numbers
        ),
        *(
            Rule(
                f"len({_parts(name)}) <> len({_parts('item_id_list')})",
                f"item_id_list and {name} are lists of unequal length",
                f"len({_parts('item_id_list')}) || ' and ' || len({_parts(name)})",
            )
            for name in _ALIGNED
        ),
        Rule(
            f"len({_parts('item_id_list')}) - len({_parts('timediff_list')}) NOT IN (0, 1)",
            "timediff_list must be as long as item_id_list, or one shorter",
            f"len({_parts('timediff_list')}) || ' for ' || len({_parts('item_id_list')})",
        ),
        list_rule(
            _parts("timediff_list"),
            f"NOT {matches('x', '(-?[0-9]{1,10}([.][0-9]*)?)?')}",
            "timediff_list holds something else than numbers joined by ';'",
        ),
        *(
            list_rule(
                _parts(name),
                f"NOT {matches('x', '(-?[0-9]{1,2})?')}",
                f"{name} holds something else than whole numbers joined by ';'",
            )
            for name in ("hours_list", "weekdays_list")
        ),
    ]


def _parts(column: str) -> str:
    return f"coalesce(string_split({column}, ';'), [])"


def _known(column: str) -> str:
    """SQL: an id, null where it stands for a missing one."""
    return f"CASE WHEN {column} NOT IN ('-1', '-99', '') THEN {column} END"


def _log(column: str) -> str:
    """SQL: a number that is never negative, except where it is missing."""
    value = f"{column}::DOUBLE"
    return f"CASE WHEN {value} >= 0 THEN ln(1 + {value}) END"


def _add_rows(connection: duckdb.DuckDBPyConnection, path: Path, file: int, clock: Clock) -> None:
    """Add the rows of table `raw`, which is dropped, to `impressions` and `states`."""
    num_rows = scalar(connection, "SELECT count(*) FROM raw")
    connection.execute(f"DELETE FROM raw WHERE {_known('item_id')} IS NULL")
    num_left_out = num_rows - scalar(connection, "SELECT count(*) FROM raw")
    if num_left_out:
        logger.warning("%s: %d rows left out: they have no item", path, num_left_out)
    request = "user_id || '/' || times"
    connection.execute(f"""
        INSERT INTO impressions
        SELECT {request}, {file}, line, label::DOUBLE::INTEGER,
            {", ".join(_known(column) for column in ITEM_IDS.values())},
            {", ".join(_log(column) for column in ITEM_NUMBERS.values())}
        FROM raw;
        INSERT INTO states
        SELECT {request}, user_id, {file}, {clock.milliseconds},
            {", ".join(_known(column) for column in USER_IDS.values())},
            {", ".join(_log(column) for column in USER_NUMBERS.values())},
            {_known("time_type")}, hours::INTEGER, weekdays::INTEGER,
            list_transform({_parts("item_id_list")}, lambda x: {_known("x")}),
            list_transform({_parts("category_1_id_list")}, lambda x: {_known("x")}),
            list_transform({_parts("hours_list")}, lambda x: try_cast(x AS INTEGER)),
            list_transform({_parts("weekdays_list")}, lambda x: try_cast(x AS INTEGER)),
            list_transform({_parts("timediff_list")}, lambda x: try_cast(x AS DOUBLE))
        FROM raw SEMI JOIN (
            SELECT min(line) AS line FROM raw GROUP BY user_id, times
        ) firsts USING (line);
        DROP TABLE raw
    """)
