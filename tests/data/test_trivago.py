"""RecSys Challenge 2019 logs as dataset directories; and the numbers of the official files."""

import csv
import lzma
import math
import os
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from cdp_torchrec.data.prepare.csv_tables import find_csv
from cdp_torchrec.data.prepare.logs.trivago import prepare_trivago
from cdp_torchrec.data.prepare.logs.trivago_log import COLUMNS
from cdp_torchrec.data.schema import DatasetError, load_schema
from tests.data.trivago_events import (
    DAY,
    OPEN,
    START,
    clickout,
    decoded,
    event,
    next_day,
    prepare,
    write_log,
)


def test_a_clickout_becomes_a_request_with_all_its_features(tmp_path: Path) -> None:
    night = 3 * 3600
    events = [
        event(night, 1, "search for destination", "Bonn"),
        event(night + 1, 2, "interaction item image", "2"),
        event(night + 2, 3, "filter selection", "4 Star"),
        event(night + 3, 4, "change of sort order", "price only"),
        clickout(night + 4, 5, "2", "1|2|3", current_filters="4 Star|Pool"),
        next_day(),
    ]
    row = prepare(tmp_path, events)[0]
    prices, ranks = row.pop("log_price"), row.pop("price_rank")
    assert prices == pytest.approx([math.log(10), math.log(20), math.log(30)])
    assert ranks == pytest.approx([1 / 3, 2 / 3, 1])
    assert row == {
        "request_id": 0,
        "user_id": "ann",
        "timestamp": 1000 * (START + night + 4),
        "query_id": "Bonn",
        "query_filters": ["4 Star", "Pool"],
        "hour": "3",
        "weekday": "2",
        "step_bucket": "3",
        "num_filters": 2,
        "list_length": 3,
        "device": "mobile",
        "platform": "DE",
        "search_source": "change of sort order",
        "sort_order": "price only",
        "history_length": 1,
        "item_id": ["1", "2", "3"],
        "category_id": ["Bonn, Germany"] * 3,
        "price_tier": [None, None, None],  # the first list of all
        "position": ["1", "2", "3"],
        "label": [0, 1, 0],
        "history_rank": [-1, 0, -1],
    }


def test_query_is_the_last_search_of_the_visit_before_the_request_else_the_city(
    tmp_path: Path,
) -> None:
    events = [
        clickout(10, 1, "1", "1|2"),
        event(20, 2, "search for poi", "Museum"),
        event(30, 3, "search for item", "7"),
        clickout(40, 4, "1", "1|2"),
        event(50, 5, "search for destination", "Koln"),
        clickout(60, 1, "1", "1|2", session_id="s2"),
        next_day(),
    ]
    rows = prepare(tmp_path, events)
    assert [r["query_id"] for r in rows] == ["Bonn, Germany", "7", "Bonn, Germany", "Rome, Italy"]
    sources = [r["search_source"] for r in rows]
    assert sources == ["none", "search for item", "none", "none"]


def test_events_of_one_second_are_ordered_by_step_whatever_the_line(tmp_path: Path) -> None:
    events = [
        event(5, 1, "interaction item image", "1"),
        event(5, 2, "interaction item image", "2"),
        clickout(5, 3, "2", "1|2|3"),
        event(5, 4, "interaction item image", "3"),
        clickout(5, 5, "1", "1|2|3"),
        next_day(),
    ]
    rows = prepare(tmp_path, events[::-1])
    assert [r["timestamp"] - 1000 * (START + 5) for r in rows[:2]] == [2, 4]
    assert [r["history_length"] for r in rows[:2]] == [2, 4]
    # The first click is a behaviour on item 2 before the second request.
    assert [r["history_rank"] for r in rows[:2]] == [[1, 0, -1], [3, 1, 0]]


def test_a_session_id_that_comes_back_is_another_visit(tmp_path: Path) -> None:
    events = [
        event(5, 1, "search for destination", "Koln"),
        clickout(5, 2, "1", "1|2"),
        event(900, 1, "interaction item deals", "2"),
        clickout(900, 2, "1", "1|2"),
        next_day(),
    ]
    rows = prepare(tmp_path, events)
    assert [r["query_id"] for r in rows[:2]] == ["Koln", "Bonn, Germany"]
    assert [r["history_rank"] for r in rows[:2]] == [[-1, -1], [1, 0]]


def test_behaviours_are_all_events_on_a_hotel_and_no_others(tmp_path: Path) -> None:
    actions = [
        ("interaction item info", "1"),
        ("interaction item rating", "1"),
        ("search for item", "1"),
        ("interaction item info", "Pool"),
        ("interaction item info", ""),
        ("search for poi", "1"),
        ("filter selection", "1"),
    ]
    events = [event(n, n, action, item) for n, (action, item) in enumerate(actions, start=1)]
    rows = prepare(tmp_path, [*events, clickout(99, 8, "1", "1|2"), next_day()])
    assert rows[0]["history_length"] == 3


