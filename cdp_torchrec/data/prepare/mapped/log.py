"""Requests and candidates of a mapped log whose rows are impressions, or requests with lists.

Tables made here, and by `drawn_negatives` for a log that does not say what was shown:

    request_rows     number (in the order of time), request_id, user_id, timestamp, f_<feature>...
    candidate_rows   number, place (order in the list), item_id, label (NULL: the mapping has
                     none), f_<feature>...
    positives        user_id, item_id, timestamp, f_<feature>...

They hold the features that stand in columns of the log.
"""

import duckdb

from cdp_torchrec.data.prepare.draws import random_number
from cdp_torchrec.data.prepare.mapped.candidate_lists import read_lists
from cdp_torchrec.data.prepare.mapped.doubts import doubt_labels, doubt_repeats
from cdp_torchrec.data.prepare.mapped.grouped_requests import group_requests, request_keys
from cdp_torchrec.data.prepare.mapped.log_columns import log_features, one_item_a_row
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.raw_tables import RawTable


def make_requests(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """Make the tables `request_rows`, `candidate_rows` and `positives`.

    Raises:
        DatasetError: a row makes no sense, rows of a request contradict each other, or there is
            no request.
    """
    if mapping.log.rows == "impression":
        _read_impressions(connection, log, mapping)
    else:
        read_lists(connection, log, mapping)
    group_requests(connection, log, mapping)
    own = "".join(f", f_{name}" for name in log_features(mapping, "candidate"))
    keys = " AND ".join(f"i.{key} = r.{key}" for key in request_keys(mapping))
    # Rows of a file, files of a table, candidates of a row: each has room for 2^40.
    place = f"(i._file::HUGEINT * {1 << 80} + i._row::HUGEINT * {1 << 40} + place)"
    if mapping.log.order == "hash":
        drawn = random_number("'place'", "request_id", "item_id", seed=0)
        place = f"({drawn} * {1 << 20})::BIGINT::HUGEINT * {1 << 100} + {place}"
    connection.execute(f"""
        CREATE TABLE candidate_rows AS
        SELECT number, {place} AS place, item_id, label{own}
        FROM impressions i JOIN request_rows r ON {keys};
        CREATE VIEW positives AS
        SELECT user_id, item_id, timestamp{own} FROM impressions WHERE label = 1
    """)
    doubt_repeats(connection, log)


def _read_impressions(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """Make table `impressions` of a log with one row each."""
    columns, inside, label = one_item_a_row(connection, log, mapping)
    if rule := mapping.log.label:
        values = f"SELECT {log.sql(rule.column)} AS value FROM {log.name} WHERE {inside}"
        doubt_labels(connection, log, rule, values)
    connection.execute(f"""
        CREATE TABLE impressions AS
        SELECT {columns}, 0 AS place, {label}::INTEGER AS label FROM {log.name} WHERE {inside}
    """)
