"""The preparation engine against brute force, and every way in which staging files can be wrong."""

import errno
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare import history_files, request_files
from cdp_torchrec.data.prepare.staging import (
    DatasetSpec,
    EngineLimits,
    PreparationError,
    build_dataset,
)
from cdp_torchrec.data.schema import DatasetError, Feature, load_schema

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
    tables = [pq.read_table(dataset / split) for split in splits or ("train", "test")]
    return pa.concat_tables(tables).to_pylist()


def read_codes(dataset: Path, entity: str) -> dict[str | None, int]:
    table = pq.read_table(dataset / "vocabulary" / f"{entity}.parquet").to_pydict()
    return {None: 0, **dict(zip(table["raw"], table["code"], strict=True))}


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize("seed", range(4))
def test_dataset_equals_brute_force_on_a_random_log(tmp_path: Path, seed: int) -> None:
    requests, behaviours = random_log(seed)
    dataset = tmp_path / "data"
    build_dataset(stage(tmp_path / "staging", requests, behaviours, files=3), dataset, SPEC)

    user, item = read_codes(dataset, "user"), read_codes(dataset, "item")
    category, word = read_codes(dataset, "category"), read_codes(dataset, "word")
    action = read_codes(dataset, "action")

    def history_order(b: dict[str, Any]) -> tuple[int, ...]:
        return (b["timestamp"], item[b["item"]], category[b["category"]], action[b["action"]])

    ordered = sorted(requests, key=lambda r: (r["timestamp"], r["request_id"]))
    rows = read_rows(dataset)
    assert len(rows) == len(ordered)
    for number, (row, raw) in enumerate(zip(rows, ordered, strict=True)):
        past = sorted(
            (
                b
                for b in behaviours
                if b["user_id"] == raw["user_id"] and b["timestamp"] < raw["timestamp"]
            ),
            key=history_order,
        )
        newest_first = [b["item"] for b in reversed(past)]
        assert row["request_id"] == number
        assert row["user_id"] == user[raw["user_id"]]
        assert row["timestamp"] == raw["timestamp"]
        assert row["words"] == [word[w] for w in raw["words"]]
        assert row["topic"] == category[raw["topic"]]
        assert row["history_length"] == len(past)
        assert row["item_id"] == [item[i] for i in raw["item_id"]]
        assert row["category_id"] == [category[c] for c in raw["category_id"]]
        assert row["label"] == raw["label"]
        assert row["history_rank"] == [
            newest_first.index(i) if i in newest_first else -1 for i in raw["item_id"]
        ]
        np.testing.assert_array_equal(
            row["price"], [np.nan if p is None else p for p in raw["price"]]
        )


@pytest.mark.parametrize("seed", range(4))
def test_codes_go_by_descending_training_count_then_raw_id(tmp_path: Path, seed: int) -> None:
    requests, behaviours = random_log(seed)
    dataset = tmp_path / "data"
    schema = build_dataset(stage(tmp_path / "staging", requests, behaviours), dataset, SPEC)
    old_requests = [r for r in requests if r["timestamp"] < SPEC.test_from]
    old_behaviours = [b for b in behaviours if b["timestamp"] < SPEC.test_from]

    def cells(requests: Rows, behaviours: Rows) -> dict[str, list[str | None]]:
        return {
            "user": [x["user_id"] for x in (*requests, *behaviours)],
            "word": [w for r in requests for w in r["words"]],
            "item": [i for r in requests for i in r["item_id"]] + [b["item"] for b in behaviours],
            "category": [r["topic"] for r in requests]
            + [c for r in requests for c in r["category_id"]]
            + [b["category"] for b in behaviours],
            "action": [b["action"] for b in behaviours],
        }

    old, every = cells(old_requests, old_behaviours), cells(requests, behaviours)
    assert set(schema.entities) == set(old)
    for entity, raw in every.items():
        counts = Counter(old[entity])
        expected = sorted({r for r in raw if r is not None}, key=lambda r: (-counts[r], r))
        table = pq.read_table(dataset / "vocabulary" / f"{entity}.parquet").to_pydict()
        assert table["raw"] == expected
        assert table["count"] == [counts[r] for r in expected]
        assert table["code"] == list(range(1, len(expected) + 1))
        assert schema.entities[entity].num_ids == len(expected)


