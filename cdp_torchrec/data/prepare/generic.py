"""Any log by its mapping: from the user's own files to a dataset directory.

`mapping_config.py` says what a mapping holds. Files are loaded as text (`raw_tables`), checked
column by column (`mapped_columns`), grouped into requests (`mapped_log`, or `drawn_negatives` where
the log does not say what was shown), and staged here.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import (
    EngineLimits,
    Rule,
    first_row,
    open_database,
    scalar,
    sql_path,
)
from cdp_torchrec.data.prepare.drawn_negatives import draw_requests
from cdp_torchrec.data.prepare.mapped_columns import (
    cell,
    cells,
    check_attributes,
    count_rules,
    counts,
    filled,
    load_tables,
    times,
)
from cdp_torchrec.data.prepare.mapped_log import make_requests
from cdp_torchrec.data.prepare.mapping_config import (
    ACTION_ENTITY,
    BehaviourConfig,
    FeatureConfig,
    MappingConfig,
)
from cdp_torchrec.data.prepare.raw_tables import RawTable, quoted
from cdp_torchrec.data.prepare.staging import (
    DatasetSpec,
    build_dataset,
    preparing,
    request_parts,
    staging_beside,
)
from cdp_torchrec.data.prepare.table_config import moment
from cdp_torchrec.data.schema import DatasetError, Schema

logger = logging.getLogger(__name__)

_REQUESTS_PER_FILE = 100_000
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000


def prepare_generic(
    mapping: MappingConfig, source: Path, output: Path, *, limits: EngineLimits | None = None
) -> Schema:
    """Prepare a log as a dataset directory.

    Args:
        mapping: what its columns mean.
        source: folder of its files.
        output: dataset directory to make; must not exist.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged, or not what the mapping says, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    limits = limits or EngineLimits()
    with preparing(output), staging_beside(output) as staging:
        with open_database(staging / "work", limits) as connection:
            tables = load_tables(connection, mapping, source)
            log = tables[mapping.log.table]
            told = mapping.source
            if mapping.sampling:
                told += f"; {draw_requests(connection, log, mapping)}"
            else:
                make_requests(connection, log, mapping)
            _load_attributes(connection, tables, mapping)
            test_from = _test_from(connection, mapping)
            _stage_requests(connection, staging / "requests", mapping)
            _stage_behaviours(connection, staging / "behaviours", tables, mapping)
        shutil.rmtree(staging / "work")
        spec = DatasetSpec(
            name=mapping.name,
            source=told,
            features=mapping.schema_features(),
            test_from=test_from,
            category_entity=mapping.category_entity,
            action_entity=ACTION_ENTITY if mapping.has_actions else None,
        )
        return build_dataset(staging, output, spec, limits, log=log.paths[0])


def _test_from(connection: duckdb.DuckDBPyConnection, mapping: MappingConfig) -> int:
    """First moment of the test split."""
    if mapping.split.test_from:
        return moment(mapping.split.test_from)
    assert mapping.split.test_share is not None
    num_requests = scalar(connection, "SELECT count(*) FROM requests")
    first = int((1 - mapping.split.test_share) * num_requests)
    return scalar(connection, f"SELECT timestamp FROM requests WHERE number = {first}")


def _features_of(mapping: MappingConfig, table: str) -> dict[str, FeatureConfig]:
    return {name: f for name, f in mapping.features.items() if f.table == table}


def _load_attributes(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, RawTable], mapping: MappingConfig
) -> None:
    """Make table `attributes_<n>` (key, f_<feature>...) of each table of attributes.

    Raises:
        DatasetError: a key is empty or occurs twice, a number is none, or no key is one of the log.
    """
    for name, config in mapping.tables.items():
        if config.by is None or config.key is None:
            continue
        table = tables[name]
        check_attributes(connection, table, config.key)
        features, rules = cells(table, _features_of(mapping, name))
        if rules:
            table.check(connection, rules)
        connection.execute(
            f"CREATE TABLE attributes_{_number_of(mapping, name)} AS "
            f"SELECT {table.sql(config.key)} AS key{features} FROM {table.name}"
        )
        _check_matches(connection, table, mapping, name)


def _number_of(mapping: MappingConfig, table: str) -> int:
    """Number of a table, whose name may be anything."""
    return list(mapping.tables).index(table)


def _check_matches(
    connection: duckdb.DuckDBPyConnection, table: RawTable, mapping: MappingConfig, name: str
) -> None:
    config = mapping.tables[name]
    rows, column = ("requests", "user_id") if config.by == "user" else ("candidates", "item_id")
    row = first_row(
        connection,
        f"SELECT count(*), count(key), min({column}) FROM {rows} LEFT JOIN "
        f"attributes_{_number_of(mapping, name)} ON key = {column}",
    )
    assert row is not None
    total, known, example = row
    if known == 0:
        theirs = first_row(
            connection, f"SELECT min({table.sql(config.key or '')}) FROM {table.name}"
        )
        raise DatasetError(
            f"{table.paths[0]}: column '{config.key}' has no {config.by} of the log: compare "
            f"{theirs and theirs[0]!r} with {example!r}"
        )
    if known < total:
        logger.warning(
            "%s: %d of %d %s are of a %s that is not there: its attributes are missing",
            table.paths[0],
            total - known,
            total,
            rows,
            config.by,
        )


