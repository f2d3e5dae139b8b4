"""A draft finds what says of a row whether it was clicked."""

import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare.mapped.draft import draft_mapping
from cdp_torchrec.data.schema import load_schema
from tests.data.mapped_logs import START
from tests.data.test_draft import drafted_text, impressions, prepared


@pytest.mark.parametrize("name", ["click_time", "clicked_at", "click_ts"])
def test_the_moment_of_a_click_is_a_label_and_no_time(tmp_path: Path, name: str) -> None:
    """Warehouses join clicks to impressions, and leave the time of a click empty without one."""
    header, *rows = impressions().splitlines()
    moments = [str(START + 500 * (row // 4) + 9) if row % 5 == 0 else "" for row in range(400)]
    lines = [f"{moment},{row}" for moment, row in zip(moments, rows, strict=True)]
    file = tmp_path / "log.csv"
    file.write_text("\n".join([f"{name},{header.replace('ts', 'shown_time')}", *lines]) + "\n")
    found = tomllib.loads(draft_mapping([file], mapping="m.toml"))
    assert found["log"]["rows"] == "impression"
    assert found["log"]["time"]["column"] == "shown_time"
    assert found["log"]["label"] == {"column": name, "filled": True}
    splits = load_schema(prepared(tmp_path, file)).splits
    assert sum(split.clicks for split in splits.values()) == 80


def test_the_time_of_a_log_of_clicks_is_no_label(tmp_path: Path) -> None:
    """Some of its rows may be broken; those that are whole would all be clicks."""
    rows = [f"u{n % 9},i{n % 30},{START + 60 * n if n % 100 else ''}" for n in range(400)]
    file = tmp_path / "log.csv"
    file.write_text("\n".join(["user_id,item_id,click_time", *rows]) + "\n")
    found = tomllib.loads(draft_mapping([file], mapping="m.toml"))
    assert found["log"]["rows"] == "action"
    assert found["log"]["time"]["column"] == "click_time"


@pytest.mark.parametrize("name", ["last_click_time", "user_prev_click_ts"])
def test_the_moment_of_an_earlier_click_is_no_label(tmp_path: Path, name: str) -> None:
    earlier = ["", str(START - 86_400), str(START - 7_200)]
    text = drafted_text(tmp_path, **{name: earlier, "event": ["view", "cart", "buy"]})
    found = tomllib.loads(text)
    assert found["log"]["rows"] == "action"
    assert found["log"]["label"] == {"column": "event", "one_of": ["view"]}


@pytest.mark.parametrize("yes", ["1", "1.0", "true"])
def test_a_label_that_is_yes_or_nothing_is_one(tmp_path: Path, yes: str) -> None:
    found = tomllib.loads(drafted_text(tmp_path, clicked=["", "", yes]))
    assert found["log"]["label"] == {"column": "clicked", "filled": True}
    splits = load_schema(prepared(tmp_path, tmp_path / "log.csv")).splits
    assert sum(split.clicks for split in splits.values()) == 133


def test_a_label_with_both_values_and_gaps_is_left_to_the_reader(tmp_path: Path) -> None:
    found = tomllib.loads(drafted_text(tmp_path, clicked=["", "0", "1"]))
    assert found["log"]["label"] == {"column": "clicked", "above": 0}


def test_what_was_shown_is_no_action(tmp_path: Path) -> None:
    """It is the most frequent event of many logs, and the last one that a model should predict."""
    text = drafted_text(tmp_path, event=["impression", "impression", "click", "Show", "order"])
    found = tomllib.loads(text)
    assert found["log"]["label"] == {"column": "event", "one_of": ["click"]}
    assert found["behaviours"]["action"]["only"]["one_of"] == ["click", "order"]
    assert "# READ THIS: 'event' has ['Show', 'impression'], which say what was shown" in text
    assert '[log.label] with one_of = ["click"]' in text
    data = prepared(tmp_path, tmp_path / "log.csv")
    assert load_schema(data).history.num_behaviours == 160


def test_lists_of_booleans_are_labels(tmp_path: Path) -> None:
    rows = [
        {
            "user_id": f"u{n % 9}",
            "ts": 1000 * (START + 600 * n),
            "items": [f"i{n % 7}", f"i{n % 7 + 1}"],
            "labels": [n % 3 == 0, n % 4 == 0],
        }
        for n in range(200)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    found = tomllib.loads(draft_mapping([tmp_path / "log.parquet"], mapping="m.toml"))
    assert found["log"]["label"] == {"column": "labels", "one_of": ["true"]}
    splits = load_schema(prepared(tmp_path, tmp_path / "log.parquet")).splits
    assert sum(split.clicks for split in splits.values()) == 67 + 50
