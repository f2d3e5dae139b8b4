"""CSV logs of any size, plain or compressed, as a stream of blocks read by header name."""

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

from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.progress import ProgressBar

ByteStream = IO[bytes] | gzip.GzipFile | lzma.LZMAFile

_SUFFIXES = ("", ".gz", ".xz")
_BLOCK_BYTES = 8 << 20


def find_csv(directory: Path, *names: str) -> Path | None:
    """The first of `<name>`, `<name>.gz`, `<name>.xz` in the directory, names in order.

    Raises:
        DatasetError: the directory does not exist.
    """
    if not directory.is_dir():
        raise DatasetError(f"{directory}: no such directory")
    paths = (directory / f"{name}{suffix}" for name in names for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def stream_csv(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Blocks of the named columns as strings (empty cells null), and `line` int64 from 2.

    A progress bar follows the compressed bytes.

    Raises:
        DatasetError: a column is missing, a row has too few or too many cells, a value is not
            UTF-8, or the file is cut off or damaged.
    """
    with _reading(path), path.open("rb") as raw, _decompressed(raw, path) as data:
        header = next(csv.reader([data.readline().decode("utf-8-sig")]), [])
    missing = [name for name in columns if name not in header]
    if missing:
        raise DatasetError(f"{path}: column '{missing[0]}' is missing, found {header}")
    with (
        _reading(path),
        path.open("rb") as raw,
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


@contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except EOFError as error:
        raise DatasetError(f"{path}: the file is cut off: {error}") from error
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: damaged compressed file: {error}") from error
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        # Arrow counts the header as row 1, so its row is the line.
        raise DatasetError(f"{path}: malformed line: {error}") from error


def _decompressed(raw: IO[bytes], path: Path) -> ByteStream:
    if path.suffix == ".xz":
        return lzma.open(raw)
    if path.suffix == ".gz":
        return gzip.open(raw)
    return raw


def _open_reader(data: ByteStream, columns: Sequence[str]) -> pyarrow.csv.CSVStreamingReader:
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
