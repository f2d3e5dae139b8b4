"""One file with the prediction for every impression of a split, in the raw ids of the log."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.data.tables.stored_vocabulary import stored_ids
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.whole_file import beside, held, naming, remove_leftovers_of, whole_file

_ROW_GROUP = 65536


@dataclass(frozen=True)
class PredictionFile:
    """Where predictions go, and whose ids they are about."""

    path: Path
    dataset: Path
    """Its vocabularies have the raw ids."""
    schema: Schema


class PredictionWriter:
    """Writes request_id, user_id, item_id, label and probability of every impression.

    Each rank writes a part; the file appears, whole, at the end of the context, and not at all
    after an error. Its rows stand in the order of the split, whatever the number of ranks.
    """

    def __init__(self, file: PredictionFile) -> None:
        """Remove what ranks that were killed left of the file; collective.

        Args:
            file: replaces one that is there.
        """
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._locks = ExitStack()

        def begin() -> Path:
            remove_leftovers_of(file.path)
            return beside(file.path)

        name = from_rank_zero(begin, purpose="name the parts of the predictions")
        ranks = range(dist.get_world_size())
        self._parts = [name.with_name(f"{name.name}.{rank}") for rank in ranks]
        self._own = self._parts[dist.get_rank()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Join the parts of all ranks, unless there was an error; collective."""
        try:
            if error is None:
                self._close()
            elif self._writer is not None:
                with suppress(OSError):
                    self._writer.close()
        finally:
            self._own.unlink(missing_ok=True)
            self._locks.close()

    def write(self, batch: Batch, probability: Tensor) -> None:
        """Add the impressions of a global batch's share, without its padding."""
        kept = batch.weights.cpu().numpy() > 0
        columns = {
            "request_id": batch.request_id,
            "user_id": batch.user_id,
            "item_id": batch.item_id,
            "label": batch.labels.to(torch.int8),
            "probability": probability.float(),
        }
        table = pa.table({name: c.cpu().numpy()[kept] for name, c in columns.items()})
        with naming(self._file.path):
            if self._writer is None:
                self._locks.enter_context(held(self._own))
                self._writer = pq.ParquetWriter(self._own, table.schema)
            if len(table):
                self._writer.write_table(table, row_group_size=len(table))  # however large

    def _close(self) -> None:
        if self._writer is not None:
            with naming(self._file.path):
                self._writer.close()
        dist.barrier()
        if dist.get_rank() == 0:
            self._join()
        dist.barrier()

    def _join(self) -> None:
        raw = _RawIds(self._file.dataset, self._file.schema)
        files = [pq.ParquetFile(part) for part in self._parts]
        # Row group s of a part is that rank's share of global batch s.
        shares = [
            (file, step)
            for step in range(max(file.num_row_groups for file in files))
            for file in files
            if step < file.num_row_groups
        ]
        waiting: list[pa.Table] = []
        with whole_file(self._file.path) as path, pq.ParquetWriter(path, raw.schema) as writer:
            for number, (file, step) in enumerate(shares, start=1):
                waiting.append(file.read_row_group(step))
                if sum(map(len, waiting)) >= _ROW_GROUP or number == len(shares):
                    writer.write_table(raw.of(pa.concat_tables(waiting)))
                    waiting = []


class _RawIds:
    """The ids of the log by code."""

    schema = pa.schema(
        [
            ("request_id", pa.string()),
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("label", pa.int8()),
            ("probability", pa.float32()),
        ]
    )

    def __init__(self, dataset: Path, schema: Schema) -> None:
        def read(entity: str) -> pa.ChunkedArray:
            return stored_ids(dataset, schema, entity)

        # Requests are numbered from 0; of the others 0 is a missing id.
        missing = pa.chunked_array([pa.nulls(1, pa.string())])
        self._by_code = {"request_id": read("request")} | {
            name: pa.chunked_array([*missing.chunks, *read(entity).chunks])
            for name, entity in (
                ("user_id", "user"),
                ("item_id", schema.history.item_entity),
            )
        }

    def of(self, coded: pa.Table) -> pa.Table:
        """The table with raw ids in the place of codes."""
        columns = {
            name: self._by_code[name].take(coded[name]) if name in self._by_code else coded[name]
            for name in self.schema.names
        }
        return pa.table(columns, schema=self.schema)
