"""What encoders of a user's recent behaviours share: order, attention, last state, what is next."""

# B impressions, S sequences, L behaviours, W rows of a block, N its length, H heads, D width

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock, SequenceIndex
from cdp_torchrec.interest.attention import attend_to_past
from cdp_torchrec.interest.eager import always, is_eager_on_cpu
from cdp_torchrec.interest.sequence import BehaviourSequence, present
from cdp_torchrec.keyed_random import Stream, keyed_timesteps

BlockT = TypeVar("BlockT", SequenceBlock, CandidateBlock)


def keep_recent(sequence: BehaviourSequence, length: int) -> BehaviourSequence:
    """The same behaviours, of which blocks show the `length` most recent of each sequence.

    In an exported graph for blocks of any length the others are hidden, not cut off: a cut would
    split it into one for short and one for long blocks.
    """
    index, num_behaviours = sequence.index, sequence.item.shape[0]

    def kept(behaviour: Tensor) -> Tensor:
        width = behaviour.shape[1]
        if always(width >= length):
            return behaviour[:, width - length :]
        if always(width < length):
            return behaviour
        column = torch.arange(width, device=behaviour.device)
        return behaviour.masked_fill(column < width - length, num_behaviours)

    trimmed = replace(
        index,
        sequence_blocks=tuple(
            _joined(
                [replace(block, behaviour=kept(block.behaviour)) for block in index.sequence_blocks]
            )
        ),
        candidate_blocks=tuple(
            _joined(
                [
                    replace(block, behaviour=kept(block.behaviour))
                    for block in index.candidate_blocks
                ]
            )
        ),
    )
    return replace(sequence, index=trimmed)


