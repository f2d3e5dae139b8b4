"""In which forms a model reads the history: what an interest module asks of the data."""

from dataclasses import dataclass, replace
from functools import cached_property

_MS_PER_DAY = 86_400_000


@dataclass(frozen=True)
class HistoryCounts:
    """By what the tower's counts of the gated history are told apart."""

    segments: tuple[int, ...]
    """Sizes of the most recent segments; a last one holds all older behaviours."""
    ages: tuple[float, ...] = ()
    """Ages in days, rising; a last interval holds all older behaviours. (): not by age."""

    @property
    def width(self) -> int:
        """Counts of an impression: in the category and on the item, by recency, then by age."""
        return 2 * (len(self.segments) + 1) + (2 * (len(self.ages) + 1) if self.ages else 0)

    @cached_property
    def ages_ms(self) -> tuple[int, ...]:
        """The ages in milliseconds."""
        return tuple(round(age * _MS_PER_DAY) for age in self.ages)


@dataclass(frozen=True)
class HistoryLookup:
    """In which forms a module wants the history; by default, in none."""

    pool_segments: tuple[int, ...] | None = None
    """Pool the category-gated history by recency: sizes of the most recent segments, a last one
    holds all older behaviours; () is one segment. None: no pooled history."""
    part: bool = False
    """Also a random part of the gated history, pooled, of any size: in training only."""
    whole: bool = False
    """The whole history pooled, whatever the category, in one segment for each request."""
    gated: bool = False
    """The category-gated history as a sequence for each (request, category)."""
    recent: bool = False
    """The whole history as a sequence for each request."""
    recent_length: int | None = None
    """Behaviours kept in `recent`, if fewer than data.history.max_length."""
    domain: bool = False
    """Beside the history, the code of each request's domain, for modules whose weights differ by
    it."""
    clustered: bool = False
    """`recent` holds clusters of behaviours, of all that happened before the request, in place of
    the behaviours."""
    stranger: bool = False
    """Also the recent history of another user, drawn by key for each request and cut like `recent`:
    in training only."""
    graph_changes_beyond: tuple[int, ...] = ()
    """Lengths of `recent` beyond which the module's computation has another form: a search, say,
    starts beyond the number that it keeps."""

    @property
    def served(self) -> "HistoryLookup":
        """The same without what only training reads."""
        return replace(self, part=False, stranger=False)

    @property
    def has_sequences(self) -> bool:
        """Whether behaviours are read one by one."""
        return self.gated or self.recent

    @property
    def num_pool_segments(self) -> int:
        """Segments of the pooled history; 0 without one."""
        return 0 if self.pool_segments is None else len(self.pool_segments) + 1

    def longest_recent(self, max_length: int) -> int:
        """Most behaviours of a sequence in `recent`, given data.history.max_length."""
        return min(self.recent_length or max_length, max_length)

    def longest_sequence(self, max_length: int) -> int | None:
        """Most behaviours of a sequence, given data.history.max_length; None: there is none."""
        if self.gated:
            return max_length
        return self.longest_recent(max_length) if self.recent else None

    def shortest_served(self, max_length: int) -> int:
        """Length to which serving pads sequences in `recent` at least.

        An exported graph has one form: what computes otherwise for long sequences than for short
        ones gets long ones only.

        Args:
            max_length: data.history.max_length.
        """
        longest = self.longest_recent(max_length)
        return 1 + max((n for n in self.graph_changes_beyond if n < longest), default=0)
