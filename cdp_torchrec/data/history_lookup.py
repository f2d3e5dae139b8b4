"""In which forms a model reads the history: what an interest module asks of the data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HistoryLookup:
    """In which forms a module wants the history; by default, in none."""

    pool_segments: tuple[int, ...] | None = None
    """Pool the category-gated history by recency: sizes of the most recent segments, a last one
    holds all older behaviours; () is one segment. None: no pooled history."""
    gated: bool = False
    """The category-gated history as a sequence for each (request, category)."""
    recent: bool = False
    """The whole history as a sequence for each request."""
    recent_length: int | None = None
    """Behaviours kept in `recent`, if fewer than data.history.max_length."""

    @property
    def num_pool_segments(self) -> int:
        """Segments of the pooled history; 0 without one."""
        return 0 if self.pool_segments is None else len(self.pool_segments) + 1
