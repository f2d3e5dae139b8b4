"""Requests for a log that says what users did, and not what they were shown: negatives are drawn.

Each positive becomes a request, its item among others that had a positive of anybody strictly
before it. What would tell the label apart from taste is kept out as far as it can be:

* A positive on an item that nobody had met before is no request: it could never be a negative, so
  that an unknown item would be a click.
* Negatives by popularity are the items of past positives, each positive equally likely: popular
  items are negatives as often as they are positives. Uniform ones are past items, all alike.
* A negative has the columns of the log, such as its category, from the very row that was drawn.
* All draws are hashes of (seed, positive), and lists stand in the order of hashes.
"""

import logging

import duckdb

from cdp_torchrec.data.prepare.database import scalar
from cdp_torchrec.data.prepare.draws import random_number
from cdp_torchrec.data.prepare.mapped.log_columns import log_features, one_item_a_row
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig, SamplingConfig
from cdp_torchrec.data.prepare.raw_tables import RawTable
from cdp_torchrec.data.prepare.table_config import moment
from cdp_torchrec.data.schema import DatasetError

logger = logging.getLogger(__name__)

_DRAWS_PER_PLACE = 4
"""A draw may hit the positive, or what was drawn before."""
_DRAWS_AT_ONCE = 2_000_000


def draw_requests(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> str:
    """Make the tables `request_rows`, `candidate_rows` and `positives`, as `mapped_log` does.

    Returns:
        What was drawn, in words.

    Raises:
        DatasetError: a row makes no sense, or there is no request.
    """
    sampling = mapping.sampling
    assert sampling is not None
    _number_positives(connection, log, mapping)
    own = [f"f_{name}" for name in log_features(mapping, "candidate")]
    shared = [f"f_{name}" for name in log_features(mapping, "request")]
    _make_pool(connection, sampling, own)
    start = moment(mapping.split.requests_from) if mapping.split.requests_from else 0
    drawn = random_number("'share'", "user_id", "timestamp", "event", seed=sampling.seed)
    # The positives of the log that could be requests, and those of them that are.
    connection.execute(f"""
        CREATE TABLE possible AS
        SELECT event, user_id, item_id, p.timestamp, first
            {"".join(f", {name}" for name in [*shared, *own])}
        FROM positives p
        JOIN (SELECT item_id, min(timestamp) AS first FROM positives GROUP BY item_id)
            USING (item_id)
        WHERE p.timestamp >= {start} AND {drawn} < {sampling.share!r};
        CREATE TABLE chosen AS
        SELECT row_number() OVER (ORDER BY event) - 1 AS number,
            concat_ws('/', user_id, r.timestamp, event) AS request_id, r.* EXCLUDE (first), size
        FROM (FROM possible WHERE timestamp > first) r
        ASOF JOIN (SELECT timestamp, max(place) + 1 AS size FROM pool GROUP BY timestamp) s
            ON s.timestamp < r.timestamp;
        CREATE VIEW request_rows AS
        SELECT number, request_id, user_id, timestamp{"".join(f", {name}" for name in shared)}
        FROM chosen
    """)
    num_requests = scalar(connection, "SELECT count(*) FROM request_rows")
    num_possible = scalar(connection, "SELECT count(*) FROM possible")
    if num_requests == 0:
        raise DatasetError(
            f"{log.paths[0]}: none of {num_possible} positives can be a request: nobody had met "
            "their items before"
        )
    _draw(connection, sampling, own)
    num_short = scalar(
        connection,
        "SELECT count(*) FROM (SELECT number FROM candidate_rows GROUP BY number "
        f"HAVING count(*) <= {sampling.num_negatives})",
    )
    words = (
        f"the log does not say what was shown: {sampling.num_negatives} negatives of each of "
        f"{num_requests} positives are drawn ({sampling.weights}, seed {sampling.seed})"
    )
    logger.warning(
        "%s: %s; nobody has seen these lists. %d of %d positives are no request, as nobody had "
        "met their item before; %d requests have fewer negatives: their draws hit no more items",
        log.paths[0],
        words,
        num_possible - num_requests,
        num_possible,
        num_short,
    )
    connection.execute("DROP TABLE possible")
    return words


def _number_positives(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """Make table `positives`, numbered in the order of time."""
    columns, inside, label = one_item_a_row(connection, log, mapping)
    connection.execute(f"""
        CREATE TABLE positives AS
        SELECT row_number() OVER (ORDER BY timestamp, _file, _row) - 1 AS event,
            * EXCLUDE (_file, _row)
        FROM (SELECT {columns} FROM {log.name} WHERE {inside} AND coalesce({label}, true))
    """)


def _make_pool(
    connection: duckdb.DuckDBPyConnection, sampling: SamplingConfig, own: list[str]
) -> None:
    """Make `pool`: what can be drawn has the places before those of all that comes later."""
    columns = ", ".join(["item_id", "timestamp", *own])
    if sampling.weights == "popularity":
        connection.execute(f"CREATE VIEW pool AS SELECT event AS place, {columns} FROM positives")
    else:
        connection.execute(f"""
            CREATE TABLE pool AS
            SELECT row_number() OVER (ORDER BY timestamp, item_id) - 1 AS place, *
            FROM (
                SELECT {columns} FROM positives
                QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY event) = 1
            )
        """)


def _draw(connection: duckdb.DuckDBPyConnection, sampling: SamplingConfig, own: list[str]) -> None:
    """Make table `candidate_rows` of `chosen` and `pool`, some requests at a time."""
    features = "".join(f", {name}" for name in own)
    count, seed = sampling.num_negatives, sampling.seed
    place = random_number("'place'", "event", "item_id", seed=seed)
    connection.execute(f"""
        CREATE TABLE candidate_rows AS
        SELECT number, item_id, 1 AS label{features}, {place} AS place FROM chosen
    """)
    part = max(1, _DRAWS_AT_ONCE // (_DRAWS_PER_PLACE * count))
    for start in range(0, scalar(connection, "SELECT count(*) FROM chosen"), part):
        connection.execute(f"""
            INSERT INTO candidate_rows
            WITH draws AS (
                SELECT number, event, item_id AS positive, draw,
                    floor({random_number("'draw'", "event", "draw", seed=seed)} * size)::BIGINT
                        AS place
                FROM chosen CROSS JOIN generate_series(1, {_DRAWS_PER_PLACE * count}) AS g(draw)
                WHERE number >= {start} AND number < {start + part}
            ), hits AS (
                SELECT number, event, draw, item_id{features} FROM draws JOIN pool USING (place)
                WHERE item_id <> positive
                QUALIFY row_number() OVER (PARTITION BY number, item_id ORDER BY draw) = 1
            ), negatives AS (
                SELECT * FROM hits
                QUALIFY row_number() OVER (PARTITION BY number ORDER BY draw) <= {count}
            )
            SELECT number, item_id, 0 AS label{features}, {place} AS place FROM negatives
        """)
