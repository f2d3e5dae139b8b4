"""Behaviours of a mapped log: positives of the log, and tables of their own, with attributes."""

import logging
from collections.abc import Mapping

import duckdb

from cdp_torchrec.config import several
from cdp_torchrec.data.prepare.database import Rule, scalar
from cdp_torchrec.data.prepare.mapped.behaviour_config import BehaviourConfig
from cdp_torchrec.data.prepare.mapped.columns import (
    cell,
    cells,
    counting_rows,
    filled,
    some_filled,
)
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.mapped.times import times
from cdp_torchrec.data.prepare.raw_tables import RawTable, quoted

logger = logging.getLogger(__name__)

_TYPES = {"id": "VARCHAR", "ids": "VARCHAR[]", "number": "DOUBLE"}


def number_of(mapping: MappingConfig, table: str) -> int:
    """Number of a table, whose name may be anything."""
    return list(mapping.tables).index(table)


def gather_behaviours(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, RawTable], mapping: MappingConfig
) -> None:
    """Make the view `behaviours` of all sources.

    Raises:
        DatasetError: a row makes no sense.
    """
    queries = []
    for name, config in mapping.behaviours.items():
        if config.table:
            query = _own_behaviours(connection, tables[config.table], name, config, mapping)
        else:
            query = (
                f"SELECT user_id, item_id AS item{_category(mapping)}, {quoted(name)} AS action, "
                f"timestamp{_attributes(mapping, {})} FROM positives{_lookup(mapping, 'item_id')}"
            )
        queries.append(query)
    connection.execute(f"CREATE VIEW behaviours AS {' UNION ALL '.join(queries)}")


def _lookup(mapping: MappingConfig, item: str) -> str:
    """SQL: joins with the tables in which category and attributes of an item stand."""
    gate = mapping.features[mapping.category] if mapping.category else None
    tables = [gate.table if gate else None, *(a.table for a in mapping.attributes.values())]
    joins = ""
    for table in dict.fromkeys(tables):
        if table is not None:
            name = f"attributes_{number_of(mapping, table)}"
            joins += f" LEFT JOIN {name} ON {name}.key = {item}"
    return joins


def _category(mapping: MappingConfig) -> str:
    return f", f_{mapping.category} AS category" if mapping.category else ""


def _attributes(mapping: MappingConfig, own: Mapping[str, str]) -> str:
    """SQL: all attributes: of the item, of the source's own columns, or missing.

    Args:
        mapping: has the attributes.
        own: SQL of those that the source has, by name.
    """
    columns = ""
    for name, config in mapping.attributes.items():
        missing = f"NULL::{_TYPES[config.kind]}"
        value = f"a_{name}" if config.table else own.get(name, missing)
        columns += f', {value} AS "{name}"'
    return columns


def _own_behaviours(
    connection: duckdb.DuckDBPyConnection,
    table: RawTable,
    name: str,
    config: BehaviourConfig,
    mapping: MappingConfig,
) -> str:
    """SQL: behaviours of a table of their own, checked."""
    assert config.user and config.time
    log = mapping.log
    number = list(mapping.behaviours).index(name)
    for place, rule in enumerate(several(config.only)):
        table = counting_rows(connection, table, rule, f"counting_{number}_{place}")
    if config.only and scalar(connection, f"SELECT count(*) FROM {table.name}") == 0:
        logger.warning("%s: no row counts by behaviours.%s.only", table.paths[0], name)
    is_known = (config.table, config.time.column) == (log.table, log.time.column)
    milliseconds, inside = times(connection, table, config.time, mapping, is_known=is_known)
    rules: list[Rule] = [*filled(table, config.user), some_filled(table, config.item)]
    item = table.sql(config.item[0])
    if len(config.item) > 1:
        parts = [f"coalesce({table.sql(column)}, '')" for column in config.item]
        item = f"concat_ws('/', {', '.join(parts)})"
    own = {}
    for attribute, column in config.attributes.items():
        found = {attribute: mapping.attributes[attribute]}
        value, more = cells(table, found, prefix="a_", columns_of={attribute: column})
        own[attribute] = value.removeprefix(", ").removesuffix(f" AS a_{attribute}")
        rules += more
    table.check(connection, rules)
    gate = mapping.features[mapping.category] if mapping.category else None
    category = _category(mapping)
    if gate and (config.category or gate.table is None):
        column = config.category or gate.column or mapping.category or ""
        category = f", {cell(gate, table.first(column))} AS category"
    action = table.sql(config.action) if config.action else quoted(name)
    return (
        f"SELECT {table.sql(config.user)} AS user_id, {item} AS item{category}, {action} AS "
        f"action, {milliseconds} AS timestamp{_attributes(mapping, own)} "
        f"FROM {table.name}{_lookup(mapping, item)} WHERE {inside}"
    )
