"""Codes: every raw id becomes a number, the most frequent one of the training split first."""

from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import scalar, sql_path
from cdp_torchrec.data.prepare.spec import USER_ENTITY, DatasetSpec


def build_vocabularies(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, directory: Path
) -> dict[str, int]:
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
    """
    directory.mkdir()
    num_ids = {}
    for entity in spec.entities():
        table = f"vocabulary_{entity}"
        connection.execute(f"""
            CREATE TABLE {table} AS
            SELECT row_number() OVER (ORDER BY count DESC, raw) AS code, raw, count
            FROM (
                SELECT raw, sum(train)::BIGINT AS count
                FROM ({" UNION ALL ".join(_counts(spec, entity))})
                WHERE raw IS NOT NULL GROUP BY raw
            )
            ORDER BY code
        """)
        path = sql_path(directory / f"{entity}.parquet")
        connection.execute(f"COPY (FROM {table} ORDER BY code) TO {path} (FORMAT parquet)")
        num_ids[entity] = scalar(connection, f"SELECT count(*) FROM {table}")
    return num_ids


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
    return [
        f"""
        SELECT raw::VARCHAR AS raw, count(*) FILTER (timestamp < {spec.test_from}) AS train
        FROM (SELECT {cell} AS raw, timestamp FROM {table}) GROUP BY raw
        """
        for table, cell in cells
    ]
