"""The only place that opens a user's tables: parquet files, and CSV logs of any size.

A table is read as it was declared, and nothing is guessed. A path is taken as it stands: no
pattern, and no column from the names of its folders. Names are exact, so `LABEL` is not `label`,
and a name that occurs twice is an error. All files of a table have one common type per column;
these widenings are allowed, none of which changes a value:

    integers of any width      int64 (ids of uint64: uint64)
    floats of any width        float64, and for what is declared a number also integers
    string of any kind         string; a dictionary is read as its values
    timestamps                 the finest unit among the files
    a column without a value   whatever the other files have

Everything else, such as ids that are integers in one file and strings in another, is an error that
names both files. CSV files are read as text; whoever declares a type checks the text first.
"""

import csv
import gzip
import lzma
import stat
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.progress import ProgressBar

_ROWS = 1 << 16
_BLOCK_BYTES = 8 << 20
_HEADER_BYTES = 1 << 20
_SUFFIXES = ("", ".gz", ".xz")
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class ColumnType:
    """What a column is declared to hold."""

    expected: str
    """How errors name it."""
    widened: Callable[[pa.DataType], pa.DataType | None]
    """The type as which a parquet type is read; None: not allowed."""
    default: pa.DataType
    """Of a column without any value."""


def list_of(element: ColumnType) -> ColumnType:
    """A list, nulls allowed, of such elements."""

    def widened(kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_null(kind):
            return kind
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            return None
        inner = element.widened(kind.value_type)
        return None if inner is None else pa.list_(inner)

    return ColumnType(f"list of {element.expected}", widened, pa.list_(element.default))


def _integer(kind: pa.DataType) -> pa.DataType | None:
    return pa.int64() if pa.types.is_integer(kind) else None


def _id(kind: pa.DataType) -> pa.DataType | None:
    return kind if pa.types.is_uint64(kind) else _integer(kind) or _text(kind)


def _number(kind: pa.DataType) -> pa.DataType | None:
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return pa.float64() if is_number else None


def _text(kind: pa.DataType) -> pa.DataType | None:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pa.string() if is_text or pa.types.is_string_view(kind) else None


def _time(kind: pa.DataType) -> pa.DataType | None:
    # A moment is the same in every time zone.
    return pa.timestamp(kind.unit, kind.tz and "UTC") if pa.types.is_timestamp(kind) else None


def _flag(kind: pa.DataType) -> pa.DataType | None:
    return kind if pa.types.is_boolean(kind) else None


def _anything(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(ANY.widened(kind.value_type) or kind.value_type)
    return _id(kind) or _number(kind) or _time(kind) or kind


def _declared(
    expected: str, widened: Callable[[pa.DataType], pa.DataType | None], default: pa.DataType
) -> ColumnType:
    def of_values(kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_dictionary(kind):
            return of_values(kind.value_type)
        return kind if pa.types.is_null(kind) else widened(kind)

    return ColumnType(expected, of_values, default)


INTEGER = _declared("integer", _integer, pa.int64())
ID = _declared("string or integer", _id, pa.string())
NUMBER = _declared("number", _number, pa.float64())
TEXT = _declared("string", _text, pa.string())
TIME = _declared("timestamp", _time, pa.timestamp("us"))
FLAG = _declared("boolean", _flag, pa.bool_())
ANY = _declared("anything", _anything, pa.null())


@dataclass(frozen=True)
class Block:
    """Some rows of a file, one after the other, in the types of its table."""

    file: int
    """Number of the file in the table's `paths`."""
    first: int
    """Number of the first row in the file, from 0."""
    rows: pa.RecordBatch


@dataclass(frozen=True)
class ParquetTable:
    """Files whose columns were checked; their rows are read on demand."""

    paths: tuple[Path, ...]
    schema: pa.Schema
    """The columns in the order in which they were declared, without optional ones not there."""
    names: Sequence[str]
    """All columns of the first file."""
    num_rows: tuple[int, ...]
    """Of each file."""

    def blocks(self, size: int = _ROWS) -> Iterator[Block]:
        """All rows, file by file, `size` at a time; no block spans two files.

        Raises:
            DatasetError: a file is damaged, or holds a value that its table's type cannot.
        """
        for number, path in enumerate(self.paths):
            first = 0
            with _open_parquet(path) as file, _reading_parquet(path):
                for batch in file.iter_batches(size, columns=self.schema.names):
                    columns = [
                        _converted(batch.column(field.name), field, path, first)
                        for field in self.schema
                    ]
                    rows = pa.RecordBatch.from_arrays(columns, schema=self.schema)
                    yield Block(number, first, rows)
                    first += len(rows)


def find_parquet(directory: Path) -> list[Path]:
    """All `*.parquet` of a directory in the order of their names.

    Raises:
        DatasetError: there are none, or some in folders of the directory, where nobody reads them.
    """
    paths = sorted(directory.glob("*.parquet"))
    deeper = next((path for path in directory.glob("*/**/*.parquet")), None)
    if deeper:
        raise DatasetError(
            f"{deeper}: files in folders of {directory} are not read; put them there themselves"
        )
    if not paths:
        raise DatasetError(f"{directory}: no *.parquet file there")
    return paths


def open_parquet(
    paths: Sequence[Path],
    columns: Mapping[str, ColumnType],
    optional: Mapping[str, ColumnType] | None = None,
) -> ParquetTable:
    """Check the columns of some files, without reading their rows.

    Args:
        paths: files of one table, at least one.
        columns: name -> declared type of those that every file must have.
        optional: those that every file must have if one does.

    Raises:
        DatasetError: a file cannot be opened or is damaged; a column is missing, occurs twice, is
            of another type than declared, or has no common type over all files.
    """
    schemas, num_rows = [], []
    for path in paths:
        with _open_parquet(path) as file, _reading_parquet(path):
            schemas.append(file.schema_arrow)
            num_rows.append(file.metadata.num_rows)
    found = {name for schema in schemas for name in schema.names}
    columns = dict(columns) | {n: kind for n, kind in (optional or {}).items() if n in found}
    fields = [
        pa.field(name, _common_type(name, declared, paths, schemas))
        for name, declared in columns.items()
    ]
    return ParquetTable(tuple(paths), pa.schema(fields), schemas[0].names, tuple(num_rows))


def _common_type(
    name: str, declared: ColumnType, paths: Sequence[Path], schemas: Sequence[pa.Schema]
) -> pa.DataType:
    common, known = pa.null(), 0
    for number, (path, schema) in enumerate(zip(paths, schemas, strict=True)):
        check_names(path, schema.names, [name])
        kind = schema.field(name).type
        widened = declared.widened(kind)
        if widened is None:
            raise DatasetError(
                f"{path}: column '{name}' is of type {kind}, expected {declared.expected}"
            )
        both = _joined(common, widened)
        if both is None:
            raise DatasetError(
                f"{path}: column '{name}' is of type {kind}, but of type "
                f"{schemas[known].field(name).type} in {paths[known]}; "
                "all files of a table need one type"
            )
        known = number if both != common else known
        common = both
    return _filled(common, declared.default)


def _joined(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds both, if there is one."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = _joined(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and one.tz == other.tz:
        return pa.timestamp(max(one.unit, other.unit, key=["s", "ms", "us", "ns"].index), one.tz)
    return None


def _filled(kind: pa.DataType, default: pa.DataType) -> pa.DataType:
    """The type, with that of unknown values from the default."""
    if pa.types.is_null(kind):
        return default
    if pa.types.is_list(kind) and pa.types.is_list(default):
        return pa.list_(_filled(kind.value_type, default.value_type))
    return kind


def _converted(column: pa.Array, field: pa.Field, path: Path, first: int) -> pa.Array:
    # Integers become floats only where numbers are declared: there, digits beyond a double's 16
    # do not matter. All other casts are exact or fail.
    options = pc.CastOptions(target_type=field.type, allow_float_truncate=True)

    def converted(values: pa.Array) -> pa.Array:
        values.validate(full=True)  # text that is not UTF-8 would stop the engine
        return values.cast(options=options)

    try:
        return converted(column)
    except pa.ArrowInvalid as error:
        for row in range(len(column)):
            try:
                converted(column.slice(row, 1))
            except pa.ArrowInvalid as inner:
                raise DatasetError(
                    f"{path}: row {first + row}: '{field.name}' cannot be read as {field.type}: "
                    f"{inner}"
                ) from error
        raise


@contextmanager
def _open_parquet(path: Path) -> Generator[pq.ParquetFile]:
    with _open(path) as raw:
        start = raw.read(len(_MAGIC))
    if not start:
        raise DatasetError(f"{path}: the file is empty")
    if start != _MAGIC:
        raise DatasetError(f"{path}: no parquet file, it begins with {start!r}")
    with _reading_parquet(path):
        file = pq.ParquetFile(pa.OSFile(str(path)))
    with file:
        yield file


@contextmanager
def _reading_parquet(path: Path) -> Generator[None]:
    """What pyarrow finds wrong is not worded for users, and has many types."""
    try:
        yield
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DatasetError(f"{path}: damaged or cut off parquet file") from error


def _open(path: Path) -> IO[bytes]:
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            what = "a directory" if stat.S_ISDIR(kind) else "no regular file"
            raise DatasetError(f"{path}: {what}, a file is needed")
        return path.open("rb")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be opened: {error.strerror}") from error


def check_names(path: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """Check that each needed name occurs once.

    Raises:
        DatasetError: it does not.
    """
    for name in needed:
        if name not in found:
            raise DatasetError(f"{path}: column '{name}' is missing, found {list(found)}")
        if found.count(name) > 1:
            raise DatasetError(
                f"{path}: column '{name}' occurs {found.count(name)} times in {list(found)}"
            )


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
    with _reading_csv(path), _open(path) as raw, _decompressed(raw, path) as data:
        header = next(csv.reader([data.readline(_HEADER_BYTES).decode("utf-8-sig")]), [])
    if not header:
        raise DatasetError(f"{path}: the file is empty")
    check_names(path, header, columns)
    with (
        _reading_csv(path),
        _open(path) as raw,
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
