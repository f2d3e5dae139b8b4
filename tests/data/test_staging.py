"""The preparation engine against brute force."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare import request_files
from cdp_torchrec.data.prepare.staging import EngineLimits, build_dataset
from cdp_torchrec.data.schema import DatasetError, load_schema
from tests.data.staged_log import (
    FEATURES,
    SPEC,
    Rows,
    behaviour,
    random_log,
    read_rows,
    request,
    stage,
    two_requests,
)


def read_codes(dataset: Path, entity: str) -> dict[str | None, int]:
    table = pq.read_table(dataset / "vocabulary" / f"{entity}.parquet").to_pydict()
    return {None: 0, **dict(zip(table["raw"], table["code"], strict=True))}


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Contents by name; a dataset names itself in its first configuration."""
    own = str(directory).encode()
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): path.read_bytes().replace(own, b"DATASET")
        for path in files
    }


@pytest.mark.parametrize("seed", range(2))
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


@pytest.mark.parametrize("seed", range(2))
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


def test_more_ids_than_the_store_has_codes_for_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = stage(tmp_path / "staging", *random_log(0))
    schema = build_dataset(staging, tmp_path / "data", SPEC)
    stored = {name: schema.entities[name].num_ids for name in ("user", "item", "category")}
    largest = max(stored, key=lambda name: stored[name])
    limit = "cdp_torchrec.data.prepare.vocabulary.MOST_CODES"
    monkeypatch.setattr(limit, stored[largest])
    build_dataset(staging, tmp_path / "fits", SPEC)
    monkeypatch.setattr(limit, stored[largest] - 1)
    with pytest.raises(DatasetError, match=f"entity '{largest}' has {stored[largest]} ids: the "):
        build_dataset(staging, tmp_path / "refused", SPEC)
    assert not (tmp_path / "refused").exists()


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


@pytest.mark.parametrize("noise", [0.0, 2e-15])
def test_a_constant_is_one_although_adding_it_up_rounds(noise: float) -> None:
    moments = request_files.Moments()
    for block in range(7):  # 9.99 is no sum of powers of two
        values = np.full(1000 + block, 9.99)
        values[::3] += noise
        moments.add(values, np.ones_like(values))
    assert (moments.mean, moments.std) == (pytest.approx(9.99), 1.0)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e30])
def test_a_small_spread_around_a_large_mean_is_no_constant(scale: float) -> None:
    values = scale * (1.7e12 + np.arange(3_600_000, step=1000, dtype=float))  # an hour of ms
    moments = request_files.Moments()
    for part in np.split(values, 4):
        moments.add(part, np.ones_like(part))
    assert moments.std == pytest.approx(np.std(values), rel=1e-6)


def test_columns_that_look_alike_and_folders_named_like_columns_change_nothing(
    tmp_path: Path,
) -> None:
    requests, behaviours = random_log(3)
    build_dataset(stage(tmp_path / "s", requests, behaviours), tmp_path / "plain", SPEC)
    odd = tmp_path / "topic=hats" / "user_id=7" / "a?b[c]*"
    staging = stage(odd / "s", requests, behaviours)
    path = staging / "requests" / "part-0.parquet"
    table = pq.read_table(path)
    for name in ("LABEL", "Price", "_row", "filename"):
        table = table.add_column(0, name, pa.nulls(len(table), pa.int64()))
    pq.write_table(table, path)
    build_dataset(staging, odd / "data", SPEC)
    found, expected = bytes_of(odd / "data"), bytes_of(tmp_path / "plain")
    # It quotes the path in its own way.
    assert found.pop("starter.toml") and expected.pop("starter.toml")
    assert found == expected


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
    assert {p.name for p in (history / "by_time").iterdir()} == {
        "cluster.npy",
        "item.npy",
        "timestamp.npy",
    }
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
