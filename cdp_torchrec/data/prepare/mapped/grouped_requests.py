"""Requests of a mapped log, out of the rows of their candidates."""

import logging

import duckdb

from cdp_torchrec.data.prepare.database import first_row, scalar
from cdp_torchrec.data.prepare.mapped.log_columns import log_features
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.raw_tables import RawTable
from cdp_torchrec.data.prepare.table_config import moment
from cdp_torchrec.data.schema import DatasetError

logger = logging.getLogger(__name__)


def request_keys(mapping: MappingConfig) -> list[str]:
    """Columns of `impressions` that tell requests apart."""
    if mapping.log.request:
        return [f"k{number}" for number in range(len(mapping.log.request))]
    return ["_file", "_row"] if mapping.log.rows == "request" else ["user_id", "timestamp"]


def group_requests(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """Make table `request_rows` of `impressions`, numbered in the order of time.

    Raises:
        DatasetError: rows of a request contradict each other, or there is no request.
    """
    keys = request_keys(mapping)
    features = log_features(mapping, "request")
    same = {"user_id": mapping.log.user} | {
        f"f_{name}": feature.column or name for name, feature in features.items()
    }
    values = [f"min({name}) AS {name}" for name in same if name not in keys]
    many = [
        f"(min({name}) IS DISTINCT FROM max({name}) OR count({name}) NOT IN (0, count(*))) "
        f"AS many_{name}"
        for name in same
    ]
    time = "min(timestamp) AS timestamp, " if "timestamp" not in keys else ""
    # The row alone would name a request of every file that comes later, too.
    names = ["min(timestamp)", *keys] if "_row" in keys else keys
    start = mapping.split.requests_from
    connection.execute(f"""
        CREATE TABLE grouped AS
        SELECT {", ".join(keys)}, {time}concat_ws('/', {", ".join(names)}) AS request_id,
            {", ".join([*values, *many])}, max(timestamp) - min(timestamp) AS span,
            min(_file * {1 << 40} + _row) AS first_row, max(_file * {1 << 40} + _row) AS last_row
        FROM impressions GROUP BY {", ".join(keys)}
    """)
    for name, column in same.items():
        bad = first_row(
            connection, f"SELECT request_id FROM grouped WHERE many_{name} ORDER BY 1 LIMIT 1"
        )
        if bad:
            raise DatasetError(
                f"{log.paths[0]}: request {bad[0]} has more than one value of '{column}': is it "
                "of level 'candidate', or a column that log.request needs?"
            )
    _check_names(connection, log, mapping)
    _check_moments(connection, log, mapping)
    connection.execute(f"""
        CREATE TABLE request_rows AS
        SELECT row_number() OVER (ORDER BY timestamp, request_id) - 1 AS number,
            * EXCLUDE (span, first_row, last_row, {", ".join(f"many_{name}" for name in same)})
        FROM grouped {f"WHERE timestamp >= {moment(start)}" if start else ""}
    """)
    connection.execute("DROP TABLE grouped")
    if scalar(connection, "SELECT count(*) FROM request_rows") == 0:
        raise DatasetError(f"{log.paths[0]}: no request at or after requests_from ({start})")


def _check_names(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """No two requests may get one name, as those of 'a/b', 'c' and of 'a', 'b/c' would."""
    columns = mapping.log.request
    if len(columns) < 2:
        return
    bad = first_row(
        connection,
        "SELECT request_id FROM grouped GROUP BY request_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1",
    )
    if bad:
        raise DatasetError(
            f"{log.paths[0]}: two requests would be named {bad[0]}, since values of "
            f"{list(columns)} hold a '/' themselves"
        )


def _check_moments(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """Rows of one request: one each where a row is a request, and at about the same time."""
    if mapping.log.rows == "request":
        bad = first_row(
            connection,
            "SELECT request_id, first_row, last_row FROM grouped WHERE first_row <> last_row "
            "ORDER BY first_row LIMIT 1",
        )
        if bad:
            request, first, last = bad
            raise DatasetError(
                f"{log.place(last >> 40, last % (1 << 40))}: request {request} stands in "
                f"{log.row} {first % (1 << 40)} already"
            )
    row = first_row(
        connection, "SELECT count(*), count(*) FILTER (span > 0), max(span) FROM grouped"
    )
    assert row is not None
    total, spread, longest = row
    if spread:
        logger.warning(
            "%s: %d of %d requests have impressions at different times, up to %.0f s apart: the "
            "first of them is the time of the request",
            log.paths[0],
            spread,
            total,
            longest / 1000,
        )
