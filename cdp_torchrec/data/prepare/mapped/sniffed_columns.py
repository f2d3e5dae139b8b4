"""A column of a log's file by a sample of its values: numbers, lists of ids, moments."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdp_torchrec.data.prepare.log_times import ISO_8601, ISO_PATTERN, ISO_ZONE

_INTEGER = re.compile(r"-?[0-9]+")
NUMBER = re.compile(r"-?[0-9]*[.]?[0-9]+([eE][-+]?[0-9]+)?")
"""A text that is a number, with a decimal point if any."""
_COMMA_NUMBER = re.compile(r"-?[0-9]+(,[0-9]+)?")
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(,[0-9]{3})*([.][0-9]+)?")
_BRACKETS = re.compile(r"\[.*\]|\{.*\}|\(.*\)", re.DOTALL)
_TIME_OF_DAY = re.compile(r"[0-2]?[0-9]:[0-5][0-9](:[0-5][0-9]([.][0-9]+)?)?")
_DAY_S = 86_400
_ID_NAME = re.compile("(^|[^A-Za-z])[Ii][Dd]s?$|[a-z]I[Dd]s?$")
_PART = r"[\w.:-]*"
_LIST_PARTS = dict.fromkeys("|;, ", _PART) | {"_": f"{_PART}[0-9]{_PART}"}  # new_york is one name
_UNITS = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
_DIGITS = {"%Y%m%d%H%M%S": 14, "%Y%m%d": 8}
_EARLIEST_S, _LATEST_S = 631_152_000, 4_102_444_800  # the years 1990 and 2100
FORMATS = (
    "%Y-%m-%d",
    ISO_8601,
    "%Y-%m-%d %H:%M:%S",  # as ISO 8601, but for zeros that are left out
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
)
"""Forms of moments that are recognised, the first that fits counts."""


@dataclass(frozen=True, eq=False)
class SniffedColumn:
    """A column, by a sample of its values; the same only if it is this very one."""

    name: str
    values: Sequence[Any]
    """Texts, or lists of them; None where nothing is."""
    is_timestamp: bool = False
    """It has parquet's type for moments."""
    fractions: str = ""
    """Kind of its numbers, if it has one of parquet's types for those with a fraction: no ids."""

    @property
    def there(self) -> list[Any]:
        """The values that are not missing."""
        return [value for value in self.values if value is not None]

    @property
    def is_list(self) -> bool:
        """Whether it has lists."""
        return any(isinstance(value, list) for value in self.values)

    @property
    def is_integer(self) -> bool:
        """Whether all values are whole numbers."""
        return self._all(_INTEGER)

    @property
    def is_number(self) -> bool:
        """Whether all values are numbers."""
        return self._all(NUMBER)

    @property
    def numbers(self) -> list[str]:
        """The values that are numbers."""
        return [value for value in self.there if NUMBER.fullmatch(value)]

    @property
    def has_decimal_commas(self) -> bool:
        """Whether its values can be numbers with a decimal comma; pairs of ids can be, too."""
        return self._all(_COMMA_NUMBER) and any("," in value for value in self.there)

    @property
    def has_thousands(self) -> bool:
        """Whether its values are numbers with commas between thousands, and points in some."""
        return self._all(_THOUSANDS) and all(
            any(mark in value for value in self.there) for mark in ",."
        )

    @property
    def is_time_of_day(self) -> bool:
        """Whether its values say when on a day, and not on which."""
        return self._all(_TIME_OF_DAY)

    @property
    def is_days(self) -> bool:
        """Whether its moments are days: all of them are at one time of day."""
        return len({second % _DAY_S for second in self.as_seconds() if not math.isnan(second)}) == 1

    @property
    def is_in_brackets(self) -> bool:
        """Whether its values are lists as programs print them, such as [7, 9]."""
        return self._all(_BRACKETS) and any(re.search("[, ]", value) for value in self.there)

    @property
    def num_distinct(self) -> int:
        """Different values."""
        return len({str(value) for value in self.there})

    def _all(self, pattern: re.Pattern[str]) -> bool:
        there = self.there
        return bool(there) and not self.is_list and all(map(pattern.fullmatch, there))

    def separator(self) -> str | None:
        """What stands between the elements of its texts, if they look like lists of ids."""
        there = self.there[:2000]
        if self.is_list or self.is_number or self.moment():
            return None
        for separator, part in _LIST_PARTS.items():
            cut = [value.split(separator) for value in there]
            several = sum(len(parts) > 1 for parts in cut)
            if several > 0.3 * len(cut) and all(re.fullmatch(part, p) for c in cut for p in c):
                return separator
        return None

    def moment(self) -> tuple[str, str | None] | None:
        """Unit and strptime format, if its values can be moments from 1990 to 2099."""
        if self.is_timestamp:
            return "timestamp", None
        there = self.there[:2000]
        # Ids may have as many digits as moments.
        if self.is_list or not there or (self.is_number and _ID_NAME.search(self.name)):
            return None
        if self.is_number:
            middle = sorted(map(float, there))[len(there) // 2]
            fitting = [u for u, n in _UNITS.items() if _EARLIEST_S * n <= middle < _LATEST_S * n]
            return (fitting[0], None) if fitting else self._moment_in_digits()
        for form in FORMATS:
            if all(_has_form(value, form) for value in there[:200]):
                return "text", form
        return None

    def _moment_in_digits(self) -> tuple[str, str] | None:
        for form, size in _DIGITS.items():
            if all(len(value) == size and _has_form(value, form) for value in self.there):
                return "text", form
        return None

    @property
    def names_zones(self) -> bool:
        """Whether all its moments say how far from UTC their clock is."""
        return self.moment() == ("text", ISO_8601) and all(
            re.search(ISO_ZONE, value) for value in self.there
        )

    def as_seconds(self) -> list[float]:
        """Its moments in seconds since 1970, NaN where there is none."""
        found = self.moment()
        assert found is not None
        unit, form = found
        return [float("nan") if v is None else _seconds(v, unit, form) for v in self.values]


def has_any_form(text: str) -> bool:
    """Whether a text is a moment in one of FORMATS."""
    return any(_has_form(text, form) for form in FORMATS)


def _has_form(text: str, form: str) -> bool:
    try:
        return 1990 <= _moment(text, form).year < 2100
    except ValueError:
        return False


def _moment(text: str, form: str) -> datetime:
    if form != ISO_8601:
        return datetime.strptime(text, form)
    if not re.fullmatch(ISO_PATTERN, text):
        raise ValueError(f"{text!r} is not of ISO 8601")  # Python reads more of it than we do
    return datetime.fromisoformat(re.sub(" UTC$", "Z", text))


def _seconds(value: str, unit: str, form: str | None) -> float:
    if unit in _UNITS:
        return float(value) / _UNITS[unit]
    try:
        time = _moment(value, form) if form else datetime.fromisoformat(value)
    except ValueError:
        return float("nan")
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def groups(columns: Sequence[SniffedColumn]) -> Iterator[list[int]]:
    """Row numbers of rows that are equal in some columns."""
    found: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(zip(*(map(str, c.values) for c in columns), strict=True)):
        found.setdefault(key, []).append(row)
    yield from found.values()
