"""Behaviours before the requests of a split: how many, how long ago, and whether none is later."""

from dataclasses import dataclass, field

import numpy as np

from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.prepare.split_figures import Lengths
from cdp_torchrec.data.request_files import Impressions

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000
AGES = {
    "1 s": _SECOND,
    "10 s": 10 * _SECOND,
    "1 min": _MINUTE,
    "10 min": 10 * _MINUTE,
    "1 h": _HOUR,
    "6 h": 6 * _HOUR,
    "1 day": _DAY,
    "1 week": 7 * _DAY,
    "30 days": 30 * _DAY,
}
"""Bounds of the time between the last behaviour and the request, ms; older ones come last."""


@dataclass
class Histories:
    """Sums over the requests of a split."""

    store: BehaviourSource
    lengths: Lengths = field(default_factory=Lengths)
    gated: Lengths = field(default_factory=Lengths)
    """Behind the category gate, one for each impression whose user has a history."""
    ages: np.ndarray = field(default_factory=lambda: np.zeros(len(AGES) + 1, np.int64))
    """Requests by the time since the last behaviour."""
    requests: int = 0
    miscounted: int = 0
    """Requests whose `history_length` is not the number of behaviours strictly before them."""
    same_moment: int = 0
    """Requests with behaviours of the same millisecond, which do not count."""
    clicks: int = 0
    clicked_before: int = 0
    """Clicks on an item that the user has touched before."""
    clicked_last: int = 0
    """Clicks on the item touched last."""
    clicked_last_within_1_s: int = 0
    """The same, touched less than a second before the request."""

    def add(self, part: Impressions, *, category: str | None) -> None:
        """Add whole requests.

        Args:
            part: the requests.
            category: the feature of the gate, if there is one.
        """
        user, before = part.request["user_id"], part.request["timestamp"]
        behaviours, slices = self.store.recent(user, before)
        _, through = self.store.recent(user, before + 1)
        lengths = slices.lengths
        self.lengths.add(lengths)
        self.requests += len(lengths)
        self.miscounted += int((lengths != part.request["history_length"]).sum())
        self.same_moment += int((through.lengths > lengths).sum())
        known = lengths > 0
        age = np.full(len(lengths), np.iinfo(np.int64).max)
        age[known] = before[known] - np.asarray(behaviours.timestamp[slices.stop[known] - 1])
        bounds = np.array(list(AGES.values()))
        place = np.searchsorted(bounds, age[known], side="right")
        self.ages += np.bincount(place, minlength=len(self.ages))
        index, rank = part.request_index, part.candidate["history_rank"]
        is_click = part.candidate["label"] == 1
        is_last = is_click & (rank == 0)
        self.clicks += int(is_click.sum())
        self.clicked_before += int((is_click & (rank >= 0)).sum())
        self.clicked_last += int(is_last.sum())
        self.clicked_last_within_1_s += int((is_last & (age[index] < _SECOND)).sum())
        if category is not None:
            rows = known[index]
            owner = index[rows]
            _, gated = self.store.gated(user[owner], part.candidate[category][rows], before[owner])
            self.gated.add(gated.lengths)
