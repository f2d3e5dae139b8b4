"""A user's behaviours one by one, jagged, and blocks of similar length to compute on.

Behaviours of all sequences of a batch lie one after the other, [L, ...]: what is a function of one
behaviour (a projection, say) is computed there, once, without padding. What relates behaviours to
each other or to candidates is computed in blocks: sequences of similar length and number of
candidates, as many blocks as cost the least (data/history/sequence_index.py).
"""

# B impressions, S <= B sequences, L behaviours, W rows of a block, N its length,
# C candidates in a row, D width

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock, SequenceIndex


@dataclass(frozen=True)
class BehaviourSequence:
    """Behaviours of the users of a batch, with their embeddings."""

    item: Tensor
    """From the same table as the target item, [L, D]."""
    category: Tensor
    """[L, D_category]; width 0 where the log has no category."""
    action: Tensor
    """What was done: the action type (click, view ...), then the attributes of the behaviour (dwell
    time, price, tags), [L, D_action]; width 0 where the log has none."""
    index: SequenceIndex
    """Whose behaviours they are, as from `data.history.sequence_index.index_sequences`."""

    def per_candidate(self, attend: Callable[..., Tensor], *of_blocks: Sequence[Any]) -> Tensor:
        """Results in the order of impressions, [B, ...].

        Args:
            attend: [W, C, ...] of a block; called for every block, with its share of `of_blocks`.
            of_blocks: something for each candidate block, as from `candidates` and `behaviours`.
        """
        blocks = zip(self.index.candidate_blocks, *of_blocks, strict=True)
        parts = [attend(*block).flatten(0, 1) for block in blocks]
        return torch.cat(parts).index_select(0, self.index.place)

    def candidates(self, values: Tensor) -> list[Tensor]:
        """Rows of values [B, D] for the candidates of each candidate block, [W, C, D]."""
        return gather_each(values, [block.impression for block in self.index.candidate_blocks])

    def behaviours(self, values: Tensor) -> list[Tensor]:
        """Rows of values [L, D] for the behaviours of each candidate block, [W, N, D]."""
        return gather_each(values, [block.behaviour for block in self.index.candidate_blocks])

    def per_behaviour(
        self, encode: Callable[..., Tensor], values: Tensor, *of_blocks: Sequence[Any]
    ) -> Tensor:
        """Results in the order of behaviours, [L, A].

        Args:
            encode: [W, N, A] of a block; called for every block, with the block, the values of its
                behaviours [W, N, D] and its share of `of_blocks`. Empty sequences are in none.
            values: of the behaviours, [L, D].
            of_blocks: something for each sequence block.
        """
        blocks = self.index.sequence_blocks
        rows = gather_each(values, [block.behaviour for block in blocks])
        return self.in_order([encode(*some) for some in zip(blocks, rows, *of_blocks, strict=True)])

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


def gather_each(values: Tensor, places: Sequence[Tensor]) -> list[Tensor]:
    """As gather, for several sets of places: one pass over values, and one over their gradient."""
    rows = gather(values, torch.cat([p.flatten() for p in places]).unsqueeze(0)).squeeze(0)
    parts = rows.split([p.numel() for p in places])
    return [part.unflatten(0, p.shape) for part, p in zip(parts, places, strict=True)]


def present(block: SequenceBlock | CandidateBlock, num_behaviours: int) -> Tensor:
    """Where a block holds a behaviour and no padding, bool [W, N]."""
    return block.behaviour < num_behaviours


def masked_softmax(scores: Tensor, mask: Tensor, *, dim: int = -1) -> Tensor:
    """Softmax over the places where `mask` holds; zeros, not NaN, where it holds nowhere."""
    weights = (scores + excluded(mask, scores.dtype)).softmax(dim=dim)
    return weights * mask.any(dim=dim, keepdim=True)


def excluded(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What added to scores leaves out the places where `mask` does not hold, 0 where it does.

    It is finite: a softmax over nothing is uniform, not NaN.
    """
    lowest = torch.finfo(dtype).min / 2
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest)
