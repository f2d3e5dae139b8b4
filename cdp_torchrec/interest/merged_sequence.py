"""Groups of adjacent behaviours, counted from the most recent one, and where each group lies.

Groups are aligned to the end of a sequence, so an older behaviour that joins it falls into the
oldest group and leaves every other as it was. What is computed for a group lies in one jagged
tensor [M, ...] for all sequences, as behaviours do.
"""

# R sequences that are not empty, L behaviours, M places of groups, W rows of a block, N its length,
# K behaviours in a group, G groups in a row

from dataclasses import dataclass

import torch
from torch import Tensor

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock, SequenceIndex
from cdp_torchrec.interest.eager import always


@dataclass(frozen=True)
class MergedIndex:
    """Which behaviours make which groups, for the blocks of a SequenceIndex in their order."""

    size: int
    """M, of which a few places stay empty."""
    members: tuple[Tensor, ...]
    """Places in [0, L) of the behaviours of each group, oldest first, int64 [W, G, K] for each
    sequence block; L where there is none."""
    sequence_groups: tuple[Tensor, ...]
    """Places in [0, M) of the groups of each row, oldest first and aligned to the right, int64
    [W, G] for each sequence block; M where there is none."""
    candidate_groups: tuple[Tensor, ...]
    """The same for each candidate block."""


def merge_index(index: SequenceIndex, *, group_size: int) -> MergedIndex:
    """The groups of some sequences.

    Args:
        index: the behaviours, as blocks show them.
        group_size: K.
    """
    num_behaviours = index.owner.shape[0]
    num_filled = sum(block.sequence.shape[0] for block in index.sequence_blocks)
    # The number of groups depends on all lengths, which a compiled graph must not. But newest
    # members of two groups of a sequence lie K places apart at least, and the next sequence gets
    # one place more: so the place of a group follows from that of its newest member.
    size = num_behaviours // group_size + num_filled
    rank = (index.lengths > 0).cumsum(0) - 1

    def members(block: SequenceBlock | CandidateBlock) -> Tensor:
        num_rows, length = block.behaviour.shape
        num_groups = (length + group_size - 1) // group_size
        column = torch.arange(num_groups * group_size, device=rank.device)
        column = column + (length - num_groups * group_size)
        members = block.behaviour.index_select(1, column.clamp(min=0))
        members = members.masked_fill(column < 0, num_behaviours)
        return members.view(num_rows, num_groups, group_size)

    def places(block: SequenceBlock | CandidateBlock, members: Tensor) -> Tensor:
        newest = members[:, :, -1]
        place = newest // group_size + rank.index_select(0, block.sequence).unsqueeze(1)
        return place.masked_fill(newest == num_behaviours, size)

    of_sequences = tuple(members(block) for block in index.sequence_blocks)
    return MergedIndex(
        size=size,
        members=of_sequences,
        sequence_groups=tuple(
            places(block, of_block)
            for block, of_block in zip(index.sequence_blocks, of_sequences, strict=True)
        ),
        candidate_groups=tuple(places(block, members(block)) for block in index.candidate_blocks),
    )


def most_recent(groups: Tensor, count: int, size: int) -> Tensor:
    """The `count` most recent groups of each row, or all, if there are no more.

    In an exported graph for rows of any length always `count`, of which the oldest may be padding:
    a cut would split it into one for short and one for long rows.

    Args:
        groups: places in [0, M), M where there is none, int64 [W, G].
        count: how many.
        size: M.
    """
    width = groups.shape[1]
    if always(width >= count):
        return groups[:, width - count :]
    if always(width < count):
        return groups
    column = torch.arange(count, device=groups.device) + (width - count)
    found = groups.index_select(1, column.clamp(min=0))
    return found.masked_fill(column < 0, size)


def scatter(values: list[Tensor], places: tuple[Tensor, ...], *, size: int) -> Tensor:
    """Values [W, X, D] of the groups at places [W, X] as one jagged tensor, [M, D].

    Args:
        values: for each sequence block.
        places: for each sequence block; M where there is no group.
        size: M.
    """
    rows = torch.cat([value.flatten(0, 1) for value in values])
    jagged = rows.new_zeros(size + 1, rows.shape[1])
    # Padding lands on the extra row.
    return jagged.index_copy(0, torch.cat([place.flatten() for place in places]), rows)[:-1]
