"""A user's behaviours one by one, jagged, and blocks of similar length to compute on.

Behaviours of all sequences of a batch lie one after the other, [L, ...]: what is a function of one
behaviour (a projection, say) is computed there, once, without padding. What relates behaviours to
each other or to candidates is computed in blocks: sequences of similar length, padded to the next
power of two, so that padding never more than doubles the work and no sequence is padded to the
longest of the batch.
"""

# B impressions, S <= B sequences, L behaviours, W rows of a block, N its length,
# C candidates in a row, D width

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.sequence_index import CandidateBlock, SequenceBlock, SequenceIndex


@dataclass(frozen=True)
class BehaviourSequence:
    """Behaviours of the users of a batch, with their embeddings."""

    item: Tensor
    """From the same table as the target item, [L, D]."""
    category: Tensor
    """[L, D_category]; width 0 where the log has no category."""
    action: Tensor
    """Action type (click, view ...), [L, D_action]; width 0 where the log has none."""
    index: SequenceIndex

    def per_candidate(self, attend: Callable[[CandidateBlock], Tensor]) -> Tensor:
        """Results in the order of impressions, [B, ...].

        Args:
            attend: [W, C, ...] of a block; called for every block.
        """
        parts = [attend(block).flatten(0, 1) for block in self.index.candidate_blocks]
        return torch.cat(parts).index_select(0, self.index.place)

    def per_behaviour(self, encode: Callable[[SequenceBlock], Tensor]) -> Tensor:
        """Results in the order of behaviours, [L, D].

        Args:
            encode: [W, N, D] of a block; called for every block. Empty sequences are in none.
        """
        return self.in_order([encode(block) for block in self.index.sequence_blocks])

    def in_order(self, of_blocks: Sequence[Tensor]) -> Tensor:
        """What blocks hold, in the order of behaviours, [L, D]; zeros for one that is in none.

        Args:
            of_blocks: [W, N, D] of every sequence block.
        """
        places = torch.cat([block.behaviour.flatten() for block in self.index.sequence_blocks])
        values = torch.cat([block.flatten(0, 1) for block in of_blocks])
        encoded = values.new_zeros(self.item.shape[0] + 1, values.shape[1])
        # Padding lands on the extra row.
        return encoded.index_copy(0, places, values)[:-1]

    def sum(self, values: Tensor) -> Tensor:
        """Sum of values [L, D] over each sequence, [S, D]; zeros for an empty one."""
        totals = values.new_zeros(self.index.lengths.shape[0], values.shape[1])
        return totals.index_add(0, self.index.owner, values)


def gather(values: Tensor, places: Tensor) -> Tensor:
    """Rows of values [X, D] at places [W, N], [W, N, D]; zeros where a place is X (padding)."""
    padded = functional.pad(values, (0, 0, 0, 1))
    return padded.index_select(0, places.flatten()).view(*places.shape, values.shape[1])


def present(block: SequenceBlock | CandidateBlock, num_behaviours: int) -> Tensor:
    """Where a block holds a behaviour and no padding, bool [W, N]."""
    return block.behaviour < num_behaviours


def masked_softmax(scores: Tensor, mask: Tensor, *, dim: int = -1) -> Tensor:
    """Softmax over the places where `mask` holds; zeros, not NaN, where it holds nowhere."""
    scores = scores.masked_fill(~mask, -torch.inf)
    peak = scores.amax(dim=dim, keepdim=True).detach()
    weights = (scores - peak.masked_fill(peak == -torch.inf, 0.0)).exp()
    return weights / weights.sum(dim=dim, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
