"""CSV logs of any size, plain or compressed, read as text; who declares types checks them first."""

import codecs
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv

from cdp_torchrec.data.prepare.csv_format import CsvFormat, check_first_line, plain_text
from cdp_torchrec.data.prepare.tables import open_file
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.progress import ProgressBar

_BLOCK_BYTES = 8 << 20
_HEADER_BYTES = 1 << 20
_SUFFIXES = ("", ".gz", ".xz")
_PACKED = {
    b"\x1f\x8b": "gzip, but its name does not end in .gz",
    b"\xfd7zXZ\x00": "xz, but its name does not end in .xz",
    b"\x28\xb5\x2f\xfd": "zstd, and only .gz and .xz are read",
    **{b"BZh%d1AY&SY" % n: "bzip2, and only .gz and .xz are read" for n in range(1, 10)},
    b"PK\x03\x04": "zip, and only .gz and .xz are read",
}
_PARQUET = b"PAR1"
_PACKED_BYTES = 10


def find_csv(directory: Path, *names: str) -> Path | None:
    """The first of `<name>`, `<name>.gz`, `<name>.xz` in the directory, names in order.

    Raises:
        DatasetError: the directory does not exist.
    """
    if not directory.is_dir():
        raise DatasetError(f"{directory}: no such directory")
    paths = (directory / f"{name}{suffix}" for name in names for suffix in _SUFFIXES)
    # A link that leads nowhere is there as well: opening it says so.
    return next((path for path in paths if path.exists() or path.is_symlink()), None)


def needed_csv(directory: Path, *names: str) -> Path:
    """As `find_csv`; the file must be there.

    Raises:
        DatasetError: it is not, or the directory does not exist.
    """
    path = find_csv(directory, *names)
    if path is None:
        raise DatasetError(f"{directory}: no {names[0]} there (plain, .gz or .xz)")
    return path


