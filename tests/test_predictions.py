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
from tests.largest_file import largest_file

SHARE = (1 << 20) + 1
"""More impressions than pyarrow puts into a row group by itself."""


class Codes:
    """Writes codes as they are."""

    schema = pa.schema([("request_id", pa.int64()), ("probability", pa.float32())])

    def __init__(self, *of_dataset: object) -> None:
        pass

    def of(self, coded: pa.Table) -> pa.Table:
        return coded.select(self.schema.names)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What this process takes itself for, one rank after the other."""
    ranks = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 1, barrier=lambda: None)
    named: list[Path] = []

    def from_rank_zero(make: Any, *, purpose: str) -> Path:
        if ranks.get_rank() == ranks.get_world_size() - 1:  # the first one here
            named[:] = [make()]
        return named[0]

    monkeypatch.setattr(predictions, "_RawIds", Codes)
    monkeypatch.setattr(predictions, "dist", ranks)
    monkeypatch.setattr(predictions, "from_rank_zero", from_rank_zero)
    return ranks


@pytest.fixture
def file(tmp_path: Path) -> PredictionFile:
    schema: Any = None
    return PredictionFile(tmp_path / "predictions.parquet", tmp_path, schema)


def write(writer: PredictionWriter, *, first: int, count: int) -> None:
    batch: Any = SimpleNamespace(
        request_id=torch.arange(first, first + count),
        user_id=torch.zeros(count, dtype=torch.int64),
        item_id=torch.zeros(count, dtype=torch.int64),
        labels=torch.zeros(count),
        weights=torch.ones(count),
    )
    writer.write(batch, torch.zeros(count))


def written(file: PredictionFile) -> list[int]:
    """Requests; nothing else is left beside them."""
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    return pq.read_table(file.path)["request_id"].to_numpy().tolist()


def test_rows_stand_in_the_order_of_the_split_whatever_the_size_of_a_share(
    ranks: SimpleNamespace, file: PredictionFile
) -> None:
    """Fails where a rank's share of a step becomes several row groups, which the ranks then mix."""

    def rank_zero() -> None:
        """All that it does, while the other one waits for it."""
        ranks.get_rank, ranks.barrier = lambda: 0, lambda: None
        with PredictionWriter(file) as writer:
            write(writer, first=0, count=SHARE)
        ranks.get_rank = lambda: 1

    ranks.get_world_size, ranks.get_rank, ranks.barrier = lambda: 2, lambda: 1, rank_zero
    with PredictionWriter(file) as writer:
        write(writer, first=SHARE, count=SHARE)
    assert np.array_equal(written(file), np.arange(2 * SHARE))


@pytest.mark.usefixtures("ranks")
def test_two_evaluations_at_once_do_not_take_each_others_parts(file: PredictionFile) -> None:
    with PredictionWriter(file) as first:
        write(first, first=0, count=3)
        with PredictionWriter(file) as second:
            write(second, first=10, count=3)
            write(first, first=3, count=1)
        assert pq.read_table(file.path)["request_id"].to_pylist() == [10, 11, 12]
    assert written(file) == [0, 1, 2, 3]


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("count", [3, 100_000], ids=["at its end", "at a step"])
def test_a_full_disk_is_named_and_leaves_the_old_file(file: PredictionFile, count: int) -> None:
    with PredictionWriter(file) as writer:
        write(writer, first=7, count=1)
    with (
        largest_file(64),
        pytest.raises(OSError, match=r"large: '[^']*/predictions\.parquet'"),
        PredictionWriter(file) as writer,
    ):
        write(writer, first=0, count=count)
    assert written(file) == [7]


@pytest.mark.usefixtures("ranks")
def test_parts_of_killed_ranks_are_removed(file: PredictionFile) -> None:
    left = [".predictions.parquet.partial-1a2b3c4d.3", ".predictions.parquet.partial-1a2b3c4d"]
    for name in (*left, ".other.parquet.partial-1a2b3c4d.3"):
        (file.path.parent / name).touch()
    PredictionWriter(file)
    names = [path.name for path in file.path.parent.iterdir()]
    assert names == [".other.parquet.partial-1a2b3c4d.3"]
