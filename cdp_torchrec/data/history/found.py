"""Histories that were found in the store, with the items of their behaviours."""

# Q histories, K recency segments

from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from cdp_torchrec.data.history.store import Behaviours, Slices


@dataclass(frozen=True)
class FoundHistories:
    """Histories that were found."""

    behaviours: Behaviours
    slices: Slices
    request: np.ndarray
    """Request of each history."""
    before: np.ndarray
    """Moment of each history's request."""
    category: np.ndarray | None
    """Category of each history, if it is gated."""
    whole: "FoundHistories | None" = None
    """The histories whose ends these are."""

    @cached_property
    def _by_segments(self) -> dict[tuple[int, ...], Slices]:
        return {}

    def by_recency(self, segments: tuple[int, ...]) -> Slices:
        """The most recent behaviours in K segments, the last one of all older ones; [K * Q]."""
        found = self._by_segments
        if segments not in found:
            found[segments] = _segments_of(self.slices, segments)
        return found[segments]

    def by_age(self, ages_ms: tuple[int, ...]) -> Slices:
        """The behaviours in K intervals of age, the last one of all older ones; [K * Q].

        Youngest first, as by recency. Exactly as old as an age is not older than it.
        """
        many = len(ages_ms)
        moments = self.before - np.array(ages_ms)[:, None]
        all_of_them = Slices(np.tile(self.slices.start, many), np.tile(self.slices.stop, many))
        older = self.behaviours.before(all_of_them, moments.ravel()).stop
        return Slices(
            np.concatenate([older, self.slices.start]), np.concatenate([self.slices.stop, older])
        )

    def last(self, count: int) -> "FoundHistories":
        """Only the `count` most recent behaviours of each history."""
        return replace(self, slices=self.slices.last(count), whole=self)

    @cached_property
    def items(self) -> np.ndarray:
        """Items of all histories, one after the other, read once."""
        if self.whole is not None:
            return self.whole.items_of(self.slices)
        return np.asarray(self.behaviours.item[self.slices.rows()])

    def items_of(self, part: Slices) -> np.ndarray:
        """Items of K parts of each history, [K * Q] slices."""
        if np.array_equal(part.lengths, self.slices.lengths):
            return self.items
        shift = self.slices.ends - self.slices.stop
        edges = (edge.reshape(-1, len(shift)) + shift for edge in (part.start, part.stop))
        return self.items[Slices(*(edge.ravel() for edge in edges)).rows()]


@cache
def segment_edges(segments: tuple[int, ...]) -> np.ndarray:
    """Where each of K segments begins, counted from the most recent behaviour, [K]."""
    return np.cumsum((0, *segments))


def _segments_of(slices: Slices, segments: tuple[int, ...]) -> Slices:
    """The most recent behaviours in K segments, the last one of all older ones; [K * Q] slices."""
    skipped = segment_edges(segments)[:, None]
    stop = np.maximum(slices.stop - skipped, slices.start)
    start = np.concatenate([stop[1:], slices.start[None]])  # where the older ones stop
    return Slices(start.ravel(), stop.ravel())
