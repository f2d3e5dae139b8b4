"""A table of parquet is read as it was declared, whatever its files, folders and names suggest."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare.column_types import (
    ANY,
    CODE_OR_LIST,
    ID,
    INTEGER,
    NUMBER,
    TIME,
    VALUE_OR_LIST,
    ColumnType,
    list_of,
)
from cdp_torchrec.data.prepare.tables import find_files, find_parquet, open_parquet
from cdp_torchrec.data.schema import DatasetError


def write(folder: Path, *columns: pa.Array, name: str = "x") -> list[Path]:
    """One file for each array."""
    paths = [folder / f"{number}.parquet" for number in range(len(columns))]
    for path, column in zip(paths, columns, strict=True):
        pq.write_table(pa.table({name: column}), path)
    return paths


def read(paths: list[Path], declared: ColumnType, name: str = "x") -> list[Any]:
    table = open_parquet(paths, {name: declared})
    return [value for block in table.blocks() for value in block.rows[name].to_pylist()]


WIDENED: dict[str, tuple[ColumnType, list[pa.Array], pa.DataType]] = {
    "integers": (ID, [pa.array([7], pa.int8()), pa.array([2**40])], pa.int64()),
    "unsigned": (ID, [pa.array([7], pa.uint32()), pa.array([-1], pa.int16())], pa.int64()),
    "hashes": (ID, [pa.array([2**64 - 1], pa.uint64())], pa.uint64()),
    "floats": (NUMBER, [pa.array([0.5], pa.float32()), pa.array([0.1])], pa.float64()),
    "whole numbers first": (NUMBER, [pa.array([20]), pa.array([19.5])], pa.float64()),
    "texts": (ID, [pa.array(["007"], pa.large_string()), pa.array([" 7"])], pa.string()),
    "codes of texts": (ID, [pa.array(["7"]).dictionary_encode(), pa.array([""])], pa.string()),
    "no values": (ID, [pa.array([None]), pa.array([7])], pa.int64()),
    "lists": (
        list_of(NUMBER),
        [pa.array([[20], None]), pa.array([[], [19.5, None]], pa.large_list(pa.float32()))],
        pa.list_(pa.float64()),
    ),
    "lists of codes": (
        list_of(ID),
        [pa.array([["a"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))), pa.array([[None]])],
        pa.list_(pa.string()),
    ),
    "times": (
        TIME,
        [pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("ms"))],
        pa.timestamp("ms"),
    ),
}


@pytest.mark.parametrize("case", WIDENED)
def test_files_of_related_types_are_read_as_one_type_without_a_changed_value(
    tmp_path: Path, case: str
) -> None:
    declared, columns, common = WIDENED[case]
    paths = write(tmp_path, *columns)
    assert open_parquet(paths, {"x": declared}).schema.field("x").type == common
    assert read(paths, declared) == [value for c in columns for value in c.to_pylist()]


REFUSED: dict[str, tuple[ColumnType, list[pa.Array]]] = {
    "integers, then texts": (ID, [pa.array([7]), pa.array(["007"])]),
    "texts, then integers": (ID, [pa.array(["007"]), pa.array([7])]),
    "hashes beside negative ids": (ID, [pa.array([7], pa.uint64()), pa.array([-7])]),
    "within lists": (list_of(ID), [pa.array([[7]]), pa.array([["7"]])]),
    "integers, then floats": (ANY, [pa.array([20]), pa.array([19.5])]),
    "local times": (
        TIME,
        [pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("s", "Asia/Tokyo"))],
    ),
}


@pytest.mark.parametrize("declared", [list_of(ID), CODE_OR_LIST, VALUE_OR_LIST])
def test_lists_in_which_no_element_has_a_value_are_read(
    tmp_path: Path, declared: ColumnType
) -> None:
    lists = [*[[None, None]] * 20, [], None, [None]]
    assert read(write(tmp_path, pa.array(lists)), declared) == lists


@pytest.mark.parametrize("case", REFUSED)
def test_files_without_a_common_type_are_refused_with_both_files_and_types(
    tmp_path: Path, case: str
) -> None:
    declared, columns = REFUSED[case]
    paths = write(tmp_path, pa.nulls(1), *columns)  # the first file has no opinion
    types = [pq.read_schema(path).field("x").type for path in paths]
    with pytest.raises(DatasetError) as caught:
        read(paths, declared)
    assert str(caught.value) == (
        f"{paths[2]}: column 'x' is of type {types[2]}, but of type {types[1]} in {paths[1]}; "
        "all files of a table need one type"
    )


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7.0]),
        pa.array([True]),
        pa.array([b"7"]),
        pa.array([7]).cast(pa.decimal128(20, 1)),
        pa.array([7], pa.timestamp("s")),
        pa.array([["7"]]),
    ],
    ids=lambda column: str(column.type),
)
def test_what_is_no_id_is_refused_with_its_type(tmp_path: Path, column: pa.Array) -> None:
    with pytest.raises(DatasetError, match=r"0.parquet: column 'x' is of type .*, expected string"):
        read(write(tmp_path, column), ID)


def test_value_that_the_type_cannot_hold_is_named_with_its_row(tmp_path: Path) -> None:
    paths = write(tmp_path, pa.array([1, 2, 2**63], pa.uint64()))
    with pytest.raises(DatasetError, match=r"0.parquet: row 2: 'x' cannot be read as int64: .*808"):
        read(paths, INTEGER)
    paths = write(tmp_path, pa.array([b"a", b"\xff"]).cast(pa.string(), safe=False))
    with pytest.raises(DatasetError, match=r"0.parquet: row 1: 'x' cannot be read as string"):
        read(paths, ID)


def test_names_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    arrays = [pa.array([n]) for n in range(4)]
    pq.write_table(pa.Table.from_arrays(arrays, ["LABEL", "label.x", "label", "Label"]), path)
    assert read([path], INTEGER, "label") == [2]
    with pytest.raises(DatasetError, match=r"column 'lAbel' is missing, found \['LABEL', 'label.x"):
        read([path], INTEGER, "lAbel")


def test_a_name_that_occurs_twice_is_an_error_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    arrays = [pa.array([n]) for n in range(3)]
    pq.write_table(pa.Table.from_arrays(arrays, ["x", "y", "x"]), path)
    assert read([path], INTEGER, "y") == [1]
    with pytest.raises(DatasetError, match=r"column 'x' occurs 2 times in \['x', 'y', 'x'\]"):
        read([path], INTEGER, "x")


@pytest.mark.parametrize("name", ["x=7", "[0-9]", "*", "?", "~", "file:", "it's", "%41"])
def test_a_path_is_no_pattern_and_gives_no_columns(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    write(tmp_path, pa.array([1]))
    write(folder, pa.array([2]))
    assert read(find_parquet(folder), INTEGER) == [2]
    (folder / "0.parquet").rename(folder / "[!b]*.parquet")
    assert read(find_parquet(folder), INTEGER) == [2]


def test_a_pattern_counts_from_the_folder_unless_it_is_absolute(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = write(tmp_path / "b", pa.array([1]), pa.array([2]))
    for pattern in ("b/*.parquet", "*/*", "**/*.parquet", f"{tmp_path}/b/*", f"{tmp_path}/*/*"):
        assert find_files(tmp_path, pattern) == paths
    assert find_files(tmp_path, f"{tmp_path}/c/*") == []


def test_folders_that_may_not_be_read_are_not_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in ("day=1", "day=2"):
        (tmp_path / day).mkdir()
        write(tmp_path / day, pa.array([1]))
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "day=2" and may(path, mode))
    with pytest.raises(DatasetError, match=r"/day=2: cannot be read: Permission denied$"):
        find_files(tmp_path, "day=*/*.parquet")
    with pytest.raises(DatasetError, match=r"/day=2: cannot be read: Permission denied$"):
        find_parquet(tmp_path / "day=2")
    assert len(find_files(tmp_path, "day=1/*.parquet")) == 1


def test_optional_columns_are_read_if_all_files_have_them(tmp_path: Path) -> None:
    paths = write(tmp_path, pa.array([1]), pa.array([2]))
    assert open_parquet(paths, {"x": INTEGER}, {"y": INTEGER}).schema.names == ["x"]
    pq.write_table(pa.table({"x": [1], "y": [3]}), paths[1])
    with pytest.raises(DatasetError, match=r"0.parquet: column 'y' is missing"):
        open_parquet(paths, {"x": INTEGER}, {"y": INTEGER})


NO_TABLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "directory": (Path.mkdir, "a directory, a file is needed"),
    "loop": (lambda path: path.symlink_to(path), "cannot be opened: Too many levels of symbolic"),
    "dead link": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "pipe": (os.mkfifo, "no regular file, a file is needed"),
    "nothing": (Path.touch, "the file is empty"),
    "page": (lambda path: path.write_text("<html>"), "no parquet file, it begins with b'<htm'"),
    "stub": (lambda path: path.write_bytes(b"PAR1"), "damaged or cut off parquet file"),
}


@pytest.mark.parametrize("case", NO_TABLES)
def test_what_is_no_parquet_file_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    make, message = NO_TABLES[case]
    path = tmp_path / "0.parquet"
    make(path)
    with pytest.raises(DatasetError) as caught:
        read(find_parquet(tmp_path), INTEGER)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_files_in_folders_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    write(tmp_path, pa.array([1]))
    (tmp_path / "day=1").mkdir()
    write(tmp_path / "day=1", pa.array([1]))
    with pytest.raises(DatasetError, match=r"day=1/0.parquet: files in folders of .* are not read"):
        find_parquet(tmp_path)
