"""New rows of a mapped log as a file of requests that can be scored.

Nobody has clicked on them yet, so labels and behaviours are not read; all else of a row becomes
what it would have become in the dataset. Histories are looked up when the requests are scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.prepare.database import EngineLimits
from cdp_torchrec.data.prepare.log_tables import stage_new_requests
from cdp_torchrec.data.prepare.mapped.agreement import check_features
from cdp_torchrec.data.prepare.mapped.generic import read_new_rows, spec_of
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.workplace import preparing, staging_beside
from cdp_torchrec.data.schema import DatasetError, load_schema
from cdp_torchrec.whole_file import remove_leftovers_of, whole_file


@dataclass(frozen=True)
class NewRequests:
    """What a file of requests holds."""

    num_requests: int
    num_candidates: int
    first_timestamp: int
    """Milliseconds since the epoch, as the last one."""
    last_timestamp: int


def write_new_requests(
    mapping: MappingConfig,
    source: Path,
    dataset: Path,
    output: Path,
    *,
    limits: EngineLimits | None = None,
) -> NewRequests:
    """Write the requests of new rows as one file, in the order of time; all of it or nothing.

    Args:
        mapping: that of the dataset.
        source: folder with the files of the rows.
        dataset: dataset directory, whose features they must have.
        output: parquet file to write; must not exist. Everything in between lies beside it.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: the mapping draws negatives, or has not the features of the dataset; files
            are missing, damaged, or not what the mapping says; there is no row; `output` exists.
        PreparationError: the file cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise DatasetError(f"{output} exists; remove it or choose another file (--output)")
    if mapping.sampling:
        raise DatasetError(
            f"{source}: the mapping draws negatives ([sampling]): its rows are what users did, not "
            "what is to be ranked. Candidates are read by a mapping of their own, with the same "
            "features, rows = 'impression' or 'request', and no [sampling]"
        )
    expected = DatasetSpec.of_dataset(load_schema(dataset))
    unlabelled = mapping.of_new_rows()
    spec = spec_of(unlabelled, test_from=expected.test_from)
    check_features(dataset, expected, spec)

    def read(connection: duckdb.DuckDBPyConnection) -> DatasetSpec:
        read_new_rows(connection, unlabelled, source)
        return spec

    with preparing(output), staging_beside(output) as staging:
        parts = stage_new_requests(source, staging, read, limits or EngineLimits())
        remove_leftovers_of(output)
        with whole_file(output) as whole:
            return _join(parts, whole)


def _join(parts: Sequence[Path], whole: Path) -> NewRequests:
    """One file of the parts, some rows at a time."""
    files = [pq.ParquetFile(part) for part in parts]
    num_candidates, times = 0, []
    with pq.ParquetWriter(whole, files[0].schema_arrow) as writer:
        for file in files:
            for group in range(file.num_row_groups):
                rows: pa.Table = file.read_row_group(group)
                writer.write_table(rows, row_group_size=max(len(rows), 1))
                num_candidates += len(rows["item_id"].combine_chunks().flatten())
                times += [rows["timestamp"][place].as_py() for place in (0, -1)]
    return NewRequests(
        num_requests=sum(file.metadata.num_rows for file in files),
        num_candidates=num_candidates,
        first_timestamp=times[0],
        last_timestamp=times[-1],
    )
