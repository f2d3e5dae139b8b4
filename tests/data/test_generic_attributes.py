"""A mapping gives behaviours attributes: of their own tables, or of their items."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.history.segments import open_history
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.serving.encode_attributes import raw_attributes
from cdp_torchrec.serving.parts import open_vocabularies
from tests.data.mapped_logs import IMPRESSIONS, START, mapping_of, prepare, two_days, write_csv

ATTRIBUTES = """
[tables.items]
files = ["items.csv"]
by = "item"
key = "id"

[tables.views]
files = ["views.csv"]

[behaviours.view]
table = "views"
user = "who"
item = ["what"]
category = "kind"
time = {column = "when", unit = "s"}
attributes = {dwell_s = "seconds", shop_id = "shop"}

[attributes.dwell_s]
kind = "number"

[attributes.shop_id]
kind = "id"

[attributes.tags]
kind = "ids"
table = "items"
column = "labels"
separator = "|"
entity = "tag"
max_ids = 3
"""
TEXT = IMPRESSIONS + ATTRIBUTES


def write_log(folder: Path, **view: Any) -> None:
    write_csv(folder / "log.csv", two_days())
    items = [{"id": "a", "labels": "red|new"}, {"id": "b", "labels": ""}]
    write_csv(folder / "items.csv", items)
    views = {"who": "ann", "what": "a", "kind": "hats", "seconds": "12.5", "shop": "north"}
    write_csv(
        folder / "views.csv",
        [
            views | {"when": START + 60} | view,
            views | {"when": START + 120, "what": "z", "seconds": "", "shop": ""},
        ],
    )


def test_attributes_of_sources_and_of_items_come_together(tmp_path: Path) -> None:
    write_log(tmp_path)
    prepare(tmp_path, TEXT)
    dataset = tmp_path / "data"
    schema = load_grown_schema(dataset)
    assert [(a.name, a.entity, a.max_ids) for a in schema.history.attributes] == [
        ("dwell_s", None, 1),
        ("shop_id", "shop", 1),
        ("tags", "tag", 3),
    ]
    behaviours, slices = open_history(dataset, schema).recent(np.array([1]), np.array([2**62]))
    vocabularies = open_vocabularies(dataset, schema)
    rows = slices.rows()
    found = raw_attributes(
        {n: c[rows] for n, c in behaviours.attributes.items()},
        schema.history.attributes,
        vocabularies,
    )
    items = vocabularies["item"].raw(np.asarray(behaviours.item[rows]))
    # Two views, then the click on b of each page.
    assert items == ["a", "z", "b", "b", "b"]
    assert found == {
        "dwell_s": [12.5, None, None, None, None],
        "shop_id": ["north", None, None, None, None],
        "tags": [["red", "new"], [], [], [], []],
    }


@pytest.mark.parametrize(
    ("view", "said"),
    [({"seconds": "long"}, r"views\.csv: line 2: 'seconds' is no number.*long")],
)
def test_a_bad_attribute_names_file_and_line(
    tmp_path: Path, view: dict[str, Any], said: str
) -> None:
    write_log(tmp_path, **view)
    with pytest.raises(DatasetError, match=said):
        prepare(tmp_path, TEXT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("attributes.tags.table='views'", r"attributes\.tags\.table.*must be one of the tables"),
        ("attributes.dwell_s.max_ids=2", "max_ids.*has an effect on kind = 'ids' only"),
        ("attributes.dwell_s.entity='x'", "entity.*has no effect on kind = 'number'"),
        ("attributes.colour={kind='id'}", r"attributes\.colour.*stands nowhere"),
        ("attributes.item={kind='id'}", r"attributes\.item.*not reserved"),
        ("behaviours.view.attributes.colour='x'", "must be one of the attributes"),
        ("behaviours.view.attributes.tags='x'", "has no effect: it stands in table 'items'"),
        ("behaviours.click.attributes={dwell_s='x'}", "needs a table, which may be that of the"),
        ("attributes.shop_id.column='x'", "column.*needs a table"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mapping_of(tmp_path, TEXT, change)
