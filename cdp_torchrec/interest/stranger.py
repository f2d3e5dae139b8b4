"""What a request's history is told from: behaviours of one other user, drawn for it by key."""

# B impressions, S sequences, L behaviours, X behaviours of strangers, M of one that are read

import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.interest.recent_sequence import NextBehaviours, recency
from cdp_torchrec.keyed_random import Stream, keyed_timesteps


def stranger_places(stranger: SequenceIndex, sequence: Tensor, *, count: int) -> Tensor:
    """Places in [0, X) of a stranger's most recent behaviours, X where there is none, int64 [W, M].

    Args:
        stranger: behaviours of all strangers.
        sequence: the sequences that are told from them, int64 [W].
        count: M.
    """
    ends = stranger.lengths.cumsum(0).index_select(0, sequence).unsqueeze(1)
    length = stranger.lengths.index_select(0, sequence).unsqueeze(1)
    back = torch.arange(count, 0, -1, device=ends.device)
    return (ends - back).where(back <= length, stranger.owner.shape[0])


def next_behaviours_beside(
    index: SequenceIndex, stranger: SequenceIndex, *, key: Tensor, length: int
) -> NextBehaviours:
    """Positives, and negatives uniform over the behaviours of the request's stranger.

    Whatever else is in the batch they stay the same, as next_behaviours' do not.

    Args:
        index: the behaviours.
        stranger: those that negatives are places of, X where there are none.
        key: of the behaviours, int64 [L].
        length: only the `length` most recent behaviours of a sequence count.
    """
    count, others = max(index.owner.shape[0], 1), stranger.owner.shape[0]
    order = recency(index)
    offered = stranger.lengths.index_select(0, index.owner)
    end = stranger.lengths.cumsum(0).index_select(0, index.owner)
    draw = keyed_timesteps(key, 2**31, Stream.NEXT_BEHAVIOUR_NEGATIVE) - 1
    negative = (end - 1 - ((draw * offered) >> 31)).where(offered > 0, others)
    positive = (torch.arange(index.owner.shape[0], device=order.device) + 1).clamp(max=count - 1)
    drawn_id = functional.pad(stranger.item_id, (0, 1), value=-1).index_select(0, negative)
    own = is_own_item(drawn_id.unsqueeze(1), index.owner, index).squeeze(1)
    has_next = (order > 0) & (order < length)
    weight = (has_next & (offered > 0) & ~own).to(index.age.dtype)
    return NextBehaviours(positive=positive, negative=negative, weight=weight)


def is_own_item(item_id: Tensor, sequence: Tensor, index: SequenceIndex) -> Tensor:
    """Which items, codes [W, M], are in the history of the sequences [W], bool [W, M]."""
    # Code -1, nothing, becomes a number that no behaviour has.
    return torch.isin((sequence.unsqueeze(1) << 32) + item_id, (index.owner << 32) + index.item_id)


def once_each(item_id: Tensor) -> Tensor:
    """The last place of each code in a row [W, K], bool [W, K]."""
    ordered = item_id.sort(dim=1, stable=True)
    is_last = ordered.values[:, 1:] != ordered.values[:, :-1]
    is_last = functional.pad(is_last, (0, 1), value=True)
    return torch.zeros_like(is_last).scatter(1, ordered.indices, is_last)