def test_category_is_the_city_under_which_an_item_was_seen_most_before_the_request(
    tmp_path: Path,
) -> None:
    rome = {"city": "Rome, Italy"}
    events = [
        clickout(1, 1, "1", "1|2", user_id="a", session_id="a"),
        clickout(2, 1, "1", "1|2|5", user_id="b", session_id="b", **rome),
        *(event(3, n, "interaction item image", "2", **rome) for n in (1, 2)),
        clickout(4, 3, "1", "1|2|5"),
        clickout(DAY, 1, "1", "1|2|9", user_id="zoe", session_id="z", **rome),
    ]
    categories = [row["category_id"] for row in prepare(tmp_path, events)]
    bonn, rome_it = "Bonn, Germany", "Rome, Italy"
    assert categories == [
        [bonn, bonn],  # nothing was seen before: the city of the request
        [bonn, bonn, rome_it],  # seen once, in Bonn
        [bonn, rome_it, rome_it],  # 1: once in each, the first by name; 2: three times in Rome
        [bonn, rome_it, rome_it],  # the test day goes on counting
    ]


def test_behaviour_has_the_category_that_its_item_had_before(tmp_path: Path) -> None:
    rome = {"city": "Rome, Italy"}
    events = [
        event(1, 1, "interaction item image", "1", **rome),
        event(2, 2, "interaction item image", "1"),
        clickout(3, 3, "1", "1|2"),
        next_day(),
    ]
    prepare(tmp_path, events)
    raw = [None, *pq.read_table(tmp_path / "data/vocabulary/category.parquet")["raw"].to_pylist()]
    codes = np.load(tmp_path / "data/history/by_time/category.npy")
    # Seen in Rome, then in Bonn, then clicked; and clicked on the next day.
    assert [raw[code] for code in codes] == ["Rome, Italy"] * 2 + ["Bonn, Germany"] * 2


def test_price_tier_is_the_fifth_of_the_mean_price_rank_so_far(tmp_path: Path) -> None:
    items = "|".join(str(n) for n in range(1, 11))
    reverse = "|".join(str(n) for n in range(10, 0, -1))
    who = [{"user_id": name, "session_id": name} for name in "abcd"]
    events = [
        clickout(1, 1, "3", items, **who[0]),
        clickout(1, 1, "1", "1|2", **who[1]),  # the same second: not seen yet
        clickout(2, 1, "3", reverse, **who[2]),
        clickout(DAY, 1, "1", "10|1|99", **who[3]),
    ]
    rows = prepare(tmp_path, events)
    assert rows[0]["price_tier"] == [None] * 10
    assert rows[1]["price_tier"] == [None] * 2
    # Item 1 had ranks .1 and .5, item 2 had .2 and 1, all others n / 10.
    assert rows[2]["price_tier"] == ["5", "5", "4", "4", "3", "3", "2", "2", "3", "2"]
    # Item 10 had ranks 1 and .1, item 1 had .1, .5 and 1.
    assert rows[3]["price_tier"] == ["3", "3", None]


def test_known_of_an_item_is_what_brute_force_finds_before_the_request(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = []
    for session in range(60):
        who = {"user_id": f"u{session}", "session_id": f"s{session}"}
        who["city"] = str(rng.choice(["Bonn", "Rome", "Oslo"]))
        second = 0 if session == 0 else DAY if session == 59 else int(rng.integers(40))
        listed = [str(n) for n in rng.permutation(6)[:3]]
        prices = "|".join(str(n) for n in rng.integers(1, 4, 3))
        events.append(event(second, 1, "interaction item image", listed[0], **who))
        events.append(
            clickout(second, 2, rng.choice(listed), "|".join(listed), prices=prices, **who)
        )
    rows = prepare(tmp_path, sorted(events, key=lambda e: (e["timestamp"], e["user_id"])))
    by_user = {e["user_id"]: e for e in events if "impressions" in e}
    for row in rows:
        request = by_user[row["user_id"]]
        before = [e for e in events if e["timestamp"] < request["timestamp"]]
        for place, item in enumerate(row["item_id"]):
            cities = Counter(
                e["city"]
                for e in before
                for seen in [*e.get("impressions", "").split("|"), e["reference"]]
                if seen == item
            )
            best = min(cities, key=lambda city: (-cities[city], city), default=request["city"])
            assert row["category_id"][place] == best
            ranks = []
            for e in before:
                listed = e.get("impressions", "").split("|")
                if item in listed:
                    prices = [int(price) for price in e["prices"].split("|")]
                    own = prices[listed.index(item)]
                    ranks.append(sum(price <= own for price in prices) / len(prices))
            tier = str(math.ceil(round(5 * sum(ranks) / len(ranks), 9))) if ranks else None
            assert row["price_tier"][place] == tier


def test_the_first_place_of_a_clicked_hotel_is_its_click_and_the_others_are_left_out(
    tmp_path: Path,
) -> None:
    rows = prepare(tmp_path, [clickout(1, 1, "2", "3|2|3|2|1|2"), next_day()])
    assert rows[0]["item_id"] == ["3", "2", "3", "1"]
    assert rows[0]["label"] == [0, 1, 0, 0]
    assert rows[0]["position"] == ["1", "2", "3", "5"]
    assert rows[0]["list_length"] == 6
    assert rows[0]["price_rank"] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 5 / 6])


