"""Files of a log and what stands in a column of time or of clicks: parts of a mapping."""

import codecs
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cdp_torchrec.config import Config, ConfigConflicts
from cdp_torchrec.data.prepare.local_time import LocalTime

PRINTED_NOTHING = ("NULL", "null", "<NA>", "NaN", "nan", "None", r"\N")
"""What programs make of a missing value that they print."""
_FARTHEST_MS = 14 * 3_600_000
"""No clock is farther from UTC."""


def moment(text: str) -> int:
    """A date or time as milliseconds since 1970; UTC where it names no offset.

    Raises:
        ValueError: it is none.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            "must be a date or time such as 2017-12-03 or 2017-12-03T00:00:00+08:00"
        ) from error
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _moment(text: str) -> str:
    moment(text)
    return text


def _encoding(name: str) -> str:
    try:
        "".encode(name)  # Python also knows codecs of other things than text, such as base64
        return codecs.lookup(name).name
    except LookupError as error:
        raise ValueError("must be an encoding that Python knows, such as utf-8, gbk") from error


def _pattern(name: str) -> str:
    if any("**" in part and part != "**" for part in PurePath(name).parts):
        raise ValueError("** stands for folders, as in '**/x.csv'; within a name write *")
    return name


Moment = Annotated[str, AfterValidator(_moment)]


class TableConfig(Config):
    """Files that hold one table."""

    files: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(min_length=1)
    """Names, counted from the folder of the log; a `*` stands for any characters, and all files
    that fit are read by name. `x.csv` may lie there as `x.csv.gz` or `x.csv.xz`."""
    format: Literal["csv", "parquet"] = "csv"
    """Text in lines, or parquet; the keys from `delimiter` to `quote` are those of text."""
    delimiter: str = Field(",", min_length=1, max_length=4)
    """Between cells; with several characters quote must be "none"."""
    columns: tuple[str, ...] = ()
    """Names of all columns of files without a header; empty: the first line has them."""
    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8"
    """Name of the encoding, such as gbk."""
    quote: Literal['"', "'", "none"] = '"'
    """Around cells that hold a delimiter; "none": a quotation mark is a character like others."""
    missing: tuple[str, ...] = ()
    """Texts that stand for nothing, such as NULL, in parquet as well; an empty cell of text in
    lines always does."""
    by: Literal["user", "item"] | None = None
    """Whose attributes the table holds, one row each; not set: it is a log."""
    key: str | None = None
    """Column with the user or item of a table of attributes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = []
        for name in ("delimiter", "columns", "encoding", "quote"):
            if self.format == "parquet" and name in self.model_fields_set:
                conflicts.append((name, "has no effect on format = 'parquet'"))
        if len(self.delimiter) > 1 and self.quote != "none":
            conflicts.append(("quote", "must be 'none' where delimiter has several characters"))
        if len(set(self.columns)) != len(self.columns):
            conflicts.append(("columns", "a name occurs twice"))
        if (self.by is None) != (self.key is None):
            conflicts.append(("key", "by and key go together"))
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self


class TimeConfig(Config):
    """A column with moments."""

    column: str
    """Its name."""
    unit: Literal["s", "ms", "us", "ns", "timestamp", "text"]
    """Seconds, milli-, micro- or nanoseconds since 1970; "timestamp": of parquet's own type;
    "text": by `format`."""
    format: str | None = None
    """Of text, in the letters of strptime, such as %d.%m.%Y %H:%M:%S; or "iso8601", such as
    2025-06-01T08:30:00.123+02:00, with or without seconds, their fractions, and a zone."""
    utc_offset: str = Field("+00:00", pattern=r"^[+-]\d\d:[0-5]\d$")
    """Local time of the log: of text and timestamps that name no zone, and of derived hours."""
    zone: str | None = Field(None, min_length=1)
    """In its place, where clocks change with the season: a time zone such as Europe/Berlin. Of the
    hour that autumn repeats the later one is meant."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.unit == "text") != (self.format is not None):
            raise ConfigConflicts([("format", "unit = 'text' needs it, other units have none")])
        if self.zone is not None and "utc_offset" in self.model_fields_set:
            raise ConfigConflicts([("zone", "stands in place of utc_offset, which is set, too")])
        if abs(self._offset_ms) > _FARTHEST_MS:
            raise ConfigConflicts([("utc_offset", "must be from -14:00 to +14:00")])
        return self

    @property
    def names_its_zone(self) -> bool:
        """Whether it leaves no time zone open: it counts from 1970, or each text says its own."""
        in_text = self.format is not None and ("%z" in self.format or "%Z" in self.format)
        return in_text or self.unit in ("s", "ms", "us", "ns")

    @property
    def names_a_clock(self) -> bool:
        """Whether the mapping says which clock is meant."""
        return bool(self.model_fields_set & {"utc_offset", "zone"})

    @property
    def local_time(self) -> LocalTime:
        """The clock of the log."""
        return LocalTime(self._offset_ms, self.zone)

    @property
    def _offset_ms(self) -> int:
        hours, minutes = self.utc_offset[1:].split(":")
        size = (int(hours) * 60 + int(minutes)) * 60_000
        return -size if self.utc_offset[0] == "-" else size


class RowRule(Config):
    """Which rows count."""

    column: str
    """That decides it."""
    above: float | None = None
    """Rows with a number above it, such as 0 for a count of clicks."""
    one_of: tuple[str, ...] = ()
    """Rows with one of these texts."""
    filled: Literal[True] | None = None
    """true: rows in which the column is not empty, and holds an element if it has lists."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [self.above is not None, bool(self.one_of), self.filled is True].count(True) != 1:
            conflict = "exactly one of above, one_of and filled must be set"
            raise ConfigConflicts([("above", conflict)])
        return self
