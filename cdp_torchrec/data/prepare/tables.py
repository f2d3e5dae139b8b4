"""The only place that opens a user's parquet files; `csv_tables` opens what is text.

A table is read as it was declared, and nothing is guessed. A path is taken as it stands: no
pattern, and no column from the names of its folders. Names are exact, so `LABEL` is not `label`,
and a name that occurs twice is an error. Fields of structs are columns, `user.id`
(`nested_columns`). All files of a table have one common type per column;
these widenings are allowed, none of which changes a value:

    integers of any width      int64 (ids of uint64: uint64)
    floats of any width        float64, and for what is declared a number also integers
    string of any kind         string; a dictionary is read as its values
    timestamps                 the finest unit among the files
    a column without a value   whatever the other files have

Everything else, such as ids that are integers in one file and strings in another, is an error that
names both files.
"""

import errno
import os
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cdp_torchrec.data.prepare.column_types import ColumnType
from cdp_torchrec.data.prepare.nested_columns import column_of, is_list, stored_paths, unnested
from cdp_torchrec.data.schema import DatasetError

_ROWS = 1 << 16
_MAGIC = b"PAR1"


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
                for batch in _batches(file, self.schema.names, size):
                    columns = [
                        _converted(column_of(batch, field.name), field, path, first)
                        for field in self.schema
                    ]
                    rows = pa.RecordBatch.from_arrays(columns, schema=self.schema)
                    yield Block(number, first, rows)
                    first += len(rows)


def find_files(folder: Path, pattern: str) -> list[Path]:
    """All that fits a pattern with a `*`, in the order of names.

    Args:
        folder: from which the pattern counts, unless it is absolute.
        pattern: of names of files.

    Raises:
        DatasetError: a folder may not be read; `Path.glob` would pass over it.
    """
    parts = PurePath(pattern).parts
    first = next(number for number, part in enumerate(parts) if "*" in part)
    folder, wanted = folder.joinpath(*parts[:first]), PurePath(*parts[first:])
    inner = [found for above in wanted.parents[:-1] for found in folder.glob(str(above))]
    for searched in (folder, *inner):
        _check_readable(searched)
    return sorted(folder.glob(str(wanted)))


def _check_readable(folder: Path) -> None:
    """Whether one may see what a folder holds, if it is one.

    Raises:
        DatasetError: one may not.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise DatasetError(f"{folder}: cannot be read: {os.strerror(errno.EACCES)}")


def find_parquet(directory: Path) -> list[Path]:
    """All `*.parquet` of a directory in the order of their names.

    Raises:
        DatasetError: there are none, or some in folders of the directory, where nobody reads them,
            or nobody may look.
    """
    _check_readable(directory)
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
            schemas.append(unnested(file.schema_arrow))
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
    if pa.types.is_list(kind):
        inner = default.value_type if pa.types.is_list(default) else default
        return pa.list_(_filled(kind.value_type, inner))
    return kind


def _batches(file: pq.ParquetFile, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """Some columns of all rows, with the structs that hold them."""
    read = stored_paths(file, names)
    groups = range(file.num_row_groups)
    kinds = [field.type for field in unnested(file.schema_arrow) if field.name in names]
    if any(is_list(kind) and pa.types.is_dictionary(kind.value_type) for kind in kinds):
        # Each row group has categories of its own, which pyarrow cannot put together in lists.
        for group in groups:
            yield from file.iter_batches(size, [group], read)
    else:
        yield from file.iter_batches(size, [*groups], read)


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
    with open_file(path) as raw:
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
    except pa.ArrowNotImplementedError as error:
        raise DatasetError(
            f"{path}: damaged or cut off parquet file, or of a form that is not read: {error}"
        ) from error
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DatasetError(f"{path}: damaged or cut off parquet file") from error


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file.

    Raises:
        DatasetError: it is none, or cannot be opened.
    """
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
