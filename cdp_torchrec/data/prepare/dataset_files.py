"""Reading a finished dataset directory column by column, for what describes it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.schema import DatasetError


def row_groups(directory: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a split, one row group after the other.

    Raises:
        DatasetError: there are no files, or one is damaged.
    """
    paths = sorted(directory.glob("part-*.parquet"))
    if not paths:
        raise DatasetError(f"{directory}: no part-*.parquet there")
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for index in range(file.num_row_groups):
                    yield file.read_row_group(index, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{path}: damaged parquet file: {error}") from error


def values(table: pa.Table, name: str) -> np.ndarray:
    """Elements of a column, lists flattened."""
    column = table[name].combine_chunks()
    if pa.types.is_list(column.type):
        column = column.flatten()
    return column.to_numpy()
