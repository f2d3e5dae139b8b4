"""KuaiSAR files as dataset directories: each trap of the format."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.logs.kuaisar import prepare_kuaisar, read_kuaisar
from cdp_torchrec.data.schema import DatasetError
from tests.data.read_log import ReadLog, read_log, refused, write_lines

HOUR = 3_600_000
NOON = 1_684_728_000_000  # 2023-05-22 12:00 in Beijing, a Monday
# The order of the columns is that of real files, which is not that of the documentation.
HEADERS = {
    "src_inter.csv": "keyword,item_id,click_cnt,search_session_id,item_type,user_id,"
    "search_session_timestamp,search_source,search_session_time",
    "rec_inter.csv": "user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward",
    "item_features.csv": "item_id,caption,author_id,first_level_category_id,"
    "first_level_category_name,second_level_category_id,third_level_category_id",
    "user_features.csv": "user_id,search_active_level,reco_active_level,onehot_feat1,onehot_feat2",
}


def shown(session: int, hour: float, item: int, clicks: int = 0, **cells: object) -> str:
    row = {
        "keyword": '"[20, 34, 3]"',
        "item": item,
        "clicks": clicks,
        "session": session,
        "type": "VIDEO",
        "user": 1,
        "time": f"{NOON + round(hour * HOUR)}.0",
        "source": "USER_INPUT",
        "readable": "2023-05-22 12:00:00",
    } | cells
    return ",".join(str(cell) for cell in row.values())


def watched(hour: float, item: int, click: int = 1, user: int = 1) -> str:
    return f"{user},{item},5000.0,9000.0,x,{NOON + round(hour * HOUR)}.0,{click},0"


LINES = {
    "src_inter.csv": [
        shown(5, 0, 101, 2),
        shown(5, 0, 102),
        shown(5, 0, 999, type="USER"),
        shown(6, 1, 102, 1, keyword="[]"),
        shown(6, 1, 101),
        shown(5, 2, 103, user=2),
        shown(7, 24, 101, source="SUGGEST"),
        shown(7, 24, 103, 1),
    ],
    "rec_inter.csv": [watched(0.5, 103), watched(0.6, 102, click=0), watched(1, 101)],
    "item_features.csv": [
        '101,"[1, 2]",7,10,\u97f3\u4e50,20,30',
        '102,"[1]",0,10,\u97f3\u4e50,0,30',
        '103,"[]",8,11,x,20,\u7a7a',
    ],
    "user_features.csv": ["1,3,4,0,7", "2,1,1,2,0"],
}


def write_log(folder: Path, lines: Mapping[str, list[str]] | None = None) -> Path:
    for name, header in HEADERS.items():
        write_lines(folder / name, header, *(LINES | dict(lines or {}))[name])
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ReadLog:
    return read_log(read_kuaisar, write_log(tmp_path_factory.mktemp("log")))


def test_a_session_of_a_user_becomes_a_request_whatever_the_order_of_columns(log: ReadLog) -> None:
    assert list(log.by_id()) == ["1/5", "1/6", "2/5", "1/7"], "both users have a session 5"
    assert log.requests[0] == {
        "request_id": "1/5",
        "user_id": "1",
        "timestamp": NOON,
        "search_activity": "3",
        "recommendation_activity": "4",
        "onehot_1": "0",
        "onehot_2": "7",
        "query_id": "20 34 3",
        "query_terms": ["20", "34", "3"],
        "hour": 12,
        "weekday": 0,
        "list_length": 3,
        "search_source": "USER_INPUT",
        "item_id": ["101", "102", "999"],
        "category_id": ["10/20", None, None],  # 0 is no category, and users have none
        "category_1": ["10", "10", None],
        "category_3": ["10/20/30", None, None],
        "item_type": ["VIDEO", "VIDEO", "USER"],
        "author": ["7", None, None],
        "label": [1, 0, 0],  # the number of clicks is no label
    }
    assert log.by_id()["1/6"]["query_id"] is None


def test_history_is_the_clicks_of_searches_and_of_recommendations(log: ReadLog) -> None:
    found = [(b["user_id"], b["item"], b["action"], b["timestamp"] - NOON) for b in log.behaviours]
    assert found == [
        ("1", "101", "search", 0),
        ("1", "103", "recommendation", HOUR // 2),
        ("1", "101", "recommendation", HOUR),
        ("1", "102", "search", HOUR),
        ("1", "103", "search", 24 * HOUR),
    ]


def test_a_level_counts_under_its_own_parent(log: ReadLog) -> None:
    categories = {b["item"]: b["category"] for b in log.behaviours}
    assert (categories["101"], categories["103"]) == ("10/20", "11/20")


def test_days_are_those_of_beijing(log: ReadLog) -> None:
    assert log.spec.test_from == NOON + 12 * HOUR


@pytest.mark.slow
def test_a_session_of_several_moments_is_never_history_of_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [shown(5, 0, 101, 1), shown(5, 0.2, 102), shown(6, 1, 101)]
    log = read_log(read_kuaisar, write_log(tmp_path, {"src_inter.csv": lines}))
    click = next(b for b in log.behaviours if b["action"] == "search")
    assert log.by_id()["1/5"]["timestamp"] < click["timestamp"] < log.by_id()["1/6"]["timestamp"]
    assert "1 sessions have several keywords or times" in caplog.text


@pytest.mark.slow
def test_a_keyword_that_is_no_list_is_no_query_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [shown(5, 0, 101, 1, keyword="music"), shown(6, 1, 101)]
    log = read_log(read_kuaisar, write_log(tmp_path, {"src_inter.csv": lines}))
    assert log.by_id()["1/5"]["query_terms"] == []
    assert "the keyword of 1 lines is no list such as [20, 34, 3]" in caplog.text


@pytest.mark.slow
def test_the_activity_of_users_may_have_its_documented_name(tmp_path: Path, log: ReadLog) -> None:
    path = write_log(tmp_path) / "user_features.csv"
    path.write_text(path.read_text().replace("reco_", "rec_"))
    assert read_log(read_kuaisar, tmp_path) == log


BAD_LINES = {
    "seconds": ("src_inter.csv", shown(9, 0, 1, time=NOON // 1000), "is no time from 2001 to 2096"),
    "clicks": ("src_inter.csv", shown(9, 0, 1, -1), "click_cnt is no number of clicks: -1"),
    "user": ("src_inter.csv", shown(9, 0, 1, user=""), "user_id is empty"),
    "click": ("rec_inter.csv", watched(1, 101, click=2), "click is neither 0 nor 1: 2"),
    "item": ("item_features.csv", LINES["item_features.csv"][0], "item_id 101 occurs in line 2"),
    "quotes": ("src_inter.csv", shown(9, 0, 1, keyword="[20, 34]"), "malformed line: CSV parse"),
    "cut": ("rec_inter.csv", "1,101,50", "malformed line: CSV parse error: Row #5: Expected 8"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, case: str) -> None:
    name, line, message = BAD_LINES[case]
    log = write_log(tmp_path, {name: [*LINES[name], line]})
    refused(read_kuaisar, log, f"{log / name}: ", message)


@pytest.mark.slow
def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    path = write_log(tmp_path) / "rec_inter.csv"
    path.write_text(path.read_text().replace(",", ";"))
    refused(read_kuaisar, tmp_path, "column 'user_id' is missing, found ['user_id;item_id;playing")
    write_lines(path, *LINES["rec_inter.csv"])
    refused(read_kuaisar, tmp_path, "it looks like a line of values")
    path.unlink()
    refused(read_kuaisar, tmp_path, "no rec_inter.csv there (plain, .gz or .xz)")


@pytest.mark.slow
def test_nothing_is_left_of_a_refused_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", {"rec_inter.csv": [watched(1, 101, click=2)]})
    with pytest.raises(DatasetError, match="click is neither 0 nor 1"):
        prepare_kuaisar(log, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