def only_recent(sequence: BehaviourSequence, length: int) -> BehaviourSequence:
    """As keep_recent, without the behaviours that blocks do not show any more.

    So nothing is computed for them. How many are left depends on the data, which no compiler likes,
    and which a GPU would have to wait for: there the others stay.
    """
    kept = keep_recent(sequence, length)
    index = kept.index
    if not is_eager_on_cpu(kept.item):
        return kept
    shown = recency(index) < length
    place = functional.pad(shown, (0, 1), value=True).cumsum(0) - 1
    places = shown.nonzero().squeeze(1)

    def of_those(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.index_select(0, places)

    def here(behaviour: Tensor) -> Tensor:
        return place.index_select(0, behaviour.flatten()).view_as(behaviour)

    return BehaviourSequence(
        item=kept.item.index_select(0, places),
        category=kept.category.index_select(0, places),
        action=kept.action.index_select(0, places),
        index=replace(
            index,
            item_id=index.item_id.index_select(0, places),
            category_id=index.category_id.index_select(0, places),
            age=index.age.index_select(0, places),
            lengths=index.lengths.clamp(max=length),
            owner=index.owner.index_select(0, places),
            sequence_blocks=tuple(
                replace(block, behaviour=here(block.behaviour)) for block in index.sequence_blocks
            ),
            candidate_blocks=tuple(
                replace(block, behaviour=here(block.behaviour)) for block in index.candidate_blocks
            ),
            size=of_those(index.size),
            attributes=of_those(index.attributes),
        ),
    )


def _joined(blocks: Sequence[BlockT]) -> list[BlockT]:
    """The same rows in the same order, those of neighbours of one shape in one block.

    Blocks of different lengths are of one length once the longest part of them is cut off.
    """
    joined: list[BlockT] = []
    for block in blocks:
        if joined and _shape(joined[-1]) == _shape(block):
            both = {
                field.name: torch.cat([getattr(joined[-1], field.name), getattr(block, field.name)])
                for field in fields(block)
            }
            joined[-1] = replace(block, **both)
        else:
            joined.append(block)
    return joined


def _shape(block: SequenceBlock | CandidateBlock) -> tuple[int, ...]:
    """Sizes of a row of a block."""
    columns = (getattr(block, field.name) for field in fields(block))
    return tuple(size for column in columns for size in column.shape[1:])


def recency(index: SequenceIndex) -> Tensor:
    """How many behaviours of the sequence are more recent, int64 [L]; 0 for the last one."""
    ends = index.lengths.cumsum(0).index_select(0, index.owner)
    return ends - 1 - torch.arange(index.owner.shape[0], device=ends.device)


def last_state(states: Tensor, index: SequenceIndex) -> Tensor:
    """State [L, D] at the last behaviour of each impression's sequence, [B, D]; zeros if empty."""
    last = index.lengths.cumsum(0) - 1
    last = last.where(index.lengths > 0, states.shape[0]).index_select(0, index.sequence)
    return functional.pad(states, (0, 0, 0, 1)).index_select(0, last)


def causal_attention(projected: Tensor, recent: BehaviourSequence, *, num_heads: int) -> Tensor:
    """Each behaviour's attention to itself and those before it, [L, D].

    Args:
        projected: queries, keys and values side by side, [L, 3 D].
        recent: which behaviours form a sequence.
        num_heads: H, a divisor of D.
    """

    def encode(block: SequenceBlock, rows: Tensor) -> Tensor:
        kept = present(block, projected.shape[0])
        queries, keys, values = rows.chunk(3, dim=2)
        return attend_to_past(queries, keys, values, kept, num_heads=num_heads)

    return recent.per_behaviour(encode, projected)


@dataclass(frozen=True)
class NextBehaviours:
    """For each behaviour the one after it, and another user's behaviour to tell it from."""

    positive: Tensor
    """Place of the next behaviour, int64 [L]; any place where there is none."""
    negative: Tensor
    """Place of a behaviour of another sequence, of the batch or drawn for this one, int64 [L]."""
    weight: Tensor
    """1 where there is a next behaviour and the negative is another item, else 0; float [L]."""

    def mean(self, losses: Tensor, index: SequenceIndex) -> Tensor:
        """Mean of losses [L] over each impression's sequence, [B]; 0 without a next behaviour.

        A sequence serves all impressions of its request, and each of them carries its loss: the
        mean over impressions is that of a model that encodes the history once per impression.
        """
        both = torch.stack([losses * self.weight, self.weight], dim=1)
        sums = both.new_zeros(index.lengths.shape[0], 2).index_add(0, index.owner, both)
        return (sums[:, 0] / sums[:, 1].clamp(min=1.0)).index_select(0, index.sequence)


def next_behaviours(index: SequenceIndex, *, key: Tensor, length: int) -> NextBehaviours:
    """Positives and negatives of the next-behaviour loss of DIEN and SASRec.

    Negatives are uniform over the behaviours of the other sequences of this rank's batch, since
    modules own no embedding table: what is popular is drawn often. They follow from the batch
    and its keys alone.

    Args:
        index: the behaviours.
        key: of the impressions, int64 [B].
        length: only the `length` most recent behaviours of a sequence count.
    """
    count = max(index.owner.shape[0], 1)
    order = recency(index)
    place = torch.arange(index.owner.shape[0], device=order.device)
    own = index.lengths.index_select(0, index.owner)
    request_key = key.index_select(0, index.first_impression).index_select(0, index.owner)
    # Own behaviours end at place + order; a step of 1 .. others from there meets all the others.
    draw = keyed_timesteps(request_key + order, 2**31, Stream.NEXT_BEHAVIOUR_NEGATIVE) - 1
    step = 1 + ((draw * (count - own)) >> 31)
    negative = (place + order + step) % count
    positive = (place + 1).clamp(max=count - 1)
    item = index.item_id
    is_other = item.index_select(0, negative) != item.index_select(0, positive)
    has_next = (order > 0) & (order < length)
    # With no other sequence in the batch there is nobody to tell it from.
    weight = (has_next & is_other & (own < count)).to(index.age.dtype)
    return NextBehaviours(positive=positive, negative=negative, weight=weight)
