"""EB-NeRD logs as dataset directories; and the numbers of the official demo files."""

import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from cdp_torchrec.data.prepare.logs.ebnerd import prepare_ebnerd
from cdp_torchrec.data.prepare.staging import EngineLimits
from cdp_torchrec.data.schema import load_schema
from tests.data.ebnerd_log import (
    WEEK,
    Rows,
    milliseconds,
    moment,
    next_week,
    prepare,
    reads,
    request,
    stored,
    write_log,
)
from tests.data.trivago_events import decoded

HOUR, DAY = 3600, 24 * 3600
NUMBERS = {
    "log_age",
    "log_views_hour",
    "log_clicks_hour",
    "log_views_day",
    "log_clicks_day",
    "log_views",
    "log_clicks",
    "log_user_views",
    "log_user_view_age",
}


def test_a_row_becomes_a_request_with_all_its_features(tmp_path: Path) -> None:
    known = {"gender": 1, "postcode": 3, "age": 50, "is_subscriber": True, "is_sso_user": True}
    listed = request(3 * HOUR, [7, 5, 6], [5], article_id=44, session_id=8, **known)
    row = prepare(tmp_path, [listed, next_week()])[0]
    numbers = {name: row.pop(name) for name in NUMBERS}
    assert row == {
        "request_id": 0,
        "user_id": "1",
        "timestamp": milliseconds(3 * HOUR),
        "age": "50",
        "gender": "1",
        "postcode": "3",
        "subscriber": "true",
        "sso_user": "true",
        "query_id": "44",
        "hour": "10",
        "weekday": "3",
        "page": "article",
        "list_length": 3,
        "device": "2",
        "session_bucket": "1",
        "history_length": 0,
        "item_id": ["7", "5", "6"],
        "position": ["1", "2", "3"],
        "label": [0, 1, 0],
        "history_rank": [-1, -1, -1],
    }
    for name in NUMBERS - {"log_age", "log_user_view_age"}:
        assert numbers[name] == [0, 0, 0], name
    assert np.isnan([numbers["log_age"], numbers["log_user_view_age"]]).all()


def test_front_page_has_no_query_and_unknown_attributes_stay_unknown(tmp_path: Path) -> None:
    row = prepare(tmp_path, [request(0, [1], []), next_week()])[0]
    assert (row["page"], row["query_id"]) == ("front", None)
    assert row["age"] is row["gender"] is row["postcode"] is None
    assert row["label"] == [0]


def test_session_bucket_counts_earlier_requests_of_the_session_by_powers_of_two(
    tmp_path: Path,
) -> None:
    listed = [request(10 * n, [1], [1]) for n in range(8)]
    other = request(75, [1], [1], session_id=2)
    rows = prepare(tmp_path, [*listed, other, next_week()])
    assert [row["session_bucket"] for row in rows] == [*"12233334", "1", "1"]


def _random_log(seed: int) -> tuple[Rows, dict[str, Rows]]:
    """Two users, few articles and coarse times: many ties, many articles shown again."""
    rng = random.Random(seed)
    behaviors = []
    for n in range(60):
        week = n % 3 == 2
        second = 600 * rng.randrange(200) + (WEEK if week else 0)
        inview = rng.sample(range(1, 9), rng.randint(1, 5))
        values: dict[str, Any] = {
            "impression_id": n,
            "user_id": rng.randint(1, 2),
            "session_id": rng.randint(1, 3),
            "read_time": rng.choice([None, 0.0, 300.0, 600.0]),
        }
        clicked = rng.sample(inview, rng.randint(0, min(2, len(inview))))
        behaviors.append(request(second, inview, clicked, **values))
    history = [
        reads(1, *((-600 * n, rng.randint(1, 9), 30.0, 40.0) for n in range(9, -9, -1))),
        reads(2, *((-900 * n, rng.randint(1, 9), 0.0, None) for n in range(9, 0, -1))),
    ]
    return behaviors, {"train": history}


