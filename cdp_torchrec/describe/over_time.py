"""Clicks over time, in bins of an hour, a day or a week."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.schema import Split

_HOUR_MS = 3600 * 1000
_WIDTHS = {"hour": _HOUR_MS, "day": 24 * _HOUR_MS, "week": 7 * 24 * _HOUR_MS}
_MOST_BINS = 200


@dataclass(frozen=True)
class TimeBins:
    """Equal stretches of time, whole hours, days or weeks of UTC."""

    first: int
    """Where the first one begins, ms since 1970."""
    width: int
    """ms"""
    number: int
    unit: str
    """What one of them is, in words."""

    def of(self, timestamp: np.ndarray) -> np.ndarray:
        """Bin of each moment."""
        return np.clip((timestamp - self.first) // self.width, 0, self.number - 1)

    @property
    def starts(self) -> np.ndarray:
        """Where each one begins, ms since 1970."""
        return self.first + self.width * np.arange(self.number)


def bins_of(splits: Iterable[Split]) -> TimeBins:
    """The finest bins that are few enough to be seen.

    Args:
        splits: with the first and the last moment of each.
    """
    splits = list(splits)
    low = min(split.first_timestamp for split in splits)
    high = max(split.last_timestamp for split in splits)
    unit, width = next(
        ((unit, width) for unit, width in _WIDTHS.items() if high - low <= _MOST_BINS * width),
        ("", -(-(high - low) // (_MOST_BINS * _WIDTHS["week"])) * _WIDTHS["week"]),
    )
    first = low - low % width
    unit = unit or f"{width // _WIDTHS['week']} weeks"
    return TimeBins(first, width, int((high - first) // width) + 1, unit)


@dataclass
class OverTime:
    """Sums over the requests of a split that lie in each bin."""

    bins: TimeBins
    impressions: np.ndarray = field(init=False)
    clicks: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.impressions = np.zeros(self.bins.number, np.int64)
        self.clicks = np.zeros(self.bins.number, np.int64)

    def add(self, part: Impressions) -> None:
        """Add whole requests."""
        place = self.bins.of(part.request["timestamp"])[part.request_index]
        clicked = part.candidate["label"] == 1
        self.impressions += np.bincount(place, minlength=self.bins.number)
        self.clicks += np.bincount(place[clicked], minlength=self.bins.number)
