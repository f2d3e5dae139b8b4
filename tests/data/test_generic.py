"""Any log by its mapping gives the dataset that its rows say; whatever its files look like."""

import logging
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.schema import DatasetError, load_schema
from tests.config.undocumented import undocumented
from tests.data.mapped_logs import (
    IMPRESSIONS,
    START,
    impression,
    prepare,
    two_days,
    write_csv,
)

ATTRIBUTES = (
    IMPRESSIONS
    + """
[tables.items]
files = ["items.csv"]
by = "item"
key = "itemId"
missing = ["NULL"]

[tables.users]
files = ["users-*.csv"]
delimiter = ";"
columns = ["uid", "age", "likes"]
by = "user"
key = "uid"

[features.brand]
role = "item"
level = "candidate"
kind = "id"
table = "items"

[features.genre]
role = "item"
level = "candidate"
kind = "id"
table = "items"
column = "genres"
separator = "|"

[features.price]
role = "item"
level = "candidate"
kind = "number"
table = "items"

[features.age]
role = "user"
level = "request"
kind = "number"
table = "users"

[features.likes]
role = "user"
level = "request"
kind = "ids"
table = "users"
separator = ","
entity = "genre"

[features.order]
role = "item"
level = "candidate"
kind = "number"
table = "items"
column = "price"

[features.client]
role = "scene"
level = "request"
kind = "id"

[features.hour]
role = "context"
level = "request"
kind = "id"
derive = "hour"

[features.weekday]
role = "context"
level = "request"
kind = "id"
derive = "weekday"

[features.position]
role = "context"
level = "candidate"
kind = "id"
derive = "position"
"""
)


