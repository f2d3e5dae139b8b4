"""Any schema and any staged values give a dataset or a message that is ours, nothing else."""

import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_torchrec.data.prepare.staging import PreparationError, build_dataset
from cdp_torchrec.data.schema import DatasetError, load_schema
from tests.data.staged_log import (
    BEHAVIOUR_TYPES,
    REQUEST_TYPES,
    SPEC,
    behaviour,
    stage,
    two_requests,
)
from tests.fuzz import FUZZ, SCALARS, changed, nested, without_none

_CELLS = st.sampled_from(
    [
        ["1", "2"],
        ["", None],
        [None, None],
        ["\x00", "\ud7ff"],
        ["x" * 2000, "x"],
        [1, 2],
        [-1, 2**62],
        [0, 10**15],
        [0.4, 1.0],
        [float("nan"), float("inf")],
        [1e308, -1e308],
        [True, False],
        [["a", "b"], ["a"]],
        [[0, 1], [1, 1]],
        [[0, 1], []],
        [[0, 1], None],
        [[0.5, 1], [0, 1]],
        [[1e308, 1.0], [-1e308, 2.0]],
        [["a", None], ["a", "b"]],
        [["a"], ["b"]],
        [{"a": 1}, {"a": 2}],
        [b"\xff", b"a"],
    ]
)
"""Values of a column in two rows."""


@settings(FUZZ, max_examples=80)
@given(st.data())
def test_any_change_of_a_schema_is_read_or_refused(
    tmp_path: Path, tiny_dataset: Path, data: st.DataObject
) -> None:
    tree = tomllib.loads((tiny_dataset / "schema.toml").read_text())
    spoiled = without_none(data.draw(_changes(tree)))
    if not isinstance(spoiled, dict):
        return
    (tmp_path / "schema.toml").write_bytes(tomli_w.dumps(spoiled).encode(errors="surrogatepass"))
    try:
        load_schema(tmp_path)
    except DatasetError as error:
        assert str(error).strip()


@settings(FUZZ, max_examples=20)
@given(st.data())
def test_any_column_of_a_staged_log_is_prepared_or_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _stage_spoiled(folder, data)
        try:
            build_dataset(folder / "staging", folder / "made", SPEC)
        except (DatasetError, PreparationError) as error:
            assert str(error).strip()
            for word in ("Binder Error", "Conversion Error", "Invalid Input Error", "DuckDB"):
                assert word not in str(error)
            assert sorted(path.name for path in folder.iterdir()) == ["staging"]


def _stage_spoiled(folder: Path, data: st.DataObject) -> None:
    staging = stage(folder / "staging", two_requests(), [behaviour(), behaviour(timestamp=60)])
    kind, types = data.draw(
        st.sampled_from([("requests", REQUEST_TYPES), ("behaviours", BEHAVIOUR_TYPES)])
    )
    path = staging / kind / "part-0.parquet"
    table = pq.read_table(path)
    column = data.draw(st.sampled_from(types.names))
    cells = pa.array(data.draw(_CELLS))
    table = table.set_column(table.schema.get_field_index(column), column, cells)
    if data.draw(st.booleans()):
        pq.write_table(table, path)
    else:  # beside a good one
        pq.write_table(table, staging / kind / "part-1.parquet")


@st.composite
def _changes(draw: st.DrawFn, tree: Any) -> Any:
    return changed(draw, tree, nested(SCALARS))
