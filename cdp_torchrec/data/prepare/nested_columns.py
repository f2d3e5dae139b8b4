"""Fields of structs as columns of their own.

A struct `user` with a field `id` is the column `user.id`; a list of structs `candidates` with a
field `item_id`, as Spark and BigQuery write what was shown, is the column of lists
`candidates.item_id`.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def unnested(schema: pa.Schema) -> pa.Schema:
    """All columns, in their order, with their types; a name may occur twice."""
    return pa.schema(
        [(name, kind) for field in schema for name, _, kind in _leaves(field.name, field.type)]
    )


def stored_paths(file: pq.ParquetFile, names: Sequence[str]) -> list[str]:
    """Paths of what a file stores of some columns: no other field of their structs is read."""
    stored = [file.schema.column(number).path for number in range(len(file.schema))]
    paths, place = [], 0
    for field in file.schema_arrow:
        for name, _, kind in _leaves(field.name, field.type):
            if name in names:
                paths += stored[place : place + _num_stored(kind)]
            place += _num_stored(kind)
    return paths


def column_of(rows: pa.RecordBatch, name: str) -> pa.Array:
    """A column of `unnested` out of rows as the file has them."""
    for number, field in enumerate(rows.schema):
        for found, path, _ in _leaves(field.name, field.type):
            if found == name:
                return _taken(rows.column(number), path)
    raise KeyError(name)


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list of any number of values."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _num_stored(kind: pa.DataType) -> int:
    """Columns that a file stores of a type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _num_stored(kind.storage_type)
    fields = [kind.field(number) for number in range(kind.num_fields)]
    return sum(_num_stored(field.type) for field in fields) if fields else 1


def _leaves(name: str, kind: pa.DataType) -> Iterator[tuple[str, tuple[str, ...], pa.DataType]]:
    """Name, path of fields and type of the columns that a column is, itself if it is no struct."""
    struct = kind.value_type if is_list(kind) else kind
    if not pa.types.is_struct(struct):
        yield name, (), kind
        return
    for field in struct:
        for inner, path, of_inner in _leaves(f"{name}.{field.name}", field.type):
            yield inner, (field.name, *path), pa.list_(of_inner) if is_list(kind) else of_inner


def _taken(values: pa.Array, path: tuple[str, ...]) -> pa.Array:
    """A field of structs, or of the structs in lists; nothing where there is no struct."""
    if not path:
        return values
    if pa.types.is_struct(values.type):
        field = values.flatten()[values.type.get_field_index(path[0])]  # null where the struct is
        return _taken(field, path[1:])
    if pa.types.is_large_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    values = pa.concat_arrays([values])  # of a slice, the offsets are those of what it is a part of
    inner = _taken(values.values, path)
    return pa.ListArray.from_arrays(values.offsets, inner, mask=values.is_null())
