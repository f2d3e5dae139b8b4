"""One row for each history of a batch, for what depends on the history as a whole."""

# B impressions, S sequences, R rows (row 0: no behaviours), L behaviours

from dataclasses import dataclass

import torch
from torch import Tensor

from cdp_torchrec.data.sequence_index import SequenceIndex

# Any large odd number: it spreads ids and ages over all bits of the sum that names a history.
_KEY_MULTIPLIER = 0x5851F42D4C957F2D


@dataclass(frozen=True)
class DistinctHistories:
    """The sequences that are not empty as rows 1, 2, ...; row 0 stands for all empty ones."""

    present: Tensor
    """0 in row 0, 1 in all others, float [R]."""
    of_impression: Tensor
    """Row of each impression, int64 [B]."""
    of_behaviour: Tensor
    """Row of each behaviour, int64 [L]."""
    key: Tensor
    """Names each history by its items and ages, int64 [R]: noise keyed by it is the same on every
    rank, in every batch and epoch. A key of an impression would not do: a request may be split
    between batches, and each part would name it otherwise."""

    @classmethod
    def of(cls, index: SequenceIndex) -> "DistinctHistories":
        """Rows of the sequences of a batch."""
        filled = torch.cat([block.sequence for block in index.sequence_blocks])
        present = torch.cat([index.age.new_zeros(1), torch.ones_like(filled, dtype=torch.float32)])
        numbers = torch.arange(1, present.shape[0], device=filled.device)
        row = torch.zeros_like(index.lengths).index_copy(0, filled, numbers)
        of_behaviour = row.index_select(0, index.owner)
        names = (index.item_id ^ index.age.long() * _KEY_MULTIPLIER) * _KEY_MULTIPLIER
        return cls(
            present=present,
            of_impression=row.index_select(0, index.sequence),
            of_behaviour=of_behaviour,
            key=names.new_zeros(present.shape[0]).index_add(0, of_behaviour, names),
        )


def recency_weights(index: SequenceIndex, *, oldest_weight: float) -> Tensor:
    """Weight of each behaviour, [L]: evenly from `oldest_weight` for the oldest to 1 (T-DiffRec).

    The order is that of time. A single behaviour is the newest and weighs 1; in the published code
    it weighs w_min, as the first of a range of one.
    """
    ends = index.lengths.cumsum(0).index_select(0, index.owner)
    newer = ends - 1 - torch.arange(index.owner.shape[0], device=ends.device)
    steps = (index.lengths.index_select(0, index.owner) - 1).clamp(min=1)
    return 1.0 - (1.0 - oldest_weight) * newer.to(index.age.dtype) / steps
