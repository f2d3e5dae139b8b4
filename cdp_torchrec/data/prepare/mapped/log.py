"""Requests and candidates of a mapped log whose rows are impressions, or requests with lists.

Tables made here, and by `drawn_negatives` for a log that does not say what was shown:

    request_rows     number (in the order of time), request_id, user_id, timestamp, f_<feature>...
    candidate_rows   number, place (order in the list), item_id, label (NULL: the mapping has
                     none), f_<feature>...
    positives        user_id, item_id, timestamp, f_<feature>...

They hold the features that stand in columns of the log.
"""

import logging

import duckdb

from cdp_torchrec.data.prepare.database import Rule, first_row, scalar
from cdp_torchrec.data.prepare.draws import random_number
from cdp_torchrec.data.prepare.mapped.columns import (
    cell,
    cells,
    count_rules,
    counts,
    filled,
    number_rules,
    times,
)
from cdp_torchrec.data.prepare.mapped.mapping_config import FeatureConfig, MappingConfig
from cdp_torchrec.data.prepare.raw_tables import RawTable
from cdp_torchrec.data.prepare.table_config import RowRule, moment
from cdp_torchrec.data.schema import DatasetError

logger = logging.getLogger(__name__)

_VALUES_SAID = 5
_MOST_REPEATED = 0.2
"""Share of the candidates that may stand in their request already, as of requests in a log."""
_ENOUGH = 50
"""A share of fewer candidates says nothing."""


def log_features(mapping: MappingConfig, level: str) -> dict[str, FeatureConfig]:
    """Features of a level that stand in columns of the log."""
    return {
        name: feature
        for name, feature in mapping.features.items()
        if feature.level == level and not feature.table and not feature.derive
    }


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
        _read_lists(connection, log, mapping)
    _group(connection, log, mapping)
    own = "".join(f", f_{name}" for name in log_features(mapping, "candidate"))
    keys = " AND ".join(f"i.{key} = r.{key}" for key in _keys(mapping))
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
    _doubt_repeats(connection, log)


def _keys(mapping: MappingConfig) -> list[str]:
    """Columns of `impressions` that tell requests apart."""
    if mapping.log.request:
        return [f"k{number}" for number in range(len(mapping.log.request))]
    return ["_file", "_row"] if mapping.log.rows == "request" else ["user_id", "timestamp"]