def test_a_price_of_0_is_unknown(tmp_path: Path) -> None:
    rows = prepare(tmp_path, [clickout(1, 1, "1", "1|2", prices="0|5"), next_day()])
    np.testing.assert_allclose(rows[0]["log_price"], [np.nan, math.log(5)])


def test_item_metadata_adds_stars_and_number_of_properties(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    lines = ["item_id,properties", "1,Pool|4 Star|Wifi", "2,From 2 Stars", "9,"]
    with lzma.open(log / "item_metadata.csv.xz", "wt") as file:
        file.write("\n".join(lines))
    rows = prepare(tmp_path, [clickout(1, 1, "1", "1|2|3"), next_day()])
    assert rows[0]["star_rating"] == ["4 Star", None, None]
    np.testing.assert_array_equal(rows[0]["num_properties"], [3, 1, np.nan])


def test_repeated_item_in_the_metadata_is_an_error(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [clickout(1, 1, "1", "1|2"), next_day()])
    (log / "item_metadata.csv").write_text("item_id,properties\n1,Pool\n2,Bar\n1,Wifi\n")
    with pytest.raises(DatasetError, match=r"item_metadata.csv: item_id 1 occurs in line 2 and"):
        prepare_trivago(log, tmp_path / "data")


def test_clickouts_without_their_item_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = [clickout(1, 1, "7", "1|2"), clickout(2, 2, "1", "1|2"), next_day()]
    rows = prepare(tmp_path, events)
    assert len(rows) == 2
    assert rows[0]["history_length"] == 1
    assert "1 of 3 clickouts left out" in caplog.text
    assert load_schema(tmp_path / "data").source.endswith("train.csv; 1 clickouts left out")


def test_test_from_moves_the_split(tmp_path: Path) -> None:
    users = [{"user_id": name, "session_id": name} for name in "abc"]
    events = [clickout(n * DAY, 1, "1", "1|2", **user) for n, user in enumerate(users)]
    write_log(tmp_path / "log", events)
    default = prepare_trivago(tmp_path / "log", tmp_path / "default")
    moved = prepare_trivago(tmp_path / "log", tmp_path / "moved", test_from=date(2018, 11, 8))
    assert [s.splits["train"].requests for s in (default, moved)] == [2, 1]
    with pytest.raises(DatasetError, match="the test split is empty: no request at or after 2019"):
        prepare_trivago(tmp_path / "log", tmp_path / "none", test_from=date(2019, 1, 1))


@pytest.mark.parametrize("name", ["train.csv.gz", "train.csv.xz", "events.csv"])
def test_compression_and_column_order_do_not_matter(tmp_path: Path, name: str) -> None:
    events = [event(1, 1, "interaction item image", "2"), clickout(2, 2, "2", "1|2"), next_day()]
    rows = prepare(tmp_path, events)
    shuffled = [{key: e.get(key, "") for key in reversed(COLUMNS)} for e in events]
    with OPEN[Path(name).suffix.replace(".csv", "")](tmp_path / name, "wt", newline="") as file:
        writer = csv.DictWriter(file, [*reversed(COLUMNS), "more"])
        writer.writeheader()
        writer.writerows(shuffled)
    prepare_trivago(tmp_path, tmp_path / "other")
    assert decoded(tmp_path / "other") == rows


def test_official_files_give_the_published_counts_and_rule_scores(tmp_path: Path) -> None:
    source = os.environ.get("CDP_TORCHREC_TRIVAGO")
    if not source:
        pytest.skip("CDP_TORCHREC_TRIVAGO does not name a directory of the official files")
    if find_csv(Path(source), "train.csv"):
        pytest.skip("the expected counts are those of the 100,003 events in events.csv")
    schema = prepare_trivago(Path(source), tmp_path / "data")
    train, test = schema.splits["train"], schema.splits["test"]
    assert (train.requests, test.requests) == (6842, 6754)
    assert train.impressions + test.impressions == 312514

    rows = pq.read_table(tmp_path / "data" / "test")
    label, rank = (
        rows[name].combine_chunks().flatten().to_numpy() for name in ("label", "history_rank")
    )
    positions = [r["position"] for r in decoded(tmp_path / "data")[train.requests :]]
    position = np.array([int(p) for listed in positions for p in listed])
    assert roc_auc_score(label, -position) == pytest.approx(0.7626, abs=1e-4)
    assert roc_auc_score(label, 100 * (rank == 0) - position) == pytest.approx(0.8303, abs=1e-4)

    both = [pq.read_table(tmp_path / "data" / split) for split in ("train", "test")]
    lengths = np.concatenate([table["history_length"].to_numpy() for table in both])
    assert lengths.mean() == pytest.approx(15.234, abs=1e-3)
    assert (lengths == 0).mean() == pytest.approx(0.2799, abs=1e-4)
    clicked = np.concatenate(
        [
            table["history_rank"]
            .combine_chunks()
            .flatten()
            .to_numpy()[table["label"].combine_chunks().flatten().to_numpy() == 1]
            for table in both
        ]
    )
    assert (clicked >= 0).mean() == pytest.approx(0.3961, abs=1e-4)
