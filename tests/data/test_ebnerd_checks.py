"""Every way in which the files of an EB-NeRD log can be wrong."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare.logs.ebnerd import prepare_ebnerd
from cdp_torchrec.data.schema import DatasetError
from tests.data.ebnerd_log import next_week, reads, request, write_log
from tests.paths import LAUNCH, ROOT

BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "id": ({"impression_id": None}, "'impression_id' is null"),
    "user": ({"user_id": None}, "'user_id' is null"),
    "time": ({"impression_time": None}, "'impression_time' is null"),
    "empty list": ({"article_ids_inview": []}, "'article_ids_inview' is empty"),
    "null in list": ({"article_ids_inview": [1, None]}, "'article_ids_inview' holds a null"),
    "no clicks": ({"article_ids_clicked": None}, "'article_ids_clicked' holds a null"),
    "not in view": ({"article_ids_clicked": [8]}, "'article_ids_clicked' holds an article that"),
    "read time": ({"read_time": -1.0}, "'read_time' is no number of seconds from 0"),
    "nan": ({"next_read_time": math.nan}, "'next_read_time' is no number of seconds from 0"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_request_is_named_with_its_row(tmp_path: Path, case: str) -> None:
    values, message = BAD_ROWS[case]
    log = write_log(tmp_path / "log", [request(0, [1], [1]), next_week()])
    path = log / "train" / "behaviors.parquet"
    good = pq.read_table(path)
    bad = pa.Table.from_pylist([request(5, [1, 2], [1]) | values], good.schema)
    pq.write_table(pa.concat_tables([good, bad]), path)
    with pytest.raises(DatasetError) as caught:
        prepare_ebnerd(log, tmp_path / "data")
    assert str(caught.value).startswith(f"{path}: row 1 (impression_id ")
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


BAD_HISTORIES: dict[str, tuple[dict[str, Any], str]] = {
    "user": ({"user_id": None}, "'user_id' is null"),
    "list": ({"read_time_fixed": None}, "'read_time_fixed' is null"),
    "lengths": (
        {"article_id_fixed": [1]},
        "'impression_time_fixed' and 'article_id_fixed' are of unequal length",
    ),
    "null": ({"article_id_fixed": [1, None]}, "'article_id_fixed' holds a null"),
    "time": ({"read_time_fixed": [1.0, -5.0]}, "'read_time_fixed' holds something else than"),
}


@pytest.mark.parametrize("case", BAD_HISTORIES)
def test_bad_history_is_named_with_its_row(tmp_path: Path, case: str) -> None:
    values, message = BAD_HISTORIES[case]
    history = reads(1, (-9, 1, 1.0, 1.0), (-5, 2, 1.0, None)) | values
    log = write_log(
        tmp_path / "log", [request(0, [1], [1]), next_week()], {"validation": [history]}
    )
    with pytest.raises(DatasetError) as caught:
        prepare_ebnerd(log, tmp_path / "data")
    assert str(caught.value).startswith(f"{log / 'validation' / 'history.parquet'}: row 0 (user_id")
    assert message in str(caught.value)


def _drop(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


def _retype(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def retyped(table: pa.Table) -> pa.Table:
        column = pa.nulls(len(table), kind)
        return table.set_column(table.schema.get_field_index(name), name, column)

    return retyped


BAD_FILES: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str]] = {
    "missing column": (
        "train/behaviors.parquet",
        _drop("article_ids_clicked"),
        "column 'article_ids_clicked' is missing, found ['impression_id', 'article_id'",
    ),
    "list type": (
        "validation/behaviors.parquet",
        _retype("article_ids_inview", pa.string()),
        "column 'article_ids_inview' is of type string, expected list of integer",
    ),
    "time type": (
        "train/behaviors.parquet",
        _retype("impression_time", pa.int64()),
        "column 'impression_time' is of type int64, expected timestamp",
    ),
    "history type": (
        "train/history.parquet",
        _retype("read_time_fixed", pa.list_(pa.string())),
        "column 'read_time_fixed' is of type list<",
    ),
    "no rows": ("train/behaviors.parquet", lambda table: table.slice(0, 0), "the file has no rows"),
    "article type": (
        "articles.parquet",
        _retype("premium", pa.string()),
        "column 'premium' is of type string, expected boolean",
    ),
    "article repeated": (
        "articles.parquet",
        lambda table: pa.concat_tables([table, table]),
        "article_id 1 occurs 2 times",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_named_with_its_column(tmp_path: Path, case: str) -> None:
    name, change, message = BAD_FILES[case]
    articles = [{"article_id": 1, "category": 7}]
    log = write_log(tmp_path / "log", [request(0, [1], [1]), next_week()], articles=articles)
    pq.write_table(change(pq.read_table(log / name)), log / name)
    with pytest.raises(DatasetError) as caught:
        prepare_ebnerd(log, tmp_path / "data")
    assert str(caught.value).startswith(f"{log / name}: {message}")
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_missing_damaged_and_overlapping_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: no such directory"):
        prepare_ebnerd(tmp_path / "nowhere", tmp_path / "data")
    log = write_log(tmp_path / "log", [request(0, [1], [1]), request(9, [1], []), next_week()])
    history = log / "validation" / "history.parquet"
    content = history.read_bytes()
    history.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=f"{history}: damaged or cut off parquet file"):
        prepare_ebnerd(log, tmp_path / "data")
    history.unlink()
    with pytest.raises(DatasetError, match=f"{history}: no such file"):
        prepare_ebnerd(log, tmp_path / "data")
    history.write_bytes(content)
    behaviors = [log / split / "behaviors.parquet" for split in ("train", "validation")]
    table = pq.read_table(behaviors[0])
    pq.write_table(pa.concat_tables([table, table]), behaviors[0])
    with pytest.raises(DatasetError, match="log: impression_id 1000000 occurs 2 times"):
        prepare_ebnerd(log, tmp_path / "data")
    pq.write_table(table.slice(1), behaviors[0])
    pq.write_table(table.slice(0, 1), behaviors[1])
    with pytest.raises(DatasetError, match=r"starts at 2023-05-18 07:00:00 UTC, but .* must come"):
        prepare_ebnerd(log, tmp_path / "data")
    (tmp_path / "data").mkdir()
    with pytest.raises(DatasetError, match=r"data exists; remove it or choose another"):
        prepare_ebnerd(log, tmp_path / "data")


def test_script_prepares_a_dataset_and_fails_with_the_message_alone(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [request(0, [1], [1]), next_week()])
    script = LAUNCH / "prepare_data.py"
    arguments = ["ebnerd", "--input", str(log), "--output", str(tmp_path / "data")]
    results = [
        subprocess.run(
            [sys.executable, script, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    assert [result.returncode for result in results] == [0, 1]
    assert "is ready" in results[0].stdout
    assert results[1].stderr.strip().splitlines()[-1].endswith("choose another output directory")
    assert "Traceback" not in results[1].stderr
