"""Diginetica files as dataset directories: each trap of the format, and the official samples."""

import os
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pytest

from cdp_torchrec.data.prepare.logs.diginetica import prepare_diginetica, read_diginetica
from cdp_torchrec.data.prepare.logs.diginetica_log import load_events
from cdp_torchrec.data.schema import DatasetError
from tests.data.read_log import ReadLog, read_log, refused, write_lines

DAY = 24 * 3600 * 1000
MIDNIGHT = 1_462_752_000_000  # 2016-05-09 00:00 UTC, a Monday
HEADERS = {
    "train-queries.csv": "queryId;sessionId;userId;timeframe;duration;eventdate;"
    "searchstring.tokens;categoryId;items;is.test",
    "train-clicks.csv": "queryId;timeframe;itemId",
    "train-item-views.csv": "sessionId;userId;itemId;timeframe;eventdate",
    "train-purchases.csv": "sessionId;userId;timeframe;eventdate;ordernumber;itemId",
    "products.csv": "itemId;pricelog2;product.name.tokens",
    "product-categories.csv": "itemId;categoryId",
}
LINES = {
    "train-queries.csv": [
        "1;10;NA;1000;77;2016-05-09;5,6;0;102,101,103;FALSE",
        "2;10;NA;90000;77;2016-05-09;NA;8;101,104;FALSE",
        "3;11;7;0;77;2016-05-20;5,6;0;101,102;FALSE",
    ],
    "train-clicks.csv": ["1;5000;101", "1;5000;101"],
    "train-item-views.csv": ["10;NA;101;6000;2016-05-09", "10;NA;103;2000;2016-05-09"],
    "train-purchases.csv": ["10;NA;80000;2016-05-09;1;101"],
    "products.csv": ["101;10;3,4", "102;0;3"],
    "product-categories.csv": ["101;8", "102;9", "103;8", "104;8"],
}


def write_log(folder: Path, lines: Mapping[str, list[str]] | None = None) -> Path:
    for name, header in HEADERS.items():
        write_lines(folder / name, header, *(LINES | dict(lines or {}))[name])
    return folder


