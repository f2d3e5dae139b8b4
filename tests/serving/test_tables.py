"""Tables with the rows of deltas are the tables that the deltas lead to."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.config import TableStorage
from cdp_torchrec.serving.table_export import write_tables
from cdp_torchrec.serving.tables import EmbeddingTables, Lookup, changed_rows, write_rows

SIZES = (40, 40, 57, 91)


def stored(folder: Path, values: torch.Tensor, storage: TableStorage) -> EmbeddingTables:
    write_tables(folder, {"item": values}, owners={}, storage=storage, num_shards=3)
    return EmbeddingTables.open(folder, {"item": None}, embedding_dim=4, storage=storage)


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_rows_of_several_deltas_give_the_tables_of_the_last_day(
    tmp_path: Path, storage: TableStorage
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(SIZES[0], 4, generator=generator)
    patched = stored(tmp_path / "0", values, storage)
    before = patched.stored("item", np.arange(40))
    first = patched
    for day, size in enumerate(SIZES[1:], start=1):
        values = torch.cat([values, torch.randn(size - len(values), 4, generator=generator)])
        touched = torch.randperm(len(values), generator=generator)[:10]
        values[touched] += 1
        full = stored(tmp_path / str(day), values, storage)
        index = changed_rows(patched, full, "item")
        new = set(range(patched.num_embeddings("item"), size))
        assert set(index.tolist()) == {*touched.tolist(), *new}
        write_rows(tmp_path / f"rows-{day}", full, "item", index)
        patched = patched.with_rows(tmp_path / f"rows-{day}")
        patched.check({"item": size}, where=tmp_path)
        assert len(changed_rows(patched, full, "item")) == 0
        some = [Lookup("item", np.array([size - 1, 0, 7, 7, 39]), num_places=7)]
        assert torch.equal(patched.read(some), full.read(some))
        assert not full.read(some)[5:].any()
    np.testing.assert_array_equal(first.stored("item", np.arange(40)), before)


def test_quantized_rows_are_read_as_fbgemm_reads_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, 4, generator=generator) * torch.logspace(-3, 6, 500).unsqueeze(1)
    values[7] = 3.0  # no spread
    tables, rows = stored(tmp_path / "tables", values, "int8"), np.arange(500)
    quantized = torch.from_numpy(tables.stored("item", rows))
    expected = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(quantized)
    found = tables.read([Lookup("item", rows, num_places=500)])
    spread = (values.amax(dim=1) - values.amin(dim=1)).unsqueeze(1)
    assert ((found - expected).abs() <= 1e-6 * spread).all()
    assert ((found - values).abs() <= spread / 255).all()


def test_rows_differ_in_bits_not_in_value(tmp_path: Path) -> None:
    values = torch.zeros(3, 4)
    values[1] = torch.nan
    old = stored(tmp_path / "old", values, "float32")
    values[2] = -0.0
    assert changed_rows(old, stored(tmp_path / "new", values, "float32"), "item").tolist() == [2]


@pytest.mark.parametrize("index", [[41], [3, 2], [-1], [39, 41]])
def test_rows_that_do_not_continue_a_table_are_refused(tmp_path: Path, index: list[int]) -> None:
    tables = stored(tmp_path / "tables", torch.zeros(40, 4), "float32")
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "item-index.npy", np.array(index))
    np.save(tmp_path / "rows" / "item-values.npy", np.zeros((len(index), 4), dtype=np.float32))
    with pytest.raises(ArtifactError, match="rows of table 'item' do not continue its 40 rows"):
        tables.with_rows(tmp_path / "rows")
