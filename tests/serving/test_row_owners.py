"""A served table with managed collision gives each id the row that it had in training."""

from pathlib import Path

import numpy as np
import torch

from cdp_torchrec.model.managed_collision import BucketedCollisionModule, row_owners
from cdp_torchrec.serving.row_owners import RowOwners
from cdp_torchrec.serving.table_export import write_tables
from cdp_torchrec.serving.tables import EmbeddingTables, changed_rows, write_rows
from tests.model.test_managed_collision import BUCKETS, features, make_module, random_steps, rows

IDS = np.arange(200)


def served(module: BucketedCollisionModule) -> RowOwners:
    return RowOwners(row_owners(module.keys, module.rows).numpy(), buckets=BUCKETS)


def test_ids_have_the_rows_of_training_and_others_those_of_their_bucket() -> None:
    module = make_module()
    assert served(module).rows(IDS).tolist() == rows(module, IDS.tolist())
    for ids in random_steps(30):
        module.profile(features(ids))
        assert served(module).rows(IDS).tolist() == rows(module, IDS.tolist())
    known = served(module)
    shared = known.rows(np.arange(2**31 - BUCKETS, 2**31))
    assert len(set(shared)) == BUCKETS and (known.owners[shared] == -1).all()


def test_a_row_that_only_changed_its_owner_is_part_of_a_delta(tmp_path: Path) -> None:
    module = make_module()
    tables, owners, values = [], [], torch.randn(len(module.rows), 4)
    for day in range(3):
        for ids in random_steps(12 * (day + 1))[12 * day :]:
            module.profile(features(ids))
        owners.append(row_owners(module.keys, module.rows))
        folder = tmp_path / str(day)
        of_ids = {"item": owners[-1]}
        write_tables(folder, {"item": values}, owners=of_ids, storage="float32", num_shards=1)
        tables.append(
            EmbeddingTables.open(folder, {"item": BUCKETS}, embedding_dim=4, storage="float32")
        )
    patched = tables[0]
    for day in (1, 2):
        index = changed_rows(patched, tables[day], "item")
        assert index.tolist() == torch.nonzero(owners[day - 1] != owners[day]).flatten().tolist()
        write_rows(tmp_path / f"rows-{day}", tables[day], "item", index)
        patched = patched.with_rows(tmp_path / f"rows-{day}")
        assert patched.rows("item", IDS).tolist() == tables[day].rows("item", IDS).tolist()
    assert patched.rows("item", IDS).tolist() == rows(module, IDS.tolist())
