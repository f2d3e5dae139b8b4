"""Timestamps of a log: as dates, and in which unit they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

_EARLIEST_S, _LATEST_S = 631_152_000, 4_102_444_800  # the years 1990 and 2100
_MS_PER_S = 1000
_UNITS: Mapping[str, int] = {"seconds": 1, "microseconds": 10**6, "nanoseconds": 10**9}
"""Units other than ours, in parts of a second; one moment has another window in each of them."""


def utc(timestamp: int) -> str:
    """A timestamp in ms as date and time; as a number if no calendar has it."""
    try:
        return f"{datetime.fromtimestamp(timestamp / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{timestamp} ms since 1970"


@dataclass
class Clock:
    """What the timestamps of a table look like, added up block by block."""

    count: int = 0
    first: int = 0
    last: int = 0
    before_1990: int = 0
    after_2100: int = 0
    wrong_unit: int = 0
    """Moments of the years 1990 to 2100 in another unit than ms."""
    example: str = ""
    """One of these, in words."""

    def add(self, timestamps: np.ndarray) -> None:
        """Add timestamps, int64."""
        if len(timestamps) == 0:
            return
        low, high = int(timestamps.min()), int(timestamps.max())
        self.first = low if self.count == 0 else min(self.first, low)
        self.last = high if self.count == 0 else max(self.last, high)
        self.count += len(timestamps)
        if _EARLIEST_S * _MS_PER_S <= low and high <= _LATEST_S * _MS_PER_S:
            return
        wrong = np.zeros(len(timestamps), dtype=bool)
        for name, parts in _UNITS.items():
            inside = (timestamps >= _EARLIEST_S * parts) & (timestamps <= _LATEST_S * parts)
            if inside.any() and not self.example:
                found = int(timestamps[np.argmax(inside)])
                self.example = f"{found} in {name} is {utc(found * _MS_PER_S // parts)}"
            wrong |= inside
        self.wrong_unit += int(wrong.sum())
        self.before_1990 += int((~wrong & (timestamps < _EARLIEST_S * _MS_PER_S)).sum())
        self.after_2100 += int((~wrong & (timestamps > _LATEST_S * _MS_PER_S)).sum())
