"""Times of a log: the same millisecond in whatever form they are written."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare.local_time import LocalTime
from cdp_torchrec.data.prepare.log_times import Clock
from cdp_torchrec.data.prepare.raw_tables import load_table
from cdp_torchrec.data.prepare.table_config import TableConfig

MOMENT = datetime(2021, 3, 4, 5, 6, 7, 890_000, UTC)
MOMENT_MS = 1_614_834_367_890
ISO = Clock("t", "x", "text", "iso8601", LocalTime(3_600_000))
CLOCKS = {
    "seconds": (Clock("t", "x", "s"), "1614834367.89", MOMENT_MS),
    "whole seconds": (Clock("t", "x", "s"), "1614834367", MOMENT_MS - 890),
    "milliseconds": (Clock("t", "x", "ms"), f"{MOMENT_MS}.0", MOMENT_MS),
    "microseconds": (Clock("t", "x", "us"), f"{MOMENT_MS}999", MOMENT_MS),
    "nanoseconds": (Clock("t", "x", "ns"), f"{MOMENT_MS}999999", MOMENT_MS),
    "text": (
        Clock("t", "x", "text", "%d.%m.%y %H:%M:%S.%g", LocalTime(3_600_000)),
        "04.03.21 06:06:07.890",
        MOMENT_MS,
    ),
    "text, microseconds": (
        Clock("t", "x", "text", "%Y-%m-%d %H:%M:%S.%f"),
        "2021-03-04 05:06:07.890999",
        MOMENT_MS,
    ),
    "zone": (
        Clock("t", "x", "text", "%Y-%m-%d %H:%M:%S %z", LocalTime(3_600_000)),
        "2021-03-04 03:06:07 -0200",
        MOMENT_MS - 890,
    ),
    "iso": (ISO, "2021-03-04T05:06:07.890", MOMENT_MS - 3_600_000),
    "iso, microseconds and a zone": (ISO, "2021-03-04T10:36:07.890999+05:30", MOMENT_MS),
    "iso, nanoseconds": (ISO, "2021-03-04 05:06:07.890999999Z", MOMENT_MS),
    "iso, a short zone": (ISO, "2021-03-04T03:06:07-02", MOMENT_MS - 890),
    "iso, minutes": (ISO, "2021-03-04 05:06+0000", MOMENT_MS - 7_890),
    "iso, a zone in letters": (ISO, "2021-03-04 05:06:07.890999 UTC", MOMENT_MS),
    "iso, another zone in letters": (ISO, "2021-03-04 05:06:07 CET", None),
    "iso, a date": (ISO, "2021-03-04", MOMENT_MS - 5 * 3_600_000 - 367_890 - 3_600_000),
    "iso, no such day": (ISO, "2021-02-30T05:06:07", None),
    "iso, no zeros": (ISO, "2021-3-4 05:06:07", None),
    "iso, slashes": (ISO, "2021/03/04 05:06:07", None),
    "iso, a word": (ISO, "infinity", None),
    "exponent": (Clock("t", "x", "ms"), "1.6e12", None),
    "word": (Clock("t", "x", "s"), "now", None),
    "other form": (Clock("t", "x", "text", "%Y-%m-%d"), "04.03.2021", None),
}


def test_moments_are_read_in_any_unit_and_form() -> None:
    assert round(MOMENT.timestamp() * 1000) == MOMENT_MS
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET TimeZone = 'UTC'")
    for clock, text, expected in CLOCKS.values():
        query = f"SELECT {clock.milliseconds} FROM (SELECT ? AS x)"
        assert connection.execute(query, [text]).fetchall() == [(expected,)], text


@pytest.mark.parametrize("zone", [None, "UTC", "+02:00"])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_moments_of_parquet_are_rounded_down_as_all_others(
    tmp_path: Path, unit: str, zone: str | None
) -> None:
    """Else a click of iso text is behaviour before its own request of a timestamp[us]."""
    digits = {"ms": 0, "us": 3, "ns": 6}[unit]
    moment = MOMENT_MS * 10**digits + 10**digits - 1
    table = pa.table({"t": pa.array([moment], pa.timestamp(unit, zone))})
    pq.write_table(table, tmp_path / "log.parquet")
    files = TableConfig(files=("log.parquet",), format="parquet")
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET TimeZone = 'UTC'")
    column = load_table(connection, "raw", files, tmp_path, {"t": False}).sql("t")
    assert connection.execute(f"SELECT {column} FROM raw").fetchall() == [(str(MOMENT_MS),)]
