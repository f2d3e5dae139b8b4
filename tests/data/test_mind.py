"""MIND files as dataset directories: each trap of the format."""

from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.logs.mind import prepare_mind, read_mind
from cdp_torchrec.data.schema import DatasetError
from tests.data.read_log import ReadLog, read_log, refused, write_lines

MINUTE = 60_000
START = 1_573_261_200_000  # 2019-11-09 01:00 UTC, a Saturday
NEWS = [
    'N1\tsports\tsoccer\t"Goal, he said\tNo abstract" here\thttps://x\t[{"Label": "X"}]\t[]',
    "N2\tnews\tworld\tTitle\t\thttps://x\t[]\t",
    "N3\tnews\tus\tTitle\tText\thttps://x\t[]\t[]",
]
TRAIN = [
    "1\tU1\t11/9/2019 1:00:00 AM\tN3 N2 N3\tN1-1 N2-0",
    "2\tU1\t11/9/2019 1:00:00 PM\tN3 N2 N3\tN9-0 N3-1 N1-0",
    "3\tU2\t11/9/2019 12:30:00 PM\t\tN1-0 N2-1",
]
DEV = ["1\tU1\t11/15/2019 12:05:09 AM\tN3 N2 N3\tN2-1 N1-0"]


def write_log(
    folder: Path, train: list[str] = TRAIN, dev: list[str] = DEV, news: list[str] = NEWS
) -> Path:
    for name, rows in (("MINDsmall_train", train), ("MINDsmall_dev", dev)):
        write_lines(folder / name / "behaviors.tsv", *rows)
        write_lines(folder / name / "news.tsv", *news)
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ReadLog:
    return read_log(read_mind, write_log(tmp_path_factory.mktemp("log")))


def test_a_row_becomes_a_request_whatever_quotes_its_news_hold(log: ReadLog) -> None:
    assert log.requests[0] == {
        "request_id": "train/1",
        "user_id": "U1",
        "timestamp": START,
        "hour": 1,
        "weekday": 5,
        "list_length": 2,
        "item_id": ["N1", "N2"],
        "category_id": ["sports", "news"],
        "subcategory": ["soccer", "world"],
        "label": [1, 0],
    }
    assert log.by_id()["train/2"]["category_id"] == [None, "news", "sports"]


def test_times_are_read_in_halves_of_a_day_without_leading_zeros(log: ReadLog) -> None:
    times = {key: row["timestamp"] - START for key, row in log.by_id().items()}
    assert times == {
        "train/1": 0,
        "train/3": (11 * 60 + 30) * MINUTE,  # 12:30 PM is half past noon
        "train/2": 12 * 60 * MINUTE,
        "dev/1": (6 * 24 * 60 - 55) * MINUTE + 9000,  # 12:05 AM is just after midnight
    }
    assert log.spec.test_from == log.by_id()["dev/1"]["timestamp"]


def test_the_history_that_all_rows_of_a_user_repeat_counts_once(log: ReadLog) -> None:
    found = [
        (b["item"], b["category"], b["timestamp"] - START)
        for b in log.behaviours
        if b["user_id"] == "U1"
    ]
    assert found == [
        ("N3", "news", -3000),
        ("N2", "news", -2000),
        ("N3", "news", -1000),
        ("N1", "sports", 0),  # the clicks of the requests, at the times of their lists
        ("N3", "news", 12 * 60 * MINUTE),
        ("N2", "news", log.spec.test_from - START),
    ]


def test_of_a_longer_history_only_what_it_adds_is_new(tmp_path: Path) -> None:
    """It may hold the clicks since the one before, and may have lost its oldest readings."""
    dev = ["1\tU1\t11/15/2019 12:05:09 AM\tN2 N3 N1 N2 N3\tN2-1 N1-0"]
    log = read_log(read_mind, write_log(tmp_path, dev=dev))
    late = log.spec.test_from
    added = [b for b in log.behaviours if late - MINUTE < b["timestamp"] < late]
    # N1 and one N3 are logged clicks; N3 was read twice before, N2 once.
    assert [(b["item"], late - b["timestamp"]) for b in added] == [("N2", 1)]
    assert len(log.behaviours) == 3 + 3 + 1 + 1


