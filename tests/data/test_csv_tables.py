"""A table of text is read as it was declared, in whatever format it is written."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdp_torchrec.data.prepare import csv_tables
from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import find_csv, stream_csv
from cdp_torchrec.data.schema import DatasetError


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
    "parquet": (
        b"PAR1\x15\x04",
        "the file is parquet, no text; in a mapping: format = 'parquet'",
    ),
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
