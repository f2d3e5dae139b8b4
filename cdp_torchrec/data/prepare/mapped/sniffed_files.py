"""What a file of a log looks like: its format, its columns, and a sample of their values.

These are guesses, for a draft of a mapping; a preparation reads what its mapping says.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from cdp_torchrec.data.prepare.column_types import ANY, VALUE_OR_LIST
from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import first_bytes, stream_csv
from cdp_torchrec.data.prepare.mapped.sniffed_columns import NUMBER, SniffedColumn, has_any_form
from cdp_torchrec.data.prepare.table_config import PRINTED_NOTHING
from cdp_torchrec.data.prepare.tables import open_parquet
from cdp_torchrec.data.schema import DatasetError

SAMPLE_ROWS = 50_000
"""Rows from the start of a file that are looked at."""

_PARQUET = (".parquet", ".pq")
_HEAD_BYTES = 1 << 18
_HEAD_LINES = 200
_FEW_LINES = 0.1
_DELIMITERS = ("\t", ",", ";", "::", "|", " ")
_MISSING = (
    "NULL",
    " NULL",
    "null",
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "<NA>",
    "NaN",
    "nan",
    "None",
    r"\N",
)


@dataclass(frozen=True)
class SniffedFile:
    """A file, by its first rows."""

    path: Path
    columns: dict[str, SniffedColumn]
    form: CsvFormat | None = None
    """How text is written; None: it is parquet."""
    missing: tuple[str, ...] = ()
    """Texts in it that stand for nothing."""
    more: tuple[Path, ...] = ()
    """Further files of the same table."""
    has_quotes: bool = True
    """Whether a quotation mark stands in its first lines; else it is read with any `form.quote`."""
    unread: tuple[str, ...] = ()
    """Columns that no mapping reads, with the reason."""

    @property
    def num_rows(self) -> int:
        """Rows of the sample."""
        return len(next(iter(self.columns.values())).values)

    def row(self, place: int) -> str:
        """A row of the sample, by the number that a preparation calls it."""
        if self.form is None:
            return f"row {place}"
        return f"line {place + (1 if self.form.names else 2)}"


def is_blank(path: Path) -> bool:
    """Whether a text table has not a byte, not even a header: the part of a worker without rows.

    Raises:
        DatasetError: it cannot be opened, or is damaged.
    """
    return path.suffix not in _PARQUET and not first_bytes(path, 1)


def sniff(path: Path) -> SniffedFile:
    """Look at the start of a file, which may have no rows.

    Raises:
        DatasetError: it cannot be read, or is no table.
    """
    if path.suffix in _PARQUET:
        return _sniff_parquet(path)
    form = _sniff_format(path)
    text = _decode(path, form.encoding)
    header = form.names or form.cells(text)
    names = [name for name in header if _is_named(name)]
    rows: list[pa.RecordBatch] = []
    for batch in stream_csv(path, names, form, may_be_empty=True):
        rows.append(batch)
        if sum(map(len, rows)) >= SAMPLE_ROWS:
            break
    schema = rows[0].schema if rows else pa.schema([(name, pa.string()) for name in names])
    table = pa.Table.from_batches(rows, schema).slice(0, SAMPLE_ROWS)
    texts = {name: table[name].to_pylist() for name in names}
    missing = tuple(m for m in _MISSING if any(m in column for column in texts.values()))
    columns = {
        name: SniffedColumn(name, _without(column, missing)) for name, column in texts.items()
    }
    return SniffedFile(
        path, columns, form, missing, has_quotes='"' in text, unread=_nameless(header)
    )


def _without(values: list[Any], missing: Sequence[str]) -> list[Any]:
    """The values of a column, None for texts and elements of lists that stand for nothing."""
    return [
        _without(value, missing) if isinstance(value, list) else None if value in missing else value
        for value in values
    ]


def _is_named(name: str) -> bool:
    """Whether a column has a name; data frames write the numbers of their rows without one."""
    return bool(name.strip()) and not re.fullmatch("__index_level_[0-9]+__", name)


def _nameless(header: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"column {number} without a name"
        for number, name in enumerate(header, start=1)
        if not _is_named(name)
    )


def _sniff_parquet(path: Path) -> SniffedFile:
    there = open_parquet([path], dict.fromkeys(open_parquet([path], {}).names, ANY)).schema
    named = [field for field in there if _is_named(field.name)]
    read = [field.name for field in named if VALUE_OR_LIST.widened(field.type) is not None]
    unread = _nameless(there.names) + tuple(
        f"{f.name!r} is of type {f.type}" for f in named if f.name not in read
    )
    table = open_parquet([path], dict.fromkeys(read, VALUE_OR_LIST))
    rows: list[pa.RecordBatch] = []
    for block in table.blocks():
        rows.append(block.rows)
        if sum(map(len, rows)) >= SAMPLE_ROWS:
            break
    sample = pa.Table.from_batches(rows, table.schema).slice(0, SAMPLE_ROWS)
    texts = [_elements(sample[field.name]) for field in sample.schema if _is_text(field.type)]
    missing = tuple(m for m in PRINTED_NOTHING if any(m in there for there in texts))
    columns = {}
    for field in sample.schema:
        kind = field.type
        values = [_text(value) for value in _python_values(sample[field.name])]
        columns[field.name] = SniffedColumn(
            field.name,
            _without(values, missing) if _is_text(kind) else values,
            is_timestamp=pa.types.is_timestamp(kind) or pa.types.is_date(kind),
            fractions=_fractions(kind.value_type if pa.types.is_list(kind) else kind),
        )
    return SniffedFile(path, columns, missing=missing, unread=unread)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind.value_type if pa.types.is_list(kind) else kind)


def _elements(column: pa.ChunkedArray) -> set[str | None]:
    """All texts of a column of texts, or of lists of them."""
    chunks = [c.flatten() if pa.types.is_list(c.type) else c for c in column.chunks]
    return {text for chunk in chunks for text in chunk.unique().to_pylist()}


def _fractions(kind: pa.DataType) -> str:
    if pa.types.is_floating(kind):
        return "floating point"
    return "decimal" if pa.types.is_decimal(kind) and kind.scale > 0 else ""


def _python_values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; moments as text, as Python has no nanoseconds and no year 10,000."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp(column.type.unit)).cast(pa.string())
    return column.to_pylist()


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(element) for element in value]
    if isinstance(value, bool):
        return str(value).lower()
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if is_missing else str(value)


def _sniff_format(path: Path) -> CsvFormat:
    head = first_bytes(path, _HEAD_BYTES)
    if not head:
        raise DatasetError(f"{path}: the file is empty")
    encoding = _sniff_encoding(head)
    text = _decode(path, encoding)
    lines = [line.rstrip("\r\n") for line in io.StringIO(text, newline="")]
    lines = lines[: min(_HEAD_LINES, len(lines) - (len(head) == _HEAD_BYTES))]
    if not lines or not lines[0]:
        raise DatasetError(
            f"{path}: no table: its first line is empty or longer than {_HEAD_BYTES:,} bytes"
        )
    quote = '"' if re.search(r'(^|[,;\t|])"[^"\n]*"([,;\t|]|$)', text, re.MULTILINE) else None
    quote = quote or (None if '"' in text else '"')
    ragged = ""
    for delimiter in _DELIMITERS:
        form = CsvFormat(delimiter, None, None if len(delimiter) > 1 else quote, encoding)
        try:
            rows = [form.cells(line) for line in lines]
        except csv.Error:
            continue
        if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            return _with_names(path, form, rows)
        ragged = ragged or _odd_line(rows, delimiter)
    for delimiter in _DELIMITERS:  # lines may break inside of quoted cells
        form = CsvFormat(delimiter, None, '"', encoding)
        rows = _rows(text, form, is_whole=len(head) < _HEAD_BYTES)
        if rows and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            return _with_names(path, form, rows)
    if ragged:
        raise DatasetError(f"{path}: {ragged}")
    raise DatasetError(
        f"{path}: no delimiter out of {list(_DELIMITERS)} cuts all lines into as many cells; "
        f"it begins with {lines[0][:80]!r}"
    )


def _rows(text: str, form: CsvFormat, *, is_whole: bool) -> list[list[str]]:
    """Cells of the first rows, in some of which lines break; none if there are no such cells."""
    if len(form.delimiter) > 1 or '"' not in text:
        return []
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=form.delimiter, quotechar='"', strict=True
    )
    try:
        rows = [*islice((row for row in reader if row), _HEAD_LINES)]
    except csv.Error:  # also a quotation that the end of what was read cuts off
        return []
    return rows if is_whole or len(rows) == _HEAD_LINES else rows[:-1]


def _with_names(path: Path, form: CsvFormat, rows: Sequence[Sequence[str]]) -> CsvFormat:
    """The format of these rows, with names for the columns where the first one is no header.

    Raises:
        DatasetError: a column's name occurs twice.
    """
    if _is_header(rows):
        return form
    first = rows[0]
    named = [cell for cell in first if cell.strip()]
    if len(named) < len(first) and _is_header([named]) and _says_what(rows):
        return form  # some writers give their numbers of rows no name
    repeated = next((cell for cell in first if first.count(cell) > 1), None)
    if repeated is not None and _is_header([[*dict.fromkeys(first)]]) and _says_what(rows):
        raise DatasetError(
            f"{path}: column {repeated!r} occurs {first.count(repeated)} times in the first line"
        )
    return replace(form, names=_names(rows))


def _says_what(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row can be no row of values: it has words where all others have numbers."""
    columns = zip(*rows[1:], strict=True)
    return any(
        bool(values) and all(map(NUMBER.fullmatch, values)) and not NUMBER.fullmatch(name)
        for name, values in zip(rows[0], columns, strict=False)
        if name.strip()
    )


def _odd_line(rows: Sequence[Sequence[str]], delimiter: str) -> str:
    """What is wrong with the first line that has not as many cells as nearly all; "" if many."""
    width = len(rows[0])
    odd = [number for number, row in enumerate(rows, start=1) if len(row) != width]
    if width == 1 or len(odd) > _FEW_LINES * len(rows):
        return ""
    return (
        f"line {odd[0]} has {len(rows[odd[0] - 1])} cells, the first one {width}, with the "
        f"delimiter {delimiter!r}"
    )


def _sniff_encoding(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        head[: head.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _decode(path: Path, encoding: str) -> str:
    text = first_bytes(path, _HEAD_BYTES).decode(encoding, errors="replace")
    return text.removeprefix("\ufeff")


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    first = rows[0]
    if len({*first}) < len(first) or not all(cell.strip() for cell in first):
        return False
    return not any(NUMBER.fullmatch(cell.strip()) or has_any_form(cell) for cell in first)


def _names(rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(f"column_{number}" for number in range(1, len(rows[0]) + 1))
