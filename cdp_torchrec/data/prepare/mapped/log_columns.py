"""Columns of a mapped log as SQL: what the candidates of a row share, and the one of a row."""

import duckdb

from cdp_torchrec.data.prepare.database import Rule
from cdp_torchrec.data.prepare.mapped.columns import cells, count_rules, counts
from cdp_torchrec.data.prepare.mapped.mapping_config import FeatureConfig, MappingConfig
from cdp_torchrec.data.prepare.mapped.times import times
from cdp_torchrec.data.prepare.raw_tables import RawTable


def log_features(mapping: MappingConfig, level: str) -> dict[str, FeatureConfig]:
    """Features of a level that stand in columns of the log."""
    return {
        name: feature
        for name, feature in mapping.features.items()
        if feature.level == level and not feature.table and not feature.derive
    }


def columns_of_request(
    connection: duckdb.DuckDBPyConnection, log: RawTable, mapping: MappingConfig
) -> tuple[str, str]:
    """SQL: what all candidates of a row share; condition of rows that count. All are checked."""
    config = mapping.log
    milliseconds, inside = times(connection, log, config.time, mapping)
    features, rules = cells(log, log_features(mapping, "request"))
    log.check(connection, [*_needed(log, config.user, *config.request), *rules])
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
    rules += _needed(log, config.item)
    label = "NULL::BOOLEAN"
    if config.label:
        column = log.sql(config.label.column)
        rules += count_rules(config.label, column)
        label = counts(config.label, column)
    log.check(connection, rules)
    return f"{shared}, {log.sql(config.item)} AS item_id{features}", inside, label


def _needed(log: RawTable, *columns: str) -> list[Rule]:
    """None of the columns may be empty, and what to do about it."""
    said = "'{0}' is empty; log.only = {{column = '{0}', filled = true}} leaves such rows out"
    return [Rule(f"{log.sql(name)} IS NULL", said.format(name)) for name in columns]
