"""Ids for tables of any size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.config import load_config
from cdp_torchrec.data.loader import Share
from cdp_torchrec.experiment import open_data
from cdp_torchrec.planning.measured.config import PlansConfig
from cdp_torchrec.planning.measured.ids import draw_ids
from cdp_torchrec.planning.table_rows import resize_tables, wrong_rows
from tests.planning.measured.settings import settings


def test_resized_tables_get_ids_all_over_and_bags_as_long_as_before(tiny_dataset: Path) -> None:
    config = load_config(PlansConfig, settings(tiny_dataset))
    data = open_data(config, share=Share(0, 1), global_batch_size=64)
    rows = {"item": 5000}
    layout = resize_tables(data.layout, rows)
    batch = data.train[0]
    (ids,) = draw_ids([batch], layout, rows, seed=0)
    assert layout.tables["item"].num_embeddings == 5000
    assert ids.lengths().equal(batch.sparse.lengths())
    assert ids["item_id"].values().max() > data.layout.tables["item"].num_embeddings
    assert ids["item_id"].values().max() < 5000
    assert ids["user_id"].values().equal(batch.sparse["user_id"].values())


@pytest.mark.parametrize(
    ("rows", "message"),
    [({"items": 10}, "rows.items: the model has no such table; it has"), ({"item": 2}, "least 3")],
)
def test_rows_that_no_table_can_have_are_named(
    tiny_dataset: Path, rows: dict[str, int], message: str
) -> None:
    config = load_config(PlansConfig, settings(tiny_dataset))
    data = open_data(config, share=Share(0, 1), global_batch_size=64)
    (wrong,) = wrong_rows(data.layout, rows, key="benchmark.rows")
    assert wrong.startswith("benchmark.rows.")
    assert message in wrong


def test_rows_that_later_days_have_added_stay(tiny_dataset: Path) -> None:
    config = load_config(PlansConfig, settings(tiny_dataset))
    layout = open_data(config, share=Share(0, 1), global_batch_size=64).layout
    grown = replace(layout.tables["item"], later=np.arange(90, 100))
    layout = replace(layout, tables={**layout.tables, "item": grown})
    (wrong,) = wrong_rows(layout, {"item": 12}, key="benchmark.rows")
    assert "expected at least 13" in wrong
    assert not wrong_rows(layout, {"item": 13}, key="benchmark.rows")
    assert resize_tables(layout, {"item": 13}).tables["item"].num_kept == 1
