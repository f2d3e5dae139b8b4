"""Clocks of zones that change with the season."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.prepare.local_time import LocalTime
from cdp_torchrec.data.schema import DatasetError
from tests.data.mapped_logs import IMPRESSIONS, mapping_of, prepare, two_days, write_csv

BERLIN = LocalTime(zone="Europe/Berlin")
HOUR_MS = 3_600_000
WRITTEN = IMPRESSIONS.replace(
    'time = {column = "time", unit = "s"}',
    'time = {column = "time", unit = "text", format = "%Y-%m-%d %H:%M", zone = "Europe/Berlin"}',
)
HOUR = """
[features.hour]
role = "context"
level = "request"
kind = "id"
derive = "hour"
"""


def milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def values(sql: str, of: list[int]) -> list[int]:
    """What an expression of x is for each of some numbers."""
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET TimeZone = 'UTC'")
    rows = connection.execute(f"SELECT {sql} FROM (SELECT unnest(?::BIGINT[]) AS x)", [of])
    return [row[0] for row in rows.fetchall()]


@pytest.mark.parametrize(
    ("wall", "utc", "repeated", "left_out"),
    [
        ("2025-01-15 12:00:00.789", "2025-01-15 11:00:00.789", False, False),
        ("2025-07-15 12:00", "2025-07-15 10:00", False, False),
        ("2025-03-30 01:59:59", "2025-03-30 00:59:59", False, False),
        ("2025-03-30 02:30", "2025-03-30 01:30", False, True),
        ("2025-03-30 03:00", "2025-03-30 01:00", False, False),
        ("2025-10-26 01:59:59", "2025-10-25 23:59:59", False, False),
        ("2025-10-26 02:00", "2025-10-26 01:00", True, False),
        ("2025-10-26 02:59:59", "2025-10-26 01:59:59", True, False),
        ("2025-10-26 03:00", "2025-10-26 02:00", False, False),
    ],
)
def test_clocks_of_berlin_when_they_change(
    wall: str, utc: str, repeated: bool, left_out: bool
) -> None:
    shown, then = [milliseconds(wall)], [milliseconds(utc)]
    assert values(BERLIN.to_utc("x"), shown) == then
    assert values(BERLIN.is_repeated("x"), then) == [repeated]
    assert values(BERLIN.is_left_out("x"), shown) == [left_out]
    assert (values(BERLIN.from_utc("x"), then) == shown) is not left_out


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_a_zone_is_what_its_law_says(zone: str) -> None:
    if zone not in available_timezones():
        pytest.skip("this machine has no data of time zones")
    clock, law = LocalTime(zone=zone), ZoneInfo(zone)
    moments = np.random.default_rng(1).integers(0, 20 * 365 * 24 * HOUR_MS, 5000)
    moments = (milliseconds("2007-01-01") + moments).tolist()
    shown = []
    for moment in moments:
        then = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=moment)
        shown.append(then.astimezone(law).replace(tzinfo=None))
    walls = [milliseconds(wall.isoformat()) for wall in shown]
    assert values(clock.from_utc("x"), moments) == walls
    later = [round(wall.replace(tzinfo=law, fold=1).timestamp() * 1000) for wall in shown]
    assert values(clock.to_utc("x"), walls) == later


def test_nothing_and_impossible_moments_stay_what_they_are() -> None:
    for number in ("NULL::BIGINT", "9000000000000000", "-1", f"{10**30}::HUGEINT"):
        (plain,) = values(number, [0])
        for sql in (BERLIN.to_utc(number), BERLIN.from_utc(number)):
            assert values(sql, [0]) == [plain]


def test_a_log_by_local_time_is_the_log_by_utc(tmp_path: Path, caplog) -> None:
    """One request in winter, one in summer: no fixed offset gives both."""
    times = {"p1": "2025-01-15 12:00", "p2": "2025-05-31 23:30", "p30": "2025-06-02 01:00"}
    utc = {"p1": "2025-01-15 11:00", "p2": "2025-05-31 21:30", "p30": "2025-06-01 23:00"}
    found = {}
    for name, text, of_name in (
        ("local", WRITTEN, times),
        ("utc", WRITTEN.replace('zone = "Europe/Berlin"', 'utc_offset = "+00:00"'), utc),
    ):
        rows = [row | {"time": of_name[row["page"]]} for row in two_days()]
        write_csv(tmp_path / name / "log.csv", rows)
        found[name] = prepare(tmp_path / name, text + HOUR, "split.test_from='2025-06-01'")
    for local, plain in zip(found["local"], found["utc"], strict=True):
        assert local["hour"] == str((int(plain["hour"]) + (2 if plain["hour"] != "11" else 1)) % 24)
        assert {**local, "hour": ""} == {**plain, "hour": ""}
    assert "an hour that clocks" not in caplog.text


def test_rows_of_hours_in_which_clocks_change_are_counted(tmp_path: Path, caplog) -> None:
    times = {"p1": "2025-03-30 02:30", "p2": "2025-10-26 02:30", "p30": "2025-10-27 02:30"}
    rows = [row | {"time": times[row["page"]]} for row in two_days()]
    write_csv(tmp_path / "log.csv", rows)
    prepare(tmp_path, WRITTEN, "split.test_from='2025-10-27'")
    said = "'time' of 2 rows lies in an hour that clocks of Europe/Berlin"
    assert f"{said} show twice: the later one is taken" in caplog.text
    assert f"{said} leave out, such as 2025-03-30 02:30:00: an hour later" in caplog.text


def test_a_zone_that_is_not_known_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", [row | {"time": "2025-06-02 01:00"} for row in two_days()])
    with pytest.raises(DatasetError, match=r"the zone 'Europe/Berln'.*there are.*Europe/Berlin"):
        prepare(tmp_path, WRITTEN, "log.time.zone='Europe/Berln'")


def test_a_zone_and_an_offset_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stands in place of utc_offset, which is set, too"):
        mapping_of(tmp_path, WRITTEN, "log.time.utc_offset=+02:00")


@pytest.mark.parametrize("setting", ["zone='Europe/Berlin'", "utc_offset='+01:00'"])
def test_a_clock_that_nothing_reads_is_refused(tmp_path: Path, setting: str) -> None:
    key = setting.partition("=")[0]
    said = rf"log\.time\.{key} .*has no effect on unit = 's', unless an hour is derived from it"
    with pytest.raises(ConfigError, match=said):
        mapping_of(tmp_path, IMPRESSIONS, f"log.time.{setting}")
    mapping_of(tmp_path, IMPRESSIONS + HOUR, f"log.time.{setting}")
    zoned = ("log.time.unit=text", "log.time.format='%Y-%m-%d %H:%M:%S %z'")
    with pytest.raises(ConfigError, match="has no effect on format = '%Y-%m-%d %H:%M:%S %z'"):
        mapping_of(tmp_path, IMPRESSIONS, *zoned, f"log.time.{setting}")


def test_a_clock_beside_parquet_moments_in_utc_is_refused(tmp_path: Path) -> None:
    rows = [row | {"time": datetime.fromtimestamp(int(row["time"]), UTC)} for row in two_days()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    text = IMPRESSIONS.replace('["log.csv"]', '["log.parquet"]\nformat = "parquet"')
    text = text.replace('unit = "s"', 'unit = "timestamp", zone = "Europe/Berlin"')
    with pytest.raises(DatasetError, match="column 'time' names its zone, so utc_offset and zone"):
        prepare(tmp_path, text)
    assert [row["hour"] for row in prepare(tmp_path, text + HOUR)]
