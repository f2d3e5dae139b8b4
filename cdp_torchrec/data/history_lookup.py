"""In which forms a model reads the history: what an interest module asks of the data."""

from dataclasses import dataclass, replace


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
    graph_changes_beyond: int | None = None
    """Longest `recent` for which the module's computation has the same form: a search, say, starts
    beyond the number that it keeps. None: all have the same."""

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

    def served_recent_length(self, max_length: int) -> int | None:
        """Length to which serving pads every sequence in `recent`; None: to that of the longest.

        An exported graph has one form: what computes otherwise for long sequences than for short
        ones always gets the longest possible.

        Args:
            max_length: data.history.max_length.
        """
        longest, same_up_to = self.longest_recent(max_length), self.graph_changes_beyond
        return None if same_up_to is None or longest <= same_up_to else longest
