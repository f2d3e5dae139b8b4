"""What a clock on a wall says, and when that is: as SQL, in milliseconds since 1970."""

from dataclasses import dataclass

_HOUR_MS = 3_600_000
_FIRST_MS, _LAST_MS = 0, 4_133_980_800_000
"""The years 1970 to 2100; the law of a zone is asked for no others."""


@dataclass(frozen=True)
class LocalTime:
    """A clock that is always as far ahead of UTC, or goes by the law of a zone.

    Of the hour that autumn repeats it tells the later one; what stands in the hour that spring
    leaves out is an hour later.
    """

    offset_ms: int = 0
    """By how much it is ahead of UTC, without a zone."""
    zone: str | None = None
    """Name of a time zone, such as Europe/Berlin."""

    def to_utc(self, milliseconds: str) -> str:
        """SQL: when a clock says so."""
        if self.zone is None:
            return f"({milliseconds} - {self.offset_ms})"
        moment = f"make_timestamp_ms(try_cast({milliseconds} AS BIGINT))"
        return self._by_law(moment, milliseconds)

    def from_utc(self, milliseconds: str) -> str:
        """SQL: what the clock says then."""
        if self.zone is None:
            return f"({milliseconds} + {self.offset_ms})"
        moment = f"make_timestamptz(1000 * try_cast({milliseconds} AS BIGINT))"
        return self._by_law(moment, milliseconds)

    def is_repeated(self, milliseconds: str) -> str:
        """SQL: then the clock says what it said an hour before."""
        before = self.from_utc(f"({milliseconds} - {_HOUR_MS})")
        return f"({self.from_utc(milliseconds)} = {before})"

    def is_left_out(self, wall: str) -> str:
        """SQL: no such clock ever says so."""
        return f"({self.from_utc(self.to_utc(wall))} <> {wall})"

    def _by_law(self, moment: str, milliseconds: str) -> str:
        """SQL: a moment of UTC on the clock, or the other way round, in milliseconds."""
        assert self.zone is not None
        zone = self.zone.replace("'", "''")
        known = f"{milliseconds} BETWEEN {_FIRST_MS} AND {_LAST_MS}"
        there = f"epoch_ms(timezone('{zone}', {moment}))"
        return f"(CASE WHEN {known} THEN {there} ELSE {milliseconds} END)"


UTC_CLOCK = LocalTime()
