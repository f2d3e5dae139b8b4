"""One row for each sequence of a batch, for what depends on the sequence as a whole."""

# B impressions, S sequences, R rows (row 0: no behaviours), L behaviours

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.keyed_random import shared_key


def sequence_keys(
    key: Tensor, item_id: Tensor, index: SequenceIndex, *, group: Tensor | None = None
) -> Tensor:
    """Names the request and epoch of each sequence, int64 [S], whichever impressions are here.

    Args:
        key: of the impressions, int64 [B].
        item_id: in those keys, int64 [B].
        index: sequences of requests.
        group: what else tells sequences of one request apart, such as the category of gated ones,
            int64 [B].
    """
    shared = shared_key(key, item=item_id, group=torch.zeros_like(key) if group is None else group)
    return shared.index_select(0, index.first_impression)


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

    @classmethod
    def of(cls, index: SequenceIndex) -> "SequenceRows":
        """Rows of the sequences of a batch."""
        filled = torch.cat([block.sequence for block in index.sequence_blocks])
        present = torch.cat([index.age.new_zeros(1), torch.ones_like(filled, dtype=torch.float32)])
        numbers = torch.arange(1, present.shape[0], device=filled.device)
        row = torch.zeros_like(index.lengths).index_copy(0, filled, numbers)
        of_behaviour = row.index_select(0, index.owner)
        return cls(
            present=present,
            of_impression=row.index_select(0, index.sequence),
            of_behaviour=of_behaviour,
            sequence=filled,
        )

    def keys(self, of_sequences: Tensor) -> Tensor:
        """Keys of sequences, int64 [S], as those of their rows, [R]; 0 in row 0."""
        return functional.pad(of_sequences.index_select(0, self.sequence), (1, 0))
