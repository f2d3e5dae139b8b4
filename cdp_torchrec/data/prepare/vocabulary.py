"""Codes: every raw id becomes a number, the most frequent one of the training split first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from cdp_torchrec.data.days import vocabulary_paths
from cdp_torchrec.data.prepare.database import Tables, scalar, sql_path
from cdp_torchrec.data.prepare.spec import USER_ENTITY, DatasetSpec
from cdp_torchrec.data.schema import DatasetError, Schema

MOST_CODES = 2**31 - 1
"""Of an entity in the history store, whose codes have 32 bits; in requests they have 64."""


def build_vocabularies(connection: Tables, spec: DatasetSpec, directory: Path) -> dict[str, int]:
    """Make table `vocabulary_<entity>` (code, raw, count) and its parquet file for each entity.

    Codes run from 1 by descending count; ties go by the bytes of the raw id. An id counts once per
    request cell of the training split and per behaviour before its end, so ids seen only later
    have count 0 and the last codes.

    Args:
        connection: holds the tables `staged_requests` and `staged_behaviours`.
        spec: names the columns of each entity.
        directory: made here; gets `<entity>.parquet`.

    Returns:
        Number of ids of each entity.

    Raises:
        DatasetError: behaviours have more ids of one than the store can tell apart.
    """
    directory.mkdir()
    num_ids = {}
    for entity in spec.entities():
        table = f"vocabulary_{entity}"
        connection.execute(f"""
            CREATE TABLE {table} AS
            SELECT row_number() OVER (ORDER BY count DESC, raw) AS code, raw, count
            FROM ({_counted(spec, entity)})
            ORDER BY code
        """)
        path = sql_path(directory / f"{entity}.parquet")
        connection.execute(f"COPY (FROM {table} ORDER BY code) TO {path} (FORMAT parquet)")
        num_ids[entity] = scalar(connection, f"SELECT count(*) FROM {table}")
    _check_stored(spec, num_ids)
    return num_ids


def extend_vocabularies(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema,
    dataset: Path,
    day: Path,
) -> dict[str, int]:
    """As `build_vocabularies`, for a day: ids that are known keep their codes.

    Codes of new ids go on behind those of the dataset, by descending count of the day. The counts
    of the day stand beside them: `vocabulary/` has the new ids, `counts/` the known ones.

    Args:
        connection: holds the tables `staged_requests` and `staged_behaviours` of the day.
        spec: names the columns of each entity.
        schema: of the dataset with all its days.
        dataset: dataset directory.
        day: directory of the day; gets both folders.

    Returns:
        Number of ids of each entity with the new ones.

    Raises:
        DatasetError: as `build_vocabularies`.
    """
    for folder in ("vocabulary", "counts"):
        (day / folder).mkdir()
    num_ids = {}
    for entity in spec.entities():
        connection.execute(f"CREATE TABLE day_{entity} AS {_counted(spec, entity)}")
        stored = vocabulary_rows(vocabulary_paths(dataset, schema.days, entity))
        connection.execute(f"""
            CREATE TABLE known_{entity} AS
            SELECT s.code, d.raw, d.count FROM {stored} s JOIN day_{entity} d USING (raw)
        """)
        known = schema.entities[entity].num_ids
        connection.execute(f"""
            CREATE TABLE new_{entity} AS
            SELECT {known} + row_number() OVER (ORDER BY count DESC, raw) AS code, raw, count
            FROM day_{entity} ANTI JOIN known_{entity} USING (raw) ORDER BY code
        """)
        connection.execute(f"""
            CREATE TABLE vocabulary_{entity} AS
            FROM known_{entity} UNION ALL FROM new_{entity}
        """)
        for columns, table, folder in (
            ("*", f"new_{entity}", "vocabulary"),
            ("code, count", f"known_{entity}", "counts"),
        ):
            path = sql_path(day / folder / f"{entity}.parquet")
            query = f"SELECT {columns} FROM {table} ORDER BY code"
            connection.execute(f"COPY ({query}) TO {path} (FORMAT parquet)")
        num_ids[entity] = known + scalar(connection, f"SELECT count(*) FROM new_{entity}")
    _check_stored(spec, num_ids)
    return num_ids


def _check_stored(spec: DatasetSpec, num_ids: Mapping[str, int]) -> None:
    attributes = [a.entity for a in spec.attributes if a.entity is not None]
    for entity in (*dict(spec.behaviour_columns()).values(), *attributes):
        if num_ids[entity] > MOST_CODES:
            raise DatasetError(
                f"entity '{entity}' has {num_ids[entity]:,} ids: the history store tells "
                f"{MOST_CODES:,} of them apart"
            )


def vocabulary_rows(paths: Sequence[Path]) -> str:
    """SQL of the rows of a vocabulary, whose files the engine wrote itself."""
    files = ", ".join(sql_path(path) for path in paths)
    return f"read_parquet([{files}], hive_partitioning = false)"


def _counted(spec: DatasetSpec, entity: str) -> str:
    """Query (raw, count) of all ids of an entity."""
    return f"""
        SELECT raw, sum(train)::BIGINT AS count
        FROM ({" UNION ALL ".join(_counts(spec, entity))})
        WHERE raw IS NOT NULL GROUP BY raw
    """


def _counts(spec: DatasetSpec, entity: str) -> list[str]:
    """One query (raw, train) per column of that entity: its ids and their training counts."""
    cells = [
        (
            "staged_requests",
            f'"{f.name}"' if (f.level, f.kind) == ("request", "id") else f'unnest("{f.name}")',
        )
        for f in spec.features
        if f.entity == entity and f.name != "user_id"
    ]
    if entity == USER_ENTITY:
        cells.append(("staged_requests", "user_id"))
    cells += [("staged_behaviours", name) for name, of in spec.behaviour_columns() if of == entity]
    cells += [
        ("staged_behaviours", f'unnest("{a.name}")' if a.kind == "ids" else f'"{a.name}"')
        for a in spec.attributes
        if a.entity == entity
    ]
    return [
        f"""
        SELECT raw::VARCHAR AS raw, count(*) FILTER (timestamp < {spec.test_from}) AS train
        FROM (SELECT {cell} AS raw, timestamp FROM {table}) GROUP BY raw
        """
        for table, cell in cells
    ]
