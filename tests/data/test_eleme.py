"""Ele.me files as dataset directories: what their times mean is told by the files, or refused."""

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.logs.eleme import prepare_eleme, read_eleme
from cdp_torchrec.data.prepare.logs.eleme_log import COLUMNS
from cdp_torchrec.data.schema import DatasetError
from tests.data.read_log import read_log, refused, write_lines

HOUR = 3600
DAY = 24 * HOUR
NOON = 1_646_107_200  # 2022-03-01 12:00, a Tuesday, in Beijing
REQUESTS = [NOON + 7, NOON + 2 * HOUR, NOON + DAY]
USERS = ("7", "8")


@dataclass(frozen=True)
class Written:
    """How a made-up log writes what the documentation does not say."""

    unit: int = 1
    newest_first: bool = True
    untimed_first: bool = False
    """timediff_list has no element for the first of a list."""
    monday: int = 0
    zone: int = 8 * HOUR
    times: Callable[[int], object] = str
    length: int = 50
    """Of the lists, which are filled up to 50 with steps of nothing."""

    def hour(self, moment: int) -> int:
        return (moment + self.zone) // HOUR % 24

    def weekday(self, moment: int) -> int:
        return ((moment + self.zone) // DAY + 3) % 7 + self.monday

    def state(self, user: str, moment: int) -> dict[str, object]:
        """The columns of a request: those of the lists, and its own."""
        steps = [step for step in clicks(user) if step[0] < moment][-self.length :]
        steps = steps[::-1] if self.newest_first else steps
        gaps = [(moment - time) // self.unit for time, _ in steps]
        lists = {
            "item_id_list": [item for _, item in steps],
            "category_1_id_list": [-1 if item == 9 else item % 3 for _, item in steps],
            "timediff_list": gaps[1:] if self.untimed_first else gaps,
            "hours_list": [self.hour(time) for time, _ in steps],
            "weekdays_list": [self.weekday(time) for time, _ in steps],
        }
        own = {
            "user_id": user,
            "times": self.times(moment),
            "hours": self.hour(moment),
            "weekdays": self.weekday(moment),
        }
        for name, values in lists.items():
            values += [-1 if name == "item_id_list" else 0] * (50 - self.length)
        return own | {name: ";".join(map(str, values)) for name, values in lists.items()}


def clicks(user: str) -> list[tuple[int, int]]:
    """Moments and items of all that a user clicked, in order; the last one between requests."""
    draw = random.Random(user)
    hours = sorted(draw.sample(range(-20 * 24, -1), 60))
    moments = [NOON + hour * HOUR + draw.randrange(HOUR) for hour in hours]
    return [(time, draw.randrange(10)) for time in moments] + [(NOON + HOUR + 30, 4)]


def row(state: dict[str, object], item: object, label: int = 0, **cells: object) -> str:
    usual = {
        "label": label,
        "gender": -99,
        "visit_city": 3,
        "avg_price": 20.5,
        "is_supervip": 1,
        "ctr_30": 4,
        "ord_30": 0,
        "total_amt_30": -1,
        "shop_id": f"s{item}",
        "item_id": item,
        "city_id": 5,
        "brand_id": -1,
        "category_1_id": 2,
        "rank_7": 9,
        "rank_30": -1,
        "rank_90": -1,
        "time_type": "lunch",
    }
    values = dict.fromkeys(COLUMNS, "0") | usual | state | cells
    return ",".join(str(values[name]) for name in COLUMNS)


def log_rows(written: Written) -> list[str]:
    states = [written.state(user, moment) for moment in REQUESTS for user in USERS]
    return [row(state, item, int(item == 2)) for state in states for item in (1, 2, 9)]


def write_log(folder: Path, written: Written | None = None) -> Path:
    rows = log_rows(written or Written())
    write_lines(folder / "D1_0.csv", *rows[:7])  # a request may go on in another file
    write_lines(folder / "D1_1.csv", *rows[7:])
    return folder


def test_rows_of_a_user_and_moment_become_a_request(tmp_path: Path) -> None:
    log = read_log(read_eleme, write_log(tmp_path))
    assert len(log.requests) == 6
    assert log.requests[2] == {
        "request_id": f"7/{REQUESTS[1]}",
        "user_id": "7",
        "timestamp": 1000 * REQUESTS[1],
        "gender": None,
        "visit_city": "3",
        "supervip": "1",
        "log_avg_price": pytest.approx(math.log(21.5)),
        "log_clicks": pytest.approx(math.log(5)),
        "log_orders": 0,
        "log_amount": None,
        "hour": 14,
        "weekday": 1,
        "list_length": 3,
        "time_type": "lunch",
        "item_id": ["1", "2", "9"],
        "category_id": ["2"] * 3,
        "shop": ["s1", "s2", "s9"],
        "brand": [None] * 3,
        "food": ["0"] * 3,
        "district": ["0"] * 3,
        "area": ["0"] * 3,
        "geohash": ["0"] * 3,
        "log_rank_7": [pytest.approx(math.log(10))] * 3,
        "log_rank_30": [None] * 3,
        "log_rank_90": [None] * 3,
        "city": ["5"] * 3,
        "label": [0, 1, 0],
    }
    assert log.spec.test_from == 1000 * (NOON + 12 * HOUR), "midnight in Beijing"


LISTED = [(int(user), time, item) for user in USERS for time, item in clicks(user)[10:]]
"""All but those that are older than the last 50 before the first request."""


def test_a_behaviour_of_many_lists_is_added_once(tmp_path: Path) -> None:
    log = read_log(read_eleme, write_log(tmp_path))
    added = [(int(b["user_id"]), b["timestamp"] + 1, int(b["item"])) for b in log.behaviours]
    assert added == [(user, 1000 * time, item) for user, time, item in LISTED]
    assert {b["category"] for b in log.behaviours if b["item"] == "9"} == {None}
    assert {b["category"] for b in log.behaviours if b["item"] == "4"} == {"1"}


FORMS = {
    "minutes": Written(unit=60),
    "hours": Written(unit=HOUR),
    "days": Written(unit=DAY),
    "oldest first": Written(newest_first=False),
    "minutes, oldest first": Written(unit=60, newest_first=False),
    "Monday is 1": Written(monday=1),
    "a clock of UTC": Written(zone=0),
    "milliseconds": Written(times=lambda moment: 1000 * moment + moment // 7 % 1000),
    "text": Written(times=lambda moment: datetime.fromtimestamp(moment, UTC).replace(tzinfo=None)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FORMS)
def test_the_files_tell_what_their_times_mean(tmp_path: Path, case: str) -> None:
    written = FORMS[case]
    log = read_log(read_eleme, write_log(tmp_path, written))
    unit = {1: "seconds", 60: "minutes", HOUR: "hours", DAY: "days"}[written.unit]
    told = log.spec.source
    assert f"timediff_list in {unit} (hours and weekdays of " in told
    assert f"{unit} 100.0 %" in told
    assert f"; {'newest' if written.newest_first else 'oldest'} first (100.0 % of " in told
    assert f"clock UTC{written.zone // HOUR:+d} (in 100.0 % of 6 requests)" in told
    added = [(b["timestamp"] + 1, int(b["item"])) for b in log.behaviours]
    assert [item for _, item in added] == [item for _, _, item in LISTED]
    for (time, _), (_, true, _) in zip(added, LISTED, strict=True):
        # Coarse gaps leave a time later than it was, in its hour, and before the request.
        assert 0 <= time - 1000 * true < 1000 * min(written.unit, HOUR)


@pytest.mark.parametrize("newest_first", [True, False])
def test_behaviours_of_one_moment_keep_their_order(tmp_path: Path, newest_first: bool) -> None:
    written = Written(newest_first=newest_first)
    rows = log_rows(written)
    last = written.state("6", NOON + DAY)
    steps = {"item_id_list": "31;30;32", "category_1_id_list": "1;1;1", "timediff_list": "5;5;9"}
    steps |= {"hours_list": "11;11;11", "weekdays_list": "2;2;2"}
    if not newest_first:
        steps = {name: text[::-1] for name, text in steps.items()}
        steps |= {"item_id_list": "32;30;31", "hours_list": "11;11;11"}
    write_lines(tmp_path / "D1_0.csv", *rows, row(last | steps, 1))
    log = read_log(read_eleme, tmp_path)
    assert [b["item"] for b in log.behaviours if b["user_id"] == "6"] == ["32", "30", "31"]


@pytest.mark.slow
def test_a_list_may_lack_the_gap_of_its_first_behaviour(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = read_log(read_eleme, write_log(tmp_path, Written(untimed_first=True)))
    assert "timediff_list in seconds, the first without one (" in log.spec.source
    assert "6 steps of the lists left out: they have no item or no time" in caplog.text
    # The newest of an early list is known from a later one.
    times = {(int(b["user_id"]), b["timestamp"] + 1) for b in log.behaviours}
    newest = {(user, 1000 * time) for user, time, _ in LISTED if time > NOON}
    assert times == {(user, 1000 * time) for user, time, _ in LISTED} - newest


def test_a_unit_that_the_files_do_not_tell_is_refused_or_said(tmp_path: Path) -> None:
    write_log(tmp_path, Written(unit=7))
    refused(
        read_eleme,
        tmp_path,
        ": the unit of timediff_list is unknown: hours and weekdays of 300 behaviours fit seconds ",
        "exactly one must fit 95% of 100 or more. If you know it, say it: --timediff-unit seconds,",
    )
    log = read_log(read_eleme, tmp_path, timediff_unit="minutes")
    assert "timediff_list in minutes (hours and weekdays of 300" in log.spec.source


def test_a_unit_is_not_said_against_what_the_files_tell(tmp_path: Path) -> None:
    write_log(tmp_path, Written(unit=60))
    with pytest.raises(
        DatasetError, match="--timediff-unit days is not what the files tell: hours"
    ):
        read_log(read_eleme, tmp_path, timediff_unit="days")
    log = read_log(read_eleme, tmp_path, timediff_unit="minutes")
    assert "timediff_list in minutes (hours and weekdays of 300" in log.spec.source


@pytest.mark.slow
def test_a_few_behaviours_tell_no_unit(tmp_path: Path) -> None:
    rows = log_rows(Written())
    write_lines(tmp_path / "D1_0.csv", *rows[:3], *rows[-1:])
    first, *_ = rows
    assert first.count(";") > 200
    write_lines(tmp_path / "D1_0.csv", first)
    refused(read_eleme, tmp_path, "of 50 behaviours fit seconds 100.0 %, minutes ")
    with pytest.raises(DatasetError, match="weeks is none of seconds, minutes, hours, days"):
        read_log(read_eleme, tmp_path, timediff_unit="weeks")


@pytest.mark.slow
def test_gaps_in_no_order_are_refused(tmp_path: Path) -> None:
    """As they would be if they led from one behaviour to the next."""
    written = Written()
    states = [written.state(user, moment) for moment in REQUESTS for user in USERS]
    for state in states:
        for name in [name for name in state if name.endswith("_list")]:
            parts = str(state[name]).split(";")
            state[name] = ";".join(parts[1::2] + parts[::2][::-1])
    write_lines(tmp_path / "D1_0.csv", *[row(state, 1) for state in states])
    refused(read_eleme, tmp_path, "timediff_list is in no order: of 294 steps to the next behaviou")


@pytest.mark.slow
def test_requests_whose_clock_is_not_that_of_their_times_are_refused(tmp_path: Path) -> None:
    rows = [row(Written().state("7", NOON), 1, hours=hour) for hour in range(10, 12)]
    rows += [row(Written().state("8", NOON), 1, hours=hour) for hour in range(2)]
    write_lines(tmp_path / "D1_0.csv", *rows)
    refused(read_eleme, tmp_path, "hours and weekdays of requests do not fit their times: the best")


STATE = Written().state("7", NOON)
BAD_ROWS = {
    "label": (row(STATE, 1, 2), "label is neither 0 nor 1: 2"),
    "user": (row(STATE, 1, user_id=-1), "there is no user_id"),
    "time": (row(STATE, 1, times="x"), "'times' is no number of seconds: x"),
    "other time": (row(STATE, 1, times=1000 * NOON), "times is no time from 1990 to 2099: 1646"),
    "hour": (row(STATE, 1, hours=24), "hours is no hour from 0 to 23: 24"),
    "weekday": (row(STATE, 1, weekdays="Mon"), "weekdays is no day from 0 to 7: Mon"),
    "number": (row(STATE, 1, rank_7="x"), "rank_7 is no number: x"),
    "unequal": (
        row(STATE, 1, hours_list="1;2"),
        "item_id_list and hours_list are lists of unequal length: 50 and 2",
    ),
    "too few gaps": (
        row(STATE, 1, timediff_list="1;2"),
        "timediff_list must be as long as item_id_list, or one shorter: 2 for 50",
    ),
    "gap": (
        row(STATE, 1, timediff_list="x;" + ";".join(["1"] * 49)),
        "timediff_list holds something else than numbers joined by ';': x",
    ),
    "separator": (
        row(STATE, 1, weekdays_list="1|2"),
        "item_id_list and weekdays_list are lists of",
    ),
    "cut": ("1,2", "malformed line: CSV parse error: Row #2: Expected 39 columns, got 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_with_their_line(tmp_path: Path, case: str) -> None:
    bad, message = BAD_ROWS[case]
    path = tmp_path / "D1_0.csv"
    write_lines(path, row(STATE, 1), bad)
    place = "" if case == "cut" else "line 2: "
    refused(read_eleme, tmp_path, f"{path}: {place}", message)


@pytest.mark.slow
def test_times_of_no_known_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "D1_0.csv"
    write_lines(path, row(STATE, 1, times=20220301))
    refused(read_eleme, tmp_path, f"{path}: times is no time from 1990 to 2099 in seconds, in")


@pytest.mark.slow
@pytest.mark.parametrize("label", ["label", "clicked", "ctr"])
def test_a_file_may_have_a_header(tmp_path: Path, label: str) -> None:
    plain = read_log(read_eleme, write_log(tmp_path))
    path = tmp_path / "D1_1.csv"
    path.write_text(",".join([label, *COLUMNS[1:]]) + "\n" + path.read_text())
    assert read_log(read_eleme, tmp_path) == plain


@pytest.mark.slow
def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    path = write_log(tmp_path) / "D1_1.csv"
    text = path.read_text()
    path.write_text(text.replace(",", "\t"))
    refused(read_eleme, tmp_path, f"{path}: line 1 has 1 cells, but 39 columns are named")
    refused(read_eleme, tmp_path, "; with the delimiter '\\t' it would have 39 cells")
    path.write_text(",".join(["is_click", *COLUMNS[1:]]) + "\n" + text)
    refused(read_eleme, tmp_path, "line 1 is a header, but none is expected")
    path.write_text(",".join(COLUMNS).replace("times", "time") + "\n" + text)
    refused(read_eleme, tmp_path, "column 'times' is missing")
    path.write_text(text)
    (tmp_path / "D1_1.csv.gz").write_bytes(b"")
    refused(read_eleme, tmp_path, "D1_1.csv and D1_1.csv.gz are the same file")
    refused(read_eleme, tmp_path / "none", "no such directory")
    (tmp_path / "empty").mkdir()
    refused(read_eleme, tmp_path / "empty", "no D1_0.csv or the like there (plain, .gz or .xz)")


@pytest.mark.slow
def test_rows_without_an_item_and_users_without_a_history(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = dict.fromkeys([name for name in STATE if name.endswith("_list")], "")
    rows = [*log_rows(Written()), row(STATE | new, 3, user_id=9), row(STATE, -1)]
    write_lines(tmp_path / "D1_0.csv", *rows)
    log = read_log(read_eleme, tmp_path)
    assert {b["user_id"] for b in log.behaviours} == set(USERS)
    assert log.by_id()[f"9/{NOON}"]["item_id"] == ["3"]
    assert "1 rows left out: they have no item" in caplog.text


@pytest.mark.slow
def test_steps_that_fill_up_a_list_are_no_behaviours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = read_log(read_eleme, write_log(tmp_path, Written(length=17)))
    assert "of 102 behaviours fit seconds 100.0 %" in log.spec.source
    assert "; newest first (100.0 % of 96)" in log.spec.source
    assert "198 steps of the lists left out: they have no item or no time" in caplog.text


@pytest.mark.slow
def test_nothing_is_left_of_a_refused_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", replace(Written(), unit=7))
    with pytest.raises(DatasetError, match="unit of timediff_list is unknown"):
        prepare_eleme(log, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_official_files_tell_what_their_times_mean() -> None:
    source = os.environ.get("CDP_TORCHREC_ELEME")
    if not source:
        pytest.skip("CDP_TORCHREC_ELEME does not name a directory of some of the official lines")
    log = read_log(read_eleme, Path(source))
    assert "timediff_list in " in log.spec.source
    assert log.behaviours
