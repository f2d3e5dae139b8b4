"""Avito files as dataset directories: each trap of the format."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.logs.avito import prepare_avito, read_avito
from cdp_torchrec.data.schema import DatasetError
from tests.data.read_log import ReadLog, read_log, refused, write_lines

START = 1_430_470_800_000  # 2015-05-01 09:00 UTC, a Friday
HEADERS = {
    "trainSearchStream.tsv": "SearchID AdID Position ObjectType HistCTR IsClick",
    "SearchInfo.tsv": "SearchID SearchDate IPID UserID IsUserLoggedOn SearchQuery LocationID "
    "CategoryID SearchParams",
    "AdsInfo.tsv": "AdID LocationID CategoryID Params Price Title IsContext",
    # Names count, not places.
    "UserInfo.tsv": "UserID UserAgentID UserAgentOSID UserDeviceID UserAgentFamilyID",
    "Category.tsv": "CategoryID Level ParentCategoryID SubcategoryID",
    "VisitsStream.tsv": "UserID IPID AdID ViewDate",
    "PhoneRequestsStream.tsv": "UserID IPID AdID PhoneRequestDate",
}
PARAMS = "{83:'\u041e\u0431\u0443\u0432\u044c, 12:30', 175:\"it's\", 5:['a', 'b'], 7:3}"
LINES = {
    "trainSearchStream.tsv": [
        "1|11|1|3|0.004|0",
        "1|12|2|1||",  # of other ads it is not said whether they were clicked
        "1|13|7|3|0.01|1",
        "2|11|1|3|0.005|0",
        "2|14|7|3|0|0",
        "3|13|1|3|0.02|0",
    ],
    "SearchInfo.tsv": [
        f"1|2015-05-01 09:00:00.0|7|21|0|  Red  Shoe|4|500|{PARAMS}",
        "2|2015-05-01 10:00:00.0|7|21|1||4|9|",
        "3|2015-05-02 09:00:00.0|7|22|0|red shoe|5|9|{}",
        "4|2015-05-20 09:00:00.0|7|22|0|a search of the test file|5|9|",
    ],
    "AdsInfo.tsv": [
        "11|3|34|{}|1000|'Quoted \"title|1",
        "12|3|34|{}|5|x|0",
        '13|3|35|{}|0|"open quote|1',
        "15|3|35|{}||y|0",
    ],
    "UserInfo.tsv": ["21|1|2|3|4"],
    "Category.tsv": ["34|2|500|1", "35|2|500|2", "500|1|0|0"],
    "VisitsStream.tsv": ["21|7|12|2015-04-30 09:00:00.0", "99|7|12|2015-04-30 09:00:00.0"],
    "PhoneRequestsStream.tsv": ["21|7|15|2015-05-01 09:30:00.0"],
}


def write_log(folder: Path, lines: Mapping[str, list[str]] | None = None) -> Path:
    for name, header in HEADERS.items():
        rows = (LINES | dict(lines or {}))[name]
        write_lines(
            folder / name, header.replace(" ", "\t"), *(row.replace("|", "\t") for row in rows)
        )
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ReadLog:
    return read_log(read_avito, write_log(tmp_path_factory.mktemp("log")))


def test_a_search_becomes_a_request_with_its_contextual_ads_only(log: ReadLog) -> None:
    assert [row["request_id"] for row in log.requests] == [1, 2, 3]
    assert log.requests[0] == {
        "request_id": 1,
        "user_id": 21,
        "timestamp": START,
        "query_id": "red  shoe",
        "query_terms": ["red", "shoe"],
        "query_category": "500",
        # The text of a Python dictionary, cut neither at commas nor at colons of its strings.
        "query_params": [
            "83:'\u041e\u0431\u0443\u0432\u044c, 12:30'",
            '175:"it\'s"',
            "5:['a', 'b']",
            "7:3",
        ],
        "hour": 9,
        "weekday": 4,
        "location": "4",
        "list_length": 2,
        "device": "3",
        "agent": "4",
        "os": "2",
        "logged_on": "0",
        "item_id": [11, 13],
        "category_id": ["34", "35"],
        "category_parent": ["500", "500"],
        "item_location": ["3", "3"],
        "log_price": [pytest.approx(math.log(1001)), None],
        "hist_ctr": [0.004, 0.01],
        "position": [1, 7],
        "label": [0, 1],
    }
    second = log.requests[1]
    assert (second["query_id"], second["query_terms"], second["query_params"]) == (None, [], [])
    assert second["category_id"] == ["34", None], "ad 14 is not described"
    assert log.requests[2]["device"] is None, "user 22 is not described"


def test_history_is_views_phone_requests_and_clicks(log: ReadLog) -> None:
    hour = 3_600_000
    found = [
        (b["item"], b["category"], b["action"], b["timestamp"] - START) for b in log.behaviours
    ]
    assert found == [
        (12, "34", "view", -24 * hour),
        (13, "35", "click", 0),
        (15, "35", "phone", hour // 2),
    ]


def test_the_last_day_with_searches_is_the_test_split(log: ReadLog) -> None:
    assert log.spec.test_from == START + 15 * 3_600_000


BAD_LINES = {
    "click": ("trainSearchStream.tsv", "9|11|1|3|0.1|", "IsClick of a contextual ad is neither"),
    "rate": ("trainSearchStream.tsv", "9|11|1|3||0", "HistCTR of a contextual ad is no rate from"),
    "type": ("trainSearchStream.tsv", "9|11|1|4|0.1|0", "ObjectType is none of 1, 2, 3"),
    "date": ("SearchInfo.tsv", "9|1.5.2015|7|21|0||4|9|", "SearchDate is no moment such as 2015-"),
    "user": ("SearchInfo.tsv", "9|2015-05-01 09:00:00.0|7||0||4|9|", "UserID is no number from 0"),
    "twice": ("AdsInfo.tsv", "11|3|34|{}|1000|x|1", "AdID 11 occurs in line 2 and line 6"),
    "price": ("AdsInfo.tsv", "19|3|34|{}|much|x|1", "Price is no number: much"),
    "cut": ("VisitsStream.tsv", "21|7|1", "malformed line: CSV parse error: Row #4: Expected 4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, case: str) -> None:
    name, line, message = BAD_LINES[case]
    log = write_log(tmp_path, {name: [*LINES[name], line]})
    refused(read_avito, log, f"{log / name}: ", message)


@pytest.mark.slow
def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    path = write_log(tmp_path) / "VisitsStream.tsv"
    path.write_text(path.read_text().replace("\t", ","))
    refused(read_avito, tmp_path, "column 'UserID' is missing, found ['UserID,IPID,AdID,ViewDate']")
    write_lines(path, "21\t7\t12\t2015-04-30 09:00:00.0")
    refused(read_avito, tmp_path, "it looks like a line of values")
    path.unlink()
    refused(read_avito, tmp_path, "no VisitsStream.tsv there (plain, .gz or .xz)")


@pytest.mark.slow
def test_the_test_file_has_no_labels_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    path = log / "trainSearchStream.tsv"
    path.write_text("ID\tSearchID\tAdID\tPosition\tObjectType\tHistCTR\n1\t1\t11\t1\t3\t0.1\n")
    with pytest.raises(DatasetError, match="column 'IsClick' is missing, found"):
        prepare_avito(log, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
