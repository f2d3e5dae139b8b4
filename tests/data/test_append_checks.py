"""A day that cannot be meant is refused in one message, and a damaged one is found."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.history.segments import open_history
from cdp_torchrec.data.manifest import find_damage
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.workplace import changing
from cdp_torchrec.data.schema import DatasetError
from tests.conftest import MakeOnce
from tests.data.appended_log import DAY_MS, DAYS, files, fill, stage_days
from tests.data.staged_log import behaviour, request, stage


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


def one_request(folder: Path, **values: Any) -> Path:
    moment = {"timestamp": 4 * DAY_MS + 5}
    return stage(folder, [request(7_000, **moment, **values)], [behaviour(**moment)])


def rewritten(folder: Path, change: Any) -> Path:
    """A good day whose requests were changed as a table."""
    path = one_request(folder) / "requests" / "part-0.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return folder


BAD = {
    "appended again": (lambda f: stage_days(f, range(3, 4)), "this day was appended before"),
    "an older day": (lambda f: stage_days(f, range(1, 2)), "was appended before, or is older"),
    "an old behaviour": (
        lambda f: stage(
            f, [request(7_000, timestamp=4 * DAY_MS)], [behaviour(timestamp=3 * DAY_MS)]
        ),
        r"behaviours: the first behaviour is of 1970-01-04 .*, not later than",
    ),
    "days that overlap": (
        lambda f: stage(
            f,
            [request(7_000, timestamp=3 * DAY_MS), request(7_001, timestamp=4 * DAY_MS)],
            [behaviour(timestamp=4 * DAY_MS)],
        ),
        "days are appended in the order of time",
    ),
    "a request id of before": (
        lambda f: stage(f, [request(3, timestamp=4 * DAY_MS)], [behaviour(timestamp=4 * DAY_MS)]),
        "request_id r3 is that of another request",
    ),
    "a missing column": (
        lambda f: rewritten(f, lambda table: table.drop_columns(["topic"])),
        "column 'topic' is missing",
    ),
    "another type": (
        lambda f: rewritten(
            f, lambda table: table.set_column(3, "words", pa.array([1.5], pa.float64()))
        ),
        "column 'words' is of type double, expected list",
    ),
    "a column that only the day has": (
        lambda f: rewritten(
            f, lambda table: table.append_column("click_probability", pa.array([[0.1, 0.2]]))
        ),
        "another schema: .*has the column 'click_probability'",
    ),
    "no requests": (lambda f: stage(f, [], [behaviour(timestamp=4 * DAY_MS)]), "has no requests"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_day_is_one_message_and_changes_nothing(
    made: Path, tmp_path: Path, name: str
) -> None:
    make, message = BAD[name]
    before = files(made / "grown")
    with pytest.raises(DatasetError, match=message) as raised:
        append_day(made / "grown", make(tmp_path / "day"))
    assert "\n" not in str(raised.value)
    assert files(made / "grown") == before


def test_a_day_begins_behind_the_last_moment_of_the_dataset(made: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(made / "grown", tmp_path / "data")
    last = load_grown_schema(dataset).days[-1].last_timestamp
    name = f"{DAYS[-1]}T23-59-59"

    def day(number: int, *, shown: int, behaved: int) -> Path:
        requests = [request(number, timestamp=shown)]
        return stage(tmp_path / f"day-{number}", requests, [behaviour(timestamp=behaved)])

    for number, late in enumerate(("shown", "behaved"), start=7_000):
        moments = {"shown": last + 1, "behaved": last + 1} | {late: last}
        with pytest.raises(DatasetError, match="not later than"):
            append_day(dataset, day(number, **moments), name=name)
    append_day(dataset, day(8_000, shown=last + 1, behaved=last + 1), name=name)


def test_two_writers_at_once_are_an_error(made: Path, tmp_path: Path) -> None:
    with (
        changing(made / "grown"),
        pytest.raises(DatasetError, match="another append or compact works on it"),
    ):
        append_day(made / "grown", made / "day-1")


def test_days_that_do_not_follow_each_other_are_an_error(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "days" / DAYS[1])
    with pytest.raises(
        DatasetError, match=f"{DAYS[2]}/day.toml: this day was appended to something"
    ):
        load_grown_schema(tmp_path / "data")


def test_a_damaged_day_is_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    path = Path("days", DAYS[0], "history/by_time/item.npy")
    content = bytearray((tmp_path / "data" / path).read_bytes())
    content[-1] ^= 1
    (tmp_path / "data" / path).write_bytes(content)
    assert list(find_damage(tmp_path / "data", active=False)) == [str(path)]
    with pytest.raises(DatasetError, match=r"item\.npy: other bytes"):
        open_history(tmp_path / "data", load_grown_schema(tmp_path / "data"))


@pytest.mark.parametrize(
    ("option", "value"), [("--threads", "0"), ("--threads", "1000000000"), ("--memory", "0")]
)
def test_limits_of_the_engine_that_it_cannot_keep_are_refused_by_name(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        prepare_data.main(["append", "dataset", "--input", "day", option, value])
    assert f"argument {option}: '{value}' is no " in capsys.readouterr().err
