"""What is doubtful about a mapped log, though it can be read."""

import logging

import duckdb

from cdp_torchrec.data.prepare.database import first_row, scalar
from cdp_torchrec.data.prepare.mapped.columns import counts
from cdp_torchrec.data.prepare.raw_tables import RawTable
from cdp_torchrec.data.prepare.table_config import RowRule
from cdp_torchrec.data.schema import DatasetError

logger = logging.getLogger(__name__)

_VALUES_SAID = 5
_MOST_REPEATED = 0.2
"""Share of the candidates that may stand in their request already, as of requests in a log."""
_ENOUGH = 50
"""A share of fewer candidates says nothing."""


def doubt_labels(
    connection: duckdb.DuckDBPyConnection, log: RawTable, rule: RowRule, values: str
) -> None:
    """Say which values count as no click, unless there is one only, and none of the clicks' form.

    Args:
        connection: holds the log.
        log: its table.
        rule: which values are clicks.
        values: SQL: column `value` with the labels of all candidates.
    """
    if not rule.one_of:
        return
    found = connection.execute(f"""
        SELECT value, share, count(*) OVER () FROM (
            SELECT value, count(*) / sum(count(*)) OVER () AS share FROM ({values}) GROUP BY value
        ) WHERE NOT {counts(rule, "value")} ORDER BY share DESC, value LIMIT {_VALUES_SAID}
    """).fetchall()
    clicks = {value.strip().lower() for value in rule.one_of}
    if len(found) < 2 and not any(value.strip().lower() in clicks for value, *_ in found):
        return
    said = ", ".join(f"{value!r} {100 * share:.3g} %" for value, share, _ in found)
    more = found[0][2] - len(found)
    logger.warning(
        "%s: '%s' has values beside one_of = %s, which all count as no click: %s%s of the "
        "candidates",
        log.paths[0],
        rule.column,
        list(rule.one_of),
        said,
        f", and {more} more" if more else "",
    )


def doubt_clicks(
    connection: duckdb.DuckDBPyConnection, log: RawTable, items: str, clicked: str
) -> None:
    """Say how many clicked items are not in their list; SQL: both lists."""
    missed = scalar(
        connection,
        f"SELECT coalesce(sum(len(list_filter({clicked}, lambda x: x <> '' AND NOT "
        f"list_contains({items}, x)))), 0)::BIGINT FROM {log.name}",
    )
    if missed:
        logger.warning("%s: %d clicked items are not in their list", log.paths[0], missed)


def doubt_repeats(connection: duckdb.DuckDBPyConnection, log: RawTable) -> None:
    """Say how many candidates are there twice.

    Raises:
        DatasetError: so many that the log cannot be meant; whole requests that are there twice are
            judged when the dataset is made.
    """
    row = first_row(
        connection,
        "SELECT sum(n)::BIGINT, coalesce(sum(n - 1) FILTER (n > 1), 0)::BIGINT "
        "FROM (SELECT count(*) AS n FROM candidate_rows GROUP BY number, item_id)",
    )
    assert row is not None
    total, repeated = row
    if not repeated:
        return
    said = (
        f"{log.paths[0]}: {repeated} of {total} candidates stand in their request already: is a "
        "file there twice, or does log.request need another column?"
    )
    if total >= _ENOUGH and repeated > _MOST_REPEATED * total:
        raise DatasetError(said)
    logger.warning(said)