def test_a_click_that_a_longer_history_holds_is_taken_from_it_once(tmp_path: Path) -> None:
    """The second history has the logged click, the third one a reading more, which no row has."""
    histories = ["N3", "N3 N3", "N3 N3 N3"]
    days = [f"{n}\tU1\t11/{8 + n}/2019 1:00:00 AM\t{h}" for n, h in enumerate(histories, start=1)]
    train = [f"{days[0]}\tN3-1 N1-0", f"{days[1]}\tN1-0 N2-0"]
    log = read_log(read_mind, write_log(tmp_path, train=train, dev=[f"{days[2]}\tN1-0 N2-0"]))
    found = [(b["item"], b["timestamp"]) for b in log.behaviours]
    assert found == [("N3", START - 1000), ("N3", START), ("N3", log.spec.test_from - 1)]


@pytest.mark.slow
def test_a_history_that_a_user_did_not_have_at_first_lies_after_his_first_request(
    tmp_path: Path,
) -> None:
    dev = ["1\tU2\t11/15/2019 12:05:09 AM\tN3 N1\tN2-1 N1-0"]
    log = read_log(read_mind, write_log(tmp_path, dev=dev))
    late = log.spec.test_from
    found = [(b["item"], b["timestamp"] - late) for b in log.behaviours if b["user_id"] == "U2"]
    assert found[1:] == [("N3", -2), ("N1", -1), ("N2", 0)]


BAD_ROWS = {
    "24 hours": ("9\tU1\t11/9/2019 13:00:00 AM\t\tN1-0", "time is no moment such as 11/9/2019 9"),
    "ISO": ("9\tU1\t2019-11-09 13:00:00\t\tN1-0", "time is no moment such as 11/9/2019 9:05:58"),
    "no labels": ("9\tU1\t11/9/2019 1:00:00 AM\t\tN1 N2", "test files of MIND have no labels): N1"),
    "blanks": ("9\tU1\t11/9/2019 1:00:00 AM\tN1  N2\tN1-0", "history holds an empty id"),
    "twice": ("1\tU1\t11/9/2019 1:00:00 AM\t\tN1-0", "impression_id 1 occurs in line 1 and line 4"),
    "cut": ("9\tU1\t11/9/2019", "malformed line: CSV parse error: Row #4: Expected 5 columns"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(tmp_path: Path, case: str) -> None:
    row, message = BAD_ROWS[case]
    log = write_log(tmp_path, train=[*TRAIN, row])
    refused(read_mind, log, f"{log / 'MINDsmall_train' / 'behaviors.tsv'}: ", message)


@pytest.mark.slow
def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    log = write_log(tmp_path)
    path = log / "MINDsmall_train" / "behaviors.tsv"
    path.write_text("impression_id\tuser_id\ttime\thistory\timpressions\n" + path.read_text())
    refused(read_mind, log, "line 1 is a header, but none is expected")
    path.write_text("\n".join(TRAIN).replace("\t", ","))
    refused(read_mind, log, "line 1 has 1 cells, but 5 columns are named")
    write_lines(log / "MINDsmall_dev" / "news.tsv", *(line.rpartition("\t")[0] for line in NEWS))
    refused(read_mind, log, "news.tsv: line 1 has 7 cells, but 8 columns are named")
    (log / "MINDsmall_dev").rename(log / "MINDsmall_test")
    refused(read_mind, log, "one folder whose name ends in 'dev', such as MINDsmall_dev, found [")


@pytest.mark.slow
def test_dev_must_come_after_train_and_nothing_is_left_of_a_refused_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", dev=[TRAIN[0]])
    with pytest.raises(DatasetError, match="dev must come after train"):
        prepare_mind(log, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
