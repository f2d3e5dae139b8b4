"""A dataset as a second preparation would leave it: equal in all counts, and yet another one."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.manifest import write_manifest
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.data.summary import load_summary


def with_other_codes(dataset: Path, folder: Path) -> Path:
    """A copy that declares another order of the items."""
    other = Path(shutil.copytree(dataset, folder))
    schema = load_schema(other)
    item = schema.entities["item"].model_copy(update={"digest": "0" * 64})
    recoded = schema.model_copy(update={"entities": schema.entities | {"item": item}})
    recoded.save(other)
    summary = load_summary(dataset, schema)
    summary.model_copy(update={"fingerprint": recoded.fingerprint()}).save(other)
    write_manifest(other)
    return other


def with_other_requests(dataset: Path, folder: Path) -> Path:
    """A copy with the same codes, whose training requests list their candidates backwards."""
    other = Path(shutil.copytree(dataset, folder))
    for path in (other / "train").glob("*.parquet"):
        table = pq.read_table(path)
        columns = {
            name: [row[::-1] for row in column.to_pylist()]
            for name, column in zip(table.column_names, table.columns, strict=True)
            if pa.types.is_list(column.type)
        }
        for name, rows in columns.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(
                place, table.schema.field(place), pa.array(rows, table.schema.field(place).type)
            )
        pq.write_table(table, path)
    write_manifest(other)
    return other
