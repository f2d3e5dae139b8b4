"""Staging files written by hand or at random, for the tests of the preparation engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.prepare.staging import DatasetSpec
from cdp_torchrec.data.schema import Feature

FEATURES = (
    Feature(name="user_id", role="user", level="request", kind="id", entity="user"),
    Feature(name="words", role="query", level="request", kind="ids", entity="word"),
    Feature(name="topic", role="query", level="request", kind="id", entity="category"),
    Feature(name="budget", role="context", level="request", kind="number"),
    Feature(name="item_id", role="item", level="candidate", kind="id", entity="item"),
    Feature(name="category_id", role="item", level="candidate", kind="id", entity="category"),
    Feature(name="price", role="item", level="candidate", kind="number"),
)
SPEC = DatasetSpec(
    name="tiny",
    source="made by hand",
    features=FEATURES,
    test_from=700,
    category_entity="category",
    action_entity="action",
)
REQUEST_TYPES = pa.schema(
    {
        "request_id": pa.string(),
        "user_id": pa.string(),
        "timestamp": pa.int64(),
        "words": pa.list_(pa.string()),
        "topic": pa.string(),
        "budget": pa.float64(),
        "item_id": pa.list_(pa.string()),
        "category_id": pa.list_(pa.string()),
        "price": pa.list_(pa.float64()),
        "label": pa.list_(pa.int64()),
    }
)
BEHAVIOUR_TYPES = pa.schema(
    {
        "user_id": pa.string(),
        "item": pa.string(),
        "category": pa.string(),
        "action": pa.string(),
        "timestamp": pa.int64(),
    }
)
Rows = list[dict[str, Any]]


def request(number: int = 0, **values: Any) -> dict[str, Any]:
    """One good request with two candidates."""
    return {
        "request_id": f"r{number}",
        "user_id": "ann",
        "timestamp": 100 + number,
        "words": ["red", "shoe"],
        "topic": "shoes",
        "budget": 10.0,
        "item_id": ["a", "b"],
        "category_id": ["shoes", "hats"],
        "price": [1.0, 2.0],
        "label": [0, 1],
    } | values


def behaviour(**values: Any) -> dict[str, Any]:
    default = {"user_id": "ann", "item": "a", "category": "shoes", "action": "view"}
    return default | {"timestamp": 50} | values


def two_requests() -> Rows:
    return [request(0), request(1, timestamp=900)]


def stage(directory: Path, requests: Rows, behaviours: Rows, *, files: int = 1) -> Path:
    """Write rows as staging files, dealt out over some files."""
    for name, rows, types in (
        ("requests", requests, REQUEST_TYPES),
        ("behaviours", behaviours, BEHAVIOUR_TYPES),
    ):
        (directory / name).mkdir(parents=True)
        for part in range(files):
            table = pa.Table.from_pylist(rows[part::files], types)
            pq.write_table(table, directory / name / f"part-{part}.parquet")
    return directory


def random_log(seed: int) -> tuple[Rows, Rows]:
    """Few users, items and moments, so that every kind of tie occurs often."""
    rng = np.random.default_rng(seed)

    def some(kind: str, size: int) -> str:
        return f"{kind}{min(rng.geometric(0.3), size)}"

    behaviours = [
        behaviour(
            user_id=some("u", 5),
            item=some("i", 9),
            category=None if rng.random() < 0.1 else some("c", 4),
            action=None if rng.random() < 0.1 else some("a", 3),
            timestamp=int(rng.integers(1000)) // 20 * 20,
        )
        for _ in range(400)
    ]
    requests = []
    for number in range(150):
        count = int(rng.integers(1, 8))
        requests.append(
            request(
                number,
                user_id=some("u", 7),
                timestamp=int(rng.integers(1000)) // 10 * 10,
                words=[some("w", 6) for _ in range(rng.integers(4))],
                topic=None if rng.random() < 0.2 else some("c", 6),
                budget=None if rng.random() < 0.2 else float(rng.normal(50, 9)),
                item_id=[some("i", 12) for _ in range(count)],
                category_id=[None if rng.random() < 0.1 else some("c", 5) for _ in range(count)],
                price=[None if rng.random() < 0.1 else float(rng.normal()) for _ in range(count)],
                label=[int(rng.integers(2)) for _ in range(count)],
            )
        )
    return requests, behaviours


def read_rows(dataset: Path, *splits: str) -> Rows:
    """Requests of a dataset directory, as stored."""
    tables = [pq.read_table(dataset / split) for split in splits or ("train", "test")]
    return pa.concat_tables(tables).to_pylist()
