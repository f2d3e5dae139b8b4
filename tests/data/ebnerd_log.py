"""EB-NeRD logs made up in the official layout."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.prepare.logs.ebnerd import prepare_ebnerd
from cdp_torchrec.data.schema import load_schema
from tests.data.trivago_events import decoded

Rows = list[dict[str, Any]]
START = 1684393200  # 2023-05-18 07:00 UTC, a Thursday
WEEK = 7 * 24 * 3600
_TIME = pa.timestamp("us")
BEHAVIORS = pa.schema(
    {
        "impression_id": pa.uint32(),
        "article_id": pa.int32(),
        "impression_time": _TIME,
        "read_time": pa.float32(),
        "scroll_percentage": pa.float32(),
        "device_type": pa.int8(),
        "article_ids_inview": pa.large_list(pa.int32()),
        "article_ids_clicked": pa.large_list(pa.int32()),
        "user_id": pa.uint32(),
        "is_sso_user": pa.bool_(),
        "gender": pa.int8(),
        "postcode": pa.int8(),
        "age": pa.int8(),
        "is_subscriber": pa.bool_(),
        "session_id": pa.uint32(),
        "next_read_time": pa.float32(),
        "next_scroll_percentage": pa.float32(),
    }
)
HISTORY = pa.schema(
    {
        "user_id": pa.uint32(),
        "impression_time_fixed": pa.large_list(_TIME),
        "scroll_percentage_fixed": pa.large_list(pa.float32()),
        "article_id_fixed": pa.large_list(pa.int32()),
        "read_time_fixed": pa.large_list(pa.float32()),
    }
)
ARTICLES = pa.schema(
    {
        "article_id": pa.int32(),
        "premium": pa.bool_(),
        "body": pa.string(),
        "published_time": _TIME,
        "article_type": pa.string(),
        "category": pa.int16(),
        "subcategory": pa.large_list(pa.int16()),
        "total_pageviews": pa.int32(),
    }
)


def request(
    second: int, inview: Sequence[int], clicked: Sequence[int], **values: Any
) -> dict[str, Any]:
    """One row of behaviors.parquet; `second` counts from the first one of training."""
    return {
        "impression_id": 1_000_000 + second,
        "impression_time": moment(second),
        "read_time": 10.0,
        "device_type": 2,
        "article_ids_inview": list(inview),
        "article_ids_clicked": list(clicked),
        "user_id": 1,
        "is_sso_user": False,
        "is_subscriber": False,
        "session_id": 1,
        "next_read_time": 30.0,
        "next_scroll_percentage": 50.0,
    } | values


def reads(user: int, *events: tuple[int, int, float, float | None]) -> dict[str, Any]:
    """One row of history.parquet from (second, article, read time, scroll depth)."""
    names = ("impression_time_fixed", "article_id_fixed", "read_time_fixed")
    columns: list[list[Any]] = [list(column) for column in zip(*events, strict=True)]
    columns[0] = [moment(second) for second in columns[0]]
    row = dict(zip((*names, "scroll_percentage_fixed"), columns, strict=True))
    return {"user_id": user, **row}


def next_week(second: int = 0, **values: Any) -> dict[str, Any]:
    """A request of another user in the week of validation."""
    return request(WEEK + second, [1, 2], [1], **({"user_id": 9, "session_id": 9} | values))


def moment(second: float) -> datetime:
    return datetime.fromtimestamp(START + second, UTC).replace(tzinfo=None)


def milliseconds(second: float) -> int:
    return round(1000 * (START + second))


def write_log(
    directory: Path,
    behaviors: Rows,
    histories: Mapping[str, Rows] | None = None,
    articles: Rows | None = None,
) -> Path:
    """Write the official files; rows from the second week on go to validation/."""
    limit = moment(WEEK)
    split_rows = {
        "train": [row for row in behaviors if row["impression_time"] < limit],
        "validation": [row for row in behaviors if row["impression_time"] >= limit],
    }
    for split, rows in split_rows.items():
        (directory / split).mkdir(parents=True, exist_ok=True)
        history = (histories or {}).get(split) or [reads(77, (-99999, 77, 1.0, None))]
        _write(directory / split / "behaviors.parquet", rows, BEHAVIORS)
        _write(directory / split / "history.parquet", history, HISTORY)
    if articles is not None:
        _write(directory / "articles.parquet", articles, ARTICLES)
    return directory


def _write(path: Path, rows: Rows, schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def prepare(directory: Path, behaviors: Rows, **files: Any) -> Rows:
    """Requests of the dataset made from these rows, in order, ids decoded."""
    output = directory / "data"
    prepare_ebnerd(write_log(directory / "log", behaviors, **files), output)
    return decoded(output)


def stored(dataset: Path, *users: int) -> list[tuple[int, int, str, float]]:
    """Behaviours (user, article, action, seconds since START) of the store, in its order."""
    raw = {
        entity: [
            None,
            *pq.read_table(dataset / "vocabulary" / f"{entity}.parquet")["raw"].to_pylist(),
        ]
        for entity in ("user", "item", "action")
    }
    assert load_schema(dataset).history.num_users == len(raw["user"]) - 1
    offsets = np.load(dataset / "history" / "user_offsets.npy")
    columns = {
        name: np.load(dataset / "history" / "by_time" / f"{name}.npy")
        for name in ("item", "action", "timestamp")
    }
    return [
        (
            user,
            int(raw["item"][columns["item"][row]]),
            raw["action"][columns["action"][row]],
            int(columns["timestamp"][row]) / 1000 - START,
        )
        for user in users
        for code in [raw["user"].index(str(user))]
        for row in range(offsets[code], offsets[code + 1])
    ]
