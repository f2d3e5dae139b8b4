"""Fields of structs, and of structs in lists, are read as columns of their own."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare.column_types import ANY
from cdp_torchrec.data.prepare.mapped.draft import draft_mapping
from cdp_torchrec.data.prepare.nested_columns import column_of, stored_paths, unnested
from cdp_torchrec.data.prepare.tables import open_parquet
from cdp_torchrec.data.schema import DatasetError
from tests.data.mapped_logs import prepare

USER = pa.struct([("id", pa.string()), ("home", pa.struct([("city", pa.string())]))])
CANDIDATE = pa.struct([("item", pa.int64()), ("of", pa.struct([("price", pa.float64())]))])
ROWS: list[dict[str, Any]] = [
    {"user": {"id": "ann", "home": {"city": "Rome"}}, "shown": [{"item": 7, "of": {"price": 2.5}}]},
    {"user": None, "shown": None},
    {"user": {"id": "bob", "home": None}, "shown": []},
    {"user": {"id": None, "home": {"city": None}}, "shown": [None, {"item": 9, "of": None}]},
    {"user": {"id": "eve", "home": {"city": "Bari"}}, "shown": [{"item": None, "of": {}}] * 3},
]
SHOWN = [[7], None, [], [None, 9], [None] * 3]
WANTED = {
    "user.id": ["ann", None, "bob", None, "eve"],
    "user.home.city": ["Rome", None, None, None, "Bari"],
    "shown.item": SHOWN,
    "shown.of.price": [[2.5], None, [], [None, None], [None] * 3],
}


def table(list_of: Callable[[pa.DataType], pa.DataType]) -> pa.Table:
    return pa.Table.from_pylist(ROWS, pa.schema([("user", USER), ("shown", list_of(CANDIDATE))]))


@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list])
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 5), (3, 5), (4, 4)])
def test_fields_are_those_of_the_rows(
    list_of: Callable[[pa.DataType], pa.DataType], start: int, stop: int
) -> None:
    rows = table(list_of).slice(start, stop - start).combine_chunks().to_batches()
    for name, wanted in WANTED.items():
        found = [value for batch in rows for value in column_of(batch, name).to_pylist()]
        assert found == wanted[start:stop], name
    schema = unnested(table(list_of).schema)
    assert schema.names == [*WANTED]
    assert schema.field("shown.of.price").type == pa.list_(pa.float64())


def test_a_file_is_read_in_blocks_of_any_size(tmp_path: Path) -> None:
    pq.write_table(table(pa.list_), tmp_path / "log.parquet")
    opened = open_parquet([tmp_path / "log.parquet"], {"shown.item": ANY, "user.id": ANY})
    for size in (1, 2, 5):
        found = [row for block in opened.blocks(size) for row in block.rows.to_pylist()]
        assert [row["shown.item"] for row in found] == SHOWN
        assert [row["user.id"] for row in found] == WANTED["user.id"]


def test_no_other_field_of_a_struct_is_read(tmp_path: Path) -> None:
    """They may be long texts, or of a form that is not read."""
    kinds = pa.dictionary(pa.int32(), pa.string())
    attributes = pa.map_(pa.string(), pa.list_(pa.int64()))
    fields = [("kind", kinds), ("attributes", attributes), ("item", pa.int64())]
    shown = [[{"kind": "a", "attributes": [("b", [1])], "item": n}] for n in range(20)]
    columns = {
        "pairs": pa.array([[[1], [2]]] * 20, pa.list_(pa.list_(pa.int64()))),
        "shown": pa.array(shown, pa.list_(pa.struct(fields))),
        "shown.kind.x": pa.array(range(20)),
        "time": pa.array(range(20)),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet", row_group_size=5)
    with pq.ParquetFile(tmp_path / "log.parquet") as file:
        assert stored_paths(file, ["time", "shown.item"]) == ["shown.list.element.item", "time"]
    opened = open_parquet([tmp_path / "log.parquet"], {"shown.item": ANY, "time": ANY})
    found = [row for block in opened.blocks() for row in block.rows.to_pylist()]
    assert found == [{"shown.item": [n], "time": n} for n in range(20)]


@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list])
def test_categories_in_lists_are_read_of_all_row_groups(
    tmp_path: Path, list_of: Callable[[pa.DataType], pa.DataType]
) -> None:
    kinds = pa.dictionary(pa.int32(), pa.string())
    values = [[f"a{n}", None, "b"][: n % 4] for n in range(20)]
    columns = {
        "tags": pa.array(values, list_of(kinds)),
        "shown": pa.array(
            [[{"kind": value} for value in row] for row in values],
            list_of(pa.struct([("kind", kinds)])),
        ),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet", row_group_size=5)
    opened = open_parquet([tmp_path / "log.parquet"], {"tags": ANY, "shown.kind": ANY})
    assert opened.num_rows == (20,)
    blocks = list(opened.blocks(3))
    assert [block.first for block in blocks] == [0, 3, 5, 8, 10, 13, 15, 18]
    for name in ("tags", "shown.kind"):
        assert [row for block in blocks for row in block.rows[name].to_pylist()] == values


def test_a_form_that_pyarrow_does_not_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise pa.ArrowNotImplementedError("LZO")

    pq.write_table(table(pa.list_), tmp_path / "log.parquet")
    opened = open_parquet([tmp_path / "log.parquet"], {"shown.item": ANY})
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", refuse)
    with pytest.raises(DatasetError, match=r"log.parquet: .*or of a form that is not read: LZO"):
        list(opened.blocks())


def test_a_field_and_a_column_of_one_name_are_an_error(tmp_path: Path) -> None:
    both = table(pa.list_).append_column("user.id", pa.array(["a"] * len(ROWS)))
    pq.write_table(both, tmp_path / "log.parquet")
    with pytest.raises(DatasetError, match=r"column 'user\.id' occurs 2 times"):
        open_parquet([tmp_path / "log.parquet"], {"user.id": ANY})
    with pytest.raises(DatasetError, match=r"'user' is missing, found \['user.id', 'user.home.c"):
        open_parquet([tmp_path / "log.parquet"], {"user": ANY})


def test_a_nested_log_gives_the_dataset_of_the_flat_one(tmp_path: Path) -> None:
    """What Spark and BigQuery write of a search page, drafted and prepared."""
    flat = [
        {
            "user.id": f"user{number % 9}",
            "page.time": 1_735_700_000_000 + 900_000 * number,
            "candidates.item_id": [f"item{(number + place) % 20}" for place in range(3)],
            "candidates.category": [f"category{(number + place) % 4}" for place in range(3)],
            "candidates.clicked": [place == number % 3 for place in range(3)],
        }
        for number in range(200)
    ]
    nested = [
        {
            "user": {"id": row["user.id"]},
            "page": {"time": row["page.time"]},
            "candidates": [
                {"item_id": item, "category": category, "clicked": clicked}
                for item, category, clicked in zip(
                    row["candidates.item_id"],
                    row["candidates.category"],
                    row["candidates.clicked"],
                    strict=True,
                )
            ],
        }
        for row in flat
    ]
    made = {}
    for name, rows in (("flat", flat), ("nested", nested)):
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), folder / "log.parquet")
        mapping = draft_mapping([folder / "log.parquet"], mapping="mapping.toml")
        assert 'item = "candidates.item_id"' in mapping
        made[name] = prepare(folder, mapping)
    assert made["flat"] == made["nested"]
    assert len(made["nested"]) == len(flat)
    assert made["nested"][0]["item_id"] == flat[0]["candidates.item_id"]


def test_what_was_shown_is_told_from_what_was_done_before(tmp_path: Path) -> None:
    """Both are lists of items, and users have moments of their own."""
    rows = [
        {
            "user": {"id": f"u{n % 9}", "created_at": 1_600_000_000 + n % 9},
            "history": [{"item_id": f"i{k % 20}", "ts": 1_748_000_000} for k in range(n % 4)],
            "shown_at": 1_748_736_000 + 900 * n,
            "candidates": [{"item_id": f"i{k}", "clicked": k == n % 3} for k in range(3)],
        }
        for n in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    found = tomllib.loads(draft_mapping([tmp_path / "log.parquet"], mapping="mapping.toml"))
    assert found["log"]["item"] == "candidates.item_id"
    assert found["log"]["time"]["column"] == "shown_at"
    assert found["log"]["label"] == {"column": "candidates.clicked", "one_of": ["true"]}