def columns_of_request(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> tuple[str, str]:
    """SQL: what all candidates of a row share; condition of rows that count. All are checked."""
    config = mapping.log
    milliseconds, inside = times(connection, log, config.time, mapping)
    features, rules = cells(log, log_features(mapping, "request"))
    log.check(connection, [*filled(log, config.user, *config.request), *rules])
    keys = [f"{log.sql(column)} AS k{n}" for n, column in enumerate(config.request)]
    shared = [f"{log.sql(config.user)} AS user_id", f"{milliseconds} AS timestamp"]
    return ", ".join(["_file", "_row", *shared, *keys]) + features, inside


def one_item_a_row(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> tuple[str, str, str]:
    """SQL: columns of a log with one item in each row; rows that count; label. All are checked.

    Without a label in the mapping it is NULL.
    """
    config = mapping.log
    shared, inside = columns_of_request(connection, log, mapping)
    features, rules = cells(log, log_features(mapping, "candidate"))
    rules += filled(log, config.item)
    label = "NULL::BOOLEAN"
    if config.label:
        column = log.sql(config.label.column)
        rules += count_rules(config.label, column)
        label = counts(config.label, column)
    log.check(connection, rules)
    return f"{shared}, {log.sql(config.item)} AS item_id{features}", inside, label


def _read_impressions(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """Make table `impressions` of a log with one row each."""
    columns, inside, label = one_item_a_row(connection, log, mapping)
    if rule := mapping.log.label:
        values = f"SELECT {log.sql(rule.column)} AS value FROM {log.name} WHERE {inside}"
        _doubt_labels(connection, log, rule, values)
    connection.execute(f"""
        CREATE TABLE impressions AS
        SELECT {columns}, 0 AS place, {label}::INTEGER AS label FROM {log.name} WHERE {inside}
    """)


def _read_lists(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> None:
    """Make table `impressions` of a log with lists of candidates."""
    config = mapping.log
    shared, inside = columns_of_request(connection, log, mapping)
    features = log_features(mapping, "candidate")
    columns = {f"f_{name}": feature.column or name for name, feature in features.items()}
    if config.label:
        columns["label"] = config.label.column
    items = log.elements(config.item, config.separator)
    lists = {name: log.elements(column, config.separator) for name, column in columns.items()}
    for name, column in columns.items():
        if name != "label" and not log.columns[column].is_list:
            # How else would the text of a list look whose only element is missing?
            lists[name] = f"coalesce({lists[name]}, CASE len({items}) WHEN 1 THEN [''] END)"
    advice = f"log.only = {{column = '{config.item}', filled = true}} leaves such rows out"
    empty = f"the list '{config.item}' is empty; {advice}"
    rules = [Rule(f"{items} IS NULL OR len({items}) = 0", empty)]
    no_item = f"list_filter({items}, lambda x: x IS NULL OR x = '')"
    rules.append(Rule(f"len({no_item}) > 0", f"the list '{config.item}' holds an empty item"))
    for name, elements in lists.items():
        rules.append(
            Rule(
                f"len({elements}) IS DISTINCT FROM len({items})",
                f"the lists '{config.item}' and '{columns[name]}' are of unequal length",
                f"concat_ws(' and ', len({items}), coalesce(len({elements}), 0))",
            )
        )
    log.check(connection, rules)
    unnested = [f"unnest({elements}) AS {name}" for name, elements in lists.items()]
    label = "label"
    if not config.label:
        unnested.append("NULL AS label")
    if config.clicked:
        clicked = _clicked(log, mapping)
        unnested.append(f"coalesce({clicked}, []) AS clicked")
        label = "list_contains(clicked, item_id)"
        _doubt_clicks(connection, log, items, clicked)
    elif config.label:
        _check_elements(connection, log, lists["label"], count_rules(config.label, "x"))
        label = counts(config.label, "label")
        values = f"SELECT unnest({lists['label']}) AS value FROM {log.name} WHERE {inside}"
        _doubt_labels(connection, log, config.label, values)
    for name, feature in features.items():
        if feature.kind == "number":
            rules = number_rules(feature.column or name, "nullif(x, '')")
            _check_elements(connection, log, lists[f"f_{name}"], rules)
    values = [
        f"""{cell(feature, f"nullif(f_{name}, '')")} AS f_{name}"""
        for name, feature in features.items()
    ]
    connection.execute(f"""
        CREATE TABLE impressions AS
        SELECT *{" EXCLUDE (clicked)" if config.clicked else ""}
            REPLACE ({", ".join([f"{label}::INTEGER AS label", *values])})
        FROM (
            SELECT {shared}, generate_subscripts({items}, 1) AS place,
                unnest({items}) AS item_id, {", ".join(unnested)}
            FROM {log.name} WHERE {inside}
        )
    """)


def _check_elements(
    connection: duckdb.DuckDBPyConnection, log: RawTable, elements: str, rules: list[Rule]
) -> None:
    """Check each element x of a list."""
    bad = [f"list_filter({elements}, lambda x: {rule.broken})" for rule in rules]
    log.check(
        connection,
        [
            Rule(f"len({b}) > 0", f"{rule.message} in the list", f"{b}[1]")
            for b, rule in zip(bad, rules, strict=True)
        ],
    )


def _doubt_labels(
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


def _clicked(log: RawTable, mapping: MappingConfig) -> str:
    """SQL: the clicked items of a row."""
    column = mapping.log.clicked
    assert column is not None
    if log.columns[column].is_list or mapping.log.separator:
        return log.elements(column, mapping.log.separator)
    return f"CASE WHEN {log.sql(column)} IS NOT NULL THEN [{log.sql(column)}] END"


def _doubt_clicks(
    connection: duckdb.DuckDBPyConnection, log: RawTable, items: str, clicked: str
) -> None:
    missed = scalar(
        connection,
        f"SELECT coalesce(sum(len(list_filter({clicked}, lambda x: x <> '' AND NOT "
        f"list_contains({items}, x)))), 0)::BIGINT FROM {log.name}",
    )
    if missed:
        logger.warning("%s: %d clicked items are not in their list", log.paths[0], missed)


def _group(connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig) -> None:
    """Make table `request_rows` of `impressions`, numbered in the order of time."""
    keys = _keys(mapping)
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


def _doubt_repeats(connection: duckdb.DuckDBPyConnection, log: RawTable) -> None:
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
