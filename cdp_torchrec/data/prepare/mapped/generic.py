"""Any log by its mapping: from the user's own files to a dataset directory.

`mapping_config.py` says what a mapping holds. Files are loaded as text (`raw_tables`), checked
column by column (`mapped_columns`), and grouped into requests (`mapped_log`, or `drawn_negatives`
where the log does not say what was shown). Attributes are joined here, behaviours in
`mapped_behaviours`.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from cdp_torchrec.config import several
from cdp_torchrec.data.prepare.database import EngineLimits, first_row, scalar
from cdp_torchrec.data.prepare.drawn_negatives import draw_requests
from cdp_torchrec.data.prepare.log_tables import DAY_MS, prepare_log
from cdp_torchrec.data.prepare.mapped.behaviours import gather_behaviours, number_of
from cdp_torchrec.data.prepare.mapped.columns import (
    cells,
    check_attributes,
    counting_rows,
    load_tables,
)
from cdp_torchrec.data.prepare.mapped.log import make_requests
from cdp_torchrec.data.prepare.mapped.mapping_config import (
    ACTION_ENTITY,
    FeatureConfig,
    MappingConfig,
)
from cdp_torchrec.data.prepare.raw_tables import RawTable
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.table_config import moment
from cdp_torchrec.data.schema import DatasetError, Schema

logger = logging.getLogger(__name__)

_HOUR_MS = 3_600_000


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

    def read(connection: duckdb.DuckDBPyConnection) -> DatasetSpec:
        told = read_log(connection, mapping, source)
        spec = spec_of(mapping, test_from=_test_from(connection, mapping))
        return replace(spec, source=told)

    return prepare_log(source, output, read, limits)


def spec_of(mapping: MappingConfig, *, test_from: int) -> DatasetSpec:
    """What the staging files of a mapped log mean.

    Args:
        mapping: what the columns of the log mean.
        test_from: first moment of the test split, ms.
    """
    return DatasetSpec(
        name=mapping.name,
        source=mapping.source,
        features=mapping.schema_features(),
        test_from=test_from,
        category_entity=mapping.category_entity,
        action_entity=ACTION_ENTITY if mapping.has_actions else None,
        attributes=tuple(a.attribute(name) for name, a in mapping.attributes.items()),
    )


def read_log(connection: duckdb.DuckDBPyConnection, mapping: MappingConfig, source: Path) -> str:
    """Make the three tables that `prepare_log` takes.

    Args:
        connection: to make them in.
        mapping: what the columns of the log mean.
        source: folder of its files.

    Returns:
        Where the requests came from, in words.

    Raises:
        DatasetError: files are missing, damaged, or not what the mapping says.
    """
    tables = load_tables(connection, mapping, source)
    log = _rows_of_log(connection, tables[mapping.log.table], mapping)
    told = mapping.source
    if mapping.sampling:
        told += f"; {draw_requests(connection, log, mapping)}"
    else:
        make_requests(connection, log, mapping)
    _load_attributes(connection, tables, mapping)
    for unmatched in _unmatched(connection, tables, mapping):
        if unmatched.is_all:
            raise DatasetError(unmatched.problem)
        logger.warning(unmatched.problem)
    _join_attributes(connection, mapping)
    gather_behaviours(connection, tables, mapping)
    return told


def read_new_rows(
    connection: duckdb.DuckDBPyConnection, mapping: MappingConfig, source: Path
) -> None:
    """Make the tables `requests` and `candidates` of rows that are to be scored.

    They may be few, so that none of them has a user or item that a table of attributes knows.

    Args:
        connection: to make them in.
        mapping: what their columns mean, but for labels.
        source: folder of their files.

    Raises:
        DatasetError: as `read_log`.
    """
    tables = load_tables(connection, mapping, source)
    log = _rows_of_log(connection, tables[mapping.log.table], mapping)
    make_requests(connection, log, mapping)
    _load_attributes(connection, tables, mapping)
    for unmatched in _unmatched(connection, tables, mapping):
        logger.warning(unmatched.problem)
    _join_attributes(connection, mapping)


def _rows_of_log(
    connection: duckdb.DuckDBPyConnection, table: RawTable, mapping: MappingConfig
) -> RawTable:
    """The rows of the log that count; how many do not is said, of each rule."""
    rules = several(mapping.log.only)
    for number, rule in enumerate(rules):
        rows = counting_rows(connection, table, rule, f"log_rows_{number}")
        total, left = (scalar(connection, f"SELECT count(*) FROM {t.name}") for t in (table, rows))
        key = "log.only" if len(rules) == 1 else f"log.only.{number}"
        said = f"rows left out by the rule on '{rule.column}' ({key})"
        if left == 0:
            raise DatasetError(f"{table.paths[0]}: all {total} {said}")
        if left < total:
            logger.warning("%s: %d of %d %s", table.paths[0], total - left, total, said)
        table = rows
    return table


def _test_from(connection: duckdb.DuckDBPyConnection, mapping: MappingConfig) -> int:
    """First moment of the test split."""
    if mapping.split.test_from:
        return moment(mapping.split.test_from)
    assert mapping.split.test_share is not None
    num_requests = scalar(connection, "SELECT count(*) FROM request_rows")
    # 1 - 0.8 is a little less than 0.2; and the smallest share is a request.
    first = int((1 - mapping.split.test_share) * num_requests + 1e-9)
    first = min(first, num_requests - 1)
    return scalar(connection, f"SELECT timestamp FROM request_rows WHERE number = {first}")


def _features_of(mapping: MappingConfig, table: str) -> dict[str, FeatureConfig]:
    return {name: f for name, f in mapping.features.items() if f.table == table}


def _load_attributes(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, RawTable], mapping: MappingConfig
) -> None:
    """Make table `attributes_<n>` (key, f_<feature>...) of each table of attributes.

    Raises:
        DatasetError: a key is empty or occurs twice, or a number is none.
    """
    for name, config in mapping.tables.items():
        if config.by is None or config.key is None:
            continue
        table = tables[name]
        check_attributes(connection, table, config.key)
        features, rules = cells(table, _features_of(mapping, name))
        of_behaviours = {n: a for n, a in mapping.attributes.items() if a.table == name}
        attributes, more = cells(table, of_behaviours, prefix="a_")
        table.check(connection, [*rules, *more])
        connection.execute(
            f"CREATE TABLE attributes_{number_of(mapping, name)} AS "
            f"SELECT {table.sql(config.key)} AS key{features}{attributes} FROM {table.name}"
        )


@dataclass(frozen=True)
class _Unmatched:
    """Rows of the log whose user or item a table of attributes does not have."""

    problem: str
    is_all: bool
    """It has none of the log."""


def _unmatched(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, RawTable], mapping: MappingConfig
) -> Iterator[_Unmatched]:
    """What each table of attributes lacks."""
    for name, config in mapping.tables.items():
        if config.by is None or config.key is None:
            continue
        table = tables[name]
        rows, column, what = {
            "user": ("request_rows", "user_id", "requests are of a user"),
            "item": ("candidate_rows", "item_id", "candidates are of an item"),
        }[config.by]
        row = first_row(
            connection,
            f"SELECT count(*), count(key), min({column}) FROM {rows} LEFT JOIN "
            f"attributes_{number_of(mapping, name)} ON key = {column}",
        )
        assert row is not None
        total, known, example = row
        if known == 0:
            theirs = first_row(connection, f"SELECT min({table.sql(config.key)}) FROM {table.name}")
            yield _Unmatched(
                f"{table.paths[0]}: column '{config.key}' has no {config.by} of the log: compare "
                f"{theirs and theirs[0]!r} with {example!r}",
                is_all=True,
            )
        elif known < total:
            yield _Unmatched(
                f"{table.paths[0]}: {total - known} of {total} {what} that is not "
                "there: its attributes are missing",
                is_all=False,
            )


def _join_attributes(connection: duckdb.DuckDBPyConnection, mapping: MappingConfig) -> None:
    """Make `requests` and `candidates` with all their features."""
    local = mapping.log.time.local_time.from_utc("timestamp")
    derived = {
        "hour": f"{local} // {_HOUR_MS} % 24",
        "weekday": f"({local} // {DAY_MS} + 3) % 7",
        "position": "row_number() OVER (PARTITION BY number ORDER BY place)",
    }
    columns = {"request": "", "candidate": ""}
    for name, feature in mapping.features.items():
        value = derived[feature.derive] if feature.derive else f"f_{name}"
        columns[feature.level] += f', {value} AS "{name}"'
    joins = {"user": "", "item": ""}
    for number, table in enumerate(mapping.tables.values()):
        if table.by:
            attributes = f"attributes_{number}"
            key = f"{table.by}_id"
            joins[table.by] += f" LEFT JOIN {attributes} ON {attributes}.key = {key}"
    connection.execute(f"""
        CREATE TABLE requests AS
        SELECT number, request_id, user_id, timestamp{columns["request"]}
        FROM request_rows{joins["user"]} ORDER BY number;
        CREATE VIEW candidates AS
        SELECT number, place, item_id, label{columns["candidate"]}
        FROM candidate_rows{joins["item"]}
    """)
