"""One row for each sequence of a batch, for what depends on the sequence as a whole."""

# B impressions, S sequences, R rows (row 0: no behaviours), L behaviours

from dataclasses import dataclass

import torch
from torch import Tensor

from cdp_torchrec.data.sequence_index import SequenceIndex

# Any large odd number: it spreads ids and ages over all bits of the sum that names a sequence.
_KEY_MULTIPLIER = 0x5851F42D4C957F2D


@dataclass(frozen=True)
class SequenceRows:
    """The sequences that are not empty as rows 1, 2, ...; row 0 stands for all empty ones."""

    present: Tensor
    """0 in row 0, 1 in all others, float [R]."""
    of_impression: Tensor
    """Row of each impression, int64 [B]."""
    of_behaviour: Tensor
    """Row of each behaviour, int64 [L]."""
    sequence: Tensor
    """Sequence in each row but row 0, int64 [R - 1]."""
    key: Tensor
    """Names each sequence by its items and ages, int64 [R]: noise keyed by it is the same on every
    rank, in every batch and epoch. A key of an impression would not do: a request may be split
    between batches, and each part would name it otherwise."""

    @classmethod
    def of(cls, index: SequenceIndex) -> "SequenceRows":
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
            sequence=filled,
            key=names.new_zeros(present.shape[0]).index_add(0, of_behaviour, names),
        )
