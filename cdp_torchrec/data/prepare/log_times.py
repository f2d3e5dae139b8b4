"""Times of a log, in whatever unit, as milliseconds; what cannot be meant is an error."""

from dataclasses import dataclass
from datetime import UTC, datetime

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.local_time import UTC_CLOCK, LocalTime
from cdp_torchrec.data.schema import EARLIEST_DATE_MS

ISO_8601 = "iso8601"
"""A format of text: what `isoformat()` of Python and most databases write, of any precision.

BigQuery writes " UTC" for the zone, and no fraction where it is zero.
"""
ISO_PATTERN = (
    "[0-9]{4}-[0-9]{2}-[0-9]{2}"
    "([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?(Z| UTC|[+-][0-9]{2}(:?[0-9]{2})?)?)?"
)
"""Regular expression of a whole text of that format: the engine's own casts take more."""
ISO_ZONE = ":[0-9.]+(Z| UTC|[+-][0-9]{2}(:?[0-9]{2})?)$"
"""Regular expression that is found in those that name their zone."""
_LATEST_MS = round(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * 1000
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PER_MS = {"timestamp": 1, "ms": 1, "us": 1000, "ns": 1_000_000}


def milliseconds_of(moment: str) -> str:
    """SQL: milliseconds since 1970 of a TIMESTAMP, rounded down.

    The engine's epoch_ms rounds up from half of one. Rounded in two ways in two files, a click
    could be a behaviour before its own request.
    """
    return f"(epoch_us({moment}) // 1000)"


@dataclass(frozen=True)
class Clock:
    """How a column of text tells the time."""

    column: str
    """What errors call it."""
    sql: str
    """SQL: the column."""
    unit: str
    """s, ms, us, ns, "timestamp" (which is read as ms), or "text"."""
    format: str | None = None
    """Of "text", for strptime; or ISO_8601."""
    local: LocalTime = UTC_CLOCK
    """Of text and timestamps without a zone: their clock."""

    @property
    def milliseconds(self) -> str:
        """SQL: milliseconds since 1970, rounded down; null where it is no time."""
        then = self.local.to_utc(self.wall)
        return f"CASE WHEN {self.is_zoned} THEN {self.wall} ELSE {then} END"

    @property
    def is_zoned(self) -> str:
        """SQL: it says itself how far its clock is ahead of UTC, or counts from 1970."""
        if self.format == ISO_8601:
            return f"regexp_matches({self.sql}, '{ISO_ZONE}')"
        if self.format is not None:
            return "true" if "%z" in self.format or "%Z" in self.format else "false"
        return "false" if self.unit == "timestamp" else "true"

    @property
    def wall(self) -> str:
        """SQL: `milliseconds`, if its clock was that of UTC where it names no zone."""
        if self.format == ISO_8601:
            moment = milliseconds_of(f"try_cast({self.sql} AS TIMESTAMPTZ)")
            fits = f"regexp_full_match({self.sql}, '{ISO_PATTERN}')"
            return f"(CASE WHEN {fits} THEN {moment} END)"
        if self.unit == "text":
            assert self.format is not None
            text = self.format.replace("'", "''")
            # %z reads +00:00, but not the Z that ISO 8601 has for it.
            zoned = (
                f"regexp_replace({self.sql}, 'Z$', '+00:00')" if "%z" in self.format else self.sql
            )
            return milliseconds_of(f"try_strptime({zoned}, '{text}')::TIMESTAMP")
        # By digits: what is divided as a floating point number is off by some milliseconds.
        whole = f"try_cast(split_part({self.sql}, '.', 1) AS HUGEINT)"
        if self.unit == "s":
            part = f"rpad(left(split_part({self.sql}, '.', 2), 3), 3, '0')"
            value = f"{whole} * 1000 + try_cast({part} AS INTEGER)"
        else:
            value = f"{whole} // {_PER_MS[self.unit]}"
        pattern = "-?[0-9]{1,30}([.][0-9]*)?"
        return f"(CASE WHEN regexp_full_match({self.sql}, '{pattern}') THEN {value} END)"

    @property
    def unreadable(self) -> str:
        """What is wrong with a text that is no time."""
        if self.unit == "text":
            return f"'{self.column}' is no time of the form {self.format}"
        return f"'{self.column}' is no number of {_NAMES.get(self.unit, 'milliseconds')}"

    @property
    def is_impossible(self) -> str:
        """SQL: the time lies before 1990 or after 2099."""
        return f"NOT ({self.milliseconds} BETWEEN {EARLIEST_DATE_MS} AND {_LATEST_MS - 1})"

    def impossible(self, value: str) -> str:
        """What is wrong with a time outside of these years: another unit, perhaps."""
        if self.unit in ("text", "timestamp"):
            return f"'{self.column}' is no time from 1990 to 2099: {value}"
        text = f"'{self.column}' is no time from 1990 to 2099 in {_NAMES[self.unit]}: {value}"
        for unit, name in _NAMES.items():
            milliseconds = _milliseconds(int(value.partition(".")[0]), unit)
            if unit != self.unit and EARLIEST_DATE_MS <= milliseconds < _LATEST_MS:
                return f"{text}; in {name} (unit = '{unit}') it is {utc(milliseconds)}"
        return text


def _milliseconds(number: int, unit: str) -> int:
    return number * 1000 if unit == "s" else number // _PER_MS[unit]
