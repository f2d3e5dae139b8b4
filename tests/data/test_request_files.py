"""One global order of impressions, the same for every number of ranks."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.request_files import Impressions, ListColumn, RequestFiles
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.schema import DatasetError, load_schema


def open_files(dataset: Path, *, first: int = 0, stop: int | None = None) -> RequestFiles:
    return RequestFiles(dataset, load_schema(dataset), "train", first=first, stop=stop)


def identities(impressions: Impressions) -> np.ndarray:
    request = impressions.request["request_id"][impressions.request_index]
    return np.stack([request, impressions.candidate["item_id"]], axis=1)


def rewrite(
    dataset: Path, copy: Path, change: Callable[[pa.Table], pa.Table], *, row_group_size: int = 1024
) -> Path:
    """Copy of a dataset whose first training file went through `change(table) -> table`."""
    shutil.copytree(dataset, copy)
    path = min((copy / "train").glob("*.parquet"))
    pq.write_table(change(pq.read_table(path)), path, row_group_size=row_group_size)
    return copy


def replaced(table: pa.Table, name: str, values: list) -> pa.Table:
    place = table.schema.get_field_index(name)
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(values, field.type))


def test_a_range_of_requests_is_cut_inside_a_row_group(tiny_dataset: Path) -> None:
    whole = open_files(tiny_dataset)
    first, second = open_files(tiny_dataset, stop=777), open_files(tiny_dataset, first=777)
    assert first.num_requests == 777
    assert first.num_requests + second.num_requests == whole.num_requests
    assert first.num_impressions + second.num_impressions == whole.num_impressions
    parts = [
        identities(ImpressionOrder(files, seed=None).take(0, 0, files.num_impressions))
        for files in (first, second)
    ]
    everything = ImpressionOrder(whole, seed=None).take(0, 0, whole.num_impressions)
    assert np.array_equal(np.concatenate(parts), identities(everything))


def test_bags_are_taken_with_their_values() -> None:
    bag = ListColumn(np.array([1, 2, 3, 4, 5, 6]), np.array([0, 2, 2, 6]))
    taken = bag.take(np.array([2, 1, 0, 2]))
    assert list(taken.values) == [3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    assert list(taken.offsets) == [0, 4, 4, 6, 10]


def test_missing_column_is_named(tiny_dataset: Path, tmp_path: Path) -> None:
    damaged = rewrite(tiny_dataset, tmp_path / "d", lambda t: t.drop_columns(["position"]))
    with pytest.raises(DatasetError, match=r"part-00000\.parquet: missing columns \['position'\]"):
        open_files(damaged)


def test_lists_of_unequal_length_are_named(tiny_dataset: Path, tmp_path: Path) -> None:
    def shorten(table: pa.Table) -> pa.Table:
        lists = table["item_id"].to_pylist()
        lists[3] = lists[3][:-1]
        return replaced(table, "item_id", lists)

    files = open_files(rewrite(tiny_dataset, tmp_path / "d", shorten))
    with pytest.raises(DatasetError, match=r"request row 3: column 'item_id' .* unequal length"):
        files.read(0)


def test_labels_other_than_0_and_1_are_an_error(tiny_dataset: Path, tmp_path: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        lists = table["label"].to_pylist()
        lists[0][0] = 2
        return replaced(table, "label", lists)

    files = open_files(rewrite(tiny_dataset, tmp_path / "d", spoil))
    with pytest.raises(DatasetError, match="column 'label' holds 2, allowed: 0 and 1"):
        files.read(0)


def test_nulls_are_an_error(tiny_dataset: Path, tmp_path: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        users = table["user_id"].to_pylist()
        return replaced(table, "user_id", [None, *users[1:]])

    files = open_files(rewrite(tiny_dataset, tmp_path / "d", spoil))
    with pytest.raises(DatasetError, match="column 'user_id' holds 1 null"):
        files.read(0)


def test_a_damaged_page_is_named_also_where_a_split_is_cut(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_dataset, tmp_path / "copy")
    path = min((copy / "train").glob("*.parquet"))
    group = pq.read_metadata(path).row_group(1)
    columns = [group.column(place) for place in range(group.num_columns)]
    [labels] = [column for column in columns if column.path_in_schema.startswith("label")]
    content = bytearray(path.read_bytes())
    content[labels.data_page_offset + labels.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"part-00000.parquet: row group 1: "):
        open_files(copy, stop=1024 + 5)


def test_the_footer_of_a_file_is_read_once_and_anew_when_the_file_has_changed(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(
        "cdp_torchrec.data.request_files.pq.read_metadata",
        lambda path, metadata=pq.read_metadata: read.append(path) or metadata(path),
    )
    copy = rewrite(tiny_dataset, tmp_path / "copy", lambda table: table, row_group_size=100)
    files = open_files(copy)
    assert len(files.blocks) > 10
    for number in range(10):
        files.read(number)
    path = min((copy / "train").glob("*.parquet"))
    assert read == [path]
    pq.write_table(pq.read_table(path).slice(100), path, row_group_size=100)
    assert open_files(copy).num_requests == files.num_requests - 100
    assert read == [path] * 2


def test_truncated_parquet_file_is_named(tiny_dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d"
    shutil.copytree(tiny_dataset, copy)
    path = min((copy / "train").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"part-00000\.parquet: damaged or no parquet file"):
        open_files(copy)


def test_empty_split_is_an_error(tiny_dataset: Path, tmp_path: Path) -> None:
    empty = rewrite(tiny_dataset, tmp_path / "d", lambda table: table.slice(0, 0))
    with pytest.raises(DatasetError, match="no requests"):
        open_files(empty)
    for path in (empty / "train").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="no parquet files"):
        open_files(empty)
