"""Logs that are text, of any size, plain or compressed; who declares types checks them first.

Cells are read as strings. How a file is written is declared, never guessed: its delimiter, whether
quotes mean anything, whether its first line names the columns.
"""

import csv
import gzip
import lzma
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from cdp_torchrec.data.prepare.tables import check_names, open_file
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.progress import ProgressBar

_BLOCK_BYTES = 8 << 20
_HEADER_BYTES = 1 << 20
_SUFFIXES = ("", ".gz", ".xz")


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


@dataclass(frozen=True)
class TextFormat:
    """How a table is written as text."""

    delimiter: str = ","
    quoting: Literal["csv", "none"] = "csv"
    """`csv`: cells may stand in double quotes; `none`: a quote is a character like any other."""
    columns: tuple[str, ...] = ()
    """All columns in order, of a file whose first line is no header; empty: it is one."""
    header_starts: tuple[str, ...] = ()
    """What the first cell of a header may be, of files that come with and without one."""


CSV = TextFormat()


def stream_csv(
    path: Path, columns: Sequence[str], form: TextFormat = CSV
) -> Iterator[pa.RecordBatch]:
    """Blocks of the named columns as strings (empty cells null), and `line` int64 of the file.

    A progress bar follows the compressed bytes.

    Raises:
        DatasetError: the file cannot be opened, has no rows, is cut off or damaged; a column is
            missing or occurs twice, a row has too few or too many cells, a value is not UTF-8;
            there is a header where none belongs.
    """
    with _reading_csv(path), open_file(path) as raw, _decompressed(raw, path) as data:
        first = _cells(data.readline(_HEADER_BYTES).decode("utf-8-sig"), form)
    if not first:
        raise DatasetError(f"{path}: the file is empty")
    has_header = not form.columns or first[0] in form.header_starts
    if form.columns:
        _check_first_line(path, first, form, has_header=has_header)
    else:
        check_names(path, first, columns)
    with (
        _reading_csv(path),
        open_file(path) as raw,
        _decompressed(raw, path) as data,
        ProgressBar(path.name, total=path.stat().st_size // 2**20, unit="MiB") as bar,
    ):
        line, read = 1 + has_header, 0
        for batch in _open_reader(data, columns, form, has_header=has_header):
            numbers = pa.array(np.arange(line, line + batch.num_rows))
            yield batch.append_column("line", numbers)
            line += batch.num_rows
            bar.advance(raw.tell() // 2**20 - read)
            read = raw.tell() // 2**20
    if line == 1 + has_header:
        raise DatasetError(f"{path}: the file has no rows")


def _cells(line: str, form: TextFormat) -> list[str]:
    if form.quoting == "none":
        line = line.rstrip("\r\n")
        return line.split(form.delimiter) if line else []
    return next(csv.reader([line], delimiter=form.delimiter), [])


def _check_first_line(
    path: Path, first: Sequence[str], form: TextFormat, *, has_header: bool
) -> None:
    """Check that the columns of a file stand where they are declared to stand.

    Raises:
        DatasetError: they do not.
    """
    if len(first) != len(form.columns):
        raise DatasetError(
            f"{path}: line 1 has {len(first)} cells separated by {form.delimiter!r}, expected "
            f"{len(form.columns)}: {', '.join(form.columns)}"
        )
    if not has_header and first[0].lower() == form.columns[0].lower():
        raise DatasetError(f"{path}: line 1 is a header, {list(first)}; this file has none")
    if has_header:
        for place, name in enumerate(first):
            if name in form.columns and form.columns[place] != name:
                raise DatasetError(
                    f"{path}: column '{name}' is number {place + 1}, expected are, in this order, "
                    f"{', '.join(form.columns)}"
                )


@contextmanager
def _reading_csv(path: Path) -> Generator[None]:
    try:
        yield
    except EOFError as error:
        raise DatasetError(f"{path}: the file is cut off: {error}") from error
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: damaged compressed file: {error}") from error
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        # Arrow counts the header as row 1, so its row is the line.
        raise DatasetError(f"{path}: malformed line: {error}") from error


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes] | gzip.GzipFile | lzma.LZMAFile:
    if path.suffix == ".xz":
        return lzma.open(raw)
    if path.suffix == ".gz":
        return gzip.open(raw)
    return raw


def _open_reader(
    data: IO[bytes] | gzip.GzipFile | lzma.LZMAFile,
    columns: Sequence[str],
    form: TextFormat,
    *,
    has_header: bool,
) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        data,
        # One thread, because only then errors name the row.
        read_options=pyarrow.csv.ReadOptions(
            block_size=_BLOCK_BYTES,
            use_threads=False,
            column_names=list(form.columns),
            skip_rows=1 if has_header and form.columns else 0,
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=form.delimiter,
            quote_char='"' if form.quoting == "csv" else False,
            ignore_empty_lines=False,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
