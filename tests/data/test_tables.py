"""A table is read as it was declared, whatever its files, folders and names suggest."""

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare import csv_tables
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
from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import find_csv, stream_csv
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


def rows_of(path: Path, *columns: str) -> list[dict[str, Any]]:
    return [row for batch in stream_csv(path, columns) for row in batch.to_pylist()]


@pytest.mark.parametrize(
    "content",
    [
        b"id,ID,label\n007,x, 7\n,x,1.50\n",
        b"\xef\xbb\xbfid,ID,label\r\n007,x, 7\r\n,x,1.50\r\n",
        b'"label","id","more"\n" 7","007","a,b"\n"1.50","",\n',
        b"id,ID,label\r007,x, 7\r,x,1.50\r",
        b'id,"of the\nshop",label\n007,x, 7\n,x,1.50\n',
    ],
)
def test_cells_of_a_csv_are_its_text_and_its_names_exact(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    (tmp_path / "zipped.csv.gz").write_bytes(gzip.compress(content))
    for name in ("log.csv", "zipped.csv"):
        path = find_csv(tmp_path, name)
        assert path
        assert rows_of(path, "id", "label") == [
            {"id": "007", "label": " 7", "line": 2},
            {"id": None, "label": "1.50", "line": 3},
        ]


def test_a_cell_whose_lines_lie_in_two_blocks_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_tables, "_BLOCK_BYTES", 100)
    titles = ["\n".join("abcdefgh"[: n % 8 + 1]) for n in range(200)]
    rows = [f'{n},"{title}"\n' for n, title in enumerate(titles)]
    (tmp_path / "log.csv").write_text("".join(["id,label\n", *rows]))
    found = rows_of(tmp_path / "log.csv", "id", "label")
    assert [row["label"] for row in found] == titles


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 20, 100])
def test_the_last_rows_are_those_of_the_file_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, end: str
) -> None:
    monkeypatch.setattr(csv_tables, "_BLOCK_BYTES", 100)
    rows = [(str(n) if n % 3 else None, f"t{n}" if n % 4 else None) for n in range(size)]
    lines = [f'{n or ""},"{t}"' if t else f"{n or ''}," for n, t in rows]
    newline = end or "\n"
    text = newline.join(["id,label", *lines]) + end
    (tmp_path / "log.csv").write_bytes(text.encode())
    found = rows_of(tmp_path / "log.csv", "id", "label")
    assert [(row["id"], row["label"]) for row in found] == rows
    assert [row["line"] for row in found] == list(range(2, size + 2))


BAD_CSVS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n1\n", "the file is empty"),
    "no rows": (b"id,label\n", "the file has no rows"),
    "no line end": (b"id,label", "the file has no rows"),
    "twice": (b"id,label,id\n1,2,3\n", "column 'id' occurs 2 times in ['id', 'label', 'id']"),
    "case": (b"ID,label\n1,2\n", "column 'id' is missing, found ['ID', 'label']"),
    "page": (b"<!DOCTYPE html>\n<html>\n", "column 'id' is missing, found ['<!DOCTYPE html>']"),
    "semicolons": (b"id;label\n1;2\n", "column 'id' is missing, found ['id;label']"),
    "UTF-16": ("id,label\n1,2\n".encode("utf-16"), "malformed line: 'utf-8' codec can't decode"),
    "zipped": (gzip.compress(b"id,label\n1,2\n"), "the file is compressed by gzip, but its"),
    "one line": (b'"' + b"x" * 200_000, "malformed line: field larger than field limit"),
    "long": (b"id,label\n1,2\n3," + b"x" * (20 << 20), "malformed line: one is longer than 8 MiB"),
    "quotation": (
        b'id,label\n1,2\n3,"4\n5,6\n7,8\n',
        "malformed line: a quotation in line 3 never ends",
    ),
    "quotation in a column that is not read": (
        b'id,label,title\n1,2,a\n3,4,"b\n5,6,c',
        "malformed line: a quotation in line 3 never ends",
    ),
}


@pytest.mark.parametrize("case", BAD_CSVS)
def test_what_is_no_csv_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    content, message = BAD_CSVS[case]
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        rows_of(path, "id", "label")
    assert str(caught.value).startswith(f"{path}: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_log_that_cannot_be_opened_is_found_and_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").mkdir()
    path = find_csv(tmp_path, "log.csv")
    assert path
    with pytest.raises(DatasetError, match=r"log.csv: a directory, a file is needed"):
        rows_of(path, "id")
    (tmp_path / "other.csv.xz").symlink_to("other.csv.xz")
    path = find_csv(tmp_path, "other.csv")
    assert path
    with pytest.raises(DatasetError, match=r"other.csv.xz: cannot be opened: Too many levels"):
        rows_of(path, "id")


