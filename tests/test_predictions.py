"""Predictions of all ranks in the order of the split."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdp_torchrec import predictions
from cdp_torchrec.predictions import PredictionFile, PredictionWriter

SHARE = (1 << 20) + 1
"""More impressions than pyarrow puts into a row group by itself."""


class Codes:
    """Writes codes as they are."""

    schema = pa.schema([("request_id", pa.int64()), ("probability", pa.float32())])

    def __init__(self, *of_dataset: object) -> None:
        pass

    def of(self, coded: pa.Table) -> pa.Table:
        return coded.select(self.schema.names)


def test_rows_stand_in_the_order_of_the_split_whatever_the_size_of_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a rank's share of a step becomes several row groups, which the ranks then mix."""
    monkeypatch.setattr(predictions, "_RawIds", Codes)
    of_rank = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 2, barrier=lambda: None)
    monkeypatch.setattr(predictions, "dist", of_rank)
    schema: Any = None
    file = PredictionFile(tmp_path / "predictions.parquet", tmp_path, schema)
    for rank in (1, 0):  # rank 0 joins the parts
        of_rank.get_rank = lambda rank=rank: rank
        writer = PredictionWriter(file)
        batch: Any = SimpleNamespace(
            request_id=torch.arange(rank * SHARE, (rank + 1) * SHARE),
            user_id=torch.zeros(SHARE, dtype=torch.int64),
            item_id=torch.zeros(SHARE, dtype=torch.int64),
            labels=torch.zeros(SHARE),
            weights=torch.ones(SHARE),
        )
        writer.write(batch, torch.zeros(SHARE))
        writer.close()
    found = pq.read_table(file.path)["request_id"].to_numpy()
    assert np.array_equal(found, np.arange(2 * SHARE))
