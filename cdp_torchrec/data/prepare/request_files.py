"""The parquet parts of a split, and the means and deviations of its numbers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.prepare.database import Tables
from cdp_torchrec.data.prepare.moments import Moments
from cdp_torchrec.data.prepare.spec import CLICK_PROBABILITY, DatasetSpec
from cdp_torchrec.data.schema import Feature

ROW_GROUP = 1024
"""Requests of a parquet row group."""
PART = 196 * ROW_GROUP
"""Requests of a parquet file."""

_TYPES = {"id": pa.int64(), "ids": pa.list_(pa.int64()), "number": pa.float64()}


def write_requests(
    connection: Tables,
    spec: DatasetSpec,
    directory: Path,
    requests: range,
    *,
    has_probability: bool,
) -> dict[str, Moments]:
    """Write `part-*.parquet` of the requests of these numbers.

    Args:
        connection: holds the tables of `code_requests`.
        spec: names the columns.
        directory: made here.
        requests: numbers (`request_id`) of the split's requests.
        has_probability: whether there is a `click_probability`.

    Returns:
        Moments of each number over the impressions of the split.
    """
    schema = _parquet_schema(spec, has_probability)
    numbers = [f for f in spec.features if f.kind == "number"]
    moments = {f.name: Moments() for f in numbers}
    directory.mkdir()
    for part, start in enumerate(range(requests.start, requests.stop, PART)):
        query = _part_query(spec, schema.names, start, min(start + PART, requests.stop))
        reader = connection.sql(query).to_arrow_reader(ROW_GROUP)
        with pq.ParquetWriter(
            directory / f"part-{part:05d}.parquet",
            schema,
            compression="zstd",
            write_page_checksum=True,
        ) as writer:
            for table in _blocks(reader, schema):
                writer.write_table(table, row_group_size=ROW_GROUP)
                _add_moments(moments, numbers, table)
    return moments


def _parquet_schema(spec: DatasetSpec, has_probability: bool) -> pa.Schema:
    columns = [("request_id", pa.int64()), ("user_id", pa.int64()), ("timestamp", pa.int64())]
    columns += [(f.name, _TYPES[f.kind]) for f in spec.request_features()]
    columns += [("history_length", pa.int32())]
    columns += [(f.name, pa.list_(_TYPES[f.kind])) for f in spec.candidate_features()]
    columns += [("label", pa.list_(pa.int8())), ("history_rank", pa.list_(pa.int32()))]
    if has_probability:
        columns += [(CLICK_PROBABILITY, pa.list_(pa.float64()))]
    return pa.schema(columns)


def _part_query(spec: DatasetSpec, columns: Sequence[str], start: int, stop: int) -> str:
    """Rows `start` to `stop` - 1, lists put together again."""
    within = f"WHERE _request >= {start} AND _request < {stop}"
    bags = [f.name for f in spec.request_features() if f.kind == "ids"]
    single = ["user_id", "timestamp", "history_length"]
    single += [f.name for f in spec.request_features() if f.kind != "ids"]
    lists = [name for name in columns if name not in {"request_id", *bags, *single}]
    gathered = ", ".join(f'list("{name}" ORDER BY _index) AS "{name}"' for name in lists)
    joins = " ".join(
        f"""
        LEFT JOIN (
            SELECT _request, list(code ORDER BY _index) AS "{name}"
            FROM bag_{name} {within} GROUP BY _request
        ) USING (_request)
        """
        for name in bags
    )
    selected = ", ".join(
        f'coalesce("{name}", []) AS "{name}"' if name in bags else f'"{name}"'
        for name in columns
        if name != "request_id"
    )
    return f"""
        SELECT _request AS request_id, {selected}
        FROM (FROM requests {within})
        JOIN (SELECT _request, {gathered} FROM candidates {within} GROUP BY _request)
        USING (_request) {joins}
        ORDER BY _request
    """


def _blocks(reader: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of 16 full row groups (the last one shorter), whatever the reader's batches are.

    Fixed blocks keep the files and the sums over them independent of the engine.
    """
    size = 16 * ROW_GROUP
    waiting = schema.empty_table()
    for batch in reader:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(schema)])
        while len(waiting) >= size:
            yield waiting.slice(0, size)
            waiting = waiting.slice(size)
    if len(waiting):
        yield waiting


def _add_moments(moments: dict[str, Moments], numbers: Sequence[Feature], table: pa.Table) -> None:
    lengths = table["label"].combine_chunks().value_lengths().to_numpy()
    for feature in numbers:
        column = table[feature.name].combine_chunks()
        if feature.level == "candidate":
            values = column.flatten().to_numpy()
            moments[feature.name].add(values, np.ones_like(values))
        else:
            moments[feature.name].add(column.to_numpy(), lengths)