def read(folder: Path, **lines: list[str]) -> ReadLog:
    return read_log(
        read_diginetica,
        write_log(folder, {f"train-{k.replace('_', '-')}.csv": v for k, v in lines.items()}),
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ReadLog:
    return read(tmp_path_factory.mktemp("log"))


def test_a_query_becomes_a_request_in_the_default_order(log: ReadLog) -> None:
    first, second, _ = log.requests
    assert first == {
        "request_id": "1",
        "user_id": "s10",  # NA: the session stands in for the user
        "timestamp": MIDNIGHT,  # the session's first row begins its day
        "query_id": "5,6",
        "query_terms": ["5", "6"],
        "query_category": None,
        "weekday": 0,
        "log_session_age": pytest.approx(0.6931, abs=1e-4),
        "list_length": 3,
        "search_source": "search",
        "item_id": ["102", "101", "103"],
        "category_id": ["9", "8", "8"],
        "log_price": [None, 10.0, None],  # 0 stands for an unknown price
        "position": [1, 2, 3],
        "label": [0, 1, 0],
    }
    assert second["query_id"] is None and second["query_terms"] == []
    assert (second["query_category"], second["search_source"]) == ("8", "category")
    assert second["label"] == [0, 0], "a list without a click is a request, too"


def test_behaviours_are_ordered_by_timeframe_whatever_the_line(log: ReadLog) -> None:
    found = [(b["timestamp"] - MIDNIGHT, b["item"], b["action"]) for b in log.behaviours]
    assert found == [
        (1000, "103", "view"),
        (4000, "101", "click"),  # it is there twice, and counts once
        (5000, "101", "view"),
        (79000, "101", "purchase"),
    ]


@pytest.mark.slow
def test_a_click_is_never_history_of_its_own_list(tmp_path: Path) -> None:
    log = read(tmp_path, clicks=["1;0;101"])
    click = next(b for b in log.behaviours if b["action"] == "click")
    assert click["timestamp"] == log.by_id()["1"]["timestamp"]


def test_test_queries_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [*LINES["train-queries.csv"], "4;12;9;0;1;2016-05-20;5;0;101,102;TRUE"]
    log = read(tmp_path, queries=lines, clicks=["1;5000;101", "4;5;102"])
    assert set(log.by_id()) == {"1", "2", "3"}
    assert all(b["user_id"] == "s10" for b in log.behaviours)
    assert "1 test queries left out" in log.spec.source


def test_a_session_of_weeks_keeps_its_days(tmp_path: Path) -> None:
    """Midnight plus timeframe would put the second query on the 29th."""
    late = 19 * DAY + 5 * 3600 * 1000
    lines = [
        f"1;10;NA;{20 * 3600 * 1000};1;2016-05-09;5;0;101;FALSE",
        f"2;10;NA;{late};1;2016-05-28;5;0;101,102;FALSE",
    ]
    views = [f"10;NA;103;{late - 1};2016-05-28"]
    log = read(
        tmp_path,
        queries=lines,
        item_views=views,
        clicks=["1;5;101"],
        purchases=["10;NA;80000000;2016-05-09;1;101"],
    )
    days = [row["timestamp"] // DAY - MIDNIGHT // DAY for row in log.requests]
    assert days == [0, 19]
    gap = log.requests[1]["timestamp"] - log.requests[0]["timestamp"]
    assert gap == late - 20 * 3600 * 1000


def test_sessions_of_a_user_on_one_day_stand_alone(tmp_path: Path) -> None:
    lines = [
        "1;10;7;500;1;2016-05-09;5;0;101;FALSE",
        "2;11;7;0;1;2016-05-09;5;0;101;FALSE",
        "3;12;7;0;1;2016-05-10;5;0;101;FALSE",
        "4;13;8;0;1;2016-05-10;5;0;101;FALSE",
        f"5;13;8;{2 * DAY};1;2016-05-12;5;0;101;FALSE",
        "6;14;8;0;1;2016-05-11;5;0;101;FALSE",  # within the span of session 13
        "7;15;8;0;1;2016-05-20;5;0;101;FALSE",
    ]
    log = read(
        tmp_path,
        queries=lines,
        clicks=["1;600;101"],
        item_views=LINES_OF_13,
        purchases=["12;7;5;2016-05-10;1;101"],
    )
    users = {key: row["user_id"] for key, row in log.by_id().items()}
    assert users == {"1": "s10", "2": "s11", "3": "7", "4": "s13", "5": "s13", "6": "s14", "7": "8"}
    assert "4 sessions stand alone" in log.spec.source


LINES_OF_13 = ["13;8;101;1;2016-05-10"]


@pytest.mark.slow
def test_a_session_is_of_a_user_only_if_its_first_row_says_so(tmp_path: Path) -> None:
    log = read(tmp_path, purchases=["10;7;80000;2016-05-09;1;101"])
    assert log.by_id()["1"]["user_id"] == "s10", "the login came with the purchase"


@pytest.mark.slow
def test_views_may_come_without_a_header(tmp_path: Path, log: ReadLog) -> None:
    write_log(tmp_path)
    write_lines(tmp_path / "train-item-views.csv", *LINES["train-item-views.csv"])
    assert read_log(read_diginetica, tmp_path) == log


def test_the_last_week_is_the_test_split(log: ReadLog) -> None:
    assert log.spec.test_from == MIDNIGHT + 5 * DAY


BAD_LINES = {
    "date": ("train-queries.csv", "8;1;NA;5;1;09.05.2016;5;0;1;FALSE", "eventdate is no day such"),
    "time": ("train-clicks.csv", "1;5.5;101", "timeframe is no whole number of milliseconds: 5.5"),
    "test": ("train-queries.csv", "8;1;NA;5;1;2016-05-09;5;0;1;x", "is.test is no TRUE or FALSE"),
    "item": ("train-queries.csv", "8;1;NA;5;1;2016-05-09;5;0;1,,2;FALSE", "items holds an empty"),
    "price": ("products.csv", "109;dear;3", "pricelog2 is no number from 0 to 64: dear"),
    "query": ("train-queries.csv", "1;1;NA;5;1;2016-05-09;5;0;1;FALSE", "queryId 1 occurs in line"),
    "product": ("product-categories.csv", "101;9", "itemId 101 occurs in line 2 and line"),
    "cut": ("train-clicks.csv", "1;5", "malformed line: CSV parse error: Row #4: Expected 3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, case: str) -> None:
    name, line, message = BAD_LINES[case]
    log = write_log(tmp_path, {name: [*LINES[name], line]})
    refused(read_diginetica, log, f"{log / name}: ", message)


@pytest.mark.slow
def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    path = write_log(tmp_path) / "train-clicks.csv"
    path.write_text(path.read_text().replace(";", ","))
    refused(read_diginetica, tmp_path, "column 'queryId' is missing, found ['queryId,timeframe,")
    path.write_text("\n".join(LINES["train-clicks.csv"]))
    refused(read_diginetica, tmp_path, "it looks like a line of values")
    path.unlink()
    refused(read_diginetica, tmp_path, "no train-clicks.csv there (plain, .gz or .xz)")


@pytest.mark.slow
def test_nothing_is_left_of_a_refused_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", {"products.csv": ["101;x;3"]})
    with pytest.raises(DatasetError, match="pricelog2 is no number"):
        prepare_diginetica(log, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_official_samples_have_the_declared_form(tmp_path: Path) -> None:
    source = os.environ.get("CDP_TORCHREC_DIGINETICA")
    if not source:
        pytest.skip("CDP_TORCHREC_DIGINETICA does not name a directory of the official samples")
    # There is no sample of the queries, so there is no request.
    write_log(tmp_path)
    for name in ("train-purchases.csv", "product-categories.csv"):
        (tmp_path / name).write_bytes((Path(source) / name).read_bytes())
    views = (Path(source) / "train-item-views-sample.csv").read_bytes()
    (tmp_path / "train-item-views.csv").write_bytes(views)
    with duckdb.connect() as connection:
        connection.execute("""
            CREATE TABLE moments (
                session VARCHAR, raw_user VARCHAR, timeframe BIGINT, day BIGINT);
            CREATE TABLE queries (query VARCHAR, session VARCHAR, timeframe BIGINT, items VARCHAR[])
        """)
        load_events(connection, tmp_path)
        counts = "SELECT action, count(*) FROM events GROUP BY ALL ORDER BY ALL"
        assert connection.execute(counts).fetchall() == [("purchase", 1995), ("view", 500)]
        unknown = "SELECT count(*) FILTER (raw_user IS NULL), count(*) FROM moments"
        assert connection.execute(unknown).fetchone() == (1460, 2499)