def test_every_number_is_what_a_slow_count_of_the_past_gives(tmp_path: Path) -> None:
    behaviors, histories = _random_log(0)
    rows = prepare(tmp_path, behaviors, histories=histories)
    views, clicks, seen = [], [], []
    for row in behaviors:
        time = (row["impression_time"] - moment(0)).total_seconds()
        shown = 1800 if row["read_time"] is None else row["read_time"]
        views += [(item, row["user_id"], time) for item in row["article_ids_inview"]]
        clicks += [
            (item, row["user_id"], time + max(0, shown - 0.001))
            for item in row["article_ids_clicked"]
        ]
    for history in histories["train"]:
        times = [(t - moment(0)).total_seconds() for t in history["impression_time_fixed"]]
        seen += list(zip(history["article_id_fixed"], times, strict=True))
    seen += [(item, time) for item, _, time in views]

    def count(events: list[Any], item: int, now: float, span: float, user: int | None) -> int:
        return sum(i == item and now - span <= t < now and user in (None, u) for i, u, t in events)

    num_checked = 0
    for row in rows:
        now = row["timestamp"] / 1000 - milliseconds(0) / 1000
        user = int(row["user_id"])
        for place, item in enumerate(int(name) for name in row["item_id"]):
            mine = [now - t for i, u, t in views if (i, u) == (item, user) and t < now]
            ages = [now - t for i, t in seen if i == item and t < now]
            expected = {
                "log_views_hour": count(views, item, now, HOUR, None),
                "log_clicks_hour": count(clicks, item, now, HOUR, None),
                "log_views_day": count(views, item, now, DAY, None),
                "log_clicks_day": count(clicks, item, now, DAY, None),
                "log_views": count(views, item, now, math.inf, None),
                "log_clicks": count(clicks, item, now, math.inf, None),
                "log_user_views": len(mine),
                "log_user_view_age": min(mine, default=math.nan),
                "log_age": max(ages, default=math.nan),
            }
            assert set(expected) == NUMBERS
            for name, value in expected.items():
                wanted = pytest.approx(math.log1p(value), nan_ok=True)
                assert row[name][place] == wanted, (name, row["request_id"], item)
                num_checked += 1
    assert num_checked > 1000


def test_what_happens_at_a_request_or_later_changes_nothing_in_it(tmp_path: Path) -> None:
    behaviors, histories = _random_log(1)
    behaviors.sort(key=lambda row: (row["impression_time"], row["impression_id"]))
    now = next(n for n, row in enumerate(behaviors) if row["impression_time"] >= moment(WEEK)) + 8
    rows = prepare(tmp_path, behaviors, histories=histories)

    def altered(row: dict[str, Any]) -> dict[str, Any]:
        other = {"read_time": 7.0, "next_read_time": 777.0, "next_scroll_percentage": 1.0}
        return row | other | {"article_ids_clicked": row["article_ids_inview"][-1:]}

    cut = behaviors[now]["impression_time"]
    changed = [altered(row) if row["impression_time"] >= cut else row for row in behaviors]
    later = reads(1, *((WEEK + 130_000 + n, 3, 9.0, 9.0) for n in range(5)))
    changed_rows = prepare(
        tmp_path / "other", changed, histories=histories | {"validation": [later]}
    )
    # Which requests came before is the same; labels may differ from `now` on.
    for before, after in zip(rows[: now + 1], changed_rows[: now + 1], strict=True):
        for name in set(before) - {"label"}:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert rows[now]["history_length"] > 0


def test_a_behaviour_is_a_finished_read_with_its_depth_as_action(tmp_path: Path) -> None:
    history = reads(
        1,
        (-500, 11, 9.0, 49.0),
        (-400, 12, 10.0, 50.0),
        (-300, 13, 60.0, 90.0),
        (-100, 14, 0.0, None),
    )
    prepare(tmp_path, [request(0, [1], []), next_week()], histories={"train": [history]})
    assert stored(tmp_path / "data", 1) == [
        (1, 11, "short/top", pytest.approx(-491.001)),
        (1, 12, "medium/part", pytest.approx(-390.001)),
        (1, 13, "long/end", pytest.approx(-240.001)),
        (1, 14, "short/unknown", -100),
    ]


@pytest.mark.parametrize("read_time", [0.0, 500.0])
def test_a_request_under_an_article_knows_nothing_of_its_reading(
    tmp_path: Path, read_time: float
) -> None:
    opened = reads(1, (100, 5, read_time, 100.0))
    under = request(100, [6], [6], article_id=5, read_time=read_time)
    after = request(101 + int(read_time), [6, 5], [6])
    rows = prepare(tmp_path, [under, after, next_week()], histories={"validation": [opened]})
    assert rows[0]["history_length"] == 0
    assert rows[1]["history_rank"][1] >= 0


def test_a_request_knows_the_read_that_ended_in_the_same_second(tmp_path: Path) -> None:
    history = reads(1, (80, 5, 20.0, 100.0))
    row = prepare(tmp_path, [request(100, [5], []), next_week()], histories={"train": [history]})[0]
    assert row["history_rank"] == [0]


def test_a_click_becomes_the_read_that_follows_it(tmp_path: Path) -> None:
    rows = [
        request(0, [3, 4], [4], read_time=20.0, next_read_time=70.0, next_scroll_percentage=95.0),
        request(20, [3, 4], [3], next_read_time=None, next_scroll_percentage=None),
        request(40, [5, 6], [5, 6], read_time=None),
        next_week(),
    ]
    rows = prepare(tmp_path, rows)
    assert stored(tmp_path / "data", 1) == [
        (1, 3, "click", 30),
        (1, 4, "long/end", pytest.approx(89.999)),
        (1, 5, "click", 1840),  # when the list was left is unknown: the longest time
        (1, 6, "click", 1840),
    ]
    assert [row["history_length"] for row in rows[:3]] == [0, 0, 1]


