"""Ele.me (food recommendations, Tianchi 131047): from the official files to a dataset directory.

request    all rows of one user at one moment
query      there is none
item       dish; its shop, category, brand, district and area, ranks of 7, 30 and 90 days
context    hour and weekday as they stand, length of the list
scene      time of day as the log names it, city
history    the last 50 clicks of the user, which each row repeats
label      clicked

What the files do not say is decided by them, or they are refused (`eleme_times.py`): the unit of
`times` and of `timediff_list`, the clock, and whether lists begin with the newest behaviour.

A behaviour stands in the lists of many requests. It is added once: the same item of a user at the
same second, or in the same hour where times are not exact to the second; the earliest of its times
counts. It lies at least 1 ms before each request that lists it. Steps of a list without an item
(-1) or a time are left out and counted.
"""

import logging
from datetime import date
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import EngineLimits, scalar
from cdp_torchrec.data.prepare.features import (
    candidate_id,
    candidate_number,
    request_id,
    request_number,
)
from cdp_torchrec.data.prepare.log_tables import number_requests, prepare_log, start_of_test
from cdp_torchrec.data.prepare.logs.eleme_log import (
    ITEM_IDS,
    ITEM_NUMBERS,
    USER_IDS,
    USER_NUMBERS,
    load_files,
)
from cdp_torchrec.data.prepare.logs.eleme_times import HOUR_MS, decide_times, make_steps
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import Schema

logger = logging.getLogger(__name__)

_LINES = 1 << 40
"""More than a file has."""
_STEPS = 1 << 20
"""More than a list has: by this, all behaviours of an earlier request are older."""

_FEATURES = (
    request_id("user_id", "user", "user"),
    *(request_id(name, "user") for name in USER_IDS),
    *(request_number(name, "user") for name in USER_NUMBERS),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    *(candidate_id(name, "item") for name in ("shop", "brand", "food", "district", "area")),
    candidate_id("geohash", "item"),
    *(candidate_number(name, "item") for name in ITEM_NUMBERS),
    request_id("hour", "context"),
    request_id("weekday", "context"),
    request_number("list_length", "context"),
    request_id("time_type", "scene"),
    candidate_id("city", "scene"),
)


def prepare_eleme(
    source: Path,
    output: Path,
    *,
    test_from: date | None = None,
    timediff_unit: str | None = None,
    limits: EngineLimits | None = None,
) -> Schema:
    """Prepare the official files as a dataset directory.

    Args:
        source: directory of `D1_0.csv` and the others; plain, .gz or .xz.
        output: dataset directory to make; must not exist.
        test_from: first day (by the clock of the log) of the test split; None: the last day.
        timediff_unit: of `timediff_list`: seconds, minutes, hours or days; None: the files tell.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, their times do not tell what they
            mean, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    return prepare_log(
        source,
        output,
        lambda db: read_eleme(db, source, test_from=test_from, timediff_unit=timediff_unit),
        limits,
    )


def read_eleme(
    connection: duckdb.DuckDBPyConnection,
    source: Path,
    *,
    test_from: date | None = None,
    timediff_unit: str | None = None,
) -> DatasetSpec:
    """Make the tables of `prepare_log` of the files.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or their times do not tell what
            they mean.
    """
    load_files(connection, source)
    _make_requests(connection)
    columns = ", ".join([*ITEM_IDS, *ITEM_NUMBERS])
    connection.execute(f"""
        CREATE VIEW candidates AS
        SELECT number, file * {_LINES} + line AS place, {columns}, label
        FROM impressions JOIN requests USING (request_id)
    """)
    times = decide_times(connection, source, timediff_unit)
    logger.warning("%s: no document says what its times mean; taken: %s", source, times.told)
    make_steps(connection, times)
    is_exact = times.unit == "seconds" and not scalar(
        connection, "SELECT count(*) FILTER (timestamp % 1000 > 0) FROM requests"
    )
    _make_behaviours(connection, source, 1000 if is_exact else HOUR_MS)
    return DatasetSpec(
        name="eleme",
        source=f"Ele.me (Tianchi 131047); {times.told}",
        features=_FEATURES,
        test_from=start_of_test(connection, test_from, utc_offset_ms=times.utc_offset_ms),
        category_entity="category",
    )


def _make_requests(connection: duckdb.DuckDBPyConnection) -> None:
    """Make table `requests`: what differs between rows of one is that of the first row."""
    connection.execute("""
        CREATE TABLE rows AS
        SELECT states.* EXCLUDE (file), list_length
        FROM states JOIN (
            SELECT request_id, min(file) AS file, count(*) AS list_length
            FROM impressions GROUP BY request_id
        ) USING (request_id, file);
        DROP TABLE states
    """)
    number_requests(connection, "rows", order="timestamp, request_id")


def _make_behaviours(connection: duckdb.DuckDBPyConnection, source: Path, distinct_ms: int) -> None:
    """Make view `behaviours` of the steps of all lists; those of one moment keep their order.

    Args:
        connection: holds the view `steps`.
        source: named by the warning.
        distinct_ms: two steps of a user with one item are one behaviour within it.
    """
    is_known = "item IS NOT NULL AND moment >= 0"
    num_left_out = scalar(
        connection, f"SELECT count(*) FILTER (({is_known}) IS NOT TRUE) FROM steps"
    )
    if num_left_out:
        logger.warning(
            "%s: %d steps of the lists left out: they have no item or no time",
            source,
            num_left_out,
        )
    connection.execute(f"""
        CREATE TABLE merged AS
        SELECT user_id, item, category, min(moment) AS moment,
            max(age - number * {_STEPS}) AS age
        FROM steps WHERE {is_known}
        GROUP BY user_id, item, category, moment // {distinct_ms};
        CREATE VIEW behaviours AS
        SELECT user_id, item, category, moment - row_number() OVER (
                PARTITION BY user_id, moment ORDER BY age, item
            ) AS timestamp
        FROM merged
    """)
