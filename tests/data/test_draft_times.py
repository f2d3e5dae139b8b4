"""A draft recognises moments in the forms that databases and jobs write."""

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.mapped.draft import draft_mapping
from cdp_torchrec.data.schema import load_schema
from tests.data.test_draft import impressions, parquet_log, prepared

FIRST = datetime(2025, 6, 1, 8, tzinfo=UTC)
MOMENTS = [FIRST + timedelta(minutes=17 * (row // 4)) for row in range(400)]


@pytest.mark.parametrize("kind", [int, str])
@pytest.mark.parametrize("form", ["%Y%m%d%H%M%S", "%Y%m%d"])
def test_moments_in_digits_are_no_numbers(tmp_path: Path, form: str, kind: type) -> None:
    file = parquet_log(tmp_path, ts=[kind(moment.strftime(form)) for moment in MOMENTS])
    time = tomllib.loads(draft_mapping([file], mapping="m.toml"))["log"]["time"]
    assert time == {"column": "ts", "unit": "text", "format": form, "utc_offset": "+00:00"}
    first = load_schema(prepared(tmp_path, file)).splits["train"].first_timestamp
    expected = FIRST if "H" in form else FIRST.replace(hour=0)
    assert first == expected.timestamp() * 1000


def test_numbers_that_are_no_moments_are_none(tmp_path: Path) -> None:
    price = [20_250_101 + row * 7 % 97 for row in range(400)]  # there is no 32nd of January
    file = parquet_log(tmp_path, price=price)
    assert "price" in tomllib.loads(draft_mapping([file], mapping="m.toml"))["features"]


def test_moments_with_their_zone_in_letters_are_read(tmp_path: Path) -> None:
    """BigQuery writes fractions where there are any."""
    texts = [
        f"{moment:%Y-%m-%d %H:%M:%S}{'.25' if row // 4 % 2 else ''} UTC"
        for row, moment in enumerate(MOMENTS)
    ]
    file = parquet_log(tmp_path, ts=texts)
    time = tomllib.loads(draft_mapping([file], mapping="m.toml"))["log"]["time"]
    assert time == {"column": "ts", "unit": "text", "format": "iso8601"}
    span = load_schema(prepared(tmp_path, file)).splits["train"]
    assert span.first_timestamp == FIRST.timestamp() * 1000


def test_a_time_of_day_beside_a_date_is_no_feature(tmp_path: Path) -> None:
    header, *rows = impressions(clicked=["0", "0", "1"]).splitlines()
    lines = [f"{header.replace('ts', 'date')},time"]
    for moment, row in zip(MOMENTS, rows, strict=True):
        cells = row.split(",")
        lines.append(",".join([*cells[:2], f"{moment:%Y-%m-%d}", *cells[3:], f"{moment:%H:%M}"]))
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    text = draft_mapping([tmp_path / "log.csv"], mapping="m.toml")
    assert "# 'time' is left out: it is a time of day, which the moments in 'date' lack" in text
    assert "features" not in tomllib.loads(text)