def stream_csv(
    path: Path,
    columns: Sequence[str],
    form: CsvFormat | None = None,
    *,
    may_be_empty: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Blocks of the named columns as strings (empty cells null), and `line` int64.

    A progress bar follows the compressed bytes.

    Args:
        path: the file; compressed if its name ends in .gz or .xz.
        columns: to read, by name.
        form: how it is written; None: commas, a header, quotes where needed, UTF-8.
        may_be_empty: a header alone will do, or no byte at all, as in a part of a table.

    Raises:
        DatasetError: the file cannot be opened, has no rows, is cut off or damaged; a column is
            missing or occurs twice, a row has too few or too many cells, a value is not of the
            encoding, or the first line is no header where one is expected, or the reverse.
    """
    form = form or CsvFormat()
    with _reading_csv(path, form):
        row = first_row(path, form)
        if may_be_empty and not row:
            return
        check_first_line(path, row, form, columns)
        nothing = form.parsed_delimiter * (len(form.cells(row)) - 1) + "\n"
    with (
        _reading_csv(path, form),
        open_file(path) as raw,
        _decompressed(raw, path) as data,
        ProgressBar(path.name, total=path.stat().st_size // 2**20, unit="MiB") as bar,
    ):
        first = line = 2 if form.names is None else 1
        read = 0
        text = io.BufferedReader(_WithLastRow(plain_text(data, form), nothing.encode()))
        for batch in _without_last_row(_open_reader(text, columns, form), path, line):
            numbers = pa.array(np.arange(line, line + batch.num_rows))
            yield batch.append_column("line", numbers)
            line += batch.num_rows
            bar.advance(raw.tell() // 2**20 - read)
            read = raw.tell() // 2**20
    if line == first and not may_be_empty:
        raise DatasetError(f"{path}: the file has no rows")


class _WithLastRow(io.RawIOBase):
    """A table with one more row, without any value, behind it.

    Where a quotation does not end the parser takes all that follows for one cell, in silence, and
    this row with it.
    """

    def __init__(self, data: IO[bytes], row: bytes) -> None:
        self._data = data
        self._row = row
        self._left = row

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyrefly: ignore[bad-override]
        raw = self._data.read(len(buffer))
        if raw:
            self._left = self._row if raw.endswith((b"\n", b"\r")) else b"\n" + self._row
        else:
            raw, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(raw)] = raw
        return len(raw)


def _without_last_row(
    batches: Iterator[pa.RecordBatch], path: Path, line: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a table `_WithLastRow`, whose first line is given.

    Raises:
        DatasetError: a quotation does not end.
    """
    last: pa.RecordBatch | None = None
    for batch in batches:
        if last is not None:
            yield last
            line += last.num_rows
        last = batch
    assert last is not None
    count = last.num_rows - 1
    if any(column[count].is_valid for column in last.columns):
        raise DatasetError(f"{path}: malformed line: a quotation in line {line + count} never ends")
    if count:
        yield last.slice(0, count)


def first_bytes(path: Path, size: int) -> bytes:
    """The first bytes of a text table, decompressed.

    Raises:
        DatasetError: the file cannot be opened, or is damaged.
    """
    with (
        _reading_csv(path, CsvFormat()),
        open_file(path) as raw,
        _decompressed(raw, path) as data,
    ):
        return data.read(size)


def is_ascii(path: Path) -> bool:
    """Whether a whole text table, decompressed, is written in ASCII, whatever its encoding.

    Raises:
        DatasetError: the file cannot be opened, or is damaged.
    """
    with (
        _reading_csv(path, CsvFormat()),
        open_file(path) as raw,
        _decompressed(raw, path) as data,
    ):
        return all(block.isascii() for block in iter(partial(data.read, _BLOCK_BYTES), b""))


def first_row(path: Path, form: CsvFormat) -> str:
    """The first row of a text table: a line, or several if a cell in quotes goes over them.

    Raises:
        DatasetError: the file cannot be opened, is damaged, or is not of the encoding.
    """
    with (
        _reading_csv(path, form),
        open_file(path) as raw,
        _decompressed(raw, path) as data,
    ):
        return form.row_of(_lines(data, form.encoding)).removeprefix("\ufeff")


def _lines(data: IO[bytes], encoding: str) -> Iterator[str]:
    """Lines, however they end, 1 MiB of text in memory at most.

    A line that is not of the encoding is named when the parser has reached it.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    read = data.readline if "\n".encode(encoding) == b"\n" else data.read
    while raw := read(_HEADER_BYTES):
        yield from io.StringIO(decoder.decode(raw), newline="")


@contextmanager
def _reading_csv(path: Path, form: CsvFormat) -> Generator[None]:
    try:
        yield
    except EOFError as error:
        raise DatasetError(f"{path}: the file is cut off: {error}") from error
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: damaged compressed file: {error}") from error
    except (pa.ArrowInvalid, UnicodeError, csv.Error) as error:
        # Arrow counts the header as row 1, so its row is the line.
        text = str(error).replace(form.parsed_delimiter, form.delimiter)
        if isinstance(error, UnicodeError) or "invalid UTF8" in text:
            text = f"{text}; its encoding is not {form.encoding}, or it is damaged"
        if "straddles two block boundaries" in text:
            text = f"one is longer than {_BLOCK_BYTES >> 20} MiB, or a quotation does not end"
        raise DatasetError(f"{path}: malformed line: {text}") from error


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return cast(IO[bytes], lzma.open(raw))
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(raw))
    start = raw.read(_PACKED_BYTES)
    raw.seek(0)
    packed = next((how for magic, how in _PACKED.items() if start.startswith(magic)), None)
    if packed:
        raise DatasetError(f"{path}: the file is compressed by {packed}")
    if start.startswith(_PARQUET):
        raise DatasetError(
            f"{path}: the file is parquet, no text; in a mapping: format = 'parquet'"
        )
    return raw


def _open_reader(
    data: IO[bytes], columns: Sequence[str], form: CsvFormat
) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        data,
        # One thread, because only then errors name the row.
        read_options=pyarrow.csv.ReadOptions(
            block_size=_BLOCK_BYTES, use_threads=False, column_names=form.names
        ),
        parse_options=pyarrow.csv.ParseOptions(
            ignore_empty_lines=False,
            delimiter=form.parsed_delimiter,
            quote_char=form.quote or False,
            newlines_in_values=form.quote is not None,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=["", *form.missing],
            strings_can_be_null=True,
        ),
    )
