"""Embedding tables as the files of an artifact (serving/tables.py has their format)."""

# E rows, D embedding dim

from collections.abc import Mapping
from pathlib import Path

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import numpy as np
import torch
from torch import Tensor

from cdp_torchrec.serving.config import TableStorage
from cdp_torchrec.serving.tables import STORED_DTYPES


def write_tables(
    directory: Path,
    tables: Mapping[str, Tensor],
    *,
    owners: Mapping[str, Tensor],
    storage: TableStorage,
    num_shards: int,
) -> None:
    """Write the tables.

    Args:
        directory: made here.
        tables: float32 [E, D] by entity.
        owners: id that owns each row, int64 [E], of tables with managed collision.
        storage: precision of the files.
        num_shards: files of each table; a table with fewer rows has one file per row.
    """
    directory.mkdir()
    for entity, table in tables.items():
        rows = _stored(table, storage)
        count = min(num_shards, len(rows))
        size = -(-len(rows) // count)
        shards = [rows[start : start + size] for start in range(0, len(rows), size)]
        for number, shard in enumerate(shards):
            np.save(directory / f"{entity}-{number:05d}-of-{len(shards):05d}.npy", shard)
    for entity, of_rows in owners.items():
        np.save(directory / f"{entity}-owners.npy", of_rows.numpy())


def _stored(table: Tensor, storage: TableStorage) -> np.ndarray:
    table = table.contiguous()
    if storage == "int8":
        return torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(table).numpy()
    return table.numpy().astype(STORED_DTYPES[storage])