def test_features_come_from_the_log_its_times_and_tables_of_attributes(tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", two_days(client="app"))
    items = [
        {"itemId": "b", "brand": "NULL", "genres": "wool|felt", "price": "2.5"},
        {"itemId": "a", "brand": "hut", "genres": "", "price": ""},
    ]
    write_csv(tmp_path / "items.csv", items)
    (tmp_path / "users-1.csv").write_text("bob;20;felt\n")
    (tmp_path / "users-2.csv").write_text("ann;30;felt,wool\n")
    row = prepare(tmp_path, ATTRIBUTES, "log.time.utc_offset=+08:00")[1]
    assert row["brand"] == ["hut", None]
    assert row["genre"] == [None, "wool"]
    assert str(row["price"]) == str(row["order"]) == "[nan, 2.5]"
    assert (row["age"], row["likes"], row["client"]) == (30, ["felt", "wool"], "app")
    assert (row["hour"], row["weekday"]) == ("10", "6")  # 02:00 UTC on a Sunday
    assert row["position"] == ["1", "2"]


LISTS = """
name = "shop"
source = "made by hand"
category = "category_id"
tables.log = {files = ["log.csv"]}
behaviours.click = {}
split.test_from = "2025-06-02"

[log]
table = "log"
rows = "request"
user = "user"
item = "items"
request = ["page"]
time = {column = "time", unit = "s"}
clicked = "clicked"
separator = "|"

[features.category_id]
role = "item"
level = "candidate"
kind = "id"
column = "categories"
"""


def test_rows_of_impressions_and_rows_with_lists_give_the_same_dataset(tmp_path: Path) -> None:
    rows = two_days()
    write_csv(tmp_path / "rows" / "log.csv", rows)
    expected = prepare(tmp_path / "rows", IMPRESSIONS)
    pages = [
        {
            "page": page,
            "user": "ann",
            "time": next(r["time"] for r in rows if r["page"] == page),
            "items": ["a", "b"],
            "categories": ["hats", "hats"],
            "clicked": ["b"],
        }
        for page in ("p1", "p2", "p30")
    ]
    joined = [{k: "|".join(v) if isinstance(v, list) else v for k, v in p.items()} for p in pages]
    write_csv(tmp_path / "text" / "log.csv", joined)
    assert prepare(tmp_path / "text", LISTS) == expected

    times = pa.array([1000 * p.pop("time") for p in pages], pa.timestamp("ms"))
    labels = [[0, 1]] * 3
    table = pa.Table.from_pylist(pages).append_column("time", times)
    (tmp_path / "lists").mkdir()
    pq.write_table(table.append_column("labels", [labels]), tmp_path / "lists" / "log.parquet")
    settings = ["tables.log={files=['log.parquet'], format='parquet'}", "log.time.unit=timestamp"]
    by_label = LISTS.replace('clicked = "clicked"', 'label = {column = "labels", one_of = ["1"]}')
    assert prepare(tmp_path / "lists", by_label, *settings, "log.request=[]") == expected


PRICES = """
[features.price]
role = "item"
level = "candidate"
kind = "number"
"""


def test_elements_of_lists_may_be_missing_whatever_they_are(tmp_path: Path) -> None:
    lists = {"p0": ("a|b", "hats|", "1.5|"), "p1": ("b", "", ""), "p2": ("b|c", "|", "|2.5")}
    rows = [
        {"page": page, "user": "ann", "time": START + 86_400 * day, "clicked": "b"}
        | dict(zip(("items", "categories", "price"), texts, strict=True))
        for day, (page, texts) in enumerate(lists.items())
    ]
    write_csv(tmp_path / "log.csv", rows)
    found = prepare(tmp_path, LISTS + PRICES)
    assert [row["category_id"] for row in found] == [["hats", None], [None], [None, None]]
    prices = [[None if math.isnan(p) else p for p in row["price"]] for row in found]
    assert prices == [[1.5, None], [None], [None, 2.5]]


@pytest.mark.slow
def test_without_a_request_column_the_impressions_of_a_user_and_moment_are_a_request(
    tmp_path: Path,
) -> None:
    rows = [*two_days(), impression(2, "d", user="bob", clicks="1")]
    write_csv(tmp_path / "log.csv", rows[::-1])
    found = prepare(tmp_path, IMPRESSIONS, "log.request=[]")
    assert [(r["user_id"], r["item_id"]) for r in found] == [
        ("ann", ["b", "a"]),
        ("ann", ["b", "a"]),
        ("bob", ["d"]),
        ("ann", ["b", "a"]),
    ]


@pytest.mark.slow
def test_order_of_hashes_does_not_depend_on_the_file(tmp_path: Path) -> None:
    rows = [
        impression(page, item, clicks=int(item == "a")) for page in (1, 30) for item in "abcdef"
    ]
    write_csv(tmp_path / "one" / "log.csv", rows)
    write_csv(tmp_path / "two" / "log.csv", rows[::-1])
    one, two = (prepare(tmp_path / n, IMPRESSIONS, "log.order=hash") for n in ("one", "two"))
    assert one == two
    assert one[0]["item_id"] != list("abcdef")
    assert one[0]["item_id"] != one[1]["item_id"]


BEHAVIOURS = (
    IMPRESSIONS
    + """
[tables.views]
files = ["views.csv"]

[behaviours.view]
table = "views"
user = "who"
item = ["what"]
category = "kind"
action = "how"
time = {column = "when", unit = "text", format = "%d.%m.%Y %H:%M", utc_offset = "+02:00"}
only = {column = "seconds", above = 3}
"""
)


def test_behaviours_come_from_the_positives_and_from_a_log_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_csv(tmp_path / "log.csv", two_days())
    views = [
        {"who": "ann", "what": what, "kind": "shoes", "how": "look", "when": when, "seconds": s}
        for what, when, s in (
            ("a", "01.06.2025 03:30", 5),  # 01:30 UTC, between the first two requests
            ("b", "01.06.2025 03:30", 3),
            ("c", "01.06.1925 03:30", 5),
        )
    ]
    write_csv(tmp_path / "views.csv", views)
    rows = prepare(tmp_path, BEHAVIOURS, "window.start='2025-06-01'")
    assert [r["history_length"] for r in rows] == [0, 2, 3]
    assert [r["history_rank"] for r in rows] == [[-1, -1], [0, 1], [1, 0]]
    actions = pq.read_table(tmp_path / "data/vocabulary/action.parquet")["raw"].to_pylist()
    assert set(actions) == {"click", "look"}
    assert "1 of 2 rows left out: 'when' is outside of the window" in caplog.text
    assert load_schema(tmp_path / "data").history.num_behaviours == 4


def test_a_column_that_is_filled_can_be_the_label(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows" / "log.csv", two_days())
    expected = prepare(tmp_path / "rows", IMPRESSIONS)
    rows = [row | {"clicks": "now" if row["clicks"] else ""} for row in two_days()]
    write_csv(tmp_path / "log.csv", rows)
    assert prepare(tmp_path, IMPRESSIONS.replace("above = 0", "filled = true")) == expected


@pytest.mark.slow
def test_requests_before_requests_from_are_history_only(tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", two_days())
    rows = prepare(tmp_path, IMPRESSIONS, "split.requests_from='2025-06-01T01:30:00'")
    assert [r["history_length"] for r in rows] == [1, 2]


@pytest.mark.slow
def test_starts_are_inside_and_ends_outside(tmp_path: Path) -> None:
    for name, settings, hours in (
        ("later", ["split.requests_from='2025-06-01T02:00:00'"], [2, 30]),
        ("inside", ["window.start='2025-06-01T01:00:00'", "window.end='2025-06-02T06:00'"], [1, 2]),
    ):
        write_csv(tmp_path / name / "log.csv", two_days())
        mapping = IMPRESSIONS.replace('"2025-06-02"', f'"2025-06-{1 + hours[1] // 24:02}T02:00"')
        rows = prepare(tmp_path / name, mapping, *settings)
        assert [row["timestamp"] // 1000 - START for row in rows] == [3600 * h for h in hours]


@pytest.mark.slow
@pytest.mark.parametrize(("share", "tested"), [("0.3", 3), ("0.8", 8), ("0.9", 9), ("1e-20", 1)])
def test_test_share_takes_the_latest_requests_and_one_at_least(
    tmp_path: Path, share: str, tested: int
) -> None:
    """Of 10 requests 0.8 are 8, though 10 * (1 - 0.8) is less than 2."""
    rows = [impression(page, item, clicks=int(item == "a")) for page in range(10) for item in "ab"]
    write_csv(tmp_path / "log.csv", rows)
    prepare(tmp_path, IMPRESSIONS.replace('test_from = "2025-06-02"', f"test_share = {share}"))
    splits = load_schema(tmp_path / "data").splits
    assert (splits["train"].requests, splits["test"].requests) == (10 - tested, tested)


@pytest.mark.slow
def test_what_is_odd_about_requests_is_said_with_its_figure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = impression(1, "c", time=START + 3600 + 7)
    write_csv(tmp_path / "log.csv", [*two_days(), late, late])
    with caplog.at_level(logging.WARNING):
        rows = prepare(tmp_path, IMPRESSIONS)
    assert rows[0]["timestamp"] == 1000 * (START + 3600)
    assert "1 of 3 requests have impressions at different times, up to 7 s apart" in caplog.text
    assert "1 of 8 candidates stand in their request already" in caplog.text


def test_a_log_that_is_there_twice_is_refused_where_its_copies_meet_in_requests(
    tmp_path: Path,
) -> None:
    rows = [impression(page, item) for page in range(20) for item in "abc"]
    write_csv(tmp_path / "log.csv", [*rows, *rows[:20]])
    with pytest.raises(DatasetError, match="20 of 80 candidates stand in their request already"):
        prepare(tmp_path, IMPRESSIONS)
    assert not (tmp_path / "data").exists()


UNNAMED_LABELS = {
    "no other": ([], None),
    "a third value": (["maybe"], "'no' 42.9 %, 'maybe' 14.3 % of the candidates"),
    "more than are listed": (list("123456"), "'4' 8.33 %, and 2 more of the candidates"),
}


@pytest.mark.parametrize("case", UNNAMED_LABELS)
def test_labels_that_nobody_named_are_said_with_their_shares(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    others, said = UNNAMED_LABELS[case]
    rows = [row | {"clicks": "yes" if row["clicks"] else "no"} for row in two_days()]
    rows += [impression(1, f"item {label}", clicks=label) for label in others]
    write_csv(tmp_path / "log.csv", rows)
    prepare(tmp_path, IMPRESSIONS.replace("above = 0", 'one_of = ["yes"]'))
    beside = "'clicks' has values beside one_of = ['yes'], which all count as no click: 'no'"
    assert (beside in caplog.text) == (said is not None)
    assert (said or "") in caplog.text


def test_the_only_label_that_is_no_click_is_said_where_it_looks_like_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"user": "ann", "items": "a|b", "categories": "x|y", "labels": "Yes|yes"}
    pages = [row | {"page": f"p{hour}", "time": START + 3600 * hour} for hour in (1, 2, 30)]
    write_csv(tmp_path / "log.csv", pages)
    by_label = 'label = {column = "labels", one_of = ["yes"]}'
    prepare(tmp_path, LISTS.replace('clicked = "clicked"', by_label))
    assert "which all count as no click: 'Yes' 50 % of the candidates" in caplog.text


def test_every_key_of_a_mapping_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert undocumented(MappingConfig) == []
    main(["generic", "--help", "log.time"])
    assert "log.time.utc_offset" in capsys.readouterr().out


@pytest.mark.parametrize("behind", [["more"], ["name=x", "more"]])
def test_what_is_no_setting_is_refused_behind_the_options(
    behind: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["generic", "mapping.toml", "--input", "logs", "--output", "data", *behind])
    assert "unrecognized arguments: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prepares_a_dataset_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "logs" / "log.csv", two_days())
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(IMPRESSIONS)
    folders = ["--input", str(tmp_path / "logs"), "--output", str(tmp_path / "data")]
    main(["generic", str(mapping), "source=mine", *folders, "name=renamed"])
    schema = load_schema(tmp_path / "data")
    assert (schema.name, schema.source) == ("renamed", "mine")
    assert f"{tmp_path / 'data'} is ready" in capsys.readouterr().out