@pytest.mark.parametrize("seed", range(2))
def test_history_store_holds_every_behaviour_in_both_orders(tmp_path: Path, seed: int) -> None:
    requests, behaviours = random_log(seed)
    dataset = tmp_path / "data"
    schema = build_dataset(stage(tmp_path / "staging", requests, behaviours), dataset, SPEC)
    codes = {name: read_codes(dataset, name) for name in ("user", "item", "category", "action")}
    coded = sorted(
        (
            codes["user"][b["user_id"]],
            b["timestamp"],
            codes["item"][b["item"]],
            codes["category"][b["category"]],
            codes["action"][b["action"]],
        )
        for b in behaviours
    )
    store = {
        str(path.relative_to(dataset / "history"))[:-4]: np.load(path)
        for path in (dataset / "history").rglob("*.npy")
    }
    assert schema.history.num_behaviours == len(behaviours)
    assert schema.history.num_users == len(codes["user"]) - 1
    assert len(store["user_offsets"]) == schema.history.num_users + 2

    user = np.repeat(np.arange(len(codes["user"])), np.diff(store["user_offsets"]))
    names = ("timestamp", "item", "category", "action")
    columns = [user, *(store[f"by_time/{name}"] for name in names)]
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == coded
    assert store["by_time/item"].dtype == np.int32
    assert store["by_time/timestamp"].dtype == np.int64

    num_categories = schema.entities["category"].num_ids
    by_category = sorted(coded, key=lambda b: (b[0], b[3]))  # stable: time order stays
    keys = [u * (num_categories + 1) + c for u, _, _, c, _ in by_category]
    assert store["by_category/keys"].tolist() == sorted(set(keys))
    lengths = np.diff(store["by_category/offsets"])
    assert np.repeat(store["by_category/keys"], lengths).tolist() == keys
    assert store["by_category/offsets"][0] == 0
    names = ("timestamp", "item", "action")
    columns = [store[f"by_category/{name}"] for name in names]
    found = list(zip(*(c.tolist() for c in columns), strict=True))
    assert found == [(t, i, a) for _, t, i, _, a in by_category]
    assert "by_category/category" not in store


def test_scale_of_numbers_is_over_training_impressions_without_nulls(tmp_path: Path) -> None:
    requests, behaviours = random_log(0)
    dataset = tmp_path / "data"
    schema = build_dataset(stage(tmp_path / "staging", requests, behaviours), dataset, SPEC)
    train = [r for r in requests if r["timestamp"] < SPEC.test_from]
    price = [p for r in train for p in r["price"] if p is not None]
    budget = [r["budget"] for r in train for _ in r["label"] if r["budget"] is not None]
    for name, values in (("price", price), ("budget", budget)):
        assert schema.feature(name).mean == pytest.approx(np.mean(values), rel=1e-12)
        assert schema.feature(name).std == pytest.approx(np.std(values), rel=1e-12)
    assert load_schema(dataset) == schema


def test_a_number_that_never_changes_has_scale_1(tmp_path: Path) -> None:
    staging = stage(tmp_path / "staging", two_requests(), [behaviour()])
    schema = build_dataset(staging, tmp_path / "data", SPEC)
    assert (schema.feature("budget").mean, schema.feature("budget").std) == (10.0, 1.0)


def test_splits_are_counted_and_meet_at_test_from(tmp_path: Path) -> None:
    requests = [request(0), request(1, timestamp=699, label=[1, 1]), request(2, timestamp=700)]
    schema = build_dataset(stage(tmp_path / "s", requests, []), tmp_path / "data", SPEC)
    train, test = schema.splits["train"], schema.splits["test"]
    assert (train.requests, train.impressions, train.clicks) == (2, 4, 3)
    assert (train.first_timestamp, train.last_timestamp) == (100, 699)
    assert (test.requests, test.first_timestamp, test.last_timestamp) == (1, 700, 700)
    assert [r["timestamp"] for r in read_rows(tmp_path / "data", "test")] == [700]


def test_a_behaviour_at_the_time_of_the_request_is_not_in_its_history(tmp_path: Path) -> None:
    behaviours = [behaviour(item="b", timestamp=99), behaviour(item="a", timestamp=100)]
    build_dataset(stage(tmp_path / "s", two_requests(), behaviours), tmp_path / "data", SPEC)
    first, second = read_rows(tmp_path / "data")
    assert (first["history_length"], first["history_rank"]) == (1, [-1, 0])
    assert (second["history_length"], second["history_rank"]) == (2, [0, 1])


