"""The vocabulary files of a dataset and of the days that were appended to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.days import day_folder, vocabulary_paths
from cdp_torchrec.data.schema import DatasetError, Schema


@dataclass(frozen=True)
class Counts:
    """How often ids occur in a part of the log."""

    code: np.ndarray
    """Int64, rising."""
    count: np.ndarray
    """Int64."""


def stored_ids(dataset: Path, schema: Schema, entity: str) -> pa.ChunkedArray:
    """Raw ids in the order of their codes, from 1; requests in the order of their numbers.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    tables = [_read(path, ["raw"]) for path in vocabulary_paths(dataset, schema.days, entity)]
    # Whether a column may hold nulls depends on what the ids were in a log: text or numbers.
    return pa.concat_tables(tables, promote_options="default")["raw"]


def stored_counts(dataset: Path, schema: Schema, entity: str) -> list[Counts]:
    """Training counts of the base, and those of each day that a training knows.

    Raises:
        DatasetError: a file is missing or damaged, or has other ids than the schema says.
    """
    days = schema.days[: schema.trained_days]
    paths = vocabulary_paths(dataset, days, entity)
    stages = [schema.days[0].entities_before if schema.days else schema.entities]
    stages += [day.entities for day in days]
    found, known = [], 0
    for path, stage in zip(paths, stages, strict=True):
        counts = _counts([path])
        num_ids = stage[entity].num_ids
        if len(counts.code) != num_ids - known:
            raise DatasetError(
                f"{path}: {len(counts.code)} ids, but schema.toml declares {num_ids - known}"
            )
        known = num_ids
        found.append(counts)
    for number, day in enumerate(days, start=1):
        old = day_folder(dataset, day.name) / "counts" / f"{entity}.parquet"
        found[number] = _counts([old, paths[number]])
    return found


def training_counts(dataset: Path, schema: Schema, entity: str) -> np.ndarray:
    """Training count of each id in the order of the codes, over all days that a training knows.

    Raises:
        DatasetError: as `stored_counts`.
    """
    total = np.zeros(schema.entities[entity].num_ids, dtype=np.int64)
    for stage in stored_counts(dataset, schema, entity):
        total[stage.code - 1] += stage.count
    return total


def _counts(paths: Sequence[Path]) -> Counts:
    table = pa.concat_tables([_read(path, ["code", "count"]) for path in paths])
    return Counts(table["code"].to_numpy(), table["count"].to_numpy())


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot read the vocabulary: {error}") from error
