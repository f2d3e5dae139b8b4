"""Few impressions go shorter ways, to the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdp_torchrec.data import model_inputs
from cdp_torchrec.data.config import ManagedCollisionConfig
from cdp_torchrec.data.history import distinct_keys, store, sums
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.data.tables.embedding_table import Table
from cdp_torchrec.data.tables.own_rows import OwnRows
from tests.data.test_assemble import make_inputs, make_order

PLAIN = Table("plain", num_oov_rows=3, num_kept=40, num_ids=60)
TABLES = {
    "plain": PLAIN,
    "later": replace(PLAIN, later=np.array([50, 44])),
    "hashed": replace(PLAIN, hash_bucket_size=7, buckets=np.arange(60) % 7),
    "managed": replace(PLAIN, managed_collision=ManagedCollisionConfig(zch_size=16, buckets=2)),
}


@pytest.mark.parametrize("most", [40, 60])
def test_rows_of_all_tables_at_once_are_those_of_each(most: int) -> None:
    generator = np.random.default_rng(0)
    codes = [generator.integers(0, most, size=n, endpoint=True) for n in (9, 1, 0, 30)]
    codes = [codes[number % 4].astype(dtype) for number, dtype in enumerate("iqiqiqiq")]
    tables = [*TABLES.values(), *TABLES.values()]
    found = OwnRows(tables).rows(codes)
    for table, own, rows in zip(tables, codes, found, strict=True):
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(rows, table.rows(own))


@pytest.mark.parametrize("code", [-1, 61])
def test_a_code_beyond_its_table_is_named_there_too(code: int) -> None:
    with pytest.raises(DatasetError, match="entity 'plain': found id code"):
        OwnRows([PLAIN, PLAIN]).rows([np.array([3]), np.array([2, code])])


def test_a_batch_is_the_same_both_ways(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = HistoryLookup(pool_segments=(1, 3), gated=True, recent=True)
    inputs = make_inputs(tiny_dataset, batch_size=32, history=lookup)
    order = make_order(tiny_dataset)
    monkeypatch.setattr(store, "_FEW", 64)
    parts = [order.take(0, start, start + 30) for start in range(0, 600, 30)]
    short = [inputs.assemble(part, epoch=None) for part in parts]
    for module, name in (
        (store, "_FEW"),
        (distinct_keys, "_FEW"),
        (sums, "_MOST_PAIRS"),
        (model_inputs, "FEW"),
    ):
        monkeypatch.setattr(module, name, -1)
    counted = 0.0
    for part, one in zip(parts, short, strict=True):
        other = inputs.assemble(part, epoch=None)
        assert one.rows.keys() == other.rows.keys()
        for key, (values, lengths) in one.rows.items():
            np.testing.assert_array_equal(values, other.rows[key].values)
            np.testing.assert_array_equal(lengths, other.rows[key].lengths)
        assert torch.equal(one.dense.pool_index, other.dense.pool_index)
        assert torch.equal(one.dense.history_counts, other.dense.history_counts)
        counted += float(one.dense.history_counts[:, 3:].sum())
    assert counted > 0