def _stage_requests(
    connection: duckdb.DuckDBPyConnection, directory: Path, mapping: MappingConfig
) -> None:
    directory.mkdir()
    offset = mapping.log.time.offset_ms
    derived = {
        "hour": f"(timestamp + {offset}) // {_HOUR_MS} % 24",
        "weekday": f"((timestamp + {offset}) // {_DAY_MS} + 3) % 7",
        "position": "range(1, len(label) + 1)",
    }
    columns, lists = [], ["item_id", "label"]
    for name, feature in mapping.features.items():
        if feature.derive:
            columns.append(f"{derived[feature.derive]} AS {name}")
        else:
            columns.append(f"f_{name} AS {name}")
            lists += [f"f_{name}"] if feature.level == "candidate" else []
    joins = {
        by: " ".join(
            f"LEFT JOIN attributes_{n} ON attributes_{n}.key = {column}"
            for n, table in enumerate(mapping.tables.values())
            if table.by == by
        )
        for by, column in (("user", "r.user_id"), ("item", "c.item_id"))
    }
    gathered = ", ".join(f"list({name} ORDER BY o1, o2, o3) AS {name}" for name in lists)
    for within, path in request_parts(connection, directory, size=_REQUESTS_PER_FILE):
        connection.execute(f"""
            COPY (
                SELECT request_id, r.user_id, timestamp, l.item_id, label
                    {"".join(f", {column}" for column in columns)}
                FROM (FROM requests {within}) r
                {joins["user"]}
                JOIN (
                    SELECT number, {gathered}
                    FROM (FROM candidates {within}) c {joins["item"]} GROUP BY number
                ) l USING (number)
                ORDER BY number
            ) TO {sql_path(path)} (FORMAT parquet)
        """)


def _stage_behaviours(
    connection: duckdb.DuckDBPyConnection,
    directory: Path,
    tables: Mapping[str, RawTable],
    mapping: MappingConfig,
) -> None:
    directory.mkdir()
    for number, (name, config) in enumerate(mapping.behaviours.items()):
        if config.table:
            query = _own_behaviours(connection, tables[config.table], name, config, mapping)
        else:
            query = (
                f"SELECT user_id, item_id AS item{_category(mapping, 'item_id')}, "
                f"{quoted(name)} AS action, timestamp FROM positives{_lookup(mapping, 'item_id')}"
            )
        path = directory / f"part-{number:05d}.parquet"
        connection.execute(f"COPY ({query}) TO {sql_path(path)} (FORMAT parquet)")


def _lookup(mapping: MappingConfig, item: str) -> str:
    """SQL: a join with the table in which the category of an item stands, if there is one."""
    gate = mapping.features[mapping.category] if mapping.category else None
    if gate is None or gate.table is None:
        return ""
    return f" LEFT JOIN attributes_{_number_of(mapping, gate.table)} a ON a.key = {item}"


def _category(mapping: MappingConfig, item: str) -> str:
    return f", f_{mapping.category} AS category" if mapping.category else ""


def _own_behaviours(
    connection: duckdb.DuckDBPyConnection,
    table: RawTable,
    name: str,
    config: BehaviourConfig,
    mapping: MappingConfig,
) -> str:
    """SQL: behaviours of a table of their own, checked."""
    assert config.user and config.time
    milliseconds, inside = times(connection, table, config.time, mapping)
    rules: list[Rule] = filled(table, config.user)
    item = table.sql(config.item[0])
    if len(config.item) > 1:
        parts = [f"coalesce({table.sql(column)}, '')" for column in config.item]
        item = f"concat_ws('/', {', '.join(parts)})"
    else:
        rules += filled(table, *config.item)
    if config.only:
        only = table.sql(config.only.column)
        rules += count_rules(config.only, only)
        inside += f" AND {counts(config.only, only)}"
    table.check(connection, rules)
    gate = mapping.features[mapping.category] if mapping.category else None
    category, join = "", ""
    if gate and (config.category or gate.table is None):
        column = config.category or gate.column or mapping.category or ""
        category = f", {cell(gate, table.sql(column))} AS category"
    elif gate:
        category, join = _category(mapping, item), _lookup(mapping, item)
    action = table.sql(config.action) if config.action else quoted(name)
    return (
        f"SELECT {table.sql(config.user)} AS user_id, {item} AS item{category}, "
        f"{action} AS action, {milliseconds} AS timestamp FROM {table.name}{join} WHERE {inside}"
    )
