"""CSV logs of any size, plain or compressed, read as text; who declares types checks them first."""

import csv
import gzip
import lzma
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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


def stream_csv(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Blocks of the named columns as strings (empty cells null), and `line` int64 from 2.

    A progress bar follows the compressed bytes.

    Raises:
        DatasetError: the file cannot be opened, has no rows, is cut off or damaged; a column is
            missing or occurs twice, a row has too few or too many cells, a value is not UTF-8.
    """
    with _reading_csv(path), open_file(path) as raw, _decompressed(raw, path) as data:
        header = next(csv.reader([data.readline(_HEADER_BYTES).decode("utf-8-sig")]), [])
    if not header:
        raise DatasetError(f"{path}: the file is empty")
    check_names(path, header, columns)
    with (
        _reading_csv(path),
        open_file(path) as raw,
        _decompressed(raw, path) as data,
        ProgressBar(path.name, total=path.stat().st_size // 2**20, unit="MiB") as bar,
    ):
        line, read = 2, 0
        for batch in _open_reader(data, columns):
            numbers = pa.array(np.arange(line, line + batch.num_rows))
            yield batch.append_column("line", numbers)
            line += batch.num_rows
            bar.advance(raw.tell() // 2**20 - read)
            read = raw.tell() // 2**20
    if line == 2:
        raise DatasetError(f"{path}: the file has no rows")


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
    data: IO[bytes] | gzip.GzipFile | lzma.LZMAFile, columns: Sequence[str]
) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        data,
        # One thread, because only then errors name the row.
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
