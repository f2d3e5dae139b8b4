"""Columns of a mapped log as SQL, each with the rules that its text must obey."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb

from cdp_torchrec.config import several
from cdp_torchrec.data.prepare.database import Rule, first_row
from cdp_torchrec.data.prepare.mapped.behaviour_config import AttributeConfig
from cdp_torchrec.data.prepare.mapped.mapping_config import FeatureConfig, MappingConfig
from cdp_torchrec.data.prepare.raw_tables import RawTable, load_table, quoted
from cdp_torchrec.data.prepare.table_config import PRINTED_NOTHING, RowRule
from cdp_torchrec.data.schema import LARGEST_NUMBER, DatasetError

logger = logging.getLogger(__name__)


def load_tables(
    connection: duckdb.DuckDBPyConnection, mapping: MappingConfig, folder: Path
) -> dict[str, RawTable]:
    """All tables of a mapping, by name.

    Raises:
        DatasetError: as `load_table`.
    """
    columns: dict[str, dict[str, bool]] = {name: {} for name in mapping.tables}
    for table, column, is_id in _used(mapping):
        columns[table][column] = columns[table].get(column, False) or is_id
    tables = {
        name: load_table(connection, f"raw_{number}", table, folder, columns[name])
        for number, (name, table) in enumerate(mapping.tables.items())
    }
    for name, table in tables.items():
        named = [column for of_table, column in _identities(mapping) if of_table == name]
        _doubt_names(connection, table, [*dict.fromkeys(named)])
    return tables


def _identities(mapping: MappingConfig) -> Iterator[tuple[str, str]]:
    """(table, column) of users, items and requests: what is one there, is one everywhere."""
    log = mapping.log
    for column in (log.user, log.item, *log.request):
        yield log.table, column
    for behaviour in mapping.behaviours.values():
        if behaviour.table is not None:
            for column in filter(None, (behaviour.user, *behaviour.item)):
                yield behaviour.table, column


def _doubt_names(
    connection: duckdb.DuckDBPyConnection, table: RawTable, names: Sequence[str]
) -> None:
    """Say which columns hold texts that programs print where there is nothing."""
    texts = ", ".join(map(quoted, PRINTED_NOTHING))
    found = []
    for name in names:
        column = table.columns[name]
        is_nothing, text = f"{column.sql} IN ({texts})", column.sql
        if column.is_list:
            is_nothing = f"list_has_any({column.sql}, [{texts}])"
            text = f"list_intersect({column.sql}, [{texts}])[1]"
        found.append(f"count(*) FILTER ({is_nothing}), min({text}) FILTER ({is_nothing})")
    if not found:
        return
    row = first_row(connection, f"SELECT count(*), {', '.join(found)} FROM {table.name}")
    assert row is not None
    for name, rows, text in zip(names, row[1::2], row[2::2], strict=True):
        if rows:
            logger.warning(
                "%s: '%s' is an id like any other in %d of %d rows of '%s': if it stands for "
                "nothing, say so in missing",
                table.paths[0],
                text,
                rows,
                row[0],
                name,
            )


def _used(mapping: MappingConfig) -> Iterator[tuple[str, str, bool]]:
    """(table, column, whether it holds ids) of everything that the mapping names."""
    log = mapping.log
    for column in (log.user, log.item, *log.request, *([log.clicked] if log.clicked else [])):
        yield log.table, column, True
    yield log.table, log.time.column, False
    for rule in (*([log.label] if log.label else []), *several(log.only)):
        yield log.table, rule.column, False
    for name, table in mapping.tables.items():
        if table.key:
            yield name, table.key, True
    for name, feature in mapping.features.items():
        if not feature.derive:
            yield feature.table or log.table, feature.column or name, feature.kind != "number"
    for name, attribute in mapping.attributes.items():
        if attribute.table:
            yield attribute.table, attribute.column or name, attribute.kind != "number"
    for behaviour in mapping.behaviours.values():
        if behaviour.table is None:
            continue
        for name, column in behaviour.attributes.items():
            yield behaviour.table, column, mapping.attributes[name].kind != "number"
        ids = (behaviour.user, behaviour.category, behaviour.action, *behaviour.item)
        for column in filter(None, ids):
            yield behaviour.table, column, True
        if behaviour.time:
            yield behaviour.table, behaviour.time.column, False
        for rule in several(behaviour.only):
            yield behaviour.table, rule.column, False


def filled(table: RawTable, *columns: str) -> list[Rule]:
    """None of the columns may be empty."""
    return [Rule(f"{table.sql(name)} IS NULL", f"'{name}' is empty") for name in columns]


def some_filled(table: RawTable, columns: Sequence[str]) -> Rule:
    """Not all of the columns may be empty."""
    are_empty = " AND ".join(f"{table.sql(name)} IS NULL" for name in columns)
    names = " and ".join(f"'{name}'" for name in columns)
    return Rule(are_empty, f"{names} {'is' if len(columns) == 1 else 'are'} empty")


def cell(feature: FeatureConfig | AttributeConfig, sql: str) -> str:
    """SQL: a feature or attribute that is no bag, from the text of a cell."""
    if feature.kind == "number":
        return f"try_cast({sql} AS DOUBLE)"
    if feature.separator:
        return f"nullif(split_part({sql}, {quoted(feature.separator)}, 1), '')"
    return sql


def cells(
    table: RawTable,
    features: Mapping[str, FeatureConfig | AttributeConfig],
    *,
    prefix: str = "f_",
    columns_of: Mapping[str, str] | None = None,
) -> tuple[str, list[Rule]]:
    """Features or attributes in columns of a table that are no lists of candidates.

    Args:
        table: where they stand.
        features: by name.
        prefix: of their names in the engine.
        columns_of: column of each; without it, their own.

    Returns:
        SQL: `, <value> AS <prefix><name>` of each; what their text may not be.
    """
    columns, rules = "", []
    for name, feature in features.items():
        column = columns_of[name] if columns_of else feature.column or name
        if feature.kind == "ids":
            parts = table.elements(column, feature.separator)
            columns += f", list_filter({parts}, lambda x: x <> '') AS {prefix}{name}"
            continue
        is_one_of_list = isinstance(feature, FeatureConfig) and feature.takes_first
        value = table.first(column) if is_one_of_list else table.sql(column)
        if feature.kind == "number":
            rules += number_rules(column, value)
        columns += f", {cell(feature, value)} AS {prefix}{name}"
    return columns, rules


def number_rules(name: str, sql: str) -> list[Rule]:
    """A text that is there must be a number that float32 has; NaN stands for a missing one."""
    # The engine takes 1_000 for a number, and NaN for the largest of all.
    number = f"try_cast({sql} AS DOUBLE)"
    return [
        Rule(
            f"{sql} IS NOT NULL AND ({number} IS NULL OR contains({sql}, '_'))",
            f"'{name}' is no number",
            sql,
        ),
        Rule(
            f"abs({number}) > {LARGEST_NUMBER!r} AND NOT isnan({number})",
            f"'{name}' is a number beyond {LARGEST_NUMBER:.3g}",
            sql,
        ),
    ]


def counts(rule: RowRule, sql: str) -> str:
    """SQL: whether a row counts."""
    if rule.filled:
        return f"coalesce({sql} <> '', false)"  # elements of lists may be ''
    if rule.above is not None:
        return f"(try_cast({sql} AS DOUBLE) > {rule.above!r})"
    return f"({sql} IN ({', '.join(map(quoted, rule.one_of))}))"


def count_rules(rule: RowRule, sql: str) -> list[Rule]:
    """What a column that decides which rows count may not be."""
    if rule.filled:
        return []
    empty = Rule(f"{sql} IS NULL", f"'{rule.column}' is empty")
    if rule.above is None:
        return [empty]
    no_number = Rule(f"isnan(try_cast({sql} AS DOUBLE))", f"'{rule.column}' is no number", sql)
    boolean = Rule(
        f"lower({sql}) IN ('true', 'false')",
        f"'{rule.column}' is a text, which one_of names and above does not compare",
        sql,
    )
    return [empty, boolean, *number_rules(rule.column, sql), no_number]


def counting_rows(
    connection: duckdb.DuckDBPyConnection, table: RawTable, rule: RowRule, name: str
) -> RawTable:
    """The rows of a table that count by a rule: nothing else is asked of the others.

    Args:
        connection: holds the table.
        table: all rows.
        rule: which ones count.
        name: of the view that has them.

    Raises:
        DatasetError: a row does not say whether it counts.
    """
    found = table.columns[rule.column]
    if rule.filled and found.is_list:
        column = f"CASE WHEN len({found.sql}) > 0 THEN 'elements' END"
    else:
        column = table.sql(rule.column)
    table.check(connection, count_rules(rule, column))
    connection.execute(f"CREATE VIEW {name} AS FROM {table.name} WHERE {counts(rule, column)}")
    return replace(table, name=name)


def check_attributes(connection: duckdb.DuckDBPyConnection, table: RawTable, key: str) -> None:
    """Each user or item of a table of attributes must stand there once.

    Raises:
        DatasetError: one is empty, or occurs twice.
    """
    table.check(connection, filled(table, key))
    repeated = first_row(
        connection,
        f"SELECT {table.sql(key)} AS k, min((_file, _row)), max((_file, _row)) FROM {table.name} "
        "GROUP BY k HAVING count(*) > 1 ORDER BY k LIMIT 1",
    )
    if repeated:
        value, first, last = repeated
        raise DatasetError(
            f"{table.place(*_pair(last))}: '{key}' {value} stands in {table.row} "
            f"{_pair(first)[1]} already"
        )


def _pair(struct: Mapping[str, int] | tuple[int, int]) -> tuple[int, int]:
    file, row = struct.values() if isinstance(struct, Mapping) else struct
    return file, row
