"""Digest of a vocabulary: which raw id has which code, however the file says it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def vocabulary_digest(*paths: Path) -> str:
    """Digest of the raw ids of a vocabulary in the order of their codes.

    It is the SHA-256 of two SHA-256: that of the lengths of the ids in bytes, each as a
    little-endian uint32, and that of the UTF-8 bytes of all ids, one after the other.

    Args:
        paths: parquet files with a column `raw`; row r of all of them holds the id with code r + 1.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no parquet file, is damaged, or has no such column of strings.
    """
    lengths, content = hashlib.sha256(), hashlib.sha256()
    for raw in (ids for path in paths for ids in _raw_ids(path)):
        data = raw.cast(pa.large_binary())
        _, offsets_buffer, values = data.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64)[data.offset :][: len(data) + 1]
        lengths.update(np.diff(offsets).astype("<u4").tobytes())
        if values is not None:
            content.update(memoryview(values)[offsets[0] : offsets[-1]])
    return hashlib.sha256(lengths.digest() + content.digest()).hexdigest()


def _raw_ids(path: Path) -> Iterator[pa.Array]:
    with pq.ParquetFile(path) as file:
        found = file.schema_arrow
        if "raw" not in found.names or not pa.types.is_string(found.field("raw").type):
            raise ValueError(f"no column 'raw' of strings; it has {found.names}")
        for batch in file.iter_batches(columns=["raw"]):
            raw = batch.column(0)
            if raw.null_count:
                raise ValueError(f"column 'raw' holds {raw.null_count} nulls")
            if len(raw):
                yield raw
