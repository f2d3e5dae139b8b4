"""Embedding tables of an artifact: memory-mapped files, in full or reduced precision.

tables/<entity>-00000-of-00002.npy      rows of a table, in shards of equally many rows

float32 and float16 files hold the rows [E, D]; int8 files hold FBGEMM's fused 8-bit row-wise
format, uint8 [E, D + 8]: the quantized row, then its scale and its minimum as float32.
"""

# E rows, D embedding dim, P places of a lookup

from collections.abc import Mapping, Sequence
from pathlib import Path

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import numpy as np
import torch
from torch import Tensor

from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.config import TableStorage

_DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.uint8}


def write_tables(
    directory: Path, tables: Mapping[str, Tensor], *, storage: TableStorage, num_shards: int
) -> None:
    """Write the tables.

    Args:
        directory: made here.
        tables: float32 [E, D] by entity.
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


def _stored(table: Tensor, storage: TableStorage) -> np.ndarray:
    table = table.contiguous()
    if storage == "int8":
        return torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(table).numpy()
    return table.numpy().astype(_DTYPES[storage])


class EmbeddingTables:
    """Rows of the mapped tables as float32."""

    def __init__(
        self,
        directory: Path,
        num_embeddings: Mapping[str, int],
        *,
        embedding_dim: int,
        storage: TableStorage,
    ) -> None:
        """Map the files.

        Args:
            directory: where `write_tables` wrote.
            num_embeddings: rows of each table, by entity.
            embedding_dim: D.
            storage: precision of the files.

        Raises:
            ArtifactError: files are missing, or have another shape.
        """
        self._storage = storage
        self._width = embedding_dim + (8 if storage == "int8" else 0)
        self._tables = {
            entity: self._open(directory, entity, rows) for entity, rows in num_embeddings.items()
        }

    def _open(self, directory: Path, entity: str, num_embeddings: int) -> list[np.ndarray]:
        paths = sorted(directory.glob(f"{entity}-*-of-*.npy"))
        try:
            shards = [np.load(path, mmap_mode="r") for path in paths]
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{directory}: cannot read table '{entity}': {error}") from error
        expected = (num_embeddings, self._width, _DTYPES[self._storage])
        rows = sum(len(shard) for shard in shards)
        wrong = {(rows, s.shape[-1], s.dtype.type) for s in shards} - {expected}
        if wrong or not shards:
            raise ArtifactError(
                f"{directory}: table '{entity}' should have {num_embeddings} rows of width "
                f"{self._width} ({self._storage}), found {wrong or 'no file'}"
            )
        # Views without the memmap class, whose indexing is several times slower.
        return [shard.view(np.ndarray) for shard in shards]

    def read(self, lookups: Sequence[tuple[str, np.ndarray]]) -> Tensor:
        """Rows of several tables one after the other, float32 [P, D].

        Args:
            lookups: entity and rows, int64, each.
        """
        total = sum(len(rows) for _, rows in lookups)
        found = np.empty((total, self._width), dtype=_DTYPES[self._storage])
        start = 0
        for entity, rows in lookups:
            _gather(self._tables[entity], rows, out=found[start : start + len(rows)])
            start += len(rows)
        stored = torch.from_numpy(found)
        if self._storage == "int8":
            return torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(stored)
        return stored.float()


def _gather(shards: list[np.ndarray], rows: np.ndarray, *, out: np.ndarray) -> None:
    if len(shards) == 1:
        # The rows are valid by construction; "clip" writes into `out` without a buffer.
        np.take(shards[0], rows, axis=0, out=out, mode="clip")
        return
    shard, row = np.divmod(rows, len(shards[0]))
    for number, values in enumerate(shards):
        wanted = shard == number
        out[wanted] = values[row[wanted]]