def test_reads_are_counted_once_though_files_overlap(tmp_path: Path) -> None:
    first = reads(1, (-90, 5, 3.0, 10.0), (-50, 6, 4.0, 10.0))
    second = reads(1, (-50, 6, 4.0, 10.0), (-50, 6, 12.0, 20.0), (25, 4, 30.0, 50.0))
    # The click at second 0 opened article 4 at second 25; that of article 3 is in no history.
    clicks = [
        request(0, [3, 4], [4], read_time=24.0),
        request(60, [3, 4], [3]),
        request(9000, [4], [4], read_time=5.0),
    ]
    histories = {"train": [first], "validation": [second]}
    prepare(tmp_path, [*clicks, next_week()], histories=histories)
    found = [(item, round(time)) for _, item, _, time in stored(tmp_path / "data", 1)]
    assert found == [(5, -87), (6, -38), (4, 55), (3, 100), (4, 9035)]


def test_validation_is_the_test_split(tmp_path: Path) -> None:
    log = [request(0, [1, 2], [1]), request(5, [1], [1]), next_week(7), next_week(9)]
    prepare(tmp_path, log)
    schema = load_schema(tmp_path / "data")
    train, test = schema.splits["train"], schema.splits["test"]
    assert (train.requests, train.impressions, train.clicks) == (2, 3, 2)
    assert (test.requests, test.first_timestamp) == (2, milliseconds(WEEK + 7))


def test_without_articles_there_is_no_category_and_no_gate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(tmp_path, [request(0, [1], [1]), next_week()])
    schema = load_schema(tmp_path / "data")
    assert schema.history.category_entity is None
    assert schema.gate_feature() is None
    assert "articles.parquet is not there" in caplog.text


def test_articles_give_category_and_attributes_but_no_totals(tmp_path: Path) -> None:
    published = {"published_time": moment(-99), "premium": True, "article_type": "video"}
    articles = [
        {"article_id": 1, "category": 7, "subcategory": [70, 71], "body": "x" * 9, **published},
        {"article_id": 2, "published_time": moment(1), "subcategory": [], "total_pageviews": 5},
    ]
    log = [request(0, [1, 2, 3], [1]), next_week()]
    histories = {"train": [reads(1, (-50, 1, 3.0, 10.0))]}
    row = prepare(tmp_path, log, histories=histories, articles=articles)[0]
    assert row["category_id"] == ["7", None, None]
    assert row["subcategory_id"] == ["70", None, None]
    assert row["article_type"] == ["video", None, None]
    assert row["premium"] == ["true", None, None]
    assert row["body_bucket"] == ["4", None, None]
    # Article 2 came out after the request.
    np.testing.assert_allclose(row["log_published_age"], [math.log(100), math.nan, math.nan])
    schema = load_schema(tmp_path / "data")
    assert schema.gate_feature() == "category_id"
    assert not any("total" in feature.name for feature in schema.features)
    assert (tmp_path / "data" / "history" / "by_category").is_dir()


def test_order_of_rows_and_threads_do_not_matter(tmp_path: Path) -> None:
    behaviors, histories = _random_log(2)
    rows = prepare(tmp_path, behaviors, histories=histories)
    shuffled = write_log(
        tmp_path / "shuffled",
        behaviors[::-1],
        {split: history[::-1] for split, history in histories.items()},
    )
    limits = EngineLimits(memory_gib=1.0, num_threads=4)
    prepare_ebnerd(shuffled, tmp_path / "other", limits=limits)
    for before, after in zip(rows, decoded(tmp_path / "other"), strict=True):
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert stored(tmp_path / "other", 1, 2) == stored(tmp_path / "data", 1, 2)


def test_official_demo_gives_the_published_counts_and_rule_scores(tmp_path: Path) -> None:
    source = os.environ.get("CDP_TORCHREC_EBNERD")
    if not source:
        pytest.skip("CDP_TORCHREC_EBNERD does not name a directory of the official files")
    if pq.read_metadata(Path(source) / "train" / "behaviors.parquet").num_rows != 24724:
        pytest.skip("the expected counts are those of ebnerd_demo")
    schema = prepare_ebnerd(Path(source), tmp_path / "data")
    train, test = schema.splits["train"], schema.splits["test"]
    assert (train.requests, train.impressions, train.clicks) == (24724, 278139, 24829)
    assert (test.requests, test.impressions, test.clicks) == (25356, 304915, 25444)
    rows = pq.read_table(tmp_path / "data" / "test")
    label, clicks, views, age = (
        rows[name].combine_chunks().flatten().to_numpy()
        for name in ("label", "log_clicks_day", "log_views_day", "log_age")
    )
    positions = [r["position"] for r in decoded(tmp_path / "data")[train.requests :]]
    position = np.array([int(p) for listed in positions for p in listed])
    assert roc_auc_score(label, -position) == pytest.approx(0.6257, abs=1e-4)
    click_rate = (np.expm1(clicks) + 0.4) / (np.expm1(views) + 5)
    assert roc_auc_score(label, click_rate) == pytest.approx(0.667, abs=2e-3)
    assert np.isnan(age).mean() < 0.01