WRITTEN: dict[str, tuple[CsvFormat, bytes]] = {
    "tabs": (CsvFormat(delimiter="\t"), b"id\tlabel\nx\t1\n\tNULL\n"),
    "no header": (CsvFormat(names=("id", "label")), b"x,1\n,NULL\n"),
    "two characters": (CsvFormat(delimiter="::", quote=None), b"id::label\nx::1\n::NULL\n"),
    "UTF-16": (CsvFormat(encoding="utf-16"), "id,label\nx,1\n,NULL\n".encode("utf-16")),
    "more columns": (CsvFormat(delimiter=";"), b'label;"id";z\r\n1;"x";"a;b"\r\nNULL;;\r\n'),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_csv_is_read_in_the_format_that_is_told(tmp_path: Path, case: str) -> None:
    form, content = WRITTEN[case]
    (tmp_path / "log.csv").write_bytes(content)
    form = replace(form, missing=("NULL",))
    batches = stream_csv(tmp_path / "log.csv", ("id", "label"), form)
    rows = [row for batch in batches for row in batch.to_pylist()]
    first = 1 if form.names else 2
    assert rows == [
        {"id": "x", "label": "1", "line": first},
        {"id": None, "label": None, "line": first + 1},
    ]


def test_a_delimiter_of_two_characters_may_lie_on_the_border_of_two_blocks(tmp_path: Path) -> None:
    cells = [str(n) * (n % 7 + 1) for n in range(300_000)]
    text = "".join(f"{a}::caf\xe9: {a}\n" for a in cells)
    assert len(text) > 2 << 20
    (tmp_path / "log.dat").write_bytes(text.encode("latin-1"))
    form = CsvFormat(delimiter="::", names=("a", "b"), quote=None, encoding="latin-1")
    blocks = list(stream_csv(tmp_path / "log.dat", ("a", "b"), form))
    assert [a for block in blocks for a in block["a"].to_pylist()] == cells
    assert [b for block in blocks for b in block["b"].to_pylist()] == [
        f"caf\xe9: {a}" for a in cells
    ]


BAD_FORMATS: dict[str, tuple[CsvFormat, bytes, str]] = {
    "other delimiter": (
        CsvFormat(),
        b"id;label\n1;2\n",
        "column 'id' is missing, found ['id;label']; with the delimiter ';' it would have 2 cells",
    ),
    "no header": (
        CsvFormat(),
        b"1,2\n3,4\n",
        "column 'id' is missing, found ['1', '2']; it looks like a line of values: the columns of",
    ),
    "header": (
        CsvFormat(names=("id", "label")),
        b"ID,label\n1,2\n",
        "line 1 is a header, but none is expected where columns are named: ['ID', 'label']",
    ),
    "other delimiter without a header": (
        CsvFormat(names=("id", "label")),
        b"1\t2\n",
        "line 1 has 1 cells, but 2 columns are named (id, label); with the delimiter '\\t' it",
    ),
    "short line": (
        CsvFormat(names=("id", "label"), delimiter="::", quote=None),
        b"1::2\n3\n",
        "malformed line: CSV parse error: Row #2: Expected 2 columns, got 1: 3",
    ),
    "ASCII": (
        CsvFormat(encoding="ascii"),
        b"id,label\n1,\xe9\n",
        "malformed line: 'ascii' codec can't decode byte 0xe9",
    ),
    "UTF-16 without its mark": (
        CsvFormat(encoding="utf-16"),
        b"id,label\n1,2\n",
        "malformed line: UTF-16 stream does not start with BOM; its encoding is not utf-16, or it",
    ),
    "control character": (
        CsvFormat(names=("id", "label"), delimiter="::", quote=None),
        b"1::\x1f\n",
        "malformed line: a cell holds the control character 0x1f",
    ),
    "no such name": (
        CsvFormat(names=("a", "label")),
        b"1,2\n",
        "column 'id' is missing, found ['a', 'label']",
    ),
}


@pytest.mark.parametrize("case", BAD_FORMATS)
def test_a_csv_in_another_format_is_told_which(tmp_path: Path, case: str) -> None:
    form, content, message = BAD_FORMATS[case]
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        list(stream_csv(path, ("id", "label"), form))
    assert str(caught.value).startswith(f"{path}: {message}")
