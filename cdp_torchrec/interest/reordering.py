"""A view of a history: the same behaviours, some neighbours of them in another order."""

# S sequences, L behaviours

from dataclasses import dataclass, replace

from torch import Tensor

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.interest.recent_sequence import recency
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.keyed_random import Stream, keyed_uniform


@dataclass(frozen=True)
class Reordering:
    """Which behaviour stands at each place of the view."""

    source: Tensor
    """Place of the behaviour that stands there, int64 [L]."""
    may_see_next: Tensor
    """Where the behaviour that comes next in truth may stand earlier in the view, bool [L]."""

    @classmethod
    def of(
        cls, index: SequenceIndex, *, keys: Tensor, key: Tensor, share: float, length: int
    ) -> "Reordering":
        """Draw a window of each sequence and an order in it.

        Args:
            index: the behaviours.
            keys: of the sequences, int64 [S].
            key: of the behaviours, int64 [L].
            share: of a sequence's behaviours that the window holds.
            length: only the `length` most recent behaviours of a sequence count.
        """
        lengths = index.lengths.clamp(max=length)
        count = (lengths * share).floor()
        begin = (keyed_uniform(keys, Stream.REORDERED_WINDOW) * (lengths - count + 1)).floor()
        count, begin, lengths = (x.index_select(0, index.owner) for x in (count, begin, lengths))
        place = lengths - 1 - recency(index)  # Below 0 for what does not count.
        inside = (place >= begin) & (place < begin + count)
        drawn = begin + keyed_uniform(key, Stream.REORDERED_BEHAVIOUR) * count
        rank = drawn.where(inside, place.double())
        # Sequences stay apart: no rank is as large as half of this.
        apart = 2.0 * (index.owner.shape[0] + 1)
        return cls(
            source=(index.owner * apart + rank).argsort(stable=True),
            may_see_next=inside & (place < begin + count - 1),
        )

    def apply(self, sequence: BehaviourSequence) -> BehaviourSequence:
        """The behaviours of a sequence in the order of the view; times stay where they are."""
        return replace(
            sequence,
            item=sequence.item.index_select(0, self.source),
            category=sequence.category.index_select(0, self.source),
            action=sequence.action.index_select(0, self.source),
        )
