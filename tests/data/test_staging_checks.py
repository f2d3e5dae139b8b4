"""Every way in which staging files, or the disk, can be wrong."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare import history_files
from cdp_torchrec.data.prepare.staging import DatasetSpec, PreparationError, build_dataset
from cdp_torchrec.data.schema import DatasetError, Feature
from tests.data.staged_log import (
    FEATURES,
    SPEC,
    behaviour,
    random_log,
    request,
    stage,
    two_requests,
)
from tests.largest_file import largest_file

BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unequal lists": ({"price": [1.0]}, "candidate lists of unequal length: 'price' and 'label'"),
    "missing list": ({"price": None}, "candidate lists of unequal length: 'price' and 'label'"),
    "label 2": ({"label": [0, 2]}, "'label' holds values other than 0 and 1: 2.0"),
    "label null": ({"label": [0, None]}, "'label' holds values other than 0 and 1: null"),
    "no candidates": (
        {"item_id": [], "category_id": [], "price": [], "label": []},
        "the candidate list is empty ('label')",
    ),
    "null user": ({"user_id": None}, "'user_id' is null"),
    "null time": ({"timestamp": None}, "'timestamp' is null"),
    "null item": ({"item_id": ["a", None]}, "'item_id' holds a null"),
    "infinite": ({"price": [1.0, float("inf")]}, "'price' holds a number beyond 3.4e+38: inf"),
    "huge": ({"price": [1.0, -1e308]}, "'price' holds a number beyond 3.4e+38: -1e+308"),
    "huge, once per request": (
        {"budget": 1e39},
        "'budget' holds a number beyond 3.4e+38: 1e+39",
    ),
    "no moment": (
        {"timestamp": 1 << 60},
        "'timestamp' is no time from 1970 to 2200 in milliseconds: 1152921504606846976",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request_is_named_with_its_file_and_row(tmp_path: Path, case: str) -> None:
    values, message = BAD_REQUESTS[case]
    staging = stage(tmp_path / "s", [*two_requests(), request(7, **values)], [])
    with pytest.raises(DatasetError) as caught:
        build_dataset(staging, tmp_path / "data", SPEC)
    path = staging / "requests" / "part-0.parquet"
    assert str(caught.value) == f"{path}: row 2 (request_id r7): {message}"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_probability_outside_0_to_1_is_an_error(tmp_path: Path) -> None:
    staging = stage(tmp_path / "s", two_requests(), [])
    path = staging / "requests" / "part-0.parquet"
    column = pa.array([[0.1, 0.9], [0.2, 1.1]])
    pq.write_table(pq.read_table(path).append_column("click_probability", column), path)
    with pytest.raises(DatasetError, match=r"r1\): 'click_probability' holds values outside"):
        build_dataset(staging, tmp_path / "data", SPEC)


def test_probability_that_only_some_files_have_is_an_error(tmp_path: Path) -> None:
    staging = stage(tmp_path / "s", two_requests(), [], files=2)
    path = staging / "requests" / "part-1.parquet"
    column = pa.array([[0.1, 0.9]])
    pq.write_table(pq.read_table(path).append_column("click_probability", column), path)
    with pytest.raises(DatasetError, match=r"part-0.parquet: column 'click_probability' is miss"):
        build_dataset(staging, tmp_path / "data", SPEC)


def test_behaviour_in_microseconds_is_an_error(tmp_path: Path) -> None:
    behaviours = [behaviour(), behaviour(timestamp=1_700_000_000_000_000)]
    staging = stage(tmp_path / "s", two_requests(), behaviours)
    with pytest.raises(DatasetError, match=r"row 1 \(user_id ann\): 'timestamp' is no time from"):
        build_dataset(staging, tmp_path / "data", SPEC)


@pytest.mark.parametrize("column", ["user_id", "item", "timestamp"])
def test_behaviour_with_a_null_is_an_error(tmp_path: Path, column: str) -> None:
    staging = stage(tmp_path / "s", two_requests(), [behaviour(), behaviour(**{column: None})])
    with pytest.raises(DatasetError, match=rf"row 1 \(user_id .*\): '{column}' is null"):
        build_dataset(staging, tmp_path / "data", SPEC)


def test_repeated_request_id_is_an_error(tmp_path: Path) -> None:
    requests = [request(0), request(1, timestamp=900), request(0, timestamp=300)]
    staging = stage(tmp_path / "s", requests, [], files=3)
    with pytest.raises(DatasetError, match=r"part-0.parquet: request_id r0 occurs 2 times"):
        build_dataset(staging, tmp_path / "data", SPEC)


@pytest.mark.parametrize(
    ("split", "times", "side"), [("train", (700, 800), "before"), ("test", (1, 2), "at or after")]
)
def test_empty_split_is_an_error(
    tmp_path: Path, split: str, times: tuple[int, int], side: str
) -> None:
    requests = [request(n, timestamp=time) for n, time in enumerate(times)]
    with pytest.raises(DatasetError, match=f"the {split} split is empty: no request {side} 1970"):
        build_dataset(stage(tmp_path / "s", requests, []), tmp_path / "data", SPEC)


def test_log_without_requests_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="the log has no requests"):
        build_dataset(stage(tmp_path / "s", [], [behaviour()]), tmp_path / "data", SPEC)


def test_missing_column_is_named_with_the_columns_found(tmp_path: Path) -> None:
    staging = stage(tmp_path / "s", two_requests(), [], files=2)
    path = staging / "requests" / "part-1.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["price"]), path)
    with pytest.raises(DatasetError) as caught:
        build_dataset(staging, tmp_path / "data", SPEC)
    assert f"{path}: column 'price' is missing, found ['request_id'" in str(caught.value)


def test_column_of_another_type_is_named(tmp_path: Path) -> None:
    staging = stage(tmp_path / "s", two_requests(), [])
    path = staging / "requests" / "part-0.parquet"
    table = pq.read_table(path).drop_columns(["price"]).append_column("price", pa.array([1.0, 2.0]))
    pq.write_table(table, path)
    with pytest.raises(DatasetError, match="'price' is of type double, expected list of number"):
        build_dataset(staging, tmp_path / "data", SPEC)


def test_value_that_only_a_later_file_can_hold_is_checked_as_it_stands(tmp_path: Path) -> None:
    staging = stage(tmp_path / "s", two_requests(), [], files=2)
    path = staging / "requests" / "part-1.parquet"
    table = pq.read_table(path)
    labels = pa.array([[0.4, 1.0]])
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), path)
    with pytest.raises(DatasetError) as caught:
        build_dataset(staging, tmp_path / "data", SPEC)
    message = "row 0 (request_id r1): 'label' holds values other than 0 and 1: 0.4"
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("table", ["requests", "behaviours"])
def test_truncated_parquet_is_named(tmp_path: Path, table: str) -> None:
    staging = stage(tmp_path / "s", two_requests(), [behaviour()], files=2)
    path = staging / table / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=rf"{path}: damaged or cut off parquet file"):
        build_dataset(staging, tmp_path / "data", SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_damage_inside_a_parquet_file_is_an_error(tmp_path: Path) -> None:
    requests, behaviours = random_log(0)
    staging = stage(tmp_path / "s", requests, behaviours)
    path = staging / "requests" / "part-0.parquet"
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises((DatasetError, PreparationError)):
        build_dataset(staging, tmp_path / "data", SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_staging_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"requests: no \*.parquet file there"):
        build_dataset(tmp_path, tmp_path / "data", SPEC)


def test_existing_output_is_not_touched(tmp_path: Path) -> None:
    staging = stage(tmp_path / "s", two_requests(), [])
    output = tmp_path / "data"
    output.mkdir()
    with pytest.raises(DatasetError, match=f"{output} exists; remove it or choose another"):
        build_dataset(staging, output, SPEC)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "s"]


@pytest.mark.parametrize("num_bytes", [1 << 10, 1 << 14])
def test_nothing_is_left_where_no_file_can_grow(tmp_path: Path, num_bytes: int) -> None:
    staging = stage(tmp_path / "s", *random_log(0))
    with largest_file(num_bytes), pytest.raises(PreparationError, match="nothing is left of it"):
        build_dataset(staging, tmp_path / "data", SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("module", "name"), [(history_files.NpyWriter, "append"), (pq.ParquetWriter, "write_table")]
)
def test_nothing_is_left_when_the_disk_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    staging = stage(tmp_path / "s", *random_log(0))
    real: Callable[..., None] = getattr(module, name)
    calls = []

    def fails_at_the_third_call(*args: Any, **kwargs: Any) -> None:
        calls.append(name)
        if len(calls) == 3 or name == "write_table":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(module, name, fails_at_the_third_call)
    with pytest.raises(PreparationError, match="No space left on device"):
        build_dataset(staging, tmp_path / "data", SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_features_that_contradict_the_contract_are_refused() -> None:
    def spec(*features: Feature) -> DatasetSpec:
        return replace(SPEC, features=features)

    item = FEATURES[4]
    for features, message in (
        ((), "'item_id' of level 'candidate' and kind 'id' is required"),
        ((item, item), "feature names repeat"),
        ((item, item.model_copy(update={"name": "label"})), r"\['label'\] are reserved"),
        ((item, item.model_copy(update={"name": "Brand"})), "'Brand': names need lower-case"),
        ((item, item.model_copy(update={"name": "x", "entity": "request"})), "'request' is res"),
        ((item, item.model_copy(update={"name": "user_id"})), "'user_id' must be of level"),
    ):
        with pytest.raises(ValueError, match=message):
            spec(*features)