def test_raw_request_ids_are_kept(tmp_path: Path) -> None:
    requests = [request(10), request(9, timestamp=110), request(1, timestamp=900)]
    build_dataset(stage(tmp_path / "s", requests, []), tmp_path / "data", SPEC)
    table = pq.read_table(tmp_path / "data" / "vocabulary" / "request.parquet").to_pydict()
    assert table == {"request_id": [0, 1, 2], "raw": ["r10", "r9", "r1"]}


def test_a_log_without_categories_and_actions_has_no_gate(tmp_path: Path) -> None:
    features = tuple(f for f in FEATURES if f.entity != "category")
    spec = replace(SPEC, features=features, category_entity=None, action_entity=None)
    staging = stage(tmp_path / "s", two_requests(), [behaviour()])
    schema = build_dataset(staging, tmp_path / "data", spec)
    history = tmp_path / "data" / "history"
    assert {p.name for p in history.iterdir()} == {"by_time", "user_offsets.npy"}
    assert {p.name for p in (history / "by_time").iterdir()} == {"item.npy", "timestamp.npy"}
    assert schema.history.category_entity is None


def test_true_probabilities_and_their_metrics_are_kept(tmp_path: Path) -> None:
    staging = stage(tmp_path / "s", two_requests(), [])
    path = staging / "requests" / "part-0.parquet"
    column = pa.array([[0.1, 0.9], [0.2, 0.8]])
    pq.write_table(pq.read_table(path).append_column("click_probability", column), path)
    schema = build_dataset(staging, tmp_path / "data", replace(SPEC, bayes={"auc": 0.9}))
    assert [r["click_probability"] for r in read_rows(tmp_path / "data")] == column.to_pylist()
    assert schema.bayes == {"auc": 0.9}


def test_parts_and_row_groups_cut_the_global_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, behaviours = random_log(1)
    staging = stage(tmp_path / "s", requests, behaviours)
    build_dataset(staging, tmp_path / "whole", SPEC)
    monkeypatch.setattr(request_files, "ROW_GROUP", 2)
    monkeypatch.setattr(request_files, "PART", 40)
    build_dataset(staging, tmp_path / "cut", SPEC)
    assert str(read_rows(tmp_path / "cut")) == str(read_rows(tmp_path / "whole"))
    parts = sorted((tmp_path / "cut" / "train").iterdir())
    assert [p.name for p in parts[:2]] == ["part-00000.parquet", "part-00001.parquet"]
    metadata = pq.read_metadata(parts[0])
    assert metadata.num_rows == 40
    assert {metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)} == {2}


def test_same_log_gives_the_same_bytes_whatever_threads_memory_and_file_order(
    tmp_path: Path,
) -> None:
    requests, behaviours = random_log(2)
    build_dataset(
        stage(tmp_path / "s1", requests, behaviours),
        tmp_path / "one",
        SPEC,
        EngineLimits(memory_gib=0.3, num_threads=1),
    )
    build_dataset(
        stage(tmp_path / "s2", requests[::-1], behaviours[::-1], files=5),
        tmp_path / "two",
        SPEC,
        EngineLimits(num_threads=4),
    )
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unequal lists": ({"price": [1.0]}, "candidate lists of unequal length: 'price' and 'label'"),
    "missing list": ({"price": None}, "candidate lists of unequal length: 'price' and 'label'"),
    "label 2": ({"label": [0, 2]}, "'label' holds values other than 0 and 1"),
    "label null": ({"label": [0, None]}, "'label' holds values other than 0 and 1"),
    "no candidates": (
        {"item_id": [], "category_id": [], "price": [], "label": []},
        "the candidate list is empty ('label')",
    ),
    "null user": ({"user_id": None}, "'user_id' is null"),
    "null time": ({"timestamp": None}, "'timestamp' is null"),
    "null item": ({"item_id": ["a", None]}, "'item_id' holds a null"),
    "infinite": ({"price": [1.0, float("inf")]}, "'price' holds an infinite number"),
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


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this size, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk_for_tables() -> Any:
    return largest_file(1 << 14)


@pytest.mark.parametrize("num_bytes", [1 << 10, 1 << 14, 1 << 19])
def test_nothing_is_left_where_no_file_can_grow(tmp_path: Path, num_bytes: int) -> None:
    staging = stage(tmp_path / "s", *random_log(0))
    with largest_file(num_bytes), pytest.raises(PreparationError, match="nothing is left of it"):
        build_dataset(staging, tmp_path / "data", SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("module", "name"), [(history_files._NpyWriter, "append"), (pq.ParquetWriter, "write_table")]
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
